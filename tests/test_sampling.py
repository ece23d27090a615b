"""The samplers against targets whose answers are known: moments, two-sample distances, orders of
convergence, encode and decode.
"""

import itertools
import math
from unittest import mock

import ml_collections
import numpy as np
import pytest
import torch
from torch import nn

import sampling
from likelihood import get_likelihood_fn
from models.score import Score
from models.utils import get_score_fn
from oracles import ExactNetwork, gaussian, level, planar_mixture
from sampling import (
    CORRECTORS,
    PREDICTORS,
    Loop,
    Options,
    get_corrector,
    get_ode_sampler,
    get_pc_sampler,
    get_predictor,
    get_sampling_fn,
    sample,
)
from sde_lib import VESDE, VPSDE, subVPSDE

SDES = dict(
    ve=lambda N: VESDE(0.01, 30, N=N), vp=lambda N: VPSDE(N=N), subvp=lambda N: subVPSDE(N=N)
)
SAMPLES, STEPS, SEED = 2000, 200, 0


def identity(x):
    return x


def pc_sampler(sde, predictor, corrector, shape=(SAMPLES, 2), snr=0.15, **settings):
    return get_pc_sampler(
        sde,
        shape,
        predictor and get_predictor(predictor),
        corrector and get_corrector(corrector),
        identity,
        snr,
        **dict(dict(continuous=True, eps=sde.sampling_eps), **settings),
    )


# Distributions


class Yardstick:
    """The sliced 2-Wasserstein distance (32 directions) between samples in the plane and 40,000
    exact ones of the target, and how large it gets for exact samples of the same number (n = 2000,
    the largest of 200 sets). It sees where mass lies, but hardly how wide a blob is; what the exact
    log density averages to does.
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
def target():
    return planar_mixture()


@pytest.fixture(scope='module')
def yardstick(target):
    return Yardstick(target)


def assert_samples(x, target, yardstick, blobs=0.1):
    """Mean, covariance and distribution of 2000 samples made in 200 steps; `blobs`: how far the
    variances of the blobs may be off.
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
    """Combinations without a definition: no step at all; ancestral sampling along an ODE, or
    without a Markov chain.
    """
    return (predictor == corrector == 'none') or (
        predictor == 'ancestral_sampling' and (sde == 'subvp' or probability_flow)
    )


COMBINATIONS = list(itertools.product(SDES, PREDICTORS.names(), CORRECTORS.names(), [False, True]))


def test_the_list_of_combinations_is_the_whole():
    """A predictor or corrector that is added is tested below without further ado."""
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
    """In one sentence, before any step."""
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
    """Annealed Langevin dynamics: two steps a level, large enough to keep up with the levels (snr
    0.35: each shrinks a deviation by 2 snr^2 = 25 %, a level of VE by 4 %). Such steps widen what
    they sample by 1 / (1 - snr^2), twice that where it is narrow.
    """
    sde = SDES[name](STEPS)
    torch.manual_seed(SEED)
    x, nfe = pc_sampler(sde, 'none', corrector, snr=0.35, n_steps=2)(ExactNetwork(sde, target))
    assert nfe == 2 * STEPS
    assert_samples(x, target, yardstick, blobs=0.25)


def test_ald_alone_with_subvp_stalls_but_stays_close(target):
    """Its steps go with std^2, which for subVP falls as t^2 when there is still signal to restore
    (m < 1): they stop too early for the distribution to arrive. Finite output is what can be asked,
    with a mean to four standard errors and a covariance to 30 %.
    """
    sde = SDES['subvp'](STEPS)
    torch.manual_seed(SEED)
    x = pc_sampler(sde, 'none', 'ald', snr=0.35, n_steps=2)(ExactNetwork(sde, target))[0].double()
    assert (x.mean(0) - target.mean).abs().max() < 4 * math.sqrt(1.14 / SAMPLES)
    assert (x.T.cov() - target.covariance).abs().max() < 0.3


@pytest.mark.parametrize('name', ['ve', 'vp'])
def test_discrete_networks_sample(name, target, yardstick):
    """A network of 1000 levels, sampled in 200 steps with labels and scores of the discrete
    table.
    """
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
    """What the tests above would not let pass: other weights, blobs of twice the variance, a shift,
    15 % more spread.
    """
    x = target.sample(SAMPLES, seed=5)
    assert_samples(x, target, yardstick)
    equal_weights = type(target)([1, 1, 1], target.means, target.covariances)
    wide = type(target)(target.weights, target.means, 2 * target.covariances)
    for wrong in (equal_weights.sample(SAMPLES), wide.sample(SAMPLES), x + 0.2, 1.15 * x):
        with pytest.raises(AssertionError):
            assert_samples(wrong, target, yardstick)


