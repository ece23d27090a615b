"""Fixtures and helpers shared by all tests."""

import functools
import importlib
import json
import logging
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch

ROOT = pathlib.Path(__file__).parents[1]
DATA = pathlib.Path(__file__).parent / 'data'
sys.path.insert(0, str(ROOT))
pytest_plugins = ['tiers']
# with one thread, sums have the same order everywhere, and small tensors are fastest
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Skip tests marked `gpu` if PyTorch finds no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker('gpu'):
                item.add_marker(pytest.mark.skip(reason='needs a CUDA device'))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Escape file names that are not UTF-8 in printed text, which pytest-xdist cannot send."""
    report = yield
    report.sections = [
        (name, text.encode(errors='backslashreplace').decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def _seed():
    """Start every test with the same seed, so that results do not depend on other tests."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _log_levels():
    """Log from level INFO on, and restore the levels: commands set them for the whole process."""
    from absl import logging as absl_logging

    disabled, verbosity = logging.root.manager.disable, absl_logging.get_verbosity()
    level = logging.getLogger().level
    absl_logging.set_verbosity(absl_logging.INFO)
    yield
    logging.disable(disabled)
    logging.getLogger().setLevel(level)
    absl_logging.set_verbosity(verbosity)


@pytest.fixture(params=['ve', 'vp', 'subvp'])
def sde(request):
    """Return each SDE of the library, with its defaults."""
    import sde_lib

    return {'ve': sde_lib.VESDE, 'vp': sde_lib.VPSDE, 'subvp': sde_lib.subVPSDE}[request.param]()


@pytest.fixture
def fake_gpu(monkeypatch):
    """`fake_devices.fake_device` for a test, skipped where PyTorch has no fake CUDA tensors."""
    import fake_devices

    if reason := fake_devices.why_not():
        pytest.skip(f'PyTorch {torch.__version__} has no fake CUDA tensors here: {reason}')
    return functools.partial(fake_devices.fake_device, monkeypatch)


@pytest.fixture(scope='module')
def target():
    """Return a mixture of three Gaussians in the plane."""
    import oracles

    return oracles.planar_mixture()


def parity(name: str) -> dict:
    """Load the arrays of a reference file in tests/data, by key."""
    with np.load(DATA / f'{name}.npz') as file:
        return dict(file)


def relative_error(value, reference) -> float:
    """Return max |value - reference| / max |reference|; the divisor is 1 if the maximum is 0.

    Shapes must be equal.
    """
    value, reference = (
        np.asarray(v.detach() if isinstance(v, torch.Tensor) else v, np.float64)
        for v in (value, reference)
    )
    assert value.shape == reference.shape, f'shape {value.shape}, expected {reference.shape}'
    return float(np.abs(value - reference).max() / (np.abs(reference).max() or 1))


def load_config(module: str, data=(), **model):
    """Load the config of a module such as 'configs.ve.cifar10_ncsnpp', on the CPU, with changes.

    Args:
        module: name of the module.
        data: values that replace those of `config.data`.
        model: values that replace those of `config.model`.
    """
    config = importlib.import_module(module).get_config()
    config.device = 'cpu'
    with config.unlocked(), config.ignore_type():
        config.data.update(dict(data))
        config.model.update(model)
    return config


def digits_config(sde: str, method: str, **settings):
    """Return the config of a small digits network with the SDE `sde` and the sampler `method`."""
    config = load_config(
        {
            've': 'configs.ve.digits_ncsnpp_continuous',
            'vp': 'configs.vp.digits_ddpmpp_classes',
            'subvp': 'configs.subvp.digits_ddpmpp_continuous',
        }[sde]
    )
    steps = 200 if method in ('pc', 'ode') else 20
    config.sampling.update(method=method, steps=steps, **settings)
    return config


def reference_config(name: str):
    """Return the config for a reference file, which contains a module name and changes to it."""
    changes = json.loads(str(parity(name)['config']))
    module = changes.pop('base')
    model = dict(nf=32 if name == 'net_ddpm_vp' else 8, dropout=0.0)
    data = {}
    for key, value in changes.items():
        section, key = (
            (data, key.removeprefix('data').lstrip('_.'))
            if key.startswith('data')
            else (model, key.removeprefix('model.'))
        )
        section[key] = value
    return load_config(module, data, **model)


@pytest.fixture(scope='session')
def saved_model(tmp_path_factory):
    """Save a SavedModel with the signature of TF-GAN's Inception; return its folder and network.

    It accepts images in [-1, 1] of any size and returns 'logits' and 'pool_3': fixed random
    projections of the image, resized to 299 x 299 and reduced to 4 x 4.
    """
    from runtime.tensorflow import tensorflow

    tf = tensorflow()

    class Network(tf.Module):
        def __init__(self):
            generator = np.random.default_rng(1)
            self.weights = {
                key: tf.Variable(generator.standard_normal((48, n)).astype(np.float32) / 7)
                for key, n in (('pool_3', 2048), ('logits', 1008))
            }

        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])
        def __call__(self, x):
            tf.debugging.assert_less_equal(tf.abs(x), 1.0)
            x = tf.reshape(
                tf.image.resize(tf.image.resize(x, (299, 299)), (4, 4), method='area'), (-1, 48)
            )
            return {key: x @ weight for key, weight in self.weights.items()}

    path, network = tmp_path_factory.mktemp('inception'), Network()
    tf.saved_model.save(network, str(path))
    return str(path), network


def trained(config, workdir, numbers=(1,)):
    """Write snapshots of untrained networks with the given numbers."""
    import checkpoints
    import run_lib

    config.model.update(nf=8, num_res_blocks=1, num_scales=25)
    for number in numbers:
        torch.manual_seed(number)
        checkpoints.save(checkpoints.snapshot_path(workdir, number), run_lib.create_state(config))


@pytest.fixture(scope='session')
def place(tmp_path_factory):
    """Return a folder with colour pictures and work directories of the networks of `control_runs`.

    The networks are trained for five steps.
    """
    import run_lib
    from control_runs import CONFIGS, pictures, written

    place = tmp_path_factory.mktemp('runs')
    written(place / 'pictures', pictures(40))
    for name, make in CONFIGS.items():
        train = run_lib.train_classifier if name == 'classifier' else run_lib.train
        train(make(place), place / name)
    return place


@pytest.fixture
def unregistered(monkeypatch):
    """Undo all registrations of the test when it ends."""
    import datasets
    import sampling
    import sde_lib
    import solvers
    from control.measurements import MEASUREMENTS
    from models.utils import MODELS

    for registry in (
        sde_lib.SDES,
        MODELS,
        sampling.PREDICTORS,
        sampling.CORRECTORS,
        solvers.SOLVERS,
        MEASUREMENTS,
    ):
        monkeypatch.setattr(registry, '_classes', dict(registry._classes))
    monkeypatch.setattr(datasets, 'SOURCES', dict(datasets.SOURCES))


@pytest.fixture
def example(unregistered):
    """Return the config of examples/own_process.py, on the CPU, with its classes registered."""
    from commands import command_line

    config = command_line.load_config(str(ROOT / 'examples' / 'own_process.py'))
    config.device = 'cpu'
    return config


def run_main(workdir, mode, *arguments, config='configs/vp/digits_ddpmpp_continuous.py'):
    """Run `main.py` in a separate process, with one thread."""
    return subprocess.run(
        [
            sys.executable,
            'main.py',
            '--config',
            config,
            '--workdir',
            str(workdir),
            '--mode',
            mode,
            *arguments,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
    )
