"""The distribution of samples is a known target, for every predictor, corrector and SDE."""

import itertools
import math

import pytest
import torch

from oracles import SDES, ExactNetwork, gaussian, identity, pc_sampler
from sampling import CORRECTORS, PREDICTORS, get_ode_sampler

SAMPLES, STEPS, SEED = 2000, 200, 0


class Yardstick:
    """The distance between samples in the plane and a target, and its size for exact samples.

    It is the sliced 2-Wasserstein distance (32 directions) to 40,000 exact samples. `exact` is the
    largest distance of 200 sets of 2,000 exact samples. The distance depends on the positions of
    blobs but hardly on their widths. The mean of the exact log density depends on the widths.
    """

    def __init__(self, target):
        angles = torch.arange(32, dtype=torch.float64) * math.pi / 32
        self.directions = torch.stack([angles.cos(), angles.sin()])
        reference = (target.sample(20 * SAMPLES, seed=1) @ self.directions).sort(0)[0]
        self.quantiles = reference.reshape(SAMPLES, 20, 32).mean(1)
        self.exact = max(self(target.sample(SAMPLES, seed=100 + i)) for i in range(200))
        log_density = target.log_prob(target.sample(100000, seed=2))
        self.log_density, self.log_density_std = log_density.mean(), log_density.std()

    def __call__(self, x):
        return (
            ((x.double() @ self.directions).sort(0)[0] - self.quantiles)
            .square()
            .mean()
            .sqrt()
            .item()
        )


@pytest.fixture(scope='module')
def yardstick(target):
    return Yardstick(target)


def assert_samples(x, target, yardstick, blobs=0.1):
    """Check mean, covariance and distribution of 2,000 samples made in 200 steps.

    `blobs` is the tolerance for the relative error of the variances of blobs.
    """
    x = x.double()
    assert torch.isfinite(x).all()
    # The tolerances are four standard errors of 2000 samples (std / sqrt(n) for a mean, at most
    # sqrt(2) variance / sqrt(n) for a covariance) and 4 % of the variance for the steps. A step of
    # VE reduces the variance of the noise by 2 log(3000) / 200 = 8 %, and an Euler step of the flow
    # misses at most half of that. The bias of the corrector is snr^2 = 2 %.
    variance = target.covariance.diag().max().item()
    assert (x.mean(0) - target.mean).abs().max() < 4 * math.sqrt(variance / SAMPLES) + 0.02
    assert (x.T.cov() - target.covariance).abs().max() < 4 * math.sqrt(
        2 / SAMPLES
    ) * variance + 0.04 * variance
    # a third more than the largest of 200 exact sets, because of the same errors of the steps
    assert yardstick(x) < 4 / 3 * yardstick.exact
    # The tolerance is four standard errors and `blobs`: a relative error of the variances in both
    # dimensions changes the log density by the same fraction. Euler or reversed steps of 1/200
    # cause errors of up to 10 % in the narrowest blob.
    offset = target.log_prob(x).mean() - yardstick.log_density
    assert abs(offset) < 4 * yardstick.log_density_std / math.sqrt(SAMPLES) + blobs


def is_undefined(sde, predictor, corrector, probability_flow):
    """Return whether a combination is undefined.

    A sampler without any step is undefined, and ancestral sampling along the ODE or without a
    Markov chain.
    """
    return (predictor == corrector == 'none') or (
        predictor == 'ancestral_sampling' and (sde == 'subvp' or probability_flow)
    )


COMBINATIONS = list(itertools.product(SDES, PREDICTORS.names(), CORRECTORS.names(), [False, True]))


def test_the_list_of_combinations_is_complete():
    """The tests below include all registered predictors and correctors automatically."""
    assert {'euler_maruyama', 'reverse_diffusion', 'ancestral_sampling', 'none'} <= set(
        PREDICTORS.names()
    )
    assert {'langevin', 'ald', 'none'} <= set(CORRECTORS.names())


@pytest.mark.parametrize(
    'name, predictor, corrector, probability_flow', [c for c in COMBINATIONS if is_undefined(*c)]
)
def test_undefined_combinations_raise_an_error(name, predictor, corrector, probability_flow):
    """The error is one sentence, raised before any step."""
    with pytest.raises((NotImplementedError, ValueError)) as error:
        pc_sampler(SDES[name](STEPS), predictor, corrector, probability_flow=probability_flow)
    message = str(error.value)
    assert 20 < len(message) < 250 and '\n' not in message
    assert ('ancestral' in message) if predictor == 'ancestral_sampling' else ("'none'" in message)


@pytest.mark.parametrize(
    'name, predictor, corrector, probability_flow',
    [c for c in COMBINATIONS if not is_undefined(*c) and c[1] != 'none'],
)
def test_samples_have_the_targets_distribution(
    name, predictor, corrector, probability_flow, target, yardstick
):
    sde = SDES[name](STEPS)
    torch.manual_seed(SEED)
    x, nfe = pc_sampler(sde, predictor, corrector, probability_flow=probability_flow)(
        ExactNetwork(sde, target)
    )
    assert nfe == STEPS * (1 if corrector == 'none' else 2)
    assert_samples(x, target, yardstick)


