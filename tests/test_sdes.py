"""SDEs agree with their moment equations and with exact posteriors of Gaussian data."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from models.utils import get_score_fn
from oracles import ExactNetwork, affine, gaussian, level
from sde_lib import SDE, VESDE, VPSDE, ReverseSDE, expand, subVPSDE

SDES = dict(ve=VESDE, vp=VPSDE, subvp=subVPSDE)
EXACT = 1e-12  # tolerance for the same formula in float64

# batches of numbers, vectors, images, volumes
SHAPES = [(3,), (3, 2), (3, 1, 4, 4), (3, 1, 2, 2, 2)]
TIMES = torch.tensor([1e-5, 1e-3, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)


def test_marginals_solve_the_moment_equations(sde):
    """dm/dt = a m and dv/dt = 2 a v + g^2 for the drift a x (Sarkka & Solin 2019, Sec. 5.5).

    The initial standard deviation is std(0), which is sigma_min for VE.
    """

    def moments(t, y):
        t = torch.tensor([t], dtype=torch.float64)
        a, b = affine(lambda x, t: sde.sde(x, t)[0], t)
        assert b == 0
        return [
            a.item() * y[0],
            2 * a.item() * y[1] + sde.sde(torch.zeros_like(t), t)[1].item() ** 2,
        ]

    start = level(sde, torch.zeros(1))[1].item() ** 2
    solution = solve_ivp(
        moments, (0, 1), [1.0, start], t_eval=TIMES, method='DOP853', rtol=1e-10, atol=1e-18
    )
    m, std = level(sde, TIMES)
    # the solver's relative tolerance, times a few hundred steps in which its errors may add up
    np.testing.assert_allclose(m, solution.y[0], rtol=1e-7)
    np.testing.assert_allclose(std**2, solution.y[1], rtol=1e-7)


def test_forward_simulation_has_the_marginals(sde):
    """20,000 paths of 400 Euler-Maruyama steps from x_0 = 2 have the marginal at t = 1/2."""
    generator, steps, paths = torch.Generator().manual_seed(0), 400, 20000
    x, dt = torch.full((paths,), 2.0, dtype=torch.float64), 0.5 / steps
    for i in range(steps):
        # at midpoints the time dependence causes no first-order error
        drift, diffusion = sde.sde(x, torch.full_like(x, (i + 0.5) * dt))
        x = (
            x
            + drift * dt
            + diffusion
            * math.sqrt(dt)
            * torch.randn(paths, dtype=torch.float64, generator=generator)
        )
    m, std = level(sde, torch.tensor([0.5]))
    added = (std**2 - level(sde, torch.zeros(1))[1] ** 2).sqrt().item()
    # four standard errors, and 1 % for the step size, because beta dt / 2 is below 0.7 %
    assert abs(x.mean() - 2 * m.item()) < 4 * added / math.sqrt(paths) + 0.01 * m.item()
    assert abs(x.std() / added - 1) < 4 / math.sqrt(2 * paths) + 0.01


def test_std_is_exact_in_float32_near_zero(sde):
    """std(t) in float32 agrees with the formulas of Appendix B in float64 to 1e-5.

    This is a hundred float32 roundings; 1 - exp(..) is wrong by a factor of 2,000 at t = 1e-5.
    """
    t = TIMES.float()
    t64 = t.double().numpy()
    integral = 0.1 * t64 + 0.5 * t64**2 * 19.9
    exact = dict(
        VESDE=0.01 * 5000**t64, VPSDE=np.sqrt(-np.expm1(-integral)), subVPSDE=-np.expm1(-integral)
    )[type(sde).__name__]
    np.testing.assert_allclose(sde.marginal_prob(torch.zeros(len(t), 2), t)[1], exact, rtol=1e-5)
    exact_m = 1 if isinstance(sde, VESDE) else np.exp(-integral / 2)
    np.testing.assert_allclose(
        sde.marginal_prob(torch.ones(len(t)), t)[0], exact_m * np.ones(len(t)), rtol=1e-5
    )
    if isinstance(sde, subVPSDE):  # g(t) also vanishes at 0, by the same subtraction
        g = np.sqrt((0.1 + 19.9 * t64) * -np.expm1(-2 * integral))
        np.testing.assert_allclose(sde.sde(torch.zeros(len(t)), t)[1], g, rtol=1e-5)


def test_an_sde_needs_a_step(sde):
    with pytest.raises(ValueError, match='N=0'):
        type(sde)(N=0)


@pytest.mark.parametrize('sigmas', [(1, 1), (2, 1), (0, 1)])
def test_ve_with_sigmas_that_do_not_increase_raises_an_error(sigmas):
    with pytest.raises(ValueError, match='sigma_min'):
        VESDE(*sigmas)


class Own(SDE):
    """A user's SDE on [0, 2] whose marginal mean is `shape(exp(-t), x)`."""

    T = 2.0

    def __init__(self, shape, N=10):
        super().__init__(N)
        self.shape = shape

    def marginal_prob(self, x, t):
        return self.shape((-t).exp(), x), (-torch.expm1(-2 * t)).sqrt()

    sde = prior_sampling = prior_logp = None


