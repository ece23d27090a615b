"""Agreement with the numbers of the 2021 PyTorch release (NCSN and NCSNv2: of their originals),
float32 on a CPU, in tests/data.

The release draws its random numbers in a certain order; with the same seeds the same draws must
come out here.
"""

import hashlib
import importlib
import json

import numpy as np
import pytest
import torch

import likelihood
import losses
import sampling
import utils
from conftest import DATA, load_config, parity, reference_config, relative_error
from models import layers
from models import up_or_down_sampling as resampling
from models import utils as mutils
from models.ema import ExponentialMovingAverage
from op import upfirdn2d
from sde_lib import VESDE, VPSDE, expand, get_sde, subVPSDE

# single formulas, networks, updates: what float32 leaves when operations are reordered
TOLERANCE = 1e-5
TRAJECTORY = 1e-4  # a thousand steps of them
SOLVER = 1e-3  # an adaptive solver with rtol = atol = 1e-5 may choose other steps

SDES = {
    've': VESDE(0.01, 50, N=1000),
    'vp': VPSDE(0.1, 20, N=1000),
    'subvp': subVPSDE(0.1, 20, N=1000),
}
SMALL = dict(nf=8, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(8,), dropout=0.0)


def sde_cases(file: str, wanted=lambda key: True):
    """(SDE's name, key) for every wanted array of the files `file`_ve, _vp and _subvp."""
    return [(name, key) for name in SDES for key in parity(f'{file}_{name}') if wanted(key)]


class ExactNetwork(torch.nn.Module):
    """The network whose score is that of N(0.3, 0.5^2) data under an SDE, as the reference was made
    with it.
    """

    def __init__(self, sde):
        super().__init__()
        self.sde = sde

    def forward(self, x, labels):
        if isinstance(self.sde, VESDE):
            return -(x - 0.3) / (0.25 + expand(labels, x) ** 2)
        mean, std = self.sde.marginal_prob(torch.ones_like(x), labels / 999)
        std = expand(std, x)
        return std * (x - 0.3 * mean) / (0.25 * mean**2 + std**2)


# SDEs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name, key', sde_cases('sde', lambda key: key not in ('x', 't')))
def test_sde_formulas(name, key):
    sde, reference = SDES[name], parity(f'sde_{name}')
    x, t = torch.tensor(reference['x']), torch.tensor(reference['t'])
    value = {}
    value['drift'], value['diffusion'] = sde.sde(x, t)
    value['mean'], value['std'] = sde.marginal_prob(x, t)
    value['prior_logp'] = sde.prior_logp(x)
    value['f'], value['G'] = sde.discretize(x, t)
    for flow in (False, True):
        reverse = sde.reverse(lambda x, t: -x / (1 + expand(t, x)), flow)
        value[f'rev_drift_{flow}'], diffusion = reverse.sde(x, t)
        value[f'rev_f_{flow}'], value[f'rev_G_{flow}'] = reverse.discretize(x, t)
        if not flow:
            value['rev_diffusion'] = diffusion
    # sqrt(1 - beta) x - x has that of x
    rounding = 2**-23 * np.abs(reference['x']).max() * ('f' in key.split('_'))
    error = np.abs(value[key].numpy() - reference[key]).max()
    assert (
        value[key].shape == reference[key].shape
        and error <= TOLERANCE * np.abs(reference[key]).max() + rounding
    )


@pytest.mark.parametrize('name', SDES)
def test_score(name):
    sde, reference = SDES[name], parity(f'update_{name}')
    score_fn = mutils.get_score_fn(sde, ExactNetwork(sde), continuous=True)
    assert (
        relative_error(
            score_fn(torch.tensor(reference['x']), torch.tensor(reference['t'])), reference['score']
        )
        < TOLERANCE
    )


