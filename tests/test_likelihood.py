"""Likelihoods by the probability flow, compared with exact densities.

The targets are a mixture in the plane, and the probabilities of grid cells; all units are tested.
"""

import math

import pytest
import torch

from likelihood import Options, get_div_fn, get_likelihood_fn, log_likelihood
from models.score import Score
from oracles import ExactNetwork, GaussianMixture, gaussian, identity, level, planar_mixture
from score_model import ScoreModel
from sde_lib import VESDE, VPSDE, subVPSDE

# With these SDEs, p_T is close to the prior. The remaining part of the data at T is m = exp(-10)
# for VP and subVP. For VE it is the ratio 2 / 1000 of the data's size to sigma_max, and for a
# centred target only the square of this ratio matters.
SDES = dict(
    ve=lambda: VESDE(0.01, 1000), vp=lambda: VPSDE(0.1, 40), subvp=lambda: subVPSDE(0.1, 40)
)
PUBLISHED = dict(ve=VESDE, vp=VPSDE, subvp=subVPSDE)
EPS = 1e-5
EXACT = Options(hutchinson_type='exact', eps=EPS)
# the error is at most 1e-4 nats over a few hundred steps
FINE = Options(hutchinson_type='exact', eps=EPS, rtol=1e-7, atol=1e-7)
BITS = math.log(2)


def centred_mixture():
    mixture = planar_mixture()
    return GaussianMixture(mixture.weights, mixture.means - mixture.mean, mixture.covariances)


