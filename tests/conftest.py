"""What the tests share: the library on the path, one thread, a fixed seed, the reference numbers
and a measure of distance to them.
"""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest
import torch

ROOT = pathlib.Path(__file__).parents[1]
DATA = pathlib.Path(__file__).parent / 'data'
sys.path.insert(0, str(ROOT))
# sums are then added in one order everywhere, and small tensors are fastest
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Skip tests marked `gpu` where PyTorch sees no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker('gpu'):
                item.add_marker(pytest.mark.skip(reason='needs a CUDA device'))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Escape names of files that are not UTF-8 in what a test printed: pytest-xdist cannot send
    them.
    """
    report = yield
    report.sections = [
        (name, text.encode(errors='backslashreplace').decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def _seed():
    """Every test draws the same random numbers, alone or behind others."""
    torch.manual_seed(0)


def parity(name: str) -> dict:
    """The arrays of a reference file in tests/data, by key."""
    with np.load(DATA / f'{name}.npz') as file:
        return dict(file)


def relative_error(value, reference) -> float:
    """The largest absolute error over the largest reference value (or over 1 where the reference is
    zero); shapes must agree.
    """
    value, reference = (
        np.asarray(v.detach() if isinstance(v, torch.Tensor) else v, np.float64)
        for v in (value, reference)
    )
    assert value.shape == reference.shape, f'shape {value.shape}, expected {reference.shape}'
    return float(np.abs(value - reference).max() / (np.abs(reference).max() or 1))


def load_config(module: str, data=(), **model):
    """The config of a module such as 'configs.ve.cifar10_ncsnpp', on the CPU, with other values of
    `data` (a dict) and `model`.
    """
    config = importlib.import_module(module).get_config()
    config.device = 'cpu'
    with config.unlocked(), config.ignore_type():
        config.data.update(dict(data))
        config.model.update(model)
    return config


def reference_config(name: str):
    """The config of the network in a reference file: a module, and changes to its sections `model`
    and `data`.
    """
    changes = json.loads(str(parity(name)['config']))
    module, model, data = (
        changes.pop('base'),
        dict(nf=32 if name == 'net_ddpm_vp' else 8, dropout=0.0),
        {},
    )
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
    """A SavedModel with the signature of TF-GAN's Inception: its folder, and the network.

    It takes images in [-1, 1], of any size, to 'logits' and 'pool_3': fixed random projections of
    the image at 299 x 299, reduced to 4 x 4.
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