@pytest.mark.parametrize('name, key', sde_cases('update', lambda key: key.endswith('_x')))
def test_update(name, key):
    sde, reference = SDES[name], parity(f'update_{name}')
    score_fn = mutils.get_score_fn(sde, ExactNetwork(sde), continuous=True)
    step = key.removesuffix('_x')
    if '_pf' in step:
        predictor, _, flow = step.partition('_pf')
        update, seed = sampling.get_predictor(predictor)(sde, score_fn, flow == 'True'), 7 + 21
    else:
        update, seed = sampling.get_corrector(step)(sde, score_fn, 0.16, 2), 7 + 22
    torch.manual_seed(seed)
    x, x_mean = update.update_fn(torch.tensor(reference['x']), torch.tensor(reference['t']))
    assert relative_error(x, reference[key]) < TOLERANCE
    assert relative_error(x_mean, reference[f'{step}_mean']) < TOLERANCE


@pytest.mark.parametrize('name, key', sde_cases('loss', lambda key: key != 'x'))
def test_loss(name, key):
    sde, reference = SDES[name], parity(f'loss_{name}')
    if key.startswith('sde_'):
        seed, network = 7 + 11, ExactNetwork(sde)
        loss_fn = losses.get_sde_loss_fn(
            sde, train=False, reduce_mean='meanTrue' in key, likelihood_weighting='lwTrue' in key
        )
    elif key == 'smld':
        seed, loss_fn = 7 + 12, losses.get_smld_loss_fn(sde, train=False)

        def network(y, labels):
            return -y * (1 + expand(labels, y)) / 1000
    else:
        seed, loss_fn = 7 + 13, losses.get_ddpm_loss_fn(sde, train=False)

        def network(y, labels):
            return y * (1 + expand(labels, y)) / 1000

    torch.manual_seed(seed)
    assert (
        relative_error(loss_fn(network, torch.tensor(reference['x'])), reference[key]) < TOLERANCE
    )


def identity(x):
    return x


@pytest.mark.parametrize('name, key', sde_cases('trajectory', lambda key: key.startswith('pc_')))
def test_predictor_corrector_trajectory(name, key):
    sde, reference = SDES[name], parity(f'trajectory_{name}')[key]
    predictor, _, corrector = key.removeprefix('pc_').rpartition('_')
    sampler = sampling.get_pc_sampler(
        sde,
        reference.shape,
        sampling.get_predictor(predictor),
        sampling.get_corrector(corrector),
        identity,
        0.16,
        continuous=True,
        eps=sde.sampling_eps,
        device='cpu',
    )
    torch.manual_seed(7 + 31)
    assert relative_error(sampler(ExactNetwork(sde))[0], reference) < TRAJECTORY


@pytest.mark.parametrize('name', SDES)
def test_ode_sampler(name):
    sde, reference = SDES[name], parity(f'trajectory_{name}')['ode']
    sampler = sampling.get_ode_sampler(
        sde, reference.shape, identity, eps=sde.sampling_eps, device='cpu'
    )
    torch.manual_seed(7 + 32)
    assert relative_error(sampler(ExactNetwork(sde))[0], reference) < SOLVER