@pytest.mark.parametrize('name', SDES)
def test_log_likelihood_is_the_exact_density(name):
    """Likelihoods of data and of distant points are exact to 1e-3 bits/dim, also in nats."""
    sde, target = SDES[name](), centred_mixture()
    x = torch.cat(
        [target.sample(30, seed=3), torch.tensor([[4.0, -3.0], [0.0, 5.0]], dtype=torch.float64)]
    )
    network = ExactNetwork(sde, target)
    result = log_likelihood(Score(network, sde), x, levels=1, options=FINE)
    exact = target.log_prob(x, *level(sde, torch.tensor([EPS])))  # the flow starts at eps
    assert result.nats.dtype == torch.float64 and result.z.shape == x.shape
    tolerance = 1e-3 * 2 * BITS  # 1e-3 bits/dim in nats
    torch.testing.assert_close(result.nats, exact, rtol=0, atol=tolerance)
    torch.testing.assert_close(result.bpd, -exact / (2 * BITS), rtol=0, atol=1e-3)
    assert (result.nats_stderr == 0).all() and (result.bpd_stderr == 0).all()
    assert network.calls == result.nfe  # one pass gives drift and divergence
    # For typical points, the density of the data at t = 0 is within the same tolerance: the noise
    # sigma_min = 0.01 of VE changes log p by less than sigma_min^2 (|s|^2 + tr hessian) / 2, where
    # |s|^2 is at most 50.
    if name != 've':
        torch.testing.assert_close(
            result.nats[:30], target.log_prob(x[:30]), rtol=0, atol=tolerance
        )
    torch.testing.assert_close(
        result.nats[:30].mean(), target.log_prob(x[:30]).mean(), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_only_other_error_is_that_of_the_prior(name):
    """With the default SDEs and an uncentred target, the only error of log p is that of the prior.

    The error of the prior is log prior(z) - log p_T(z).
    """
    sde, target = PUBLISHED[name](), planar_mixture()
    x = target.sample(16, seed=4)
    result = log_likelihood(Score(ExactNetwork(sde, target), sde), x, levels=1, options=FINE)
    at_eps, at_T = (level(sde, torch.tensor([t])) for t in (EPS, 1.0))
    mismatch = sde.prior_logp(result.z) - target.log_prob(result.z, *at_T)
    assert mismatch.abs().max() > 1e-3  # here the prior is not close to p_T
    torch.testing.assert_close(
        result.nats, target.log_prob(x, *at_eps) + mismatch, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize('continuous', [True, False])
def test_continuous_and_discrete_networks(continuous):
    """`continuous=False` uses VE's discrete labels, which round times to noise levels.

    With 4000 noise levels, the relative error of sigma is at most 0.15 %, and the error of log p,
    which is of order one, is less than 0.01.
    """
    sde, target = VESDE(0.01, 1000, N=4000), centred_mixture()
    x = target.sample(8, seed=3)
    result = log_likelihood(
        Score(ExactNetwork(sde, target, continuous), sde, continuous), x, options=EXACT
    )
    torch.testing.assert_close(
        result.nats, target.log_prob(x, *level(sde, torch.tensor([EPS]))), rtol=0, atol=0.01
    )


# Hutchinson's estimator


@pytest.mark.parametrize('probe', ['Rademacher', 'Gaussian'])
def test_hutchinson_is_unbiased(probe):
    """The mean over 2000 probes at one point is the exact value, up to four standard errors."""
    sde, target, n = VPSDE(), planar_mixture(), 2000
    x, model = (
        torch.tensor([[-1.2, 0.7]], dtype=torch.float64),
        Score(ExactNetwork(sde, target), sde),
    )
    exact = log_likelihood(model, x, options=EXACT).nats
    torch.manual_seed(0)
    result = log_likelihood(model, x.expand(n, 2), options=Options(hutchinson_type=probe))
    spread = result.nats.std()
    assert spread > 0.1  # the estimates do differ
    # 1e-3 is for the solver's error at tolerance 1e-5
    assert abs(result.nats.mean() - exact) < 4 * spread / math.sqrt(n) + 1e-3
    assert torch.isnan(result.nats_stderr).all()  # one probe gives no error estimate
    # With Rademacher probes only off-diagonal entries cause errors: in the plane
    # e^T J e = tr J +- 2 J_12, two values of equal probability
    if probe == 'Rademacher':
        assert len(result.nats.mul(1e2).round().unique()) == 2


def test_probes_are_averaged_and_have_a_standard_error():
    """The mean square of nats_stderr for K probes is the variance of log p, which falls as 1 / K.

    The variance is taken over 250 repetitions; four standard errors are 4 sqrt(2 / 249) = 36 % of
    it.
    """
    sde, target, n, variances = VPSDE(), planar_mixture(), 250, {}
    x, network = (
        torch.tensor([[-1.2, 0.7]], dtype=torch.float64).expand(n, 2),
        ExactNetwork(sde, target),
    )
    exact = log_likelihood(Score(network, sde), x[:1], options=EXACT).nats
    for probes in (2, 8):
        torch.manual_seed(0)
        network.calls = 0
        result = log_likelihood(
            Score(network, sde), x, options=Options(hutchinson_type='Gaussian', probes=probes)
        )
        variances[probes] = result.nats.var()
        assert abs(result.nats_stderr.square().mean() / variances[probes] - 1) < 0.36
        assert abs(result.nats.mean() - exact) < 4 * result.nats.std() / math.sqrt(n) + 1e-3
        torch.testing.assert_close(
            result.bpd_stderr, result.nats_stderr / (2 * BITS), rtol=1e-12, atol=0
        )
        assert network.calls == result.nfe  # all probes share a forward pass
    # the ratio of two variances, each with a standard error of 9 %
    assert abs(variances[2] / variances[8] / 4 - 1) < 0.5


def test_divergence_against_the_jacobian():
    """The sum over unit vectors as probes is the trace; so is the mean over all sign vectors."""
    mixing = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def fn(x, t):
        return (torch.tanh(x.flatten(1) @ mixing) * (1 + t[:, None])).reshape(x.shape)

    x, t = (
        torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(3, 1, 2, 3),
        torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64),
    )
    jacobian = torch.autograd.functional.jacobian(lambda x: fn(x, t), x).reshape(3, 6, 3, 6)
    traces = torch.einsum('bibi->b', jacobian)
    divergence = get_div_fn(fn)
    units = torch.eye(6, dtype=torch.float64).reshape(6, 1, 2, 3)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6).reshape(
        64, 1, 2, 3
    )
    total = sum(divergence(x, t, unit.expand_as(x)) for unit in units)
    # only the order of summation differs
    torch.testing.assert_close(total, traces, rtol=1e-12, atol=1e-12)
    average = sum(divergence(x, t, sign.expand_as(x)) for sign in signs) / 64
    torch.testing.assert_close(average, traces, rtol=1e-12, atol=1e-12)
    with torch.no_grad():  # the function turns gradients on itself
        assert not divergence(x, t, torch.ones_like(x)).requires_grad


