"""The SDEs against their own moment equations, exact posteriors of Gaussian data, and their table
of labels and scores.
"""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from models.score import Score
from models.utils import get_score_fn
from oracles import ExactNetwork, gaussian, level, planar_mixture
from sde_lib import SDE, VESDE, VPSDE, ReverseSDE, expand, subVPSDE

SDES = dict(ve=VESDE, vp=VPSDE, subvp=subVPSDE)
EXACT = 1e-12  # float64 formulas written twice: only rounding differs
# batches of numbers, vectors, images, volumes
SHAPES = [(3,), (3, 2), (3, 1, 4, 4), (3, 1, 2, 2, 2)]
TIMES = torch.tensor([1e-5, 1e-3, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)


@pytest.fixture(params=SDES)
def sde(request):
    return SDES[request.param]()


def affine(step, t):
    """(a, b) of a map x -> a x + b applied at times t, given as a function of (x, t): all drifts
    here are affine in x.
    """
    zero = step(torch.zeros_like(t), t)
    return step(torch.ones_like(t), t) - zero, zero


# Marginals


def test_marginals_solve_the_moment_equations(sde):
    """dm/dt = a m and dv/dt = 2 a v + g^2 for the drift a x (Sarkka & Solin 2019, Sec. 5.5), from
    std(0): that of VE is sigma_min.
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
    # the solver's relative tolerance, times the few hundred steps over which its errors may add up
    np.testing.assert_allclose(m, solution.y[0], rtol=1e-7)
    np.testing.assert_allclose(std**2, solution.y[1], rtol=1e-7)


def test_forward_simulation_has_the_marginals(sde):
    """20,000 paths of Euler-Maruyama in 400 steps to t = 1/2, from x_0 = 2, so that a mean is seen
    as well.
    """
    generator, steps, paths = torch.Generator().manual_seed(0), 400, 20000
    x, dt = torch.full((paths,), 2.0, dtype=torch.float64), 0.5 / steps
    for i in range(steps):
        # midpoints: the time dependence adds no error of first order
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
    # four standard errors, and 1 % for the step size: (beta dt / 2) summed is below 0.7 %
    assert abs(x.mean() - 2 * m.item()) < 4 * added / math.sqrt(paths) + 0.01 * m.item()
    assert abs(x.std() / added - 1) < 4 / math.sqrt(2 * paths) + 0.01


@pytest.mark.parametrize('n', [10, 100, 1000, 2000])
def test_ve_chain_has_the_marginals(n):
    """The variances of its steps add up to sigma_i^2, exactly."""
    # inside the i-th cell of step_index, away from its rounding
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / (n - 1)
    f, G = VESDE(N=n).discretize(torch.ones_like(t), t)
    assert (f == 0).all()
    sigmas = 0.01 * 5000 ** (torch.arange(n, dtype=torch.float64) / (n - 1))
    # up to 2000 differences of squares, summed
    torch.testing.assert_close((G**2).cumsum(0).sqrt(), sigmas, rtol=1e-9, atol=0)


@pytest.mark.parametrize('n', [100, 1000, 2000])
@pytest.mark.parametrize('name', ['vp', 'subvp'])
def test_vp_and_subvp_chains_have_the_marginals(name, n):
    """The moments of x_{i+1} = x_i + f + G z, propagated exactly, are those of the SDE but for
    O(1/N).
    """
    sde = SDES[name](N=n)
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    a, G = (
        affine(lambda x, t: sde.discretize(x, t)[0], t)[0],
        sde.discretize(torch.zeros_like(t), t)[1],
    )
    for end in (n // 2, n):
        m, v = 1.0, 0.0
        for factor, variance in zip((1 + a[:end]).tolist(), (G[:end] ** 2).tolist()):
            m, v = factor * m, factor**2 * v + variance
        exact_m, exact_std = level(sde, torch.tensor([end / n]))
        # log m: the quadratic terms of log(1 - beta_i / 2) or log(1 - beta_i) / 2, at most 34/N
        # together for betas up to 20
        assert abs(math.log(m) - exact_m.log().item()) < 40 / n
        # the variance forgets its errors within 1/beta: what stays is about beta_N / 8 = 2.5/N
        assert abs(math.sqrt(v) - exact_std.item()) < 3 / n


def test_ten_steps():
    """So few are enough for VE and subVP to be used at all."""
    for sde in (VESDE(N=10), subVPSDE(N=10)):
        f, G = sde.discretize(torch.ones(3), torch.tensor([0.0, 0.5, 1.0]))
        assert torch.isfinite(f).all() and torch.isfinite(G).all()


def test_vp_chain_is_ddpm():
    """x_{i+1} = sqrt(1 - beta_i) x_i + sqrt(beta_i) z with beta_i from beta_min/N to beta_max/N;
    alphas and products of the tables.
    """
    sde = VPSDE(N=1000)
    betas = np.linspace(0.1 / 1000, 20 / 1000, 1000)
    i = torch.tensor([0, 1, 500, 998])
    t = (i + 0.5).double() / 999
    f, G = sde.discretize(torch.ones_like(t), t)
    np.testing.assert_allclose(1 + f, np.sqrt(1 - betas)[i], rtol=EXACT)
    np.testing.assert_allclose(G, np.sqrt(betas)[i], rtol=EXACT)
    alphabars = np.cumprod(1 - betas)
    for name, table in dict(
        discrete_betas=betas,
        alphas=1 - betas,
        alphas_cumprod=alphabars,
        sqrt_alphas_cumprod=np.sqrt(alphabars),
        sqrt_1m_alphas_cumprod=np.sqrt(1 - alphabars),
    ).items():
        # float32, and an exp of up to -10
        np.testing.assert_allclose(getattr(sde, name), table, rtol=2e-6, err_msg=name)


@pytest.mark.parametrize('n', [1, 10, 20])
def test_vp_refuses_too_few_steps(n):
    """beta_N = 20/N would reach 1: the message names the smallest N that works."""
    with pytest.raises(ValueError, match='at least 21'):
        VPSDE(N=n)
    sde = VPSDE(N=21)
    f, G = sde.discretize(torch.ones(1), torch.ones(1))
    assert torch.isfinite(f).all() and torch.isfinite(G).all()
    sde.N = n  # assigned later, it is refused where the chain is used
    with pytest.raises(ValueError, match='at least 21'):
        sde.discretize(torch.ones(1), torch.ones(1))


def test_an_sde_needs_a_step(sde):
    with pytest.raises(ValueError, match='N=0'):
        type(sde)(N=0)


@pytest.mark.parametrize('sigmas', [(1, 1), (2, 1), (0, 1)])
def test_ve_refuses_sigmas_that_do_not_grow(sigmas):
    with pytest.raises(ValueError, match='sigma_min'):
        VESDE(*sigmas)


def test_std_is_exact_in_float32_near_zero(sde):
    """std(t) in float32 against the formulas of Appendix B in float64; 1e-5 is a hundred roundings
    of float32, and 1 - exp(..) misses it by a factor of 2000 at t = 1e-5.
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
    if isinstance(sde, subVPSDE):  # g(t) vanishes at 0 as well, by the same subtraction
        g = np.sqrt((0.1 + 19.9 * t64) * -np.expm1(-2 * integral))
        np.testing.assert_allclose(sde.sde(torch.zeros(len(t)), t)[1], g, rtol=1e-5)


class Own(SDE):
    """A user's SDE on [0, 2], with a mean exp(-t) x of what `shape(exp(-t), x)` makes of it."""

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
def test_mean_and_std_are_those_of_the_marginal(name, times):
    """Also where a user's `marginal_prob` is written for images only, or for vectors only."""
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
def test_a_mean_of_another_shape_is_refused(shape):
    with pytest.raises(
        ValueError, match='Own.marginal_prob must return a mean of the shape of x, got '
    ):
        Own(shape).mean_and_std(TIMES)


def test_with_steps(sde):
    """The same process, whose chain has another length; the SDE itself keeps its own."""
    other, fresh, t = sde.with_steps(50), type(sde)(N=50), torch.tensor([0.1, 0.5, 1.0])
    assert (
        type(other) is type(sde) and (other.N, sde.N) == (50, 1000) and repr(other) == repr(fresh)
    )
    assert all(map(torch.equal, other.mean_and_std(t), sde.mean_and_std(t)))
    assert all(map(torch.equal, other.discretize(t, t), fresh.discretize(t, t)))
    assert not torch.equal(other.discretize(t, t)[1], sde.discretize(t, t)[1])
    assert len(other.timesteps(1e-3)) == 50


# Shapes and dtypes


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_shapes_and_dtypes_follow_the_input(sde, shape, dtype):
    x, t = (
        torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0.1, 0.5, 1.0], dtype=dtype),
    )
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
    # Each batch member has its own time: what comes out of a batch is what comes out of its members
    # one by one.
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


