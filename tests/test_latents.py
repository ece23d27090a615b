"""Latent codes: encoding and decoding against exact results, interpolation and mixing."""

import functools
import math

import pytest
import torch

from control.latents import decode, encode, interpolate, mix, reconstruction_error, temper
from models.score import Score
from oracles import ExactNetwork, gaussian, level
from runtime.errors import UserError
from sampling import Options
from sde_lib import VESDE, VPSDE, subVPSDE

SDES = dict(ve=lambda: VESDE(0.01, 20), vp=VPSDE, subvp=subVPSDE)
SHAPE = (1, 2, 2)
OPTIONS = functools.partial(Options, method='ode', ode_method='RK45')
MEAN, VARIANCES = [0.7, -0.5, 0.0, 0.2], torch.tensor([0.4, 1.5, 0.1, 0.9], dtype=torch.float64)


@pytest.fixture(params=SDES)
def sde(request):
    return SDES[request.param]()


@pytest.fixture(scope='module')
def target():
    """A Gaussian of images of 2 by 2 pixels; each pixel has its own mean and variance."""
    return gaussian(MEAN, VARIANCES, SHAPE)


def marginal(sde, t):
    """Return the mean and standard deviation (1, 2, 2) of x_t."""
    m, std = level(sde, torch.tensor([t]))
    return (m * torch.tensor(MEAN, dtype=torch.float64)).reshape(SHAPE), (
        m**2 * VARIANCES + std**2
    ).sqrt().reshape(SHAPE)


def carried(sde, x, s, t):
    """Return the point that x at time s reaches at time t along the flow.

    In one dimension the flow keeps the order of points, so it maps quantiles to quantiles.
    """
    (mean_s, std_s), (mean_t, std_t) = marginal(sde, s), marginal(sde, t)
    return mean_t + std_t * (x - mean_s) / std_s


# Encoding and decoding ----------------------------------------------------------------------------


@pytest.mark.parametrize('eps', [None, 0.05])
def test_codes_of_a_gaussian_are_exact(sde, target, eps):
    """Codes, and images decoded from exact codes, are exact up to errors of the solver.

    Errors of codes are at most ten times its tolerance, relative to their standard deviation.
    """
    network, x, options = (
        ExactNetwork(sde, target),
        target.sample(50),
        OPTIONS(rtol=1e-6, atol=1e-6, eps=eps),
    )
    start = sde.sampling_eps if eps is None else eps
    codes, nfe = encode(Score(network, sde), x, options)
    scale = marginal(sde, sde.T)[1].mean().item()
    assert codes.shape == x.shape and codes.dtype == x.dtype and not codes.requires_grad
    assert nfe == network.calls > 0
    torch.testing.assert_close(codes, carried(sde, x, start, sde.T), rtol=0, atol=1e-5 * scale)

    z = carried(sde, x, start, sde.T)
    network.calls = 0
    images, nfe = decode(Score(network, sde), z, options)
    assert nfe == network.calls > 0 and not images.requires_grad
    # VE: codes are of size 20, images of size 1, so errors are relatively larger
    torch.testing.assert_close(images, x, rtol=0, atol=1e-4)


def test_decoded_codes_equal_the_images(sde, target):
    """Decoded codes differ from the images by at most a quarter of a grey level (of 256).

    This holds for the default tolerances of 1e-5, in float32.
    """
    model, x = Score(ExactNetwork(sde, target), sde), target.sample(50).float()
    codes, _ = encode(model, x, OPTIONS())
    back, _ = decode(model, codes, OPTIONS())
    assert codes.dtype == back.dtype == torch.float32
    assert (back - x).abs().max() < 1e-3