# Units


def affine_image(target, slope, shift):
    return GaussianMixture(
        target.weights, slope * target.means + shift, slope**2 * target.covariances
    )


@pytest.mark.parametrize('name', ['vp', 'subvp'])
@pytest.mark.parametrize('levels', [256, 17])
def test_the_scaler_does_not_matter(name, levels):
    """log p(x) and bits/dim of x in [0, 1] do not depend on the scaling of the network's input.

    The scalings are y = x, 2x - 1, 3x + 5 and 1 - x.
    """
    sde, mixture = SDES[name](), planar_mixture()
    target = affine_image(mixture, 0.1, 0.5)
    x = target.sample(8, seed=6)
    exact = target.log_prob(x)
    for slope, shift in [(1, 0), (2, -1), (3, 5), (-1, 1)]:
        model = Score(ExactNetwork(sde, affine_image(target, slope, shift)), sde)
        result = log_likelihood(
            model, slope * x + shift, lambda y, a=slope, b=shift: (y - b) / a, levels, FINE
        )
        # the noise at eps, std^2 <= 1e-6, is 1/1000 of the smallest variance; the error of the
        # prior is m |y| |z| < exp(-10) 6 * 4 = 1e-3
        torch.testing.assert_close(result.nats, exact, rtol=0, atol=5e-3)
        torch.testing.assert_close(
            result.bpd, math.log2(levels) - exact / (2 * BITS), rtol=0, atol=5e-3
        )


def test_levels_shift_bits_per_dimension():
    sde, target = VPSDE(), planar_mixture()
    x, model = target.sample(4, seed=6), Score(ExactNetwork(sde, target), sde)
    by_levels = {
        levels: log_likelihood(model, x, levels=levels, options=EXACT) for levels in (17, 256)
    }
    torch.testing.assert_close(
        by_levels[256].bpd - by_levels[17].bpd,
        torch.full((4,), math.log2(256 / 17), dtype=torch.float64),
    )
    assert torch.equal(by_levels[256].nats, by_levels[17].nats)


def scaler(x):
    return 2 * x - 1


def inverse_scaler(y):
    return (y + 1) / 2


def test_dequantization_inside_equals_dequantization_before():
    """Integers k become (k + u) / levels with uniform noise u; floating-point data do not change.

    The noise depends only on the seed.
    """
    sde, levels = VPSDE(), 17
    model = ScoreModel(ExactNetwork(sde, planar_mixture()), sde, centered=True, levels=levels)
    k, settings = (
        torch.tensor([[0, 3], [8, 16], [5, 5]]),
        dict(hutchinson_type='exact', method='RK45'),
    )
    torch.manual_seed(0)
    inside = model.log_likelihood(k, **settings)
    torch.manual_seed(0)
    outside = log_likelihood(
        model, scaler((k + torch.rand(k.shape)) / levels), inverse_scaler, levels, EXACT
    )
    assert torch.equal(inside.bpd, outside.bpd)
    grid = k / (levels - 1)
    plain = model.log_likelihood(grid, **settings)
    assert torch.equal(
        plain.bpd, log_likelihood(model, scaler(grid), inverse_scaler, levels, EXACT).bpd
    )
    assert (plain.bpd - inside.bpd).abs().max() > 1e-3


