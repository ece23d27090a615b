"""The distribution of samples, for every predictor, corrector and SDE, against a known target."""

import itertools
import math

import pytest
import torch

from oracles import SDES, ExactNetwork, gaussian, identity, pc_sampler
from sampling import CORRECTORS, PREDICTORS, get_ode_sampler

SAMPLES, STEPS, SEED = 2000, 200, 0


class Yardstick:
    """The distance between samples in the plane and a target, and how large chance makes it.

    The sliced 2-Wasserstein distance (32 directions) to 40,000 exact samples. `exact` is the
    largest of 200 sets of 2,000 exact samples. The distance sees where mass lies but hardly how
    wide a blob is; the mean of the exact log density does.
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

    `blobs`: the tolerance for the relative error of the blobs' variances.
    """
    x = x.double()
    assert torch.isfinite(x).all()
    # Four standard errors of 2000 samples: of a mean, std / sqrt(n); of a covariance, at most
    # sqrt(2) variance / sqrt(n). And 4 % of the variance for the steps: a step of VE shortens the
    # variance of the noise by 2 log(3000) / 200 = 8 %, half of which an Euler step of the flow
    # misses at worst; the corrector's own bias is snr^2 = 2 %.
    variance = target.covariance.diag().max().item()
    assert (x.mean(0) - target.mean).abs().max() < 4 * math.sqrt(variance / SAMPLES) + 0.02
    assert (x.T.cov() - target.covariance).abs().max() < 4 * math.sqrt(
        2 / SAMPLES
    ) * variance + 0.04 * variance
    # a third more than the worst of 200 exact sets, for the same errors of the steps
    assert yardstick(x) < 4 / 3 * yardstick.exact
    # Four standard errors; and blobs whose variances are off by a fraction in both dimensions move
    # it by that fraction. An Euler or reversed step of 1/200 leaves up to 10 % at the narrowest.
    offset = target.log_prob(x).mean() - yardstick.log_density
    assert abs(offset) < 4 * yardstick.log_density_std / math.sqrt(SAMPLES) + blobs


def refused(sde, predictor, corrector, probability_flow):
    """Whether a combination is undefined.

    No step at all is; so is ancestral sampling along the ODE or without a Markov chain.
    """
    return (predictor == corrector == 'none') or (
        predictor == 'ancestral_sampling' and (sde == 'subvp' or probability_flow)
    )


COMBINATIONS = list(itertools.product(SDES, PREDICTORS.names(), CORRECTORS.names(), [False, True]))


def test_the_list_of_combinations_is_the_whole():
    """Predictors and correctors that are added are tested below automatically."""
    assert {'euler_maruyama', 'reverse_diffusion', 'ancestral_sampling', 'none'} <= set(
        PREDICTORS.names()
    )
    assert {'langevin', 'ald', 'none'} <= set(CORRECTORS.names())


@pytest.mark.parametrize(
    'name, predictor, corrector, probability_flow', [c for c in COMBINATIONS if refused(*c)]
)
def test_combinations_without_a_definition_are_refused(
    name, predictor, corrector, probability_flow
):
    """The error is one sentence, raised before any step."""
    with pytest.raises((NotImplementedError, ValueError)) as error:
        pc_sampler(SDES[name](STEPS), predictor, corrector, probability_flow=probability_flow)
    message = str(error.value)
    assert 20 < len(message) < 250 and '\n' not in message
    assert ('ancestral' in message) if predictor == 'ancestral_sampling' else ("'none'" in message)


@pytest.mark.parametrize(
    'name, predictor, corrector, probability_flow',
    [c for c in COMBINATIONS if not refused(*c) and c[1] != 'none'],
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
def test_correctors_alone_sample(name, corrector, target, yardstick):
    """Annealed Langevin dynamics samples without a predictor.

    Two steps a level with snr 0.35 keep up with the levels: each step shrinks a deviation by 2
    snr^2 = 25 %, a level of VE by 4 %. Such steps widen what they sample by 1 / (1 - snr^2), and by
    twice that where it is narrow.
    """
    sde = SDES[name](STEPS)
    torch.manual_seed(SEED)
    x, nfe = pc_sampler(sde, 'none', corrector, snr=0.35, n_steps=2)(ExactNetwork(sde, target))
    assert nfe == 2 * STEPS
    assert_samples(x, target, yardstick, blobs=0.25)


def test_ald_alone_with_subvp_stalls_but_stays_close(target):
    """With sub-VP the steps stop too early for the distribution to arrive.

    They are proportional to std^2, which falls as t^2 while there is still signal to restore (m <
    1). The mean is right to four standard errors, the covariance to 30 %.
    """
    sde = SDES['subvp'](STEPS)
    torch.manual_seed(SEED)
    x = pc_sampler(sde, 'none', 'ald', snr=0.35, n_steps=2)(ExactNetwork(sde, target))[0].double()
    assert (x.mean(0) - target.mean).abs().max() < 4 * math.sqrt(1.14 / SAMPLES)
    assert (x.T.cov() - target.covariance).abs().max() < 0.3


@pytest.mark.parametrize('name', ['ve', 'vp'])
def test_discrete_networks_sample(name, target, yardstick):
    """A network of 1,000 levels, sampled in 200 steps with labels and scores of the table."""
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


def test_the_distributions_are_told_apart(target, yardstick):
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
    """The same sampler on points of any shape: independent Gaussians, one for each value."""
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
        # five standard errors, as up to 30 values are looked at, and 3 % and 10 % for half as many
        # steps as above
        assert (
            (x.double().flatten(1).mean(0) - means) / variances.sqrt()
        ).abs().max() < 5 / math.sqrt(500) + 0.03
        assert (x.double().flatten(1).var(0) / variances - 1).abs().max() < 5 * math.sqrt(
            2 / 500
        ) + 0.1