@pytest.mark.parametrize('probe', ['Rademacher', 'Gaussian'])
@pytest.mark.parametrize('name', SDES)
def test_likelihood(name, probe):
    sde, reference = SDES[name], parity(f'trajectory_{name}')
    likelihood_fn = likelihood.get_likelihood_fn(sde, identity, probe)
    torch.manual_seed(7 + 33)
    bpd, z, _ = likelihood_fn(ExactNetwork(sde), torch.tensor(reference['data']))
    assert relative_error(bpd, reference[f'bpd_{probe}']) < SOLVER
    assert relative_error(z, reference[f'z_{probe}']) < SOLVER


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
    # names and order: optimizer states and moving averages go by position
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
    """Every class of the published releases has a file, but for NCSNv2_128, whose parts and their
    order are tested in test_networks.py.
    """
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
    """Every published value; keys that we added are free."""
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
    """The published network to the last shape; on the meta device, which gives shapes without
    numbers.
    """
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
    """A file that the release wrote, 25 steps into a training: its weights, their average, and the
    very next step.
    """
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
    """Four steps of training: every loss, then weights and averages."""
    reference = parity('train_ve')
    config, state, step_fn = small_training(warmup=2)
    model = state['model']
    model.load_state_dict(
        {
            'module.' + key.removeprefix('sd0/'): torch.tensor(v)
            for key, v in reference.items()
            if key.startswith('sd0/')
        }
    )
    state['ema'] = ExponentialMovingAverage(model.parameters(), decay=config.model.ema_rate)

    values = []
    for i, batch in enumerate(reference['x']):
        torch.manual_seed(7 + 60 + i)
        values.append(step_fn(state, torch.tensor(batch)).item())
    assert relative_error(values, reference['losses']) < TOLERANCE

    names = [
        name.removeprefix('module.') for name, p in model.named_parameters() if p.requires_grad
    ]
    tensors = {key.removeprefix('module.'): value for key, value in model.state_dict().items()}
    for key in tensors.keys() - set(names):
        assert relative_error(tensors.pop(key), reference[f'sd/{key}']) < TOLERANCE, key
    trained = {f'sd/{name}': tensors[name] for name in names}
    averages = {f'ema/{i}': average for i, average in enumerate(state['ema'].shadow_params)}
    assert len(averages) == len(names) == len([key for key in reference if key.startswith('ema/')])

    # The bias of the keys shifts all attention weights of a query alike, so its gradient is zero
    # but for rounding. Adam makes steps of the size of the learning rate even from that: there only
    # the size is determined.
    loose = {
        key
        for i, name in enumerate(names)
        if name.endswith('NIN_1.b')
        for key in (f'sd/{name}', f'ema/{i}')
    }
    assert loose
    for values in (trained, averages):
        ours, expected, start = (
            np.concatenate(
                [
                    np.ravel(source(key, name))
                    for key, name in zip(values, names)
                    if key not in loose
                ]
            )
            for source in (
                lambda key, name, values=values: values[key].detach(),
                lambda key, name: reference[key],
                lambda key, name: reference[f'sd0/{name}'],
            )
        )
        assert relative_error(ours, expected) < TOLERANCE
        # the steps are small: they themselves agree too
        assert np.linalg.norm(ours - expected) < 1e-3 * np.linalg.norm(expected - start)
        for key in loose & values.keys():
            assert (
                np.abs(values[key].detach().numpy() - reference[key]).max()
                < 2 * len(reference['x']) * config.optim.lr
            ), key


# Resampling ---------------------------------------------------------------------------------------


FILTERED = [
    key for key in parity('resampling') if key.startswith('k') and not key.startswith('kernel_')
]


@pytest.mark.parametrize('key', FILTERED)
def test_upfirdn2d(key):
    reference = parity('resampling')
    kernel, up, down, pad = key.split('_', 3)
    value = upfirdn2d(
        torch.tensor(reference['x']),
        torch.tensor(reference[f'kernel_{kernel}']),
        up=int(up.removeprefix('up')),
        down=int(down.removeprefix('down')),
        pad=tuple(int(v) for v in pad.removeprefix('pad').split('_')),
    )
    assert relative_error(value, reference[key]) < TOLERANCE


RESAMPLERS = {
    'upsample_2d': lambda x, w: resampling.upsample_2d(x, (1, 3, 3, 1)),
    'downsample_2d': lambda x, w: resampling.downsample_2d(x, (1, 3, 3, 1)),
    'naive_up': lambda x, w: resampling.naive_upsample_2d(x),
    'naive_down': lambda x, w: resampling.naive_downsample_2d(x),
    'conv_downsample_2d': lambda x, w: resampling.conv_downsample_2d(x, w, (1, 3, 3, 1)),
    'timestep_embedding': lambda x, w: layers.get_timestep_embedding(
        torch.tensor([0, 1, 10.5, 999]), 32
    ),
}


@pytest.mark.parametrize('key', RESAMPLERS)
def test_resampling(key):
    reference = parity('resampling')
    assert (
        relative_error(
            RESAMPLERS[key](torch.tensor(reference['x']), torch.tensor(reference['w'])),
            reference[key],
        )
        < TOLERANCE
    )


def test_no_reference_of_resampling_is_left_out():
    inputs = {key for key in parity('resampling') if key.startswith('kernel_')} | {'x', 'w'}
    assert parity('resampling').keys() == inputs | set(FILTERED) | RESAMPLERS.keys()
