"""Samples given a measurement or a class, where the answer is exact: Gaussians given linear parts
of them, components of mixtures.
"""

import itertools
import math

import pytest
import torch
from torch import nn

import sampling
from control import (
    Grey,
    Mask,
    blur,
    classifier_free_guidance,
    classifier_guidance,
    downsampling,
    measurement_guidance,
    sample_measured,
)
from controllable_generation import (
    get_pc_colorizer,
    get_pc_conditional_sampler,
    get_pc_inpainter,
)
from models.score import Score
from models.utils import Undivided, get_score_fn
from oracles import (
    ExactClassifier,
    ExactConditionalNetwork,
    ExactNetwork,
    GaussianMixture,
    level,
    planar_mixture,
)
from runtime.errors import UserError
from sampling import (
    CORRECTORS,
    PREDICTORS,
    Corrector,
    Loop,
    Options,
    Predictor,
    get_corrector,
    get_ode_sampler,
    get_pc_sampler,
    get_predictor,
    sample,
)
from sde_lib import SDE, VESDE, VPSDE, expand, subVPSDE

SEED = 0


class OrnsteinUhlenbeck(SDE):
    """dx = -x dt + sqrt(2) dw on [0, 2]: a user's SDE, the abstract methods and nothing else."""

    @property
    def T(self):
        return 2.0

    def sde(self, x, t):
        return -x, torch.full_like(t, math.sqrt(2))

    def marginal_prob(self, x, t):
        return expand((-t).exp(), x) * x, (-torch.expm1(-2 * t)).sqrt()

    def prior_sampling(self, shape):
        return torch.randn(*shape)

    def prior_logp(self, z):
        return torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)


SDES = dict(
    ve=lambda N: VESDE(0.01, 20, N=N), vp=lambda N: VPSDE(N=N), subvp=lambda N: subVPSDE(N=N)
)
ALL_SDES = dict(SDES, own=OrnsteinUhlenbeck)


def identity(x):
    return x


def made(
    make,
    sde,
    predictor='reverse_diffusion',
    corrector='langevin',
    snr=0.16,
    inverse_scaler=identity,
    **settings,
):
    """A sampler of `make` by names, for a continuous network, down to where this SDE stops."""
    return make(
        sde=sde,
        predictor=predictor and get_predictor(predictor),
        corrector=corrector and get_corrector(corrector),
        snr=snr,
        inverse_scaler=inverse_scaler,
        **dict(dict(continuous=True, eps=sde.sampling_eps), **settings),
    )


def measured_sampler(
    sde,
    predictor,
    corrector,
    inverse_scaler,
    snr,
    continuous,
    eps,
    probability_flow=False,
    consistency=0.0,
    **loop,
):
    """`sample_measured` with the arguments of the functions of the 2021 release, as
    `sampler(network, measurement, y) -> (images, nfe)`.
    """
    options = Options(
        method='pc',
        predictor=predictor,
        corrector=corrector,
        snr=snr,
        probability_flow=probability_flow,
        eps=eps,
    )
    loop = Loop(**loop)
    sampling.check(Score(None, sde, continuous), options, loop)
    return lambda network, measurement, y: sample_measured(
        Score(network, sde, continuous), measurement, y, options, loop, consistency
    )


# The forward transition


@pytest.mark.parametrize('name', ALL_SDES)
def test_the_transition_leads_from_one_marginal_to_the_next(name):
    """x_0 to s, then s to t, is x_0 to t. What s and t are is each image's own; equal times are
    next to each other.
    """
    sde, x0 = ALL_SDES[name](1000), torch.randn(6, 3, 2, 2, dtype=torch.float64)
    s, t = sde.T * torch.tensor(
        [[1e-5, 0.1, 0.3, 0.5, 0.05, 0.99], [0.01, 0.7, 1.0, 0.5, 1.0, 1.0]], dtype=torch.float64
    )
    (mean_s, std_s), (mean_t, std_t) = sde.marginal_prob(x0, s), sde.marginal_prob(x0, t)
    mean, std = sde.transition_prob(mean_s, s, t)
    ratio = sde.transition_prob(torch.ones_like(x0), s, t)[0][:, 0, 0, 0]
    assert mean.shape == x0.shape and std.shape == (6,)
    # float64, formulas of a few operations
    torch.testing.assert_close(mean, mean_t, rtol=1e-12, atol=0)
    torch.testing.assert_close((std**2 + (ratio * std_s) ** 2).sqrt(), std_t, rtol=1e-12, atol=0)