# Orders of convergence


def propagated(predictor_class, sde, target, n, probability_flow=False, end=0.0):
    """Mean and variance of a Gaussian target, carried from time T to `end` by steps of T/n, without
    sampling: a step is then x -> a x + b + c z, and a, b, c are read off from x = 0 and x = 1 with
    z = 1. It starts from the target's own moments at T.
    """
    sde.N = n
    predictor = predictor_class(
        sde, get_score_fn(sde, ExactNetwork(sde, target), continuous=True), probability_flow
    )
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    mean, variance = moments(sde, target, 1.0)
    with mock.patch('torch.randn_like', torch.ones_like):
        for i in range(round(n * (1 - end))):
            new, new_mean = predictor.update_fn(
                x, torch.full((2,), sde.T * (1 - i / n), dtype=torch.float64)
            )
            b, a, c = (
                new_mean[0, 0].item(),
                (new_mean[1, 0] - new_mean[0, 0]).item(),
                (new - new_mean)[0, 0].item(),
            )
            mean, variance = a * mean + b, a**2 * variance + c**2
    return mean, variance


def moments(sde, target, t):
    m, std = (v.item() for v in level(sde, torch.tensor([t])))
    return m * target.mean.item(), m**2 * target.covariance.item() + std**2


def slope(x, y):
    return np.polyfit(np.log(x), np.log(y), 1)[0]


@pytest.mark.parametrize('probability_flow', [False, True], ids=['sde', 'ode'])
@pytest.mark.parametrize('name', SDES)
def test_euler_maruyama_is_of_weak_order_one(name, probability_flow):
    """The variance's error falls as 1/N. Seen at t = 1/2, where noise and data weigh alike: at t =
    0 the first-order error of VE happens to cancel. beta dt is 20/400 at most, so that the second
    order is a twentieth of the first.
    """
    sde, target, steps = SDES[name](1000), gaussian([0.7], [0.4]), [400, 800, 1600]
    exact = moments(sde, target, 0.5)[1]
    errors = [
        abs(
            propagated(get_predictor('euler_maruyama'), sde, target, n, probability_flow, end=0.5)[
                1
            ]
            - exact
        )
        for n in steps
    ]
    assert errors[-1] < 0.02 * exact
    assert abs(slope(steps, errors) + 1) < 0.15


@pytest.mark.parametrize(
    'name, predictor',
    [
        ('ve', 'reverse_diffusion'),
        ('vp', 'reverse_diffusion'),
        ('subvp', 'reverse_diffusion'),
        ('ve', 'ancestral_sampling'),
        ('vp', 'ancestral_sampling'),
    ],
)
def test_the_chains_converge_too(name, predictor):
    """Table look-ups shift times by up to a step, so what is asked is that four times the steps
    leave less than half the error.
    """
    sde, target = SDES[name](1000), gaussian([0.7], [0.4])
    exact = moments(sde, target, 0.0)
    errors = [
        sum(
            abs(got - e)
            for got, e in zip(propagated(get_predictor(predictor), sde, target, n), exact)
        )
        for n in (200, 800)
    ]
    assert errors[1] < 0.5 * errors[0] and errors[1] < 0.02


def flowed(sde, target, x, start, end):
    """Where the probability flow of a Gaussian target carries x from one time to another: (x -
    mean) / std stays what it is.
    """
    (m0, s0), (m1, s1) = (level(sde, torch.tensor([t])) for t in (start, end))
    variances = target.covariance.diag()
    return m1 * target.mean + ((m1**2 * variances + s1**2) / (m0**2 * variances + s0**2)).sqrt() * (
        x - m0 * target.mean
    )


