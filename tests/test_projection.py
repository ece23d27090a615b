"""Samples given a measurement have the conditional distribution, known exactly for Gaussians."""

import math

import pytest
import torch

from control import Grey, Mask, blur, downsampling, measurement_guidance
from controllable_generation import get_pc_colorizer, get_pc_inpainter
from models.utils import get_score_fn
from oracles import ExactNetwork, level
from published_samplers import HALF, SDES, SEED, correlated, made, measured_sampler


class Known:
    """A correlated Gaussian with known P x_0, for x_0 = mu +- offset.

    The sign is plus in the first half of a batch of n and minus in the second. Given P x_0, the
    mean is mu + gain (x_0 - mu) with gain = C P (P C P)^+ P, and the covariance does not depend on
    x_0. The offset is the shortest that moves the mean by one conditional standard deviation, in
    the metric of the conditional covariance.
    """

    def __init__(self, shape, measurement, n):
        dims, self.target = math.prod(shape), correlated(shape)
        mean, covariance = self.target.mean, self.target.covariance
        P = (
            measurement.project(torch.eye(dims, dtype=torch.float64).reshape(dims, *shape))
            .flatten(1)
            .T
        )
        self.gain = (
            covariance @ P @ torch.linalg.pinv(P @ covariance @ P, rtol=1e-9, hermitian=True) @ P
        )
        gains, axes = torch.linalg.eigh(P)
        axes = axes[:, gains < 0.5]  # the axes of the unknown part
        self.whiten = (
            axes
            @ torch.linalg.cholesky(axes.T @ (covariance - self.gain @ covariance) @ axes)
            .inverse()
            .T
        )
        self.signs = torch.where(torch.arange(n) < n // 2, 1.0, -1.0)[:, None].double()
        _, moved, directions = torch.linalg.svd(self.whiten.T @ self.gain)
        self.data = (mean + self.signs * directions[0] / moved[0]).reshape(n, *shape).float()

    def errors(self, x):
        """Return the largest errors of mean and covariance of the unknown part of x.

        Both are in units of the conditional standard deviation. Because of the signs, samples that
        match the wrong half of the batch have an error of the mean.
        """
        mean = self.target.mean
        conditional = mean + (self.data.double().flatten(1) - mean) @ self.gain.T
        z = self.signs * ((x.double().flatten(1) - conditional) @ self.whiten)
        return z.mean(0).abs().max().item(), (z.T.cov() - torch.eye(z.shape[1])).abs().max().item()


@pytest.mark.parametrize('name', SDES)
def test_inpainting_has_the_conditional_distribution(name):
    """Inpainted values have the exact conditional mean and covariance; known values do not change.

    The tolerance of a mean, 0.05 std, is three standard errors of 4000 samples. That of a variance,
    10 %, is four standard errors of sqrt(2/4000), and 1 % for the opposite errors of steps and
    corrector.
    """
    sde, known = SDES[name](200), Known((4,), Mask(HALF), 4000)
    torch.manual_seed(SEED)
    x = made(get_pc_inpainter, sde, resample=5)(ExactNetwork(sde, known.target), known.data, HALF)
    assert torch.equal(x[:, HALF == 1], known.data[:, HALF == 1])
    mean, covariance = known.errors(x)
    assert mean < 0.05 and covariance < 0.1


@pytest.mark.parametrize('name', SDES)
def test_resampling_reduces_the_error_of_the_mean(name):
    """Resampling reduces the error of the conditional mean by more than a third.

    A single sweep without a corrector leaves the mean half-way between the unconditional and the
    conditional mean, which are one std apart.
    """
    sde, known, means = SDES[name](100), Known((4,), Mask(HALF), 2000), {}
    for resample in (1, 5):
        torch.manual_seed(SEED)
        x = made(get_pc_inpainter, sde, corrector=None, resample=resample)(
            ExactNetwork(sde, known.target), known.data, HALF
        )
        means[resample] = known.errors(x)[0]
    assert means[1] > 0.3 and means[5] < 0.66 * means[1]


@pytest.mark.parametrize('name', SDES)
def test_consistency_reduces_the_error_of_the_mean(name):
    """Consistency with weight 1 reduces the error by more than 40 %, without more evaluations."""
    sde, known, means = SDES[name](100), Known((4,), Mask(HALF), 2000), {}
    for consistency in (0.0, 1.0):
        torch.manual_seed(SEED)
        network = ExactNetwork(sde, known.target)
        x, nfe = made(measured_sampler, sde, corrector=None, consistency=consistency)(
            network, Mask(HALF), known.data * HALF
        )
        assert (
            torch.equal(x[:, HALF == 1], known.data[:, HALF == 1])
            and nfe == network.calls == 100
            and not x.requires_grad
        )
        means[consistency] = known.errors(x)[0]
    assert means[0.0] > 0.3 and means[1.0] < 0.6 * means[0.0]


@pytest.mark.parametrize('name', SDES)
def test_the_gradient_of_consistency_equals_its_formula(name):
    """For a Gaussian the gradient is (1 - P) J^T P (x_0 - x^_0) (m^2 + std^2) / std^2.

    Here x^_0 = mu + J (x - m mu) with J = m C (m^2 C + std^2)^-1. The gradient is zero where
    m < std / 10. The test uses float64; its tolerance of 1e-6 is due to the noise level, which the
    exact network computes from its label.
    """
    sde, measurement, target = SDES[name](1000), Grey(3), correlated((3, 2, 2))
    t = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
    x0 = target.sample(6)
    x, (m, std) = sde.perturb(x0, t), (v[:, None] for v in level(sde, t))
    P = measurement.project(torch.eye(12, dtype=torch.float64).reshape(12, 3, 2, 2)).flatten(1)
    C, mean, whole = target.covariance, target.mean, torch.eye(12, dtype=torch.float64)
    J = m[:, :, None] * C @ torch.linalg.inv(m[:, :, None] ** 2 * C + std[:, :, None] ** 2 * whole)
    missing = (x0.flatten(1) - mean - torch.einsum('bij,bj->bi', J, x.flatten(1) - m * mean)) @ P
    exact = torch.einsum('bij,bi->bj', J, missing) * (m**2 + std**2) / std**2 @ (whole - P)
    exact = torch.where(m < std / 10, 0, exact)
    assert 0 < (exact == 0).all(1).sum() < 4 and (exact != 0).any(1)[:3].all()
    score_fn = get_score_fn(sde, ExactNetwork(sde, target), continuous=True)
    for weight in (1.0, 2.5):
        with torch.no_grad():  # samplers call it without gradients
            guided = measurement_guidance(sde, measurement, measurement(x0), weight)(score_fn)(x, t)
        added = (guided - score_fn(x, t)).flatten(1)
        assert not guided.requires_grad and not x.requires_grad
        torch.testing.assert_close(
            added, weight * exact, rtol=0, atol=1e-6 * weight * exact.abs().max().item()
        )


MEASURED = {
    'colours': ('vp', (3, 2, 2), Grey(3)),
    'small': ('subvp', (3, 2, 2), downsampling(2, 2, 2)),
    'blurred': ('ve', (3, 2, 2), blur(2, 2, 1.5)),
}


@pytest.mark.parametrize('name, shape, measurement', MEASURED.values(), ids=MEASURED)
def test_measured_samples_have_the_conditional_distribution(name, shape, measurement):
    """Samples have the exact conditional distribution, and their measurement is y.

    The tolerance of a mean, 0.06 std, is three standard errors of 3000 samples. That of a variance,
    15 %, is four standard errors, and 5 % for a corrector with snr^2 = 2.6 %. The samples agree
    with y up to a few float32 roundings, divided by gains of at least 0.03.
    """
    sde, known = SDES[name](200), Known(shape, measurement, 3000)
    y = measurement(known.data)
    torch.manual_seed(SEED)
    network = ExactNetwork(sde, known.target)
    if isinstance(measurement, Grey):
        x = made(get_pc_colorizer, sde, resample=4)(network, known.data)
    else:
        x, nfe = made(measured_sampler, sde, resample=4)(network, measurement, y)
        # predictor and corrector take every step four times, except the last one
        assert nfe == network.calls == 2 * (4 * 199 + 1)
    assert x.shape == known.data.shape and x.dtype == torch.float32
    torch.testing.assert_close(measurement.project(x), measurement.pinv(y), rtol=0, atol=2e-5)
    # components with gains of up to 0.03 are unknown after blur
    rounding, dropped = 2e-6, 0.03 * (x - known.data).flatten(1).norm(dim=1).max()
    assert (measurement(x) - y).abs().max() < rounding + (dropped if name == 've' else 0)
    mean, covariance = known.errors(x)
    assert mean < 0.06 and covariance < 0.15


def test_wrong_conditional_samples_are_detected():
    """The tests above would reject three kinds of wrong samples.

    The wrong samples are unconditional, conditional on the data of the other half of the batch, or
    have 10 % more spread.
    """
    known = Known((4,), Mask(HALF), 4000)
    z = torch.randn(4000, 2, dtype=torch.float64)
    mean = known.target.mean

    def samples(data, spread=1.0):
        conditional = mean + (data.double() - mean) @ known.gain.T
        return conditional + spread * z @ torch.linalg.pinv(known.whiten)

    assert (
        known.errors(samples(known.data))[0] < 0.05 and known.errors(samples(known.data))[1] < 0.1
    )
    assert (
        known.errors(known.target.sample(4000))[0] > 0.3
        and known.errors(samples(known.data.flip(0)))[0] > 0.3
    )
    assert known.errors(samples(known.data, 1.1))[1] > 0.1
