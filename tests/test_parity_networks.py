"""Networks, configs and training steps give the numbers of the 2021 PyTorch release."""

import hashlib
import importlib
import json

import numpy as np
import pytest
import torch

import losses
import utils
from conftest import DATA, load_config, parity, reference_config, relative_error
from models import utils as mutils
from models.ema import ExponentialMovingAverage
from sde_lib import get_sde

TOLERANCE = 1e-5  # float32 rounding if operations are reordered
SMALL = dict(nf=8, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(8,), dropout=0.0)


# Networks and configs -----------------------------------------------------------------------------


def reference_network(name):
    config = reference_config(name)
    return mutils.get_model(config.model.name)(config)


@pytest.mark.parametrize('name', sorted(path.stem for path in DATA.glob('net_*.npz')))
def test_network(name):
    reference, network = parity(name), reference_network(name)
    state = {
        key.removeprefix('sd/'): torch.tensor(value)
        for key, value in reference.items()
        if key.startswith('sd/')
    }
    # the order matters too: optimizer states and moving averages are stored by position
    assert list(network.state_dict()) == list(state)
    network.load_state_dict(state)
    network.eval()
    out = network(torch.tensor(reference['x']), torch.tensor(reference['labels']))
    assert relative_error(out, reference['out']) < TOLERANCE

    out.square().mean().backward()
    expected = {
        key.removeprefix('g/'): float(value)
        for key, value in reference.items()
        if key.startswith('g/')
    }
    norms = {
        key: p.grad.norm().item() for key, p in network.named_parameters() if p.grad is not None
    }
    assert norms.keys() == expected.keys()
    assert relative_error([norms[key] for key in expected], list(expected.values())) < TOLERANCE


def test_networks_without_a_reference():
    """Every published class has reference numbers, except NCSNv2_128, made of tested parts."""
    found = {type(reference_network(path.stem)) for path in DATA.glob('net_*.npz')}
    published = {
        cls
        for name in mutils.MODELS.names()
        if isinstance(cls := mutils.get_model(name), type)
        and cls.__module__ in ('models.ddpm', 'models.ncsnpp', 'models.ncsnv2')
    }
    assert {cls.__name__ for cls in published - found} == {'NCSNv2_128'}


with open(DATA / 'configs.json') as _file:
    CONFIGS = json.load(_file)


@pytest.mark.parametrize('name', CONFIGS)
def test_config_values(name):
    """Every published value is unchanged; keys that we added may have any value."""
    config = importlib.import_module(name).get_config()
    ours = {}
    for key in CONFIGS[name]['config']:
        value = config
        for part in key.split('.'):
            value = value.get(part, 'missing')
        ours[key] = list(value) if isinstance(value, tuple) else value
    assert ours == CONFIGS[name]['config']


@pytest.mark.parametrize('name', [name for name in CONFIGS if 'keys' in CONFIGS[name]])
def test_config_network(name):
    """All parameters have the published names and shapes, on the meta device without weights."""
    config = importlib.import_module(name).get_config()
    with torch.device('meta'):
        network = mutils.get_model(config.model.name)(config)
    state = network.state_dict()
    assert len(state) == CONFIGS[name]['keys']
    assert sum(p.numel() for p in network.parameters()) == CONFIGS[name]['parameters']
    lines = '\n'.join(f'{key} {tuple(state[key].shape)}' for key in sorted(state))
    assert (
        hashlib.sha256(lines.encode()).hexdigest()
        == CONFIGS[name]['sha256_of_sorted_key_shape_lines']
    )


# Training -----------------------------------------------------------------------------------------


def small_training(**optim):
    """Config, training state and step function of a small NCSN++ for the continuous VE SDE."""
    config = load_config('configs.ve.cifar10_ncsnpp_continuous', dict(image_size=16), **SMALL)
    config.optim.update(optim)
    model = mutils.create_model(config)
    state = dict(
        model=model,
        optimizer=losses.get_optimizer(config, model.parameters()),
        ema=ExponentialMovingAverage(model.parameters(), decay=config.model.ema_rate),
        step=0,
    )
    step_fn = losses.get_step_fn(
        get_sde(config),
        train=True,
        optimize_fn=losses.optimization_manager(config),
        reduce_mean=False,
        continuous=True,
        likelihood_weighting=False,
    )
    return config, state, step_fn