@pytest.mark.parametrize('method, least, most', [('RK45', 4.5, 10), ('RK23', 2.5, 4)])
@pytest.mark.parametrize('name', SDES)
def test_ode_sampler_follows_the_exact_flow_with_the_solvers_order(name, method, least, most):
    """Error against evaluations as the tolerance falls: RK45 answers with its fifth-order solution,
    RK23 with its third-order one. Half an order too few would show, and so would the wrong method.
    The slopes of RK45 are steeper than five, as its steps adapt: at these tolerances the error
    falls with the tolerance while the number of steps is still below its asymptotic growth.
    """
    sde, target = SDES[name](1000), gaussian([0.7, -0.3], [0.4, 0.1])
    z = torch.tensor([[1.1, -0.6]], dtype=torch.float64) * (30 if name == 've' else 1)
    exact, errors, evaluations = flowed(sde, target, z, 1.0, 1e-3), [], []
    for tolerance in 10.0 ** -np.arange(5, 10 if method == 'RK45' else 8):
        x, nfe = get_ode_sampler(
            sde, (1, 2), identity, rtol=tolerance, atol=tolerance, method=method
        )(ExactNetwork(sde, target), z)
        assert x.dtype == torch.float64
        errors.append((x - exact).abs().max().item())
        evaluations.append(nfe)
        # errors of that size at each of some tens of steps, and the flow contracts them
        assert errors[-1] < 30 * tolerance
    assert least < -slope(evaluations, errors) < most


@pytest.mark.parametrize('method', ['DOP853', 'LSODA', 'Radau', 'BDF'])
def test_ode_sampler_with_other_methods(method):
    sde, target, z = (
        VPSDE(),
        gaussian([0.7, -0.3], [0.4, 0.1]),
        torch.tensor([[1.1, -0.6]], dtype=torch.float64),
    )
    x, _ = get_ode_sampler(sde, (1, 2), identity, method=method)(ExactNetwork(sde, target), z)
    # 1e-5 at each of some tens of steps
    torch.testing.assert_close(x, flowed(sde, target, z, 1.0, 1e-3), rtol=0, atol=1e-3)


def test_an_unknown_ode_method_is_refused():
    sde = VPSDE()
    with pytest.raises(ValueError, match='RK45'):
        get_ode_sampler(sde, (1, 2), identity, method='euler')(ExactNetwork(sde, planar_mixture()))


@pytest.mark.parametrize('name', SDES)
def test_encoding_then_decoding_returns(name, target):
    """The likelihood's latent codes, handed to the ODE sampler: two solutions at tolerance 1e-5
    over some tens of steps.
    """
    sde, x = SDES[name](1000), target.sample(16, seed=2)
    network, eps = ExactNetwork(sde, target), sde.sampling_eps
    _, z, _ = get_likelihood_fn(sde, identity, eps=eps)(network, x)
    assert z.dtype == torch.float64 and (z - x).abs().max() > 0.5
    decoded, _ = get_ode_sampler(sde, x.shape, identity, eps=eps)(network, z)
    torch.testing.assert_close(decoded, x, rtol=0, atol=1e-3)


# Counting, seeds, noise removal, callbacks


@pytest.mark.parametrize(
    'predictor, corrector, n_steps, per_step',
    [
        ('euler_maruyama', 'none', 1, 1),
        ('reverse_diffusion', None, 2, 1),
        ('reverse_diffusion', 'langevin', 1, 2),
        ('ancestral_sampling', 'ald', 2, 3),
        (None, 'ald', 2, 2),
    ],
)
def test_pc_counts_every_evaluation(predictor, corrector, n_steps, per_step, target):
    sde = VPSDE(N=30)
    network = ExactNetwork(sde, target)
    sampler = pc_sampler(sde, predictor, corrector, shape=(2, 2), n_steps=n_steps)
    for run in (1, 2):  # each call counts anew
        _, nfe = sampler(network)
        assert nfe == 30 * per_step and network.calls == run * nfe


@pytest.mark.parametrize('denoise', [False, True])
def test_ode_counts_every_evaluation(denoise, target):
    sde = VPSDE(N=30)
    network = ExactNetwork(sde, target)
    sampler = get_ode_sampler(sde, (2, 2), identity, denoise=denoise)
    torch.manual_seed(0)
    _, nfe = sampler(network)
    assert nfe == network.calls
    torch.manual_seed(0)
    assert get_ode_sampler(sde, (2, 2), identity, denoise=not denoise)(network)[1] == nfe + (
        -1 if denoise else 1
    )


