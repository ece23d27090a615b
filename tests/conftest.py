"""Shared by all tests: path, one thread, a fixed seed, reference numbers, relative error."""

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
pytest_plugins = ['tiers']
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
    """Escape file names that are not UTF-8 in printed text, which pytest-xdist cannot send."""
    report = yield
    report.sections = [
        (name, text.encode(errors='backslashreplace').decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def _seed():
    """Draw the same random numbers in every test, alone or after others."""
    torch.manual_seed(0)


def parity(name: str) -> dict:
    """The arrays of a reference file in tests/data, by key."""
    with np.load(DATA / f'{name}.npz') as file:
        return dict(file)


def relative_error(value, reference) -> float:
    """The largest absolute error over the largest reference value, or over 1 if that is zero.

    Shapes must agree.
    """
    value, reference = (
        np.asarray(v.detach() if isinstance(v, torch.Tensor) else v, np.float64)
        for v in (value, reference)
    )
    assert value.shape == reference.shape, f'shape {value.shape}, expected {reference.shape}'
    return float(np.abs(value - reference).max() / (np.abs(reference).max() or 1))


def load_config(module: str, data=(), **model):
    """The config of a module such as 'configs.ve.cifar10_ncsnpp', on the CPU, with changes.

    Args:
        data: other values of `config.data`.
        model: other values of `config.model`.
    """
    config = importlib.import_module(module).get_config()
    config.device = 'cpu'
    with config.unlocked(), config.ignore_type():
        config.data.update(dict(data))
        config.model.update(model)
    return config


def reference_config(name: str):
    """The config of the network in a reference file, which names a module and changes to it."""
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