@pytest.mark.parametrize(
    'name, corrector',
    [('ve', 'ald'), ('ve', 'langevin'), ('vp', 'ald'), ('vp', 'langevin'), ('subvp', 'langevin')],
)
def test_correctors_without_a_predictor_sample(name, corrector, target, yardstick):
    """Annealed Langevin dynamics samples without a predictor.

    Two steps per noise level with snr 0.35 are enough: each step reduces a deviation by 2 snr^2 =
    25 %, and the next noise level of VE is only 4 % lower. The steps increase the variance by a
    factor of 1 / (1 - snr^2), and narrow blobs by twice as much.
    """
    sde = SDES[name](STEPS)
    torch.manual_seed(SEED)
    x, nfe = pc_sampler(sde, 'none', corrector, snr=0.35, n_steps=2)(ExactNetwork(sde, target))
    assert nfe == 2 * STEPS
    assert_samples(x, target, yardstick, blobs=0.25)


def test_ald_without_a_predictor_with_subvp_is_nearly_right(target):
    """With sub-VP the steps become too small before the samples have the right distribution.

    They are proportional to std^2, which falls as t^2 while the signal is not yet restored (m < 1).
    The mean is right up to four standard errors, the covariance up to 30 %.
    """
    sde = SDES['subvp'](STEPS)
    torch.manual_seed(SEED)
    x = pc_sampler(sde, 'none', 'ald', snr=0.35, n_steps=2)(ExactNetwork(sde, target))[0].double()
    assert (x.mean(0) - target.mean).abs().max() < 4 * math.sqrt(1.14 / SAMPLES)
    assert (x.T.cov() - target.covariance).abs().max() < 0.3


@pytest.mark.parametrize('name', ['ve', 'vp'])
def test_discrete_networks_sample(name, target, yardstick):
    """A discrete network with 1,000 noise levels can be sampled in 200 steps."""
    sde = SDES[name](1000)
    network = ExactNetwork(sde, target, continuous=False)
    sde.N = STEPS
    torch.manual_seed(SEED)
    x, _ = pc_sampler(sde, 'reverse_diffusion', 'langevin', continuous=False)(network)
    assert_samples(x, target, yardstick)


@pytest.mark.parametrize('denoise', [False, True])
@pytest.mark.parametrize('name', SDES)
def test_ode_samples_have_the_targets_distribution(name, denoise, target, yardstick):
    sde = SDES[name](1000)
    torch.manual_seed(SEED)
    network = ExactNetwork(sde, target)
    x, nfe = get_ode_sampler(sde, (SAMPLES, 2), identity, denoise=denoise, eps=sde.sampling_eps)(
        network
    )
    assert nfe == network.calls
    assert_samples(x, target, yardstick)


def test_wrong_distributions_are_detected(target, yardstick):
    """The check above rejects other weights, twice the variance, a shift and 15 % more spread."""
    x = target.sample(SAMPLES, seed=5)
    assert_samples(x, target, yardstick)
    equal_weights = type(target)([1, 1, 1], target.means, target.covariances)
    wide = type(target)(target.weights, target.means, 2 * target.covariances)
    for wrong in (equal_weights.sample(SAMPLES), wide.sample(SAMPLES), x + 0.2, 1.15 * x):
        with pytest.raises(AssertionError):
            assert_samples(wrong, target, yardstick)


@pytest.mark.parametrize('name', SDES)
@pytest.mark.parametrize(
    'shape', [(3,), (1, 4, 4), (3, 2, 5)], ids=['vectors', 'images', 'oblong images']
)
def test_vectors_and_images(shape, name):
    """Samplers accept data of any shape; here all values are independent Gaussians."""
    sde, dims = SDES[name](100), math.prod(shape)
    means = torch.linspace(-1, 1, dims, dtype=torch.float64)
    variances = torch.linspace(0.2, 1, dims, dtype=torch.float64)
    network = ExactNetwork(sde, gaussian(means, variances, shape))
    for sampler in (
        pc_sampler(sde, 'reverse_diffusion', 'langevin', shape=(500, *shape), snr=0.1),
        get_ode_sampler(sde, (500, *shape), identity, eps=sde.sampling_eps),
    ):
        torch.manual_seed(SEED)
        x = sampler(network)[0]
        assert x.shape == (500, *shape)
        # five standard errors, because up to 30 values are compared, and 3 % and 10 % because there
        # are half as many steps as above
        assert (
            (x.double().flatten(1).mean(0) - means) / variances.sqrt()
        ).abs().max() < 5 / math.sqrt(500) + 0.03
        assert (x.double().flatten(1).var(0) / variances - 1).abs().max() < 5 * math.sqrt(
            2 / 500
        ) + 0.1
