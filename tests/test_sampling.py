"""Calls of samplers: number of evaluations, seeds, scaling, devices, dtypes and configs."""

import itertools
import math

import ml_collections
import pytest
import torch
from torch import nn

import sampling
from oracles import SDES, ExactNetwork, identity, level, pc_sampler, planar_mixture
from sampling import (
    CORRECTORS,
    PREDICTORS,
    get_ode_sampler,
    get_pc_sampler,
    get_predictor,
    get_sampling_fn,
)
from sde_lib import VPSDE

SEED = 0


@pytest.mark.parametrize('denoise', [False, True])
def test_ode_counts_every_evaluation(denoise, target):
    sde = VPSDE(N=30)
    network = ExactNetwork(sde, target)
    sampler = get_ode_sampler(sde, (2, 2), identity, denoise=denoise)
    torch.manual_seed(0)
    _, nfe = sampler(network)
    assert nfe == network.calls
    torch.manual_seed(0)
    assert get_ode_sampler(sde, (2, 2), identity, denoise=not denoise)(network)[1] == nfe + (
        -1 if denoise else 1
    )


def test_ode_denoising_is_one_step_without_noise(target):
    """Denoising returns x - f of the reversed chain at eps, where x is the result without it."""
    sde, z = VPSDE(N=1000), torch.tensor([[0.3, -1.0]])
    network = ExactNetwork(sde, target)
    x = get_ode_sampler(sde, (1, 2), identity)(network, z)[0]
    denoised = get_ode_sampler(sde, (1, 2), identity, denoise=True)(network, z)[0]
    beta = 0.1 / 1000
    score = target.score(x, *level(sde, torch.tensor([1e-3])))
    expected = (2 - math.sqrt(1 - beta)) * x + beta * score
    # float32; the time 1e-3 is step 0 of the chain, which has this beta
    torch.testing.assert_close(denoised.double(), expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('method', ['pc', 'ode'])
def test_the_same_seed_gives_the_same_samples(method, target):
    sde = VPSDE(N=30)
    sampler = (
        pc_sampler(sde, 'reverse_diffusion', 'langevin', shape=(4, 2))
        if method == 'pc'
        else get_ode_sampler(sde, (4, 2), identity)
    )
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(sampler(ExactNetwork(sde, target))[0])
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])


def test_the_inverse_scaler_is_applied_at_the_end(target):
    sde, outputs = VPSDE(N=30), []
    for scaler in (identity, lambda x: (x + 1) / 2):
        for sampler in (
            get_pc_sampler(
                sde, (4, 2), get_predictor('euler_maruyama'), None, scaler, 0.15, continuous=True
            ),
            get_ode_sampler(sde, (4, 2), scaler),
        ):
            torch.manual_seed(SEED)
            outputs.append(sampler(ExactNetwork(sde, target))[0])
    assert torch.equal((outputs[0] + 1) / 2, outputs[2]) and torch.equal(
        (outputs[1] + 1) / 2, outputs[3]
    )


class Located(nn.Module):
    """A network with a parameter, and therefore a device."""

    def __init__(self, device):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, device=device))
        self.in_training = []

    def forward(self, x, labels):
        self.in_training.append(self.training)
        assert x.device == labels.device == self.weight.device and not torch.is_grad_enabled()
        return 1e-3 * self.weight * x.tanh()


@pytest.mark.parametrize('corrector', ['none', 'ald', 'langevin'])
@pytest.mark.parametrize('name', SDES)
def test_the_default_device_is_that_of_the_network(name, corrector):
    """Sampling runs on the network's device, in evaluation mode, without gradients.

    The meta device replaces an accelerator: it supports every operation and computes nothing.
    """
    for device in ('cpu', 'meta'):
        network = Located(device).train()
        x, _ = pc_sampler(SDES[name](30), 'euler_maruyama', corrector, shape=(2, 3, 4, 4))(network)
        assert x.device.type == device and x.shape == (2, 3, 4, 4) and not any(network.in_training)
    x, _ = get_ode_sampler(SDES[name](30), (2, 3), identity)(Located('cpu'))
    assert x.device.type == 'cpu' and not x.requires_grad