SHAPED = dict(
    any=lambda v, x: expand(v, x) * x,
    images=lambda v, x: v[:, None, None, None] * x,
    vectors=lambda v, x: v[:, None] * x,
)


@pytest.mark.parametrize(
    'times', [TIMES, TIMES[3:4], TIMES[:4].float()], ids=['six', 'one', 'float32']
)
@pytest.mark.parametrize('name', [*SDES, *SHAPED])
def test_mean_and_std_equal_those_of_the_marginal(name, times):
    """This also holds if a user's `marginal_prob` supports only images, or only vectors."""
    sde = SDES[name]() if name in SDES else Own(SHAPED[name])
    x = torch.ones(len(times), *(1,) * (1 if name == 'vectors' else 3), dtype=times.dtype)
    mean, std = sde.marginal_prob(x, times)
    got = sde.mean_and_std(times)
    assert torch.equal(got[0], mean.flatten()) and torch.equal(got[1], std)
    assert all(v.shape == times.shape and v.dtype == times.dtype for v in got)


@pytest.mark.parametrize(
    'shape',
    [lambda v, x: v, lambda v, x: (v * x).sum(), lambda v, x: expand(v, x)[..., None] * x],
    ids=['no x', 'a number', 'a dimension more'],
)
def test_a_mean_of_another_shape_raises_an_error(shape):
    with pytest.raises(
        ValueError, match='Own.marginal_prob must return a mean of the shape of x, got '
    ):
        Own(shape).mean_and_std(TIMES)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_shapes_and_dtypes_follow_the_input(sde, shape, dtype):
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.5, 1.0], dtype=dtype)
    reverse = sde.reverse(lambda x, t: -x)
    flow = sde.reverse(lambda x, t: -x, probability_flow=True)
    like_x = [sde.perturb(x, t), sde.denoise(x, t, -x), sde.score_from_output(x, t)]
    like_t = [sde.langevin_alpha(t), sde.network_label(t)]
    for pair in [
        sde.sde(x, t),
        sde.discretize(x, t),
        sde.marginal_prob(x, t),
        reverse.sde(x, t),
        reverse.discretize(x, t),
        flow.sde(x, t),
        flow.discretize(x, t),
    ] + ([] if isinstance(sde, subVPSDE) else [sde.ancestral_step(x, t, -x)]):
        like_x.append(pair[0])
        like_t.append(pair[1])
    assert all(v.shape == shape and v.dtype == dtype for v in like_x)
    assert all(v.shape == (3,) and v.dtype == dtype for v in like_t)
    # Every member of a batch has its own time: the result for a batch equals the results for its
    # members.
    for i in range(3):
        torch.testing.assert_close(
            sde.marginal_prob(x, t)[0][i], sde.marginal_prob(x[i : i + 1], t[i : i + 1])[0][0]
        )
        torch.testing.assert_close(
            reverse.sde(x, t)[0][i], reverse.sde(x[i : i + 1], t[i : i + 1])[0][0]
        )
    if len(shape) > 1:
        assert sde.prior_logp(x).shape == (3,) and sde.prior_logp(x).dtype == dtype
    assert sde.prior_sampling(shape).shape == shape


def test_expand():
    x = torch.arange(3.0)
    assert expand(x, torch.zeros(3, 2, 4, 4)).shape == (3, 1, 1, 1)
    assert expand(x, torch.zeros(3)).shape == (3,)