def test_ode_denoising_is_one_step_without_noise(target):
    """x - f of the reversed chain at eps, added to what comes out without it."""
    sde, z = VPSDE(N=1000), torch.tensor([[0.3, -1.0]])
    network = ExactNetwork(sde, target)
    x = get_ode_sampler(sde, (1, 2), identity)(network, z)[0]
    denoised = get_ode_sampler(sde, (1, 2), identity, denoise=True)(network, z)[0]
    beta = 0.1 / 1000
    score = target.score(x, *level(sde, torch.tensor([1e-3])))
    expected = (2 - math.sqrt(1 - beta)) * x + beta * score
    # float32; and the time 1e-3 is step 0, whose beta it is
    torch.testing.assert_close(denoised.double(), expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('method', ['pc', 'ode'])
def test_the_same_seed_gives_the_same_samples(method, target):
    sde = VPSDE(N=30)
    sampler = (
        pc_sampler(sde, 'reverse_diffusion', 'langevin', shape=(4, 2))
        if method == 'pc'
        else get_ode_sampler(sde, (4, 2), identity)
    )
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(sampler(ExactNetwork(sde, target))[0])
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])


@pytest.mark.parametrize('predictor', ['euler_maruyama', 'reverse_diffusion', 'ancestral_sampling'])
@pytest.mark.parametrize('name', ['ve', 'vp'])
def test_denoise_leaves_out_the_noise_of_the_last_step(name, predictor, target):
    """With one seed, the two outputs differ by std z, z the last draw and std that of a step at
    eps.
    """
    sde, draws, outputs = SDES[name](50), [], []

    def recorded(x):
        draws.append(torch.randn(x.shape, dtype=x.dtype))
        return draws[-1]

    for denoise in (False, True):
        torch.manual_seed(SEED)
        with mock.patch('torch.randn_like', recorded):
            outputs.append(
                pc_sampler(sde, predictor, 'langevin', shape=(4, 2), denoise=denoise)(
                    ExactNetwork(sde, target)
                )[0]
            )
    x, t = torch.zeros(1, 2), torch.tensor([sde.sampling_eps])
    std = dict(
        euler_maruyama=lambda: sde.sde(x, t)[1] / math.sqrt(50),
        reverse_diffusion=lambda: sde.discretize(x, t)[1],
        ancestral_sampling=lambda: sde.ancestral_step(x, t, x)[1],
    )[predictor]()
    # a float32 difference of numbers near 1
    torch.testing.assert_close(outputs[0] - outputs[1], std * draws[-1], rtol=1e-4, atol=1e-6)
    # whose last step adds no noise: below sigma_0 there is 0
    if (name, predictor) != ('ve', 'ancestral_sampling'):
        assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@pytest.mark.parametrize('predictor, corrector', [('reverse_diffusion', None), (None, 'ald')])
def test_none_means_the_same_as_the_name_none(predictor, corrector, target):
    sde, outputs = VPSDE(N=30), []
    for names in ((predictor, corrector), (predictor or 'none', corrector or 'none')):
        torch.manual_seed(SEED)
        outputs.append(pc_sampler(sde, *names, shape=(4, 2))(ExactNetwork(sde, target))[0])
    assert torch.equal(*outputs)


def test_neither_predictor_nor_corrector_is_refused():
    with pytest.raises(ValueError, match="^predictor='none' and corrector='none' would"):
        pc_sampler(VPSDE(), None, None)


def test_only_predictors_of_the_chain_need_its_steps(target):
    """beta_max / N reaches 1 in a VP chain of 10 steps, which Euler-Maruyama and predictors of
    users do not take.
    """

    class Still(sampling.Predictor):
        def update_fn(self, x, t):
            return x, x

    model = Score(ExactNetwork(VPSDE(), target), VPSDE())
    for predictor in ('euler_maruyama', Still):
        x, nfe = sample(model, (4, 2), Options(method='pc', predictor=predictor, steps=10))
        assert x.isfinite().all() and nfe == 10 * (predictor != Still)
    for settings in (
        dict(predictor='reverse_diffusion'),
        dict(predictor='ancestral_sampling'),
        dict(predictor=Still, corrector='langevin'),
    ):
        with pytest.raises(ValueError, match='^a VP chain of N=10 steps .* N must be at least 21'):
            sample(model, (4, 2), Options(method='pc', steps=10, **settings))


def test_no_corrector_steps_are_refused():
    with pytest.raises(ValueError, match='n_steps_each'):
        pc_sampler(VPSDE(), 'reverse_diffusion', 'langevin', n_steps=0)


def test_the_callback_sees_every_step(target):
    sde, seen = VPSDE(N=30), []
    torch.manual_seed(SEED)
    options = Options(
        method='pc', predictor='euler_maruyama', corrector='langevin', noise_removal=False
    )
    x, _ = sample(
        Score(ExactNetwork(sde, target), sde),
        (4, 2),
        options,
        loop=Loop(lambda i, t, x: seen.append((i, float(t), x.clone()))),
    )
    assert [i for i, _, _ in seen] == list(range(30))
    # float32
    np.testing.assert_allclose([t for _, t, _ in seen], np.linspace(1, 1e-3, 30), rtol=1e-5)
    assert torch.equal(seen[-1][2], x)  # the last state, when its noise is kept, is the sample