def config(**sampling):
    settings = dict(
        method='pc',
        predictor='reverse_diffusion',
        corrector='langevin',
        snr=0.15,
        n_steps_each=1,
        probability_flow=False,
        noise_removal=True,
    )
    return ml_collections.ConfigDict(
        dict(sampling=dict(settings, **sampling), training=dict(continuous=True), device='cpu')
    )


def test_a_config_describes_the_sampler(target):
    """For every setting, the sampler of a config equals the sampler that is built by hand."""
    sde = VPSDE(N=30)

    def run(sampler):
        torch.manual_seed(SEED)
        return sampler(ExactNetwork(sde, target))

    by_hand = dict(continuous=True, eps=1e-3)
    pairs = [
        (config(), pc_sampler(sde, 'reverse_diffusion', 'langevin', shape=(4, 2))),
        (
            config(
                method='PC',
                predictor='Euler_Maruyama',
                corrector='NONE',
                probability_flow=True,
                noise_removal=False,
            ),
            pc_sampler(
                sde, 'euler_maruyama', None, shape=(4, 2), probability_flow=True, denoise=False
            ),
        ),
        (
            config(corrector='ald', snr=0.3, n_steps_each=2),
            pc_sampler(sde, 'reverse_diffusion', 'ald', shape=(4, 2), snr=0.3, n_steps=2),
        ),
        (
            config(method='ode'),
            get_ode_sampler(sde, (4, 2), identity, denoise=True, method='dopri5', **by_hand),
        ),
        (
            config(method='ODE', noise_removal=False),
            get_ode_sampler(sde, (4, 2), identity, denoise=False, method='dopri5', **by_hand),
        ),
        (
            config(method='ode', ode_method='dopri5', rtol=1e-3, atol=1e-4),
            get_ode_sampler(
                sde,
                (4, 2),
                identity,
                denoise=True,
                method='dopri5',
                rtol=1e-3,
                atol=1e-4,
                **by_hand,
            ),
        ),
    ]
    outputs = []
    for settings, twin in pairs:
        (x, nfe) = run(get_sampling_fn(settings, sde, (4, 2), identity, 1e-3))
        (exact, exact_nfe) = run(twin)
        assert torch.equal(x, exact) and nfe == exact_nfe
        outputs.append(x)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(outputs, 2))


@pytest.mark.parametrize(
    'key, value', [('method', 'magic'), ('predictor', 'magic'), ('corrector', 'magic')]
)
def test_unknown_names_raise_an_error_with_the_key_and_the_known_names(key, value):
    with pytest.raises(ValueError, match=f'{key}.*(must be one of|known are)') as error:
        get_sampling_fn(config(**{key: value}), VPSDE(), (4, 2), identity, 1e-3)
    assert 'magic' in str(error.value)
    for known in dict(
        method=['pc', 'ode'], predictor=PREDICTORS.names(), corrector=CORRECTORS.names()
    )[key]:
        assert known in str(error.value)


def test_an_unknown_ode_method_raises_an_error():
    sde = VPSDE()
    with pytest.raises(ValueError, match='RK45'):
        get_ode_sampler(sde, (1, 2), identity, method='euler')(ExactNetwork(sde, planar_mixture()))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_samples_have_the_dtype_of_the_network(dtype):
    class Network(torch.nn.Linear):
        def forward(self, x, labels):
            return super().forward(x)

    net, sde = Network(2, 2, dtype=dtype), VPSDE(N=30)
    pc = sampling.get_pc_sampler(
        sde, (5, 2), sampling.EulerMaruyamaPredictor, None, lambda x: x, 0.1, continuous=True
    )
    ode = sampling.get_ode_sampler(sde, (5, 2), lambda x: x, rtol=1e-2, atol=1e-2)
    assert pc(net)[0].dtype == ode(net)[0].dtype == dtype
