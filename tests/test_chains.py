"""The discrete Markov chains of the SDEs: steps, tables, labels and errors."""

import math

import numpy as np
import pytest
import torch

from oracles import affine, level
from sde_lib import VESDE, VPSDE, subVPSDE

SDES = dict(ve=VESDE, vp=VPSDE, subvp=subVPSDE)
EXACT = 1e-12  # tolerance for two float64 formulas that differ only by rounding


@pytest.mark.parametrize('n', [10, 100, 1000, 2000])
def test_ve_chain_has_the_marginals(n):
    """The variances of the VE steps add up to sigma_i^2, up to rounding."""
    # in the middle of the i-th interval of step_index, where rounding cannot change the index
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / (n - 1)
    f, G = VESDE(N=n).discretize(torch.ones_like(t), t)
    assert (f == 0).all()
    sigmas = 0.01 * 5000 ** (torch.arange(n, dtype=torch.float64) / (n - 1))
    # a sum of up to 2000 differences of squares
    torch.testing.assert_close((G**2).cumsum(0).sqrt(), sigmas, rtol=1e-9, atol=0)


@pytest.mark.parametrize('n', [100, 1000, 2000])
@pytest.mark.parametrize('name', ['vp', 'subvp'])
def test_vp_and_subvp_chains_have_the_marginals(name, n):
    """The exact moments of x_{i+1} = x_i + f + G z equal those of the SDE up to O(1/N)."""
    sde = SDES[name](N=n)
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    a = affine(lambda x, t: sde.discretize(x, t)[0], t)[0]
    G = sde.discretize(torch.zeros_like(t), t)[1]
    for end in (n // 2, n):
        m, v = 1.0, 0.0
        for factor, variance in zip((1 + a[:end]).tolist(), (G[:end] ** 2).tolist()):
            m, v = factor * m, factor**2 * v + variance
        exact_m, exact_std = level(sde, torch.tensor([end / n]))
        # log m: the quadratic terms of log(1 - beta_i / 2) or log(1 - beta_i) / 2 are at most 34/N
        # in total for betas up to 20
        assert abs(math.log(m) - exact_m.log().item()) < 40 / n
        # errors of the variance decay within 1/beta; about beta_N / 8 = 2.5/N remains
        assert abs(math.sqrt(v) - exact_std.item()) < 3 / n


def test_ten_steps():
    """VE and sub-VP work with ten steps."""
    for sde in (VESDE(N=10), subVPSDE(N=10)):
        f, G = sde.discretize(torch.ones(3), torch.tensor([0.0, 0.5, 1.0]))
        assert torch.isfinite(f).all() and torch.isfinite(G).all()


def test_vp_chain_is_ddpm():
    """The VP step is that of DDPM, with beta_i from beta_min/N to beta_max/N.

    It is x_{i+1} = sqrt(1 - beta_i) x_i + sqrt(beta_i) z. The tables of alphas and of their
    products belong to these betas.
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
        # float32 rounding, and exp of arguments down to -10
        np.testing.assert_allclose(getattr(sde, name), table, rtol=2e-6, err_msg=name)


@pytest.mark.parametrize('n', [1, 10, 20])
def test_vp_with_too_few_steps_raises_an_error(n):
    """VP with beta_N = 20/N >= 1 raises an error that contains the smallest valid N."""
    with pytest.raises(ValueError, match='at least 21'):
        VPSDE(N=n)
    sde = VPSDE(N=21)
    f, G = sde.discretize(torch.ones(1), torch.ones(1))
    assert torch.isfinite(f).all() and torch.isfinite(G).all()
    sde.N = n  # if N is assigned later, the error is raised when the chain is used
    with pytest.raises(ValueError, match='at least 21'):
        sde.discretize(torch.ones(1), torch.ones(1))


def test_ve_chain_of_one_noise_level_raises_an_error():
    with pytest.raises(ValueError, match='N=1'):
        VESDE(N=1).discretize(torch.ones(2, 3), torch.ones(2))


@pytest.mark.parametrize('name', ['ve', 'vp'])
def test_ancestral_step_is_the_posterior_of_the_chain(name):
    """The ancestral step equals the Gaussian posterior of the chain for Gaussian data.

    The chain is x_i = a x_{i-1} + b z. The means are equal for any variance of the data. The
    standard deviations are equal for data of variance 1 with VP (a^2 + b^2 = 1), and for a single
    point with VE.
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
        # terms of the sums cancel
        torch.testing.assert_close(
            got_mean, mean + a * v / marginal * (x - a * mean), rtol=1e-9, atol=0
        )
        if std_is_exact:
            torch.testing.assert_close(got_std, (v * b**2 / marginal).sqrt(), rtol=1e-9, atol=0)


def test_the_last_ancestral_step_of_ve_ends_on_the_estimate():
    """The VE step at i = 0, from the smallest sigma to 0, removes all noise and adds none."""
    sde, x = VESDE(N=50), torch.tensor([0.3])
    mean, std = sde.ancestral_step(x, torch.zeros(1), -x)
    assert std == 0
    torch.testing.assert_close(mean, x - 0.01**2 * x)


def test_ancestral_step_of_subvp_raises_an_error():
    with pytest.raises(NotImplementedError, match='subVPSDE'):
        subVPSDE().ancestral_step(torch.zeros(1), torch.ones(1), torch.zeros(1))


@pytest.mark.parametrize('n', [100, 1000])
def test_langevin_alpha(n):
    """alpha is 1 for VE, and 1 - beta_i for VP and sub-VP (not the cumulative product)."""
    i = torch.tensor([0, 7, n // 2, n - 2])
    t = (i + 0.5).double() / (n - 1)
    exact = 1 - torch.linspace(0.1 / n, 20 / n, n, dtype=torch.float64)[i]
    for sde in (VPSDE(N=n), subVPSDE(N=n)):
        torch.testing.assert_close(sde.langevin_alpha(t), exact, rtol=EXACT, atol=0)
    assert torch.equal(VESDE(N=n).langevin_alpha(t), torch.ones_like(t))


def test_discrete_levels():
    """VE labels start at the largest sigma, VP labels at the smallest noise; sub-VP has none."""
    labels = torch.tensor([0, 40, 99])
    m, std = VESDE(N=100).discrete_level(labels)
    # exp in float32
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


def test_with_steps(sde):
    """`with_steps` returns the same process with another N and does not change the SDE itself."""
    other, fresh, t = sde.with_steps(50), type(sde)(N=50), torch.tensor([0.1, 0.5, 1.0])
    assert (
        type(other) is type(sde) and (other.N, sde.N) == (50, 1000) and repr(other) == repr(fresh)
    )
    assert all(map(torch.equal, other.mean_and_std(t), sde.mean_and_std(t)))
    assert all(map(torch.equal, other.discretize(t, t), fresh.discretize(t, t)))
    assert not torch.equal(other.discretize(t, t)[1], sde.discretize(t, t)[1])
    assert len(other.timesteps(1e-3)) == 50


@pytest.mark.parametrize('n', [50, 300])
def test_tables_follow_an_assigned_n(sde, n):
    """Assigning `sde.N = n` has the same effect as creating the SDE with n steps."""
    fresh = type(sde)(N=n)
    sde.discretize(torch.ones(1), torch.ones(1))  # creates the tables for N = 1000
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