# Priors


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


# The reversal


def test_reverse_drift_and_diffusion(sde):
    """f - g^2 s and g (Eq. 6); f - g^2 s / 2 and no diffusion (Eq. 13); the chain's f and G
    likewise (Eq. 46).
    """
    x, t = (
        torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64),
        torch.tensor([0.2, 0.7], dtype=torch.float64),
    )

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


def test_reverse_is_a_class_of_its_own(sde):
    reverse = sde.reverse(lambda x, t: -x)
    assert isinstance(reverse, ReverseSDE) and (reverse.N, reverse.T) == (sde.N, sde.T)


def test_the_flow_keeps_the_marginals(sde):
    """The probability flow of N(mu, c) moves x along mean(t) + sqrt(v(t)) u with u fixed: its drift
    is the derivative of that.
    """
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


# Steps of the chain


@pytest.mark.parametrize('name', ['ve', 'vp'])
def test_ancestral_step_is_the_chains_posterior(name):
    """Of Gaussian data the chain x_i = a x_{i-1} + b z has the Gaussian posterior of linear
    regression. Its mean is the ancestral one for any variance of the data; its std is VP's for data
    of variance 1 (a^2 + b^2 = 1), VE's for a single point.
    """
    n, i = 50, torch.tensor([1, 10, 30, 48])
    sde = SDES[name](N=n)
    t, x = (i + 0.5).double() / (n - 1), torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
    if name == 'vp':
        betas = torch.linspace(0.1 / n, 20 / n, n, dtype=torch.float64)
        a, b = (1 - betas).sqrt()[i], betas.sqrt()[i]
        m, variance = (1 - betas).cumprod(0)[i - 1].sqrt(), 1 - (1 - betas).cumprod(0)[i - 1]
    else:
        sigmas = 0.01 * 5000 ** (torch.arange(n, dtype=torch.float64) / (n - 1))
        a, b = torch.ones(4, dtype=torch.float64), (sigmas[i] ** 2 - sigmas[i - 1] ** 2).sqrt()
        m, variance = torch.ones(4, dtype=torch.float64), sigmas[i - 1] ** 2
    for mu, c, std_is_exact in [
        (0.7, 0.4, False),
        (0.7, 1.0, name == 'vp'),
        (0.7, 0.0, name == 've'),
    ]:
        mean, v = m * mu, m**2 * c + variance  # of x_{i-1}
        marginal = a**2 * v + b**2  # of x_i
        got_mean, got_std = sde.ancestral_step(x, t, -(x - a * mean) / marginal)
        # sums that cancel
        torch.testing.assert_close(
            got_mean, mean + a * v / marginal * (x - a * mean), rtol=1e-9, atol=0
        )
        if std_is_exact:
            torch.testing.assert_close(got_std, (v * b**2 / marginal).sqrt(), rtol=1e-9, atol=0)


