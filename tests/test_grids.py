"""Time grids, transitions between two times, and predictor steps on any grid."""

import math

import pytest
import torch

import sampling
from conftest import digits_config
from models.utils import get_score_fn
from oracles import FEW_STEP_SDES, ExactNetwork, distance_from, identity, planar_mixture
from runtime.errors import UserError
from sampling import get_corrector, get_predictor, get_sampling_fn
from sde_lib import VPSDE, get_sde
from solvers import SKIP_TYPES, get_solver, half_log_snr, time_grid, time_of, transition


@pytest.mark.parametrize('name', FEW_STEP_SDES)
def test_times_of_levels(name):
    sde, t = FEW_STEP_SDES[name](), torch.linspace(0.001, 1, 50, dtype=torch.float64)
    assert torch.allclose(time_of(sde, half_log_snr(sde, t)), t, atol=1e-12)


@pytest.mark.parametrize('name', FEW_STEP_SDES)
def test_grids(name):
    sde = FEW_STEP_SDES[name]()
    even = dict(
        time_uniform=identity,
        time_quadratic=torch.sqrt,
        logSNR=lambda t: half_log_snr(sde, t),
        karras=lambda t: (-half_log_snr(sde, t) / 5).exp(),
    )
    assert set(even) == set(SKIP_TYPES)
    for kind, scale in even.items():
        times = time_grid(sde, 20, 1e-3, kind, rho=5.0)
        gaps = scale(times).diff()
        assert times.shape == (21,) and times[0] == 1 and times[-1] == 1e-3
        assert torch.allclose(gaps, gaps.mean(), rtol=1e-6)
    with pytest.raises(
        UserError,
        match="skip_type must be one of time_uniform, time_quadratic, logSNR, karras, got 'even'",
    ):
        time_grid(sde, 20, 1e-3, 'even')


def test_a_grid_of_zero_steps_is_the_end_time():
    assert time_grid(VPSDE(), 0, 1e-3).tolist() == [1.0]


@pytest.mark.parametrize('name', FEW_STEP_SDES)
def test_the_transition_between_two_times(name):
    """The transition equals `transition_prob`; from the data (s = 0) it equals the marginal."""
    sde, one = FEW_STEP_SDES[name](), torch.ones(1, dtype=torch.float64)
    (m_s, std_s), (m, std) = (sde.mean_and_std(time * one) for time in (0.3, 0.7))
    between = sde.transition_prob(one, 0.3 * one, 0.7 * one)
    assert transition(sde, 0.3, 0.7) == pytest.approx(
        [*map(float, (*between, std_s, std))], rel=1e-12
    )
    assert transition(sde, 0, 0.7) == pytest.approx(
        [float(m), float(std), 0.0, float(std)], rel=1e-12
    )


@pytest.mark.parametrize('s', [0.55, 0.0])
@pytest.mark.parametrize('name', FEW_STEP_SDES)
def test_steps_on_any_grid(name, s):
    """Steps from x at 0.6 to s have the mean, noise and corrector factor of the transition."""
    sde = FEW_STEP_SDES[name]()
    t = torch.full((50,), 0.6, dtype=torch.float64)
    x = torch.randn(50, 2, dtype=torch.float64)
    score_fn = get_score_fn(sde, ExactNetwork(sde, planar_mixture()), continuous=True)
    (r, std, std_s, std_t), score, (f, g) = transition(sde, s, 0.6), score_fn(x, t), sde.sde(x, t)
    dt, g = 0.6 - s, g[0]
    expected = dict(
        euler_maruyama=(x - (f - g**2 * score) * dt, g * math.sqrt(dt)),
        none=(x, 0.0),
        reverse_diffusion=((2 - r) * x + std**2 * score, std),
        ancestral_sampling=((x + std**2 * score) / r, std * std_s / std_t),
    )
    assert set(expected) == set(sampling.PREDICTORS.names())
    for predictor, (mean, noise) in expected.items():
        torch.manual_seed(1)
        stepped, x_mean = get_predictor(predictor)(sde, score_fn).step(x, 0.6, s)
        torch.manual_seed(1)
        torch.testing.assert_close(x_mean, mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            stepped, mean + noise * torch.randn_like(x), rtol=1e-9, atol=1e-9
        )
    for corrector in ('langevin', 'ald'):  # the step size is proportional to alpha
        corrector = get_corrector(corrector)(sde, score_fn, 0.16, 1)
        torch.manual_seed(1)
        _, x_mean = corrector.step(x, 0.6, s)
        torch.manual_seed(1)
        _, published = corrector.update_fn(x, t)
        torch.testing.assert_close(
            x_mean - x, r**2 / sde.langevin_alpha(t)[0] * (published - x), rtol=1e-9, atol=1e-9
        )


STEPPING = 'euler_maruyama', 'reverse_diffusion', 'ancestral_sampling'


@pytest.mark.parametrize(
    'name, skip_type, predictor',
    [
        (list(FEW_STEP_SDES)[(i + j) % 3], skip_type, predictor)
        for i, skip_type in enumerate(SKIP_TYPES)
        for j, predictor in enumerate(STEPPING)
    ],
)
def test_predictors_on_any_grid(name, skip_type, predictor):
    """Every predictor works on every grid and with every SDE."""
    config = digits_config(name, 'pc', predictor=predictor, corrector='none', skip_type=skip_type)
    target = planar_mixture()
    config.sampling.steps = 300
    sde = get_sde(config)
    x, nfe = get_sampling_fn(config, sde, (3000, 2), identity, sde.sampling_eps)(
        ExactNetwork(get_sde(config), target)
    )
    assert nfe == 300 and distance_from(target, x) < 0.2


def test_on_a_grid_ancestral_sampling_is_ddim_with_eta_1():
    sde, target = VPSDE(), planar_mixture()
    times = time_grid(sde, 20, 1e-3)
    score_fn = get_score_fn(sde, ExactNetwork(sde, target), continuous=True)
    ancestral = get_predictor('ancestral_sampling')(sde, score_fn)
    ddim = get_solver('ddim')(sde, score_fn, times, eta=1.0)
    x = torch.randn(50, 2, dtype=torch.float64)
    for i in range(20):
        torch.manual_seed(i)
        a, _ = ancestral.step(x, times[i].item(), times[i + 1].item())
        torch.manual_seed(i)
        x = ddim.step(x, i)
        assert torch.allclose(a, x, atol=1e-9)
    # the data without noise
    assert torch.allclose(ancestral.step(x, 1e-3, 0)[0], ddim.denoised(x), atol=1e-9)