def test_official_checkpoint():
    """A checkpoint of the release after 25 steps has the same weights, averages and next step."""
    _, state, step_fn = small_training()
    reference = parity('official_ve_checkpoint_outputs')
    returned = utils.restore_checkpoint(DATA / 'official_ve_checkpoint.pth', state, 'cpu')
    model, ema = state['model'], state['ema']
    assert returned is state and state['step'] == reference['step']
    assert [name for name, _ in model.named_parameters()] == list(reference['param_names'])

    model.eval()
    x, labels = torch.tensor(reference['x']), torch.tensor(reference['labels'])
    assert relative_error(model(x, labels), reference['raw_out']) < TOLERANCE
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    assert relative_error(model(x, labels), reference['ema_out']) < TOLERANCE
    ema.restore(model.parameters())

    torch.manual_seed(99)
    loss = step_fn(state, torch.tensor(reference['next_batch']))
    assert relative_error(loss, reference['next_loss']) < TOLERANCE
    assert state['optimizer'].param_groups[0]['lr'] == pytest.approx(
        float(reference['lr']), rel=1e-12
    )


def test_training():
    """Four training steps have the published losses, weights and averages."""
    reference = parity('train_ve')
    config, state, step_fn = small_training(warmup=2)
    model = state['model']
    initial = subset(reference, 'sd0/')
    model.load_state_dict({f'module.{key}': torch.tensor(v) for key, v in initial.items()})
    state['ema'] = ExponentialMovingAverage(model.parameters(), decay=config.model.ema_rate)

    values = []
    for i, batch in enumerate(reference['x']):
        torch.manual_seed(7 + 60 + i)
        values.append(step_fn(state, torch.tensor(batch)).item())
    assert relative_error(values, reference['losses']) < TOLERANCE

    tensors = {name.removeprefix('module.'): value for name, value in model.state_dict().items()}
    trained = [name for name, p in model.module.named_parameters() if p.requires_grad]
    expected = subset(reference, 'sd/')
    for name in tensors.keys() - set(trained):
        assert relative_error(tensors[name], expected[name]) < TOLERANCE, name
    averages = subset(reference, 'ema/')
    assert len(averages) == len(state['ema'].shadow_params) == len(trained)

    bound = 2 * len(values) * config.optim.lr
    weights = {name: tensors[name].detach() for name in trained}
    check_trained(weights, {name: expected[name] for name in trained}, initial, bound)
    ours = dict(zip(trained, state['ema'].shadow_params))
    check_trained(ours, {name: averages[str(i)] for i, name in enumerate(trained)}, initial, bound)


def subset(arrays: dict, prefix: str) -> dict:
    """Return the arrays whose keys have a prefix, by the rest of the key."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def check_trained(ours: dict, expected: dict, initial: dict, bound: float):
    """Compare trained weights by name, and their changes since the beginning.

    The bias of the keys shifts all attention weights of a query equally, so its gradient is zero
    except for rounding. Adam turns even this gradient into steps of the size of the learning rate.
    For this bias, the test only checks that the difference is below `bound`.
    """
    loose = {name for name in ours if name.endswith('NIN_1.b')}
    assert loose
    for name in loose:
        assert np.abs(ours[name].detach().numpy() - expected[name]).max() < bound, name
    value, reference, start = (
        np.concatenate([np.ravel(source[name]) for name in ours if name not in loose])
        for source in ({k: v.detach() for k, v in ours.items()}, expected, initial)
    )
    assert relative_error(value, reference) < TOLERANCE
    # the steps are small, so their differences are compared as well
    assert np.linalg.norm(value - reference) < 1e-3 * np.linalg.norm(reference - start)