def test_codes_are_distributed_as_the_prior(sde, target):
    """Codes have the mean and standard deviation of x_T, and no correlations.

    The tolerance is four standard errors.
    """
    n = 4000
    z = encode(
        Score(ExactNetwork(sde, target), sde), target.sample(n), OPTIONS(rtol=1e-3, atol=1e-3)
    )[0].flatten(1)
    mean, std = (v.flatten() for v in marginal(sde, sde.T))
    assert ((z.mean(0) - mean) / std).abs().max() < 4 / math.sqrt(n)
    assert (z.std(0) / std - 1).abs().max() < 4 / math.sqrt(2 * n) + 1e-3
    assert (torch.corrcoef(z.T) - torch.eye(4)).abs().max() < 4 / math.sqrt(n)


@pytest.mark.parametrize('method', ['RK45', 'RK23', 'DOP853'])
def test_tolerances_and_method_are_passed_to_the_solver(target, method):
    """A tolerance that is ten thousand times larger needs fewer evaluations."""
    sde, x = VPSDE(), target.sample(5)
    model = Score(ExactNetwork(sde, target), sde)
    rough, fine = (
        OPTIONS(ode_method=method, rtol=tolerance, atol=tolerance) for tolerance in (1e-2, 1e-6)
    )
    found = [encode(model, x, options) for options in (rough, fine)]
    assert found[0][1] < found[1][1]
    torch.testing.assert_close(found[1][0], carried(sde, x, 1e-3, 1.0), rtol=0, atol=1e-4)
    back, fewer = decode(model, found[1][0], rough)
    assert fewer < decode(model, found[1][0], fine)[1]
    assert back.shape == x.shape
    with pytest.raises(UserError, match="'Euler'"):
        encode(model, x, OPTIONS(ode_method='Euler'))


