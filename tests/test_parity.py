"""SDEs, losses, samplers, likelihoods and resampling give the numbers of the 2021 PyTorch release.

The reference numbers are in tests/data. They were computed in float32 on a CPU, those of NCSN and
NCSNv2 with the original code. Random numbers are drawn here in the same order as in the release, so
the same seeds give the same draws.
"""

import numpy as np
import pytest
import torch

import likelihood
import losses
import sampling
from conftest import parity, relative_error
from models import layers
from models import up_or_down_sampling as resampling
from models import utils as mutils
from op import upfirdn2d
from oracles import identity
from sde_lib import VESDE, VPSDE, expand, subVPSDE

# for single formulas, networks, updates: float32 rounding if operations are reordered
TOLERANCE = 1e-5
TRAJECTORY = 1e-4  # for a thousand updates
SOLVER = 1e-3  # an adaptive solver with rtol = atol = 1e-5 may choose other steps

SDES = {
    've': VESDE(0.01, 50, N=1000),
    'vp': VPSDE(0.1, 20, N=1000),
    'subvp': subVPSDE(0.1, 20, N=1000),
}


def sde_cases(file: str, wanted=lambda key: True):
    """Return (SDE name, key) for every wanted array of the files `file`_ve, _vp and _subvp."""
    return [(name, key) for name in SDES for key in parity(f'{file}_{name}') if wanted(key)]


class ExactNetwork(torch.nn.Module):
    """The network of the reference numbers: it has the exact score of data from N(0.3, 0.5^2)."""

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
    # sqrt(1 - beta) x - x has the rounding error of x
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


def test_all_references_of_resampling_are_used():
    inputs = {key for key in parity('resampling') if key.startswith('kernel_')} | {'x', 'w'}
    assert parity('resampling').keys() == inputs | set(FILTERED) | RESAMPLERS.keys()