def test_the_last_ancestral_step_of_ve_ends_on_the_estimate():
    """Below the smallest sigma there is 0: the step at i = 0 removes all noise and adds none."""
    sde, x = VESDE(N=50), torch.tensor([0.3])
    mean, std = sde.ancestral_step(x, torch.zeros(1), -x)
    assert std == 0
    torch.testing.assert_close(mean, x - 0.01**2 * x)


def test_ancestral_step_of_subvp_is_refused():
    with pytest.raises(NotImplementedError, match='subVPSDE'):
        subVPSDE().ancestral_step(torch.zeros(1), torch.ones(1), torch.zeros(1))


@pytest.mark.parametrize('n', [100, 1000])
def test_langevin_alpha(n):
    """1 for VE; alpha_i = 1 - beta_i, not the running product, of the common betas of VP and
    subVP.
    """
    i = torch.tensor([0, 7, n // 2, n - 2])
    t = (i + 0.5).double() / (n - 1)
    exact = 1 - torch.linspace(0.1 / n, 20 / n, n, dtype=torch.float64)[i]
    for sde in (VPSDE(N=n), subVPSDE(N=n)):
        torch.testing.assert_close(sde.langevin_alpha(t), exact, rtol=EXACT, atol=0)
    assert torch.equal(VESDE(N=n).langevin_alpha(t), torch.ones_like(t))


# Noise and its removal


def test_perturb(sde):
    x, t = torch.full((20000, 2), 1.5), torch.full((20000,), 0.3)
    m, std = (v[0].item() for v in level(sde, t[:1]))
    z = torch.ones_like(x)
    # float32
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
    mu, C = (
        torch.tensor([0.5, -1.0], dtype=torch.float64),
        torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64),
    )
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


@pytest.mark.parametrize('t', [0.3, torch.tensor([0.3, 0.3]), 1], ids=['float', 'tensor', 'int'])
def test_methods_of_a_score_take_a_number_or_a_time_each(sde, t):
    """score, noise, denoise, perturb: what the SDE's methods and the exact score say, for a number
    t as for a (B,) tensor.
    """
    target, x = planar_mixture(), torch.tensor([[0.2, 0.5], [-1.0, 1.0]])
    model = Score(ExactNetwork(sde, target), sde)
    times = torch.full((2,), float(t if isinstance(t, (int, float)) else t[0]))
    exact = target.score(x, *level(sde, times))
    # float32 times and outputs; at t = 1 the label of VE is known to 1e-6
    torch.testing.assert_close(model.score(x, t).double(), exact, rtol=1e-5, atol=1e-6)
    m, std = level(sde, times)
    torch.testing.assert_close(
        model.noise(x, t).double(), -std[:, None] * exact, rtol=1e-5, atol=1e-6
    )
    estimate = (x + std[:, None] ** 2 * exact) / m[:, None]
    # Tweedie's sum cancels to a small fraction of its terms, which float32 knows to 1e-6 of std^2
    # |s| / m
    terms = (std[:, None] ** 2 * exact / m[:, None]).abs().max().item()
    torch.testing.assert_close(model.denoise(x, t).double(), estimate, rtol=1e-5, atol=3e-6 * terms)
    z = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    torch.testing.assert_close(
        model.perturb(x, t, z).double(), m[:, None] * x + std[:, None] * z, rtol=1e-6, atol=1e-6
    )
    torch.manual_seed(0)
    drawn = model.perturb(x, t)
    torch.manual_seed(0)
    assert torch.equal(drawn, model.perturb(x, t, torch.randn_like(x)))


def test_methods_of_a_score_are_differentiable(sde):
    """For N(0.7, 0.4) the score has the slope -1 / (0.4 m^2 + std^2), and the denoised estimate 0.4
    m / (0.4 m^2 + std^2).
    """
    model, x = (
        Score(ExactNetwork(sde, gaussian([0.7], [0.4])), sde),
        torch.tensor([[0.2], [-1.0]], dtype=torch.float64, requires_grad=True),
    )
    m, std = level(sde, torch.tensor([0.5]))
    variance = 0.4 * m**2 + std**2
    for method, slope in (
        (model.score, -1 / variance),
        (model.noise, std / variance),
        (model.denoise, 0.4 * m / variance),
    ):
        (gradient,) = torch.autograd.grad(method(x, 0.5).sum(), x)
        torch.testing.assert_close(gradient, slope.expand(2, 1), rtol=1e-6, atol=0)


# What a network is told and what it answers


def test_continuous_labels_and_scores(sde):
    t, out = (
        torch.tensor([1e-3, 0.25, 1.0], dtype=torch.float64),
        torch.tensor([[1.0], [2.0], [-3.0]], dtype=torch.float64),
    )
    if isinstance(sde, VESDE):
        label, exact = 0.01 * 5000**t, out
    else:
        integral = 0.1 * t + 0.5 * t**2 * 19.9
        variance = -torch.expm1(-integral)
        label, exact = (
            999 * t,
            -out / (variance.sqrt() if isinstance(sde, VPSDE) else variance)[:, None],
        )
    torch.testing.assert_close(sde.network_label(t, continuous=True), label, rtol=EXACT, atol=0)
    torch.testing.assert_close(
        sde.score_from_output(out, t, continuous=True), exact, rtol=EXACT, atol=0
    )


@pytest.mark.parametrize('n', [100, 1000])
def test_discrete_labels_and_scores(n):
    t, out = (
        torch.tensor([0.0, 0.2504, 0.7, 1.0], dtype=torch.float64),
        torch.tensor([[1.0], [2.0], [-3.0], [0.5]], dtype=torch.float64),
    )
    ve = VESDE(N=n)
    label = ve.network_label(t, continuous=False)
    assert label.dtype == torch.long and label.tolist() == [
        n - 1,
        round((1 - 0.2504) * (n - 1)),
        round(0.3 * (n - 1)),
        0,
    ]
    assert torch.equal(ve.score_from_output(out, t, continuous=False), out)

    vp = VPSDE(N=n)
    # not rounded, as published
    torch.testing.assert_close(
        vp.network_label(t, continuous=False), (n - 1) * t, rtol=EXACT, atol=0
    )
    alphabar = np.cumprod(1 - np.linspace(0.1 / n, 20 / n, n))[((n - 1) * t).long()]
    exact = -out.numpy() / np.sqrt(1 - alphabar)[:, None]
    # the table is float32
    np.testing.assert_allclose(vp.score_from_output(out, t, continuous=False), exact, rtol=1e-6)

    sub = subVPSDE(N=n)
    torch.testing.assert_close(sub.network_label(t, continuous=False), 999 * t, rtol=EXACT, atol=0)
    assert torch.equal(
        sub.score_from_output(out, t[1:2].expand(4), continuous=False),
        sub.score_from_output(out, t[1:2].expand(4)),
    )


@pytest.mark.parametrize('continuous', [True, False], ids=['continuous', 'discrete'])
@pytest.mark.parametrize('name', SDES)
def test_the_exact_network_gives_the_exact_score(name, continuous):
    """Label out, output back: at the levels of the chain for a discrete network, which steps of
    another number may visit.
    """
    sde, target = SDES[name](N=1000), planar_mixture()
    # subVP has continuous networks only
    network = ExactNetwork(sde, target, continuous=continuous or name == 'subvp')
    sde.N = 500
    i = torch.tensor([0, 3, 400, 998])
    t = (i + 0.01).double() / 999 if name == 'vp' else i.double() / 999
    t = t.clamp(min=1e-5)
    x = torch.tensor([[0.1, 0.4], [-1.0, 0.7], [2.0, 1.0], [0.0, -3.0]], dtype=torch.float64)
    got = get_score_fn(sde, network, continuous=continuous)(x, t)
    m, std = level(sde, t)
    if name == 'vp' and not continuous:
        alphabar = (1 - torch.linspace(0.1 / 1000, 20 / 1000, 1000, dtype=torch.float64)).cumprod(
            0
        )[i]
        m, std = alphabar.sqrt(), (1 - alphabar).sqrt()
    if name == 've' and not continuous:
        std = 0.01 * 5000 ** (i.double() / 999)
    # a table in float32
    torch.testing.assert_close(got, target.score(x, m, std), rtol=1e-6, atol=1e-9)


def test_discrete_levels():
    """Labels of training: VE counts from the largest sigma down, VP from the smallest noise up,
    subVP has none.
    """
    labels = torch.tensor([0, 40, 99])
    m, std = VESDE(N=100).discrete_level(labels)
    # an exp in float32
    torch.testing.assert_close(
        std.double(), 50 * 5000 ** (-labels.double() / 99), rtol=1e-5, atol=0
    )
    assert torch.equal(m, torch.ones(3))
    m, std = VPSDE(N=100).discrete_level(labels)
    alphabar = (1 - torch.linspace(0.001, 0.2, 100, dtype=torch.float64)).cumprod(0)[labels]
    torch.testing.assert_close(m.double(), alphabar.sqrt(), rtol=2e-6, atol=0)
    torch.testing.assert_close(std.double(), (1 - alphabar).sqrt(), rtol=2e-6, atol=0)
    with pytest.raises(NotImplementedError, match='continuous=True'):
        subVPSDE().discrete_level(labels)


@pytest.mark.parametrize('n', [50, 300])
def test_tables_follow_an_assigned_n(sde, n):
    """`sde.N = n` after the fact is the same as building the SDE with n steps."""
    fresh = type(sde)(N=n)
    sde.discretize(torch.ones(1), torch.ones(1))  # so that the tables of N = 1000 have been made
    sde.N = n
    x, t = torch.ones(3), torch.tensor([0.1, 0.5, 1.0])
    pairs = [
        (sde.discretize(x, t), fresh.discretize(x, t)),
        ((sde.langevin_alpha(t),), (fresh.langevin_alpha(t),)),
    ]
    if not isinstance(sde, subVPSDE):
        labels = torch.tensor([0, n - 1])
        pairs += [
            (sde.ancestral_step(x, t, -x), fresh.ancestral_step(x, t, -x)),
            (sde.discrete_level(labels), fresh.discrete_level(labels)),
            ((sde.network_label(t, False),), (fresh.network_label(t, False),)),
        ]
    for name in (
        'discrete_sigmas',
        'discrete_betas',
        'alphas',
        'alphas_cumprod',
        'sqrt_alphas_cumprod',
        'sqrt_1m_alphas_cumprod',
    ):
        if hasattr(fresh, name):
            pairs.append(((getattr(sde, name),), (getattr(fresh, name),)))
            assert len(getattr(sde, name)) == n
    for got, exact in pairs:
        assert all(torch.equal(g, e) for g, e in zip(got, exact))


# What is shared between SDEs, and what is not -----------------------------------------------------


def test_tables_given_out_are_copies():
    VPSDE(N=50).discrete_betas[0] = 7
    VESDE(N=50).discrete_sigmas[0] = 7
    assert VPSDE(N=50).discrete_betas[0] < 1 and VESDE(N=50).discrete_sigmas[0] < 1


def test_sdes_do_not_follow_the_default_device():
    with torch.device('meta'):
        sde, ve = VPSDE(N=78), VESDE(N=78)
    t = torch.ones(2)
    assert (
        sde.discretize(torch.ones(2, 3), t)[1].device.type == 'cpu'
        and ve.discretize(torch.ones(2, 3), t)[1].isfinite().all()
    )


def test_ve_chain_of_one_level_is_refused():
    with pytest.raises(ValueError, match='N=1'):
        VESDE(N=1).discretize(torch.ones(2, 3), torch.ones(2))


@pytest.mark.parametrize('t', [0.3, np.float32(0.3), torch.tensor(0.3), torch.full((2,), 0.3)])
def test_time_is_any_number_or_one_for_each_image(t):
    x = torch.ones(2, 3)
    model = Score(None, VESDE())
    assert torch.allclose(model.perturb(x, t, noise=torch.zeros(2, 3)), x)
    assert torch.allclose(model.perturb(x, t, noise=x), x + 0.01 * 5000**0.3)