def test_prior_logp(sde):
    scale = 50.0 if isinstance(sde, VESDE) else 1.0
    z = scale * torch.randn(
        4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    exact = (
        torch.distributions.Normal(z.new_tensor(0.0), z.new_tensor(scale))
        .log_prob(z)
        .flatten(1)
        .sum(1)
    )
    torch.testing.assert_close(sde.prior_logp(z), exact, rtol=EXACT, atol=0)


def test_prior_sampling(sde):
    torch.manual_seed(0)
    z = sde.prior_sampling((20000, 2)) / (50.0 if isinstance(sde, VESDE) else 1.0)
    n = z.numel()
    # four standard errors
    assert abs(z.mean()) < 4 / math.sqrt(n) and abs(z.std() - 1) < 4 / math.sqrt(2 * n)


def test_reverse_drift_and_diffusion(sde):
    """f - g^2 s and g (Eq. 6); f - g^2 s / 2 and 0 (Eq. 13); the same for the chain (Eq. 46)."""
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)

    def score_fn(x, t):
        return 0.3 - x * (1 + t[:, None])

    for name in ('sde', 'discretize'):
        f, g = getattr(sde, name)(x, t)
        drift, diffusion = getattr(sde.reverse(score_fn), name)(x, t)
        torch.testing.assert_close(drift, f - g[:, None] ** 2 * score_fn(x, t), rtol=EXACT, atol=0)
        assert torch.equal(diffusion, g)
        drift, diffusion = getattr(sde.reverse(score_fn, probability_flow=True), name)(x, t)
        torch.testing.assert_close(
            drift, f - g[:, None] ** 2 * score_fn(x, t) / 2, rtol=EXACT, atol=0
        )
        assert torch.equal(diffusion, torch.zeros(2, dtype=torch.float64))


def test_reverse_returns_a_reverse_sde(sde):
    reverse = sde.reverse(lambda x, t: -x)
    assert isinstance(reverse, ReverseSDE) and (reverse.N, reverse.T) == (sde.N, sde.T)


def test_the_flow_keeps_the_marginals(sde):
    """The flow of N(mu, c) moves x along mean(t) + sqrt(v(t)) u; its drift is the derivative."""
    target, t = gaussian([0.7], [0.4]), torch.tensor([0.05, 0.3, 0.8], dtype=torch.float64)
    flow = sde.reverse(
        get_score_fn(sde, ExactNetwork(sde, target), continuous=True), probability_flow=True
    )

    def path(t):
        m, std = level(sde, t)
        return (0.7 * m + (0.4 * m**2 + std**2).sqrt() * 1.3)[:, None]

    h = 1e-5  # central differences: errors of h^2 and of 1e-16 / h
    torch.testing.assert_close(
        flow.sde(path(t), t)[0], (path(t + h) - path(t - h)) / (2 * h), rtol=1e-6, atol=1e-8
    )


def test_perturb(sde):
    x, t = torch.full((20000, 2), 1.5), torch.full((20000,), 0.3)
    m, std = (v[0].item() for v in level(sde, t[:1]))
    z = torch.ones_like(x)
    # the tolerance of float32
    torch.testing.assert_close(
        sde.perturb(x, t, z), torch.full_like(x, 1.5 * m + std), rtol=1e-6, atol=0
    )
    torch.manual_seed(0)
    drawn = (sde.perturb(x, t) - 1.5 * m) / std
    n = drawn.numel()
    # four standard errors
    assert abs(drawn.mean()) < 4 / math.sqrt(n) and abs(drawn.std() - 1) < 4 / math.sqrt(2 * n)


def test_tweedie_is_the_posterior_mean(sde):
    """E[x_0 | x_t] = mu + m C (m^2 C + std^2 I)^-1 (x_t - m mu) for x_0 ~ N(mu, C)."""
    mu = torch.tensor([0.5, -1.0], dtype=torch.float64)
    C = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    t = torch.tensor([0.01, 0.2, 0.5], dtype=torch.float64)
    m, std = level(sde, t)
    x = (
        torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        * std[:, None]
        + 0.3
    )
    marginal = m[:, None, None] ** 2 * C + std[:, None, None] ** 2 * torch.eye(
        2, dtype=torch.float64
    )
    whitened = torch.linalg.solve(marginal, x - m[:, None] * mu)
    torch.testing.assert_close(
        sde.denoise(x, t, -whitened), mu + m[:, None] * (whitened @ C), rtol=1e-9, atol=1e-12
    )