def test_bits_per_dimension_of_dequantized_data():
    """The mean bpd of dequantized data is close to -log2 of the exact probability of a grey level.

    This probability is the integral of the density over the cell [k, k + 1) / 256. By Jensen's
    inequality the mean is larger than -log2 of it, but only slightly, because the density changes
    by at most 6 % over a cell.
    """
    sde, levels, repeats = SDES['vp'](), 256, 200
    target = gaussian([0.0], [0.3**2])  # of y = 2x - 1
    cells = torch.tensor([60.0, 120.0, 200.0], dtype=torch.float64)
    edges = torch.distributions.Normal(torch.tensor(0.5).double(), torch.tensor(0.15).double())
    exact = -torch.log2(edges.cdf((cells + 1) / levels) - edges.cdf(cells / levels))
    data, model = (
        cells.long().repeat_interleave(repeats)[:, None],
        ScoreModel(ExactNetwork(sde, target), sde, centered=True, levels=levels),
    )
    bpd = model.log_likelihood(data, seed=0, hutchinson_type='exact').bpd
    average = bpd.reshape(3, repeats).mean(1).double()
    # the gap of the bound is (d log2 p)^2 / 24 < 4e-4 bits; four standard errors are
    # 0.06 / log(2) / sqrt(12 * 200) * 4 < 8e-3 bits
    torch.testing.assert_close(average, exact, rtol=0, atol=8e-3)


def test_images():
    """The likelihood of an image is that of the same values as a vector."""
    sde, variances = VPSDE(), torch.linspace(0.1, 0.5, 12, dtype=torch.float64)
    image, vector = gaussian([0.2] * 12, variances, (3, 2, 2)), gaussian([0.2] * 12, variances)
    x = image.sample(2, seed=1)
    results = [
        log_likelihood(
            Score(ExactNetwork(sde, target), sde), x.reshape(2, *target.shape), options=EXACT
        )
        for target in (image, vector)
    ]
    assert results[0].z.shape == x.shape
    torch.testing.assert_close(results[0].bpd, results[1].bpd, rtol=1e-9, atol=0)
    exact = 8 - image.log_prob(x, *level(sde, torch.tensor([EPS]))) / (12 * BITS)
    # the error of the prior at m = exp(-5) is m mu z over 12 values,
    # 0.0067 * 0.2 * sqrt(12) * 3 = 0.014 nats
    torch.testing.assert_close(results[0].bpd, exact, rtol=0, atol=0.014 / (12 * BITS) + 1e-4)


# Contracts


def test_float32_data_have_float32_results():
    sde, target = VPSDE(), planar_mixture()
    x, model = target.sample(4, seed=1), Score(ExactNetwork(sde, target), sde)
    single, double = (log_likelihood(model, data, options=EXACT) for data in (x.float(), x))
    assert all(v.dtype == torch.float32 for v in (single.nats, single.bpd, single.z))
    # the tolerance covers rtol=1e-5 of the solver and drifts in float32
    torch.testing.assert_close(single.nats.double(), double.nats, rtol=0, atol=2e-3)


def test_the_interface_of_the_2021_release():
    """`get_likelihood_fn` returns bits/dim, latent codes and nfe of `log_likelihood`."""
    sde, target = VPSDE(), planar_mixture()
    x, network = target.sample(3, seed=1), ExactNetwork(sde, target)
    torch.manual_seed(0)
    bpd, z, nfe = get_likelihood_fn(sde, inverse_scaler)(network, x)
    assert network.calls == nfe
    torch.manual_seed(0)
    result = log_likelihood(Score(network, sde), x, inverse_scaler)
    assert torch.equal(bpd, result.bpd) and torch.equal(z, result.z) and nfe == result.nfe
    assert not bpd.requires_grad and not z.requires_grad


@pytest.mark.parametrize(
    'settings, message',
    [
        (
            dict(hutchinson_type='rademacher'),
            "hutchinson_type must be 'Rademacher', 'Gaussian' or 'exact', got 'rademacher'",
        ),
        (dict(probes=0), 'probes must be at least 1, got 0'),
        (dict(method='Euler'), "'Euler'"),
    ],
)
def test_invalid_settings_raise_an_error(settings, message):
    with pytest.raises(ValueError, match=message):
        Options(**settings)


def test_invalid_settings_raise_an_error_without_a_network():
    with pytest.raises(ValueError, match="got 'rademacher'"):
        get_likelihood_fn(VPSDE(), identity, 'rademacher')