@pytest.mark.parametrize('name', ALL_SDES)
def test_the_transition_is_that_of_the_sde(name):
    """Its moments obey dm/dt = a m and dv/dt = 2 a v + g^2, where the drift is a x: integrated from
    0.3 T to 0.6 T by the midpoint rule, whose error with 20000 steps is below 1e-8.
    """
    sde, n = ALL_SDES[name](1000), 20000
    s, t, one = 0.3 * sde.T, 0.6 * sde.T, torch.ones(1, 1, dtype=torch.float64)
    times = s + (t - s) * (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drift, g = sde.sde(one.expand(n, 1), times)
    rate, dt = drift[:, 0], (t - s) / n
    to_the_end = rate.flip(0).cumsum(0).flip(0) * dt - rate * dt / 2
    mean, std = sde.transition_prob(one, torch.full((1,), s).double(), torch.full((1,), t).double())
    assert mean.item() == pytest.approx((rate.sum() * dt).exp().item(), rel=1e-6)
    assert std.item() ** 2 == pytest.approx(
        ((2 * to_the_end).exp() * g**2 * dt).sum().item(), rel=1e-6
    )


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('name', ALL_SDES)
def test_in_no_time_nothing_happens(name, dtype):
    sde, x = ALL_SDES[name](1000), torch.randn(5, 4, dtype=dtype)
    times = sde.T * torch.tensor([1e-5, 1e-3, 0.2, 0.7, 1.0], dtype=dtype)
    mean, std = sde.transition_prob(x, times, times)
    assert (
        torch.equal(mean, x)
        and torch.equal(std, torch.zeros(5, dtype=dtype))
        and mean.dtype == std.dtype == dtype
    )


# Gaussians of which a part is known


def correlated(shape):
    """One Gaussian of points of `shape`, with variances of order one and covariances not much
    smaller.
    """
    dims, generator = math.prod(shape), torch.Generator().manual_seed(4)
    root, mean = (
        torch.randn(*size, generator=generator, dtype=torch.float64)
        for size in ((dims, dims), (1, dims))
    )
    return GaussianMixture([1.0], mean, (root @ root.T / dims + 0.1 * torch.eye(dims))[None], shape)


class Known:
    """What a correlated Gaussian is of which P x_0 is known, for x_0 = mu +- offset (a plus in the
    first half of a batch of n, a minus in the second): of mean mu + gain (x_0 - mu), where gain = C
    P (P C P)^+ P, and a covariance that no x_0 changes. The offset is the shortest that moves the
    mean by a conditional standard deviation, in the metric of the conditional covariance.
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
        axes = axes[:, gains < 0.5]  # of what is left open
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
        """What is left open of x, as the number of conditional standard deviations off: how far the
        mean is, and the covariance (from one), each at its worst. The signs turn an answer to the
        wrong half into an error of the mean.
        """
        mean = self.target.mean
        conditional = mean + (self.data.double().flatten(1) - mean) @ self.gain.T
        z = self.signs * ((x.double().flatten(1) - conditional) @ self.whiten)
        return z.mean(0).abs().max().item(), (z.T.cov() - torch.eye(z.shape[1])).abs().max().item()


HALF = torch.tensor([1.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize('name', SDES)
def test_inpainting_has_the_conditional_distribution(name):
    """0.05 std are three standard errors of 4000 samples; 0.1 of a variance are four, sqrt(2/4000)
    each, and 1 % for steps and corrector, whose errors oppose each other. What is known does not
    change in a single bit.
    """
    sde, known = SDES[name](200), Known((4,), Mask(HALF), 4000)
    torch.manual_seed(SEED)
    x = made(get_pc_inpainter, sde, resample=5)(ExactNetwork(sde, known.target), known.data, HALF)
    assert torch.equal(x[:, HALF == 1], known.data[:, HALF == 1])
    mean, covariance = known.errors(x)
    assert mean < 0.05 and covariance < 0.1


@pytest.mark.parametrize('name', SDES)
def test_without_resampling_what_is_known_is_heard_too_late(name):
    """The reason for `resample`: a single sweep without a corrector leaves the mean half-way
    between the unconditional and the conditional one, which are one std apart; five visits to each
    step bring it nearer, by more than a third.
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
def test_consistency_is_the_other_remedy(name):
    """Of a single sweep's error the gradient with weight 1 leaves less than 0.6; and costs no
    evaluation more.
    """
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
def test_the_gradient_of_consistency_is_that_of_its_formula(name):
    """(1 - P) J^T P (x_0 - x^_0) (m^2 + std^2) / std^2, where x^_0 = mu + J (x - m mu) with J = m C
    (m^2 C + std^2)^-1 for a Gaussian; none where m < std / 10. In float64; 1e-6 leaves room for the
    level, which is found again from a label.
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
        with torch.no_grad():  # as samplers do
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
    """0.06 std are three standard errors of 3000 samples, 0.15 of a variance four and the 5 % that
    a corrector of snr^2 = 2.6 % may add. And the measurement of the result is y, to a few float32
    roundings divided by gains of 0.03 and more.
    """
    sde, known = SDES[name](200), Known(shape, measurement, 3000)
    y = measurement(known.data)
    torch.manual_seed(SEED)
    network = ExactNetwork(sde, known.target)
    if isinstance(measurement, Grey):
        x = made(get_pc_colorizer, sde, resample=4)(network, known.data)
    else:
        x, nfe = made(measured_sampler, sde, resample=4)(network, measurement, y)
        # predictor and corrector, four times but for the last step
        assert nfe == network.calls == 2 * (4 * 199 + 1)
    assert x.shape == known.data.shape and x.dtype == torch.float32
    torch.testing.assert_close(measurement.project(x), measurement.pinv(y), rtol=0, atol=2e-5)
    # blur leaves open what has gains of up to 0.03
    rounding, dropped = 2e-6, 0.03 * (x - known.data).flatten(1).norm(dim=1).max()
    assert (measurement(x) - y).abs().max() < rounding + (dropped if name == 've' else 0)
    mean, covariance = known.errors(x)
    assert mean < 0.06 and covariance < 0.15


def test_the_conditional_distributions_are_told_apart():
    """What the tests above would not let pass: unconditional samples, those given the other half's
    data, 10 % more spread.
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


# What is known, and what is not


def inpainted(sde, data, mask, shape=(4,), seed=SEED, **settings):
    """Few samples in few steps; no corrector whose step depends on the whole batch."""
    torch.manual_seed(seed)
    network = ExactNetwork(sde, correlated(shape))
    return made(get_pc_inpainter, sde, **dict(dict(corrector='ald'), **settings))(
        network, data, mask
    )


@pytest.mark.parametrize('name', ALL_SDES)
def test_without_denoising_what_is_known_has_the_noise_of_the_end(name):
    """Draws of p_eps given the data: five standard errors of 4000 values' mean and variance, eps
    large enough to see (0.1 T).
    """
    sde = ALL_SDES[name](25)
    data = torch.tensor([1.0, -2.0, 3.0, 0.5]).expand(2000, 4)
    x = inpainted(sde, data, HALF, denoise=False, eps=0.1 * sde.T)[:, HALF == 1].double()
    m, std = level(sde, torch.tensor([0.1 * sde.T]))
    z = (x - m * data[:, HALF == 1]) / std
    assert z.mean().abs() < 5 / math.sqrt(4000) and abs(z.var() - 1) < 5 * math.sqrt(2 / 4000)
    assert z.T.corrcoef()[0, 1].abs() < 5 / math.sqrt(2000)


@pytest.mark.parametrize('denoise', [False, True])
@pytest.mark.parametrize('name', SDES)
def test_what_the_data_hold_where_they_are_unknown_has_no_influence(name, denoise):
    sde, data = SDES[name](25), torch.randn(3, 4)
    results = [
        inpainted(sde, torch.where(HALF == 1, data, other), HALF, denoise=denoise, resample=2)
        for other in (
            data,
            torch.zeros(()),
            torch.randn(3, 4),
            torch.tensor(math.nan),
            torch.tensor(math.inf),
        )
    ]
    assert all(torch.equal(x, results[0]) for x in results) and torch.isfinite(results[0]).all()
    assert not torch.equal(
        inpainted(sde, data + HALF, HALF, denoise=denoise, resample=2)[:, HALF == 0],
        results[0][:, HALF == 0],
    )


def test_masks_broadcast_to_the_data():
    sde, data = VPSDE(N=25), torch.randn(3, 4)
    results = [
        inpainted(sde, data, mask)
        for mask in (
            HALF,
            HALF[None],
            HALF.expand(3, 4),
            HALF.bool(),
            HALF.long(),
            HALF.numpy(),
            HALF.tolist(),
        )
    ]
    assert all(torch.equal(x, results[0]) for x in results)
    # nothing is known of the second image
    each = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    x = inpainted(sde, data, each)
    assert torch.equal(x[each == 1], data[each == 1]) and (x[each == 0] != data[each == 0]).all()
    images = torch.randn(3, 3, 2, 2)
    for mask in (
        torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        torch.tensor([1.0, 0.0, 0.0])[:, None, None],
        torch.randn(3, 1, 2, 2) > 0,
    ):
        x, full = inpainted(sde, images, mask, shape=(3, 2, 2)), mask.expand(images.shape)
        assert (
            torch.equal(x[full == 1], images[full == 1])
            and (x[full == 0] != images[full == 0]).all()
        )


def test_all_known_is_returned_and_none_known_is_unconditional():
    sde, data = VPSDE(N=25), torch.randn(3, 4)
    assert torch.equal(inpainted(sde, data, torch.ones(4)), data)
    network = ExactNetwork(sde, correlated((4,)))
    torch.manual_seed(SEED)
    free, _ = sample(
        Score(network, sde),
        (3, 4),
        Options(method='pc', predictor='reverse_diffusion', corrector='ald'),
        # draws what it then does not use
        loop=Loop(project=lambda x, t: (torch.randn_like(x), x)[1]),
    )
    assert torch.equal(inpainted(sde, data, torch.zeros(4)), free)


def test_other_values_in_a_mask_are_refused():
    with pytest.raises(UserError, match='mask'):
        inpainted(VPSDE(N=25), torch.randn(3, 4), 0.5 * HALF)


def test_the_inverse_scaler_comes_last():
    """On the known as on the rest."""
    sde, data = VPSDE(N=25), torch.randn(3, 4)
    assert torch.equal(
        inpainted(sde, data, HALF, inverse_scaler=lambda x: (x + 1) / 2),
        (inpainted(sde, data, HALF) + 1) / 2,
    )


@pytest.mark.parametrize('of_network', [torch.float32, torch.float64])
@pytest.mark.parametrize('of_data', [torch.float32, torch.float64])
def test_samples_have_the_dtype_of_the_network(of_network, of_data):
    class Network(nn.Linear):
        def forward(self, x, labels):
            assert not torch.is_grad_enabled() and not self.training
            return super().forward(x)

    x = made(get_pc_inpainter, VPSDE(N=25))(
        Network(4, 4, dtype=of_network), torch.randn(2, 4, dtype=of_data), HALF
    )
    assert x.dtype == of_network and not x.requires_grad


class Recorder:
    """Predictor and corrector classes that note what state they are given at which time, and then
    leave nothing of it.
    """

    def __init__(self):
        self.seen = []

        def update(kind):
            def update_fn(step, x, t):
                assert (t == t[0]).all()
                self.seen.append((kind, t[0].item(), x.clone()))
                return 3 * x + 100, 3 * x + 100

            return update_fn

        self.predictor = type('Recording', (Predictor,), dict(update_fn=update('predictor')))
        self.corrector = type('Recording', (Corrector,), dict(update_fn=update('corrector')))


def walked(times, resample, jump):
    """Each stretch of `jump` steps so many times, but for the last step."""
    stretches = [times[i : i + jump] for i in range(0, len(times) - 1, jump)]
    assert (len(times) - 1) % jump == 0
    return [t for stretch in stretches for _ in range(resample) for t in stretch] + times[-1:]


@pytest.mark.parametrize('resample, jump', [(1, 1), (2, 1), (2, 8)])
@pytest.mark.parametrize('name', ALL_SDES)
def test_the_state_agrees_with_the_known_at_its_own_time(name, resample, jump):
    """Whatever predictor and corrector do to it, what they are given at time t is, in its known
    part, a draw of p_t given the data, from the start; so is a state that is carried back to be
    resampled. Five standard errors of 2000 draws at each of 25 times. The data are so far out that
    their mean at T is a std from the prior's; and p_t at the next time is, but for three of the
    user's SDE, another by as much as that sees: its mean by 0.11 std or its variance by 16 %,
    mostly by far more.
    """
    n, sde, recorder = 2000, ALL_SDES[name](25), Recorder()
    m, std = level(sde, torch.tensor([float(sde.T)]))
    data = (std / m * torch.tensor([1.0, 0.0, -1.0, 0.0])).float().expand(n, 4)
    torch.manual_seed(SEED)
    inpainter = get_pc_inpainter(
        sde,
        recorder.predictor,
        recorder.corrector,
        identity,
        0.16,
        continuous=True,
        eps=0.02,
        resample=resample,
        jump=jump,
    )
    x = inpainter(ExactNetwork(sde, correlated((4,))), data, HALF)
    assert torch.equal(x[:, HALF == 1], data[:, HALF == 1])
    times = torch.linspace(sde.T, 0.02, 25).tolist()
    assert [(kind, t) for kind, t, _ in recorder.seen] == [
        (kind, t) for t in walked(times, resample, jump) for kind in ('corrector', 'predictor')
    ]
    for _, t, state in recorder.seen:
        m, std = level(sde, torch.tensor([t]))
        z = (state[:, HALF == 1].double() - m * data[:, HALF == 1]) / std
        assert z.mean(0).abs().max() < 5 / math.sqrt(n) and (
            z.var(0) - 1
        ).abs().max() < 5 * math.sqrt(2 / n)
        assert z.T.corrcoef()[0, 1].abs() < 5 / math.sqrt(n)
    # what is unknown is left to predictor and corrector
    for (kind, _, before), (_, _, state) in zip(recorder.seen[:-1], recorder.seen[1:], strict=True):
        if kind == 'corrector':
            assert torch.equal(state[:, HALF == 0], 3 * before[:, HALF == 0] + 100)
    assert torch.equal(x[:, HALF == 0], 3 * state[:, HALF == 0] + 100)


@pytest.mark.parametrize('resample, jump', [(1, 1), (3, 1), (1, 4), (3, 4), (2, 12)])
def test_times_of_resampling(resample, jump):
    """The last step would lead nowhere to come back from. The callback sees every visit."""
    sde, visits, seen = VPSDE(N=25), [], []

    class Walker(Predictor):
        def update_fn(self, x, t):
            visits.append(round(t[0].item(), 4))
            return x, x

    loop = Loop(lambda i, t, x: seen.append((i, round(t.item(), 4))), resample=resample, jump=jump)
    sample(
        Score(ExactNetwork(sde, planar_mixture()), sde),
        (2, 2),
        Options(method='pc', predictor=Walker, eps=0.04),
        loop=loop,
    )
    times = [round(1 - 0.04 * i, 4) for i in range(25)]
    assert visits == walked(times, resample, jump)
    assert seen == [(times.index(t), t) for t in visits]


# Every combination


def refused(sde, predictor, corrector, probability_flow):
    """Combinations without a definition: no step at all; ancestral sampling along an ODE, or
    without a Markov chain.
    """
    return (predictor == corrector == 'none') or (
        predictor == 'ancestral_sampling' and (sde == 'subvp' or probability_flow)
    )


COMBINATIONS = list(itertools.product(SDES, PREDICTORS.names(), CORRECTORS.names(), [False, True]))


@pytest.mark.parametrize(
    'name, predictor, corrector, probability_flow', [c for c in COMBINATIONS if not refused(*c)]
)
def test_every_combination_runs(name, predictor, corrector, probability_flow):
    """30 steps, as the chain of VP has more than 20: finite, with the known values as they are; by
    a classifier too. Steps along the ODE are taken with the gradient of consistency.
    """
    sde, data, target = SDES[name](30), torch.randn(3, 4), planar_mixture()
    x = inpainted(
        sde,
        data,
        HALF,
        predictor=predictor,
        corrector=corrector,
        probability_flow=probability_flow,
        resample=1 if predictor == 'none' else 2,
        consistency=0.5 if probability_flow else 0.0,
    )
    assert (
        x.shape == (3, 4)
        and torch.isfinite(x).all()
        and torch.equal(x[:, HALF == 1], data[:, HALF == 1])
    )
    x, nfe = made(
        get_pc_conditional_sampler,
        sde,
        predictor,
        corrector,
        probability_flow=probability_flow,
        shape=(2,),
        classifier=ExactClassifier(sde, target),
    )(ExactNetwork(sde, target), [0, 2, 1])
    assert (
        x.shape == (3, 2)
        and torch.isfinite(x).all()
        and nfe == 30 * ((predictor != 'none') + (corrector != 'none'))
    )


@pytest.mark.parametrize(
    'name, predictor, corrector, probability_flow', [c for c in COMBINATIONS if refused(*c)]
)
def test_combinations_without_a_definition_are_refused(
    name, predictor, corrector, probability_flow
):
    """When the sampler is made, which knows of no network yet; in one sentence."""
    sde = SDES[name](60)
    classifier = ExactClassifier(sde, planar_mixture())
    for make, settings in (
        (get_pc_inpainter, {}),
        (get_pc_colorizer, {}),
        (measured_sampler, {}),
        (get_pc_conditional_sampler, dict(classifier=classifier)),
    ):
        with pytest.raises((NotImplementedError, ValueError)) as error:
            made(make, sde, predictor, corrector, probability_flow=probability_flow, **settings)
        message = str(error.value)
        assert 20 < len(message) < 250 and '\n' not in message
        assert (
            ('ancestral' in message) if predictor == 'ancestral_sampling' else ("'none'" in message)
        )
    assert classifier.calls == 0


@pytest.mark.parametrize(
    'predictor, loop, message',
    [
        ('none', dict(resample=2), "resample=2 needs a predictor: with predictor='none'"),
        (None, dict(resample=3), 'resample=3 needs a predictor'),
        ('reverse_diffusion', dict(resample=0), 'resample must be at least 1, got 0'),
        ('none', dict(resample=0), 'resample .* got 0'),
        ('reverse_diffusion', dict(resample=-1), 'resample .* got -1'),
        ('reverse_diffusion', dict(jump=0), 'jump must be at least 1, got 0'),
    ],
)
@pytest.mark.parametrize('make', [get_pc_inpainter, get_pc_colorizer, measured_sampler])
def test_resampling_without_a_step_is_refused(make, predictor, loop, message):
    with pytest.raises(ValueError, match=message) as error:
        made(make, VPSDE(N=60), predictor, 'langevin', **loop)
    assert '\n' not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize(
    'name, predictor, corrector, probability_flow', [c for c in COMBINATIONS if not refused(*c)]
)
def test_without_anything_known_the_loop_is_the_plain_one(
    name, predictor, corrector, probability_flow
):
    """Bit by bit: correct, step, and on to the next time."""
    sde = SDES[name](25)
    model, start, states, seen = (
        Score(ExactNetwork(sde, planar_mixture()), sde),
        sde.prior_sampling((5, 2)),
        [],
        [],
    )
    predict = get_predictor(predictor)(sde, model.score, probability_flow).update_fn
    correct = get_corrector(corrector)(sde, model.score, 0.16, 1).update_fn
    torch.manual_seed(SEED)
    state = start
    for t in torch.linspace(1, 0.01, 25):
        state, _ = correct(state, t.expand(5))
        state, mean = predict(state, t.expand(5))
        states.append(state)
    for noise_removal, last in ((False, state), (True, mean)):
        options = Options(
            method='pc',
            predictor=predictor,
            corrector=corrector,
            probability_flow=probability_flow,
            eps=0.01,
            noise_removal=noise_removal,
        )
        torch.manual_seed(SEED)
        x, _ = sample(model, (5, 2), options, z=start, loop=Loop(lambda i, t, x: seen.append(x)))
        assert torch.equal(x, last)
    assert all(torch.equal(a, b) for a, b in zip(seen, 2 * states, strict=True))


# Classes

CLASSES, EACH = 3, 1500
LABELS = torch.arange(CLASSES * EACH) % CLASSES


def assert_classes(x, target):
    """Mean and covariance of each class's 1500 samples: four standard errors, of a mean std /
    sqrt(n), of a covariance sqrt(2/n) of the variance at most; and 2 % of a std and 6 % of a
    variance for steps of 1/200 and a corrector of snr^2 = 2 %, twice that where a blob is narrow.
    The blobs are four std apart, and their covariances differ by 40 % and more.
    """
    assert torch.isfinite(x).all()
    for k in range(CLASSES):
        own, exact = x[LABELS == k].double(), target.component(k)
        variance = exact.covariance.diag().max().item()
        assert (own.mean(0) - exact.mean).abs().max() < (4 / math.sqrt(EACH) + 0.02) * math.sqrt(
            variance
        )
        assert (own.T.cov() - exact.covariance).abs().max() < (
            4 * math.sqrt(2 / EACH) + 0.06
        ) * variance


@pytest.fixture(scope='module')
def target():
    return planar_mixture()


@pytest.mark.parametrize('name', SDES)
def test_a_classifier_leads_to_its_classes(name, target):
    """Whatever their weights are in the mixture."""
    sde = SDES[name](200)
    network = ExactNetwork(sde, target)
    torch.manual_seed(SEED)
    sampler = made(
        get_pc_conditional_sampler, sde, classifier=ExactClassifier(sde, target), snr=0.14
    )
    x, nfe = sampler(network, LABELS)  # whose shape is the classifier's
    assert nfe == network.calls == 400
    assert_classes(x, target)


GUIDES = dict(
    classifier=lambda sde, target, labels: classifier_guidance(
        sde, ExactClassifier(sde, target), labels
    ),
    classes=lambda sde, target, labels: classifier_free_guidance(labels),
)


@pytest.mark.parametrize('guide', GUIDES)
@pytest.mark.parametrize('name', SDES)
def test_the_ode_sampler_is_guided_too(name, guide, target):
    sde = SDES[name](1000)
    torch.manual_seed(SEED)
    network = ExactConditionalNetwork(sde, target)
    sampler = get_ode_sampler(
        sde,
        (len(LABELS), 2),
        identity,
        eps=sde.sampling_eps,
        rtol=1e-4,
        atol=1e-4,
        denoise=True,
        guidance=GUIDES[guide](sde, target, LABELS),
    )
    x, nfe = sampler(network)
    assert nfe == network.calls
    assert_classes(x, target)


@pytest.mark.parametrize('name', ['vp', 've'])
def test_a_network_that_knows_classes_leads_to_them(name, target):
    sde = SDES[name](200)
    network = ExactConditionalNetwork(sde, target)
    torch.manual_seed(SEED)
    x, nfe = made(
        get_pc_sampler,
        sde,
        snr=0.14,
        shape=(len(LABELS), 2),
        guidance=classifier_free_guidance(LABELS),
    )(network)
    assert nfe == network.calls == 400
    assert_classes(x, target)


@pytest.mark.parametrize('name', SDES)
def test_a_classifiers_gradient_is_the_difference_of_scores(name, target):
    """grad log p(k | x) = grad log p(x | k) - grad log p(x), at times of all sizes, for each
    image's own class, times the weight. In float64; 1e-5 of an image's scores leaves room for the
    level, which is found again from a label. The images are of other classes than the labels: where
    they are of the same one, the difference may be none.
    """
    sde, labels = SDES[name](1000), torch.tensor([1, 2, 0, 2, 0, 1])
    t = torch.tensor([0.01, 0.1, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)
    x = sde.perturb(target.means[[0, 1, 2, 0, 1, 2]], t)
    m, std = level(sde, t)
    whole = target.score(x, m, std)
    part = torch.stack([target.component(k).score(x, m, std) for k in range(CLASSES)])[
        labels, torch.arange(6)
    ]
    scale = torch.maximum(whole.abs().amax(1), part.abs().amax(1))[:, None]
    assert ((part - whole).abs().amax(1, keepdim=True) > 1e-3 * scale).all()
    unguided = get_score_fn(sde, ExactNetwork(sde, target), continuous=True)
    for weight in (-1.0, 0.0, 0.5, 1.0, 3.0):
        guided = classifier_guidance(sde, ExactClassifier(sde, target), labels, weight)(unguided)
        with torch.no_grad():  # as samplers do
            error = (guided(x, t) - whole - weight * (part - whole)) / scale
        assert error.abs().max() < 1e-5


def test_a_classifier_is_left_as_it_was(target):
    """Evaluated in evaluation mode, without gradients in its parameters or in x; its logits need
    not be normalized.
    """

    class Classifier(nn.Linear):
        def forward(self, x, labels):
            assert not self.training
            return super().forward(x) + 7

    classifier, sde = Classifier(2, 3).train(), VPSDE(N=30)
    x, labels = torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    guided = classifier_guidance(sde, classifier, labels)(lambda x, t: torch.zeros_like(x))
    with torch.no_grad():
        gradient = guided(x, torch.full((4,), 0.5))
        p = (x @ classifier.weight.T + classifier.bias).softmax(1)
        # of a linear softmax classifier
        torch.testing.assert_close(gradient, classifier.weight[labels] - p @ classifier.weight)
    assert not gradient.requires_grad and not x.requires_grad and classifier.weight.grad is None


@pytest.mark.parametrize('name', SDES)
def test_weightless_classes_have_no_influence(name, target):
    """Bit by bit; and the weight is passed on."""
    sde = SDES[name](25)
    classifier, network, labels = (
        ExactClassifier(sde, target),
        ExactNetwork(sde, target),
        torch.tensor([0, 1, 2, 0]),
    )

    def sampled(make, *args, **settings):
        torch.manual_seed(SEED)
        return made(make, sde, **settings)(network, *args)[0]

    free = sampled(get_pc_sampler, shape=(4, 2))
    assert torch.equal(
        sampled(get_pc_conditional_sampler, labels, classifier=classifier, weight=0), free
    )
    assert torch.equal(
        sampled(get_pc_sampler, shape=(4, 2), guidance=classifier_free_guidance(labels, 0)), free
    )
    by_weight = {
        w: sampled(get_pc_conditional_sampler, labels, classifier=classifier, weight=w)
        for w in (1.0, 2.5)
    }
    for weight, x in by_weight.items():
        assert torch.equal(
            x,
            sampled(
                get_pc_sampler,
                shape=(4, 2),
                guidance=classifier_guidance(sde, classifier, labels, weight),
            ),
        )
    # the default
    assert torch.equal(
        by_weight[1.0], sampled(get_pc_conditional_sampler, labels, classifier=classifier)
    )
    assert not torch.allclose(by_weight[1.0], free) and not torch.allclose(
        by_weight[1.0], by_weight[2.5]
    )


@pytest.mark.parametrize('name', SDES)
def test_guidance_of_either_kind_is_the_way_of_the_class(name, target):
    """With one seed, a classifier's guidance and that of a network that knows classes come to the
    points to which the scores of the classes lead, unconditionally and inpainting, but for float32:
    1e-3 after 25 steps, each of which rounds a score as large as 1 / std at 1e-7 of it.
    """
    sde, labels, data = SDES[name](25), torch.tensor([0, 1, 2, 0]), torch.randn(4, 2)

    class Told(ExactConditionalNetwork):
        def forward(self, x, times, classes=None):
            return super().forward(x, times, labels)

    results = {}
    for kind, network, guidance in [
        ('exact', Told, None),
        ('free', ExactConditionalNetwork, None),
        *[
            (kind, ExactConditionalNetwork, guide(sde, target, labels))
            for kind, guide in GUIDES.items()
        ],
    ]:
        torch.manual_seed(SEED)
        free = made(get_pc_sampler, sde, shape=(4, 2), guidance=guidance)(network(sde, target))[0]
        torch.manual_seed(SEED)
        inpainter = made(get_pc_inpainter, sde, resample=2, guidance=guidance)
        results[kind] = free, inpainter(network(sde, target), data, torch.tensor([1.0, 0.0]))
        assert torch.equal(results[kind][1][:, 0], data[:, 0])
    for kind in GUIDES:
        torch.testing.assert_close(results[kind], results['exact'], rtol=0, atol=1e-3)
    assert all(
        (a - b).abs().max() > 0.1 for a, b in zip(results['free'], results['exact'], strict=True)
    )


@pytest.mark.parametrize('name', SDES)
def test_guidance_without_a_classifier_is_a_line_between_two_scores(name, target):
    """Its ends are these scores, bit by bit, and cost one evaluation; other points cost two."""
    sde, labels, t = (
        SDES[name](1000),
        torch.tensor([0, 1, 2, 2]),
        torch.tensor([0.05, 0.2, 0.5, 0.9], dtype=torch.float64),
    )
    x, network = sde.perturb(target.sample(4), t), ExactConditionalNetwork(sde, target)
    score_fn = get_score_fn(sde, network, continuous=True)
    free, given, (m, std) = score_fn(x, t), score_fn(x, t, classes=labels), level(sde, t)
    for k in range(3):  # the oracle itself: the level is found again from a label, to 1e-9 of it
        torch.testing.assert_close(
            given[labels == k],
            target.component(k).score(x, m, std)[labels == k],
            rtol=1e-6,
            atol=1e-9,
        )
    assert not torch.allclose(free, given)
    for weight, evaluations in [(0, 1), (0.0, 1), (1, 1), (1.0, 1), (0.3, 2), (2.5, 2), (-1.0, 2)]:
        network.calls = 0
        guided = classifier_free_guidance(labels, weight)(score_fn)(x, t)
        assert network.calls == evaluations
        if evaluations == 1:
            assert torch.equal(guided, given if weight else free)
        # float64
        torch.testing.assert_close(guided, free + weight * (given - free), rtol=1e-10, atol=1e-10)
    assert torch.equal(classifier_free_guidance(labels)(score_fn)(x, t), given)  # the default


def test_labels_of_another_shape_are_refused(target):
    sde = VPSDE(N=30)
    sampler = made(get_pc_conditional_sampler, sde, classifier=ExactClassifier(sde, target))
    network = ExactNetwork(sde, target)
    for labels in (torch.tensor(1), torch.zeros(2, 3, dtype=torch.long)):
        with pytest.raises(UserError, match='labels') as error:
            sampler(network, labels)
        assert str(tuple(labels.shape)) in str(error.value)
    assert network.calls == 0


def test_the_shape_is_the_classifiers_unless_given(target):
    sde = VPSDE(N=30)
    classifier, network = ExactClassifier(sde, target), ExactNetwork(sde, target)
    assert made(get_pc_conditional_sampler, sde, classifier=classifier)(network, [0, 1])[
        0
    ].shape == (2, 2)
    # as configs make it
    assert made(get_pc_conditional_sampler, sde, classifier=Undivided(classifier))(network, [0, 1])[
        0
    ].shape == (2, 2)
    classifier.shape = (2, 1, 1)
    assert made(get_pc_conditional_sampler, sde, classifier=classifier)(network, [0, 1])[
        0
    ].shape == (2, 2, 1, 1)
    assert made(get_pc_conditional_sampler, sde, classifier=classifier, shape=(1, 2))(network, [0])[
        0
    ].shape == (1, 1, 2)