def test_one_step_functions_are_the_classes_steps(target):
    """`shared_*_update_fn` with a class, and with None for no step."""
    sde, x, t = VPSDE(N=100), torch.tensor([[0.3, -1.0]]), torch.tensor([0.5])
    network = ExactNetwork(sde, target)
    score_fn = get_score_fn(sde, network, continuous=True)
    predictor, corrector = get_predictor('reverse_diffusion'), get_corrector('ald')
    for step, args, twin in [
        (sampling.shared_predictor_update_fn, (predictor, False, True), predictor(sde, score_fn)),
        (
            sampling.shared_corrector_update_fn,
            (corrector, True, 0.15, 2),
            corrector(sde, score_fn, 0.15, 2),
        ),
    ]:
        torch.manual_seed(SEED)
        got = step(x, t, sde, network, *args)
        torch.manual_seed(SEED)
        assert all(torch.equal(g, e) for g, e in zip(got, twin.update_fn(x, t)))
        assert all(torch.equal(v, x) for v in step(x, t, sde, network, None, *args[1:]))


# Correctors


@pytest.mark.parametrize('name', SDES)
def test_correctors_take_the_published_steps(name, target):
    """x + e s + sqrt(2 e) z with e = 2 alpha (snr |z| / |s|)^2, norms averaged over the batch, or e
    = 2 alpha (snr std)^2.
    """
    sde, x, t, snr = (
        SDES[name](100),
        torch.tensor([[0.3, -1.0], [1.0, 0.5]], dtype=torch.float64),
        torch.full((2,), 0.4).double(),
        0.2,
    )
    score_fn = get_score_fn(sde, ExactNetwork(sde, target), continuous=True)
    s, alpha = score_fn(x, t), sde.langevin_alpha(t)[0]
    z = torch.tensor([[1.0, -0.5], [0.2, 2.0]], dtype=torch.float64)
    ratio = (z[0].norm() + z[1].norm()) / (s[0].norm() + s[1].norm())
    for corrector, e in [
        ('langevin', 2 * alpha * (snr * ratio) ** 2),
        ('ald', 2 * alpha * (snr * level(sde, t)[1][0]) ** 2),
    ]:
        with mock.patch('torch.randn_like', lambda x: z):
            got, mean = get_corrector(corrector)(sde, score_fn, snr, 1).update_fn(x, t)
        torch.testing.assert_close(mean, x + e * s, rtol=1e-12, atol=0)  # formulas written twice
        torch.testing.assert_close(got, x + e * s + (2 * e).sqrt() * z, rtol=1e-12, atol=0)


# Shapes, devices, configs


@pytest.mark.parametrize('name', SDES)
@pytest.mark.parametrize(
    'shape', [(3,), (1, 4, 4), (3, 2, 5)], ids=['vectors', 'images', 'oblong images']
)
def test_vectors_and_images(shape, name):
    """The same sampler on points of any shape: independent Gaussians, a mean and a variance for
    every value.
    """
    sde, dims = SDES[name](100), math.prod(shape)
    means, variances = (
        torch.linspace(-1, 1, dims, dtype=torch.float64),
        torch.linspace(0.2, 1, dims, dtype=torch.float64),
    )
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


def test_the_inverse_scaler_comes_last(target):
    sde, outputs = VPSDE(N=30), []
    for scaler in (identity, lambda x: (x + 1) / 2):
        for sampler in (
            get_pc_sampler(
                sde, (4, 2), get_predictor('euler_maruyama'), None, scaler, 0.15, continuous=True
            ),
            get_ode_sampler(sde, (4, 2), scaler),
        ):
            torch.manual_seed(SEED)
            outputs.append(sampler(ExactNetwork(sde, target))[0])
    assert torch.equal((outputs[0] + 1) / 2, outputs[2]) and torch.equal(
        (outputs[1] + 1) / 2, outputs[3]
    )


class Located(nn.Module):
    """A network with a parameter, and thereby a device."""

    def __init__(self, device):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, device=device))
        self.in_training = []

    def forward(self, x, labels):
        self.in_training.append(self.training)
        assert x.device == labels.device == self.weight.device and not torch.is_grad_enabled()
        return 1e-3 * self.weight * x.tanh()