def test_codes_follow_a_guidance(sde, target):
    """A guidance that corrects the network of another Gaussian gives the right codes and images."""
    other, right = (
        ExactNetwork(sde, gaussian([0.0] * 4, [1.0] * 4, SHAPE)),
        ExactNetwork(sde, target),
    )

    def guidance(score_fn):
        return lambda x, t: (
            score_fn(x, t) + target.score(x, *level(sde, t)) - other.target.score(x, *level(sde, t))
        )

    x = target.sample(5)
    guided, right = Score(other, sde).guided_by(guidance), Score(right, sde)
    codes, nfe = encode(guided, x, OPTIONS())
    assert nfe == other.calls
    # both solvers take the same steps
    torch.testing.assert_close(codes, encode(right, x, OPTIONS())[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        decode(guided, codes, OPTIONS())[0],
        decode(right, codes, OPTIONS())[0],
        rtol=1e-6,
        atol=1e-6,
    )


# Between codes ------------------------------------------------------------------------------------


def codes_of(n, shape=(2, 3, 3), seed=0):
    return torch.randn(
        n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def angles(a, b):
    a, b = a.flatten(-3), b.flatten(-3)
    return ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).clamp(-1, 1).arccos()


def test_interpolation_starts_and_ends_at_its_codes():
    z0, z1 = codes_of(5), 3 * codes_of(5, seed=1)
    between = interpolate(z0, z1, torch.tensor([0.0, 0.25, 1.0]))
    assert between.shape == (3, 5, 2, 3, 3) and between.dtype == torch.float64
    torch.testing.assert_close(between[0], z0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(between[2], z1, rtol=1e-12, atol=1e-12)


def test_interpolation_follows_the_great_circle():
    """The norm is constant and the angle proportional to the fraction, also outside of [0, 1]."""
    z0, z1 = (
        z / z.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) * 7
        for z in (codes_of(5), codes_of(5, seed=1))
    )
    fractions = torch.tensor([-0.2, 0.0, 0.1, 0.5, 0.9, 1.0, 1.3], dtype=torch.float64)
    between, whole = interpolate(z0, z1, fractions), angles(z0, z1)
    torch.testing.assert_close(
        between.flatten(2).norm(dim=2),
        torch.full((7, 5), 7.0, dtype=torch.float64),
        rtol=1e-12,
        atol=0,
    )
    # the tolerance is that of arccos near 1
    torch.testing.assert_close(
        angles(between, z0[None]), (fractions.abs()[:, None] * whole), rtol=0, atol=1e-7
    )
    # the code halfway between the ends
    torch.testing.assert_close(
        between[3], (z0 + z1) / (2 * (whole / 2).cos()).reshape(-1, 1, 1, 1), rtol=1e-12, atol=1e-12
    )


def test_interpolation_is_a_rotation_in_the_plane_of_its_codes():
    """At fraction f between a and cos(w) a + sin(w) b the angle is f w, for orthogonal a and b.

    The angles w range from small ones, where rounding errors of the cosine change the angle by
    1e-16 / w, to nearly opposite codes, where the sine in the denominator is 0.01.
    """
    a, b = torch.zeros(7, 4, dtype=torch.float64), torch.zeros(7, 4, dtype=torch.float64)
    a[:, 0] = b[:, 1] = 2.0
    w, f = (
        torch.tensor([2e-3, 0.01, 0.05, 0.5, 1.5, 3.0, 3.13], dtype=torch.float64)[:, None],
        torch.linspace(0, 1, 5),
    )
    between, angle = interpolate(a, w.cos() * a + w.sin() * b, f), f.double()[:, None, None] * w
    torch.testing.assert_close(between, angle.cos() * a + angle.sin() * b, rtol=0, atol=1e-11)


def test_interpolation_of_two_codes_does_not_depend_on_the_others():
    z0, z1, fractions = codes_of(5), codes_of(5, seed=1), [0.0, 0.3, 1.0]
    alone = torch.cat([interpolate(z0[i : i + 1], z1[i : i + 1], fractions) for i in range(5)], 1)
    torch.testing.assert_close(interpolate(z0, z1, fractions), alone, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('distance', [0.0, 1e-12, 1e-6, 1e-4, 1e-3, 1.1e-3, 1e-2])
def test_interpolation_of_nearly_equal_codes(dtype, distance):
    """Circle and line differ by at most the angle squared, and a sine of zero causes no NaN."""
    z0 = codes_of(3, (1, 8, 8)).to(dtype)
    z1 = z0 + distance * codes_of(3, (1, 8, 8), seed=1).to(dtype)
    between = interpolate(z0, z1, torch.linspace(0, 1, 5))
    line = torch.stack([z0 + f * (z1 - z0) for f in torch.linspace(0, 1, 5).to(dtype)])
    assert between.dtype == dtype and between.isfinite().all()
    torch.testing.assert_close(
        between, line, rtol=0, atol=3 * distance**2 + 20 * torch.finfo(dtype).eps
    )
    torch.testing.assert_close(
        between[[0, -1]], torch.stack([z0, z1]), rtol=0, atol=20 * torch.finfo(dtype).eps
    )


def test_interpolation_of_opposite_codes_raises_an_error():
    z = codes_of(2)
    for opposite in (-z, -2 * z):
        with pytest.raises(UserError, match='opposite') as error:
            interpolate(z, torch.cat([z[:1], opposite[1:]]), [0.5])
        assert '\n' not in str(error.value)
    assert interpolate(z, -z + 0.1 * codes_of(2, seed=1), [0.5]).isfinite().all()


def test_interpolated_codes_decode_to_the_predicted_images(target):
    """For Gaussian data, interpolated codes decode to the images that the affine flow predicts."""
    sde, x = VPSDE(), target.sample(4)
    model = Score(ExactNetwork(sde, target), sde)
    z, _ = encode(model, x, OPTIONS())
    between = interpolate(z[:2], z[2:], [0.0, 0.5, 1.0])
    images = decode(model, between.flatten(0, 1), OPTIONS())[0].reshape(between.shape)
    torch.testing.assert_close(images[[0, 2]], torch.stack([x[:2], x[2:]]), rtol=0, atol=1e-3)
    torch.testing.assert_close(images[1], carried(sde, between[1], 1.0, 1e-3), rtol=0, atol=1e-3)


# Tempered and mixed codes -------------------------------------------------------------------------


def test_temperature_is_a_factor():
    z = codes_of(3)
    assert (
        torch.equal(temper(z, 0.5), z / 2)
        and torch.equal(temper(z, 1.0), z)
        and not temper(z, 0.0).any()
    )


@pytest.mark.parametrize('weights', [[1.0, 1.0], [3.0, 1.0, 0.5], [1.0, -2.0], [0.0, 2.0]], ids=str)
def test_mixed_codes_have_the_distribution_of_the_codes(weights):
    """Mixed codes have mean 0, variance 1 and uncorrelated pixels, to four standard errors."""
    n, shape = 4000, (1, 2, 2)
    codes = torch.stack([codes_of(n, shape, seed=k) for k in range(len(weights))])
    z = mix(codes, weights)
    assert z.shape == (n, *shape) and z.dtype == torch.float64
    assert z.mean(0).abs().max() < 4 / math.sqrt(n) and (z.var(0) - 1).abs().max() < 4 * math.sqrt(
        2 / n
    )
    assert (torch.corrcoef(z.flatten(1).T) - torch.eye(4)).abs().max() < 4 / math.sqrt(n)
    torch.testing.assert_close(mix(codes, torch.tensor(weights)), z)
    # only the proportions of the weights matter
    torch.testing.assert_close(mix(codes, [3 * w for w in weights]), z)
    expected = sum(w * code for w, code in zip(weights, codes)) / math.sqrt(
        sum(w**2 for w in weights)
    )
    torch.testing.assert_close(z, expected)


def test_masks_join_regions_of_codes():
    """Where only one mask is one, its code is copied; where masks overlap, the variance is kept.

    Masks may be the same for all codes, or differ between codes or channels.
    """
    codes = torch.stack([codes_of(4, seed=k) for k in range(2)])
    left = (torch.arange(3) < 1).double().expand(3, 3)
    joined = mix(codes, torch.stack([left, 1 - left])[:, None, None])
    assert torch.equal(joined[..., :1], codes[0][..., :1]) and torch.equal(
        joined[..., 1:], codes[1][..., 1:]
    )
    each = torch.stack(
        [torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])]
    ).reshape(2, 4, 1, 1, 1)
    assert torch.equal(mix(codes, each), torch.where(each[0] == 1, codes[0], codes[1]))
    channel = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[:, None, :, None, None]
    assert torch.equal(mix(codes, channel), torch.stack([codes[0][:, 0], codes[1][:, 1]], 1))
    soft = torch.stack([torch.ones(3, 3), left.float()])[:, None, None]
    torch.testing.assert_close(
        mix(codes, soft)[..., 0], (codes[0] + codes[1])[..., 0] / math.sqrt(2)
    )
    assert torch.equal(mix(codes, soft)[..., 1:], codes[0][..., 1:])


def test_weights_that_are_all_zero_raise_an_error():
    codes, holes = torch.stack([codes_of(4), codes_of(4, seed=1)]), torch.ones(2, 1, 1, 3, 3)
    holes[..., 1, 1] = 0
    for weights in ([0.0, 0.0], holes):
        with pytest.raises(UserError, match='all zero') as error:
            mix(codes, weights)
        assert '\n' not in str(error.value)


def test_reconstruction_error_is_in_grey_levels():
    """In the second of three images, two of four pixels differ by 1/4 and 1/2 of the range."""
    x, y = torch.full((3, 1, 2, 2), 0.25), torch.full((3, 1, 2, 2), 0.25)
    y[1, 0, 0] = torch.tensor([0.5, 0.75])
    for levels, settings in ((256, {}), (17, dict(levels=17))):
        mean, largest = reconstruction_error(x, y, **settings)
        torch.testing.assert_close(mean, torch.tensor([0.0, (levels - 1) * 0.75 / 4, 0.0]))
        torch.testing.assert_close(largest, torch.tensor([0.0, (levels - 1) / 2, 0.0]))
    assert reconstruction_error(y, x)[0][1] == reconstruction_error(x, y)[0][1]
