"""Devices without float64, such as MPS, give the results of the CPU in training and sampling."""

import pytest
import torch

import control
import likelihood
import losses
from commands import preflight
from conftest import load_config
from control import latents
from control.measurements import downsampling
from models import utils as mutils
from models.ema import ExponentialMovingAverage
from models.score import Score
from runtime import distributed
from runtime.errors import UserError
from runtime.randomness import own_randomness
from sampling import Options
from sde_lib import get_sde
from stand_in import Held, without_float64
from test_modes import CASES, SDES, SHAPE, network, sampled
from test_networks import TINY


def on_both(run, model, monkeypatch):
    """Return the results of run(model, device) on the CPU and on the device without float64."""
    results = []
    torch.manual_seed(3)
    results.append(run(model, 'cpu'))
    with without_float64(monkeypatch) as device:
        torch.manual_seed(3)
        result = run(model.to(device), device)
        assert all(isinstance(value, Held) for value in result)
        results.append([value.cpu() for value in result])
    return results


def test_the_device_has_no_float64(monkeypatch):
    with without_float64(monkeypatch) as device:
        x = torch.rand(3, device=device)
        assert torch.equal((x + x).cpu(), 2 * x.cpu()) and x.device.type == device
        for wrong in (
            x.double,
            lambda: x + torch.rand(3),
            lambda: torch.zeros(3, dtype=torch.float64, device=device),
            lambda: torch.zeros(3, dtype=torch.float64).to(device),
        ):
            with pytest.raises(TypeError):
                wrong()


@pytest.mark.parametrize('kind, name', CASES)
def test_samplers(kind, name, monkeypatch):
    ours, theirs = on_both(
        lambda model, device: [sampled(kind, name, model)], network(kind), monkeypatch
    )
    assert torch.equal(theirs[0], ours[0])


@pytest.mark.parametrize('continuous', [True, False])
@pytest.mark.parametrize('kind', ['ve', 'vp'])
def test_training(kind, continuous, monkeypatch):
    """Three steps give equal losses, parameters and EMA weights, and an equal loss of these."""
    module = {'ve': 'configs.ve.cifar10_ncsnpp', 'vp': 'configs.vp.cifar10_ddpmpp'}[
        kind
    ] + '_continuous' * continuous

    def run(model, device):
        # no dropout, because its masks differ between devices
        config = load_config(module, dict(image_size=8), **TINY, num_scales=30)
        config.optim.warmup = 0
        torch.manual_seed(0)
        with torch.device('cpu'):
            network = mutils.create_model(config).to(device)
        state = dict(
            model=network,
            optimizer=losses.get_optimizer(config, network.parameters()),
            step=0,
            ema=ExponentialMovingAverage(network.parameters(), decay=0.9),
        )
        setting = dict(reduce_mean=True, continuous=continuous)
        step_fn = losses.get_step_fn(
            get_sde(config), True, losses.optimization_manager(config), accumulation=2, **setting
        )
        found = [step_fn(state, torch.rand(SHAPE, device=device)) for _ in range(3)]
        found.append(
            losses.get_step_fn(get_sde(config), False, **setting)(
                state, torch.rand(SHAPE, device=device)
            )
        )
        return [*found, *network.parameters(), *state['ema'].shadow_params]

    ours, theirs = on_both(run, torch.nn.Identity(), monkeypatch)
    # rounding, amplified by Adam, which divides by small numbers
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize('kind', SDES)
@pytest.mark.parametrize('method', ['RK45', 'dopri5'])
def test_likelihood(kind, method, monkeypatch):
    def run(model, device):
        options = likelihood.Options(
            hutchinson_type='Gaussian', rtol=1.0, atol=1.0, method=method, probes=2
        )
        x = torch.rand(SHAPE, device=device)
        return likelihood.log_likelihood(
            Score(model, SDES[kind]), x, lambda y: (y + 1) / 2, options=options
        )[:5]

    ours, theirs = on_both(run, network(kind), monkeypatch)
    assert all(map(torch.equal, theirs, ours))


@pytest.mark.parametrize('kind', SDES)
def test_codes_and_measurements(kind, monkeypatch):
    def run(model, device):
        model = Score(model, SDES[kind])
        x = torch.rand(SHAPE, device=device)
        half = downsampling(8, 8, 2)
        codes = [
            latents.encode(model, x, options)[0]
            for options in (Options(method='ode', rtol=1.0, atol=1.0), Options(steps=3))
        ]
        pc = Options(
            method='pc', predictor='reverse_diffusion', corrector='langevin', snr=0.1, eps=1e-2
        )
        return [*codes, control.sample_measured(model, half, half(x), pc, consistency=1.0)[0]]

    ours, theirs = on_both(run, network(kind), monkeypatch)
    assert all(map(torch.equal, theirs, ours))


def test_a_missing_device_raises_a_one_line_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    config = load_config('configs.vp.digits_ddpmpp_continuous')
    config.device = 'mps'
    with pytest.raises(UserError) as error:
        preflight.check(config, tmp_path, 'sample')
    assert (
        str(error.value)
        == "config.device is 'mps', but PyTorch finds no MPS device here: use --config.device=cpu"
    )


def test_the_random_state_of_mps_is_saved_and_restored(monkeypatch):
    """The random state of MPS is saved with a checkpoint and restored on resume.

    A block with separate random numbers does not change it.
    """
    stream = torch.Generator().manual_seed(5)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setattr(torch.mps, 'get_rng_state', stream.get_state)
    monkeypatch.setattr(torch.mps, 'set_rng_state', stream.set_state)
    monkeypatch.setattr(torch.mps, 'manual_seed', stream.manual_seed)
    saved = distributed.random_state('mps')
    expected = torch.rand(3, generator=stream)
    distributed.begin_randomness('mps', 0, saved)
    with own_randomness(7):
        assert not torch.equal(torch.rand(3, generator=stream.manual_seed(7)), expected)
    assert torch.equal(torch.rand(3, generator=stream), expected)