@pytest.mark.parametrize('corrector', ['none', 'ald', 'langevin'])
@pytest.mark.parametrize('name', SDES)
def test_no_device_means_the_networks(name, corrector):
    """The meta device stands for an accelerator: it takes part in every operation without computing
    any. And the network is in evaluation mode, without gradients.
    """
    for device in ('cpu', 'meta'):
        network = Located(device).train()
        x, _ = pc_sampler(SDES[name](30), 'euler_maruyama', corrector, shape=(2, 3, 4, 4))(network)
        assert x.device.type == device and x.shape == (2, 3, 4, 4) and not any(network.in_training)
    x, _ = get_ode_sampler(SDES[name](30), (2, 3), identity)(Located('cpu'))
    assert x.device.type == 'cpu' and not x.requires_grad


def config(**sampling):
    settings = dict(
        method='pc',
        predictor='reverse_diffusion',
        corrector='langevin',
        snr=0.15,
        n_steps_each=1,
        probability_flow=False,
        noise_removal=True,
    )
    return ml_collections.ConfigDict(
        dict(sampling=dict(settings, **sampling), training=dict(continuous=True), device='cpu')
    )


def test_a_config_describes_the_sampler(target):
    """The sampler of a config is the one built by hand, for every setting."""
    sde = VPSDE(N=30)

    def run(sampler):
        torch.manual_seed(SEED)
        return sampler(ExactNetwork(sde, target))

    by_hand = dict(continuous=True, eps=1e-3)
    pairs = [
        (config(), pc_sampler(sde, 'reverse_diffusion', 'langevin', shape=(4, 2))),
        (
            config(
                method='PC',
                predictor='Euler_Maruyama',
                corrector='NONE',
                probability_flow=True,
                noise_removal=False,
            ),
            pc_sampler(
                sde, 'euler_maruyama', None, shape=(4, 2), probability_flow=True, denoise=False
            ),
        ),
        (
            config(corrector='ald', snr=0.3, n_steps_each=2),
            pc_sampler(sde, 'reverse_diffusion', 'ald', shape=(4, 2), snr=0.3, n_steps=2),
        ),
        (
            config(method='ode'),
            get_ode_sampler(sde, (4, 2), identity, denoise=True, method='dopri5', **by_hand),
        ),
        (
            config(method='ODE', noise_removal=False),
            get_ode_sampler(sde, (4, 2), identity, denoise=False, method='dopri5', **by_hand),
        ),
        (
            config(method='ode', ode_method='dopri5', rtol=1e-3, atol=1e-4),
            get_ode_sampler(
                sde,
                (4, 2),
                identity,
                denoise=True,
                method='dopri5',
                rtol=1e-3,
                atol=1e-4,
                **by_hand,
            ),
        ),
    ]
    outputs = []
    for settings, twin in pairs:
        (x, nfe), (exact, exact_nfe) = (
            run(get_sampling_fn(settings, sde, (4, 2), identity, 1e-3)),
            run(twin),
        )
        assert torch.equal(x, exact) and nfe == exact_nfe
        outputs.append(x)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(outputs, 2))


@pytest.mark.parametrize(
    'key, value', [('method', 'magic'), ('predictor', 'magic'), ('corrector', 'magic')]
)
def test_unknown_names_are_answered_with_the_key_and_the_known_ones(key, value):
    with pytest.raises(ValueError, match=f'{key}.*(must be one of|known are)') as error:
        get_sampling_fn(config(**{key: value}), VPSDE(), (4, 2), identity, 1e-3)
    assert 'magic' in str(error.value)
    for known in dict(
        method=['pc', 'ode'], predictor=PREDICTORS.names(), corrector=CORRECTORS.names()
    )[key]:
        assert known in str(error.value)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_samples_have_the_dtype_of_the_network(dtype):
    class Network(torch.nn.Linear):
        def forward(self, x, labels):
            return super().forward(x)

    net, sde = Network(2, 2, dtype=dtype), VPSDE(N=30)
    pc = sampling.get_pc_sampler(
        sde, (5, 2), sampling.EulerMaruyamaPredictor, None, lambda x: x, 0.1, continuous=True
    )
    ode = sampling.get_ode_sampler(sde, (5, 2), lambda x: x, rtol=1e-2, atol=1e-2)
    assert pc(net)[0].dtype == ode(net)[0].dtype == dtype
