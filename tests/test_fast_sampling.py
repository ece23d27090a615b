"""Solvers for few evaluations: orders of convergence, agreement with diffusers on the same network
and grid, and every way to use them.
"""

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import sampling
import solvers
from commands import preflight
from conftest import ROOT, load_config
from control import Mask, classifier_free_guidance, latents, sample_measured
from models.score import Score
from models.utils import get_score_fn
from oracles import (
    ExactConditionalNetwork,
    ExactNetwork,
    GaussianMixture,
    SubspaceMixture,
    gaussian,
    planar_mixture,
)
from runtime.errors import UserError
from runtime.randomness import per_image
from sampling import (
    Loop,
    Options,
    Predictor,
    get_corrector,
    get_predictor,
    get_sampling_fn,
    sample,
    transition,
)
from sde_lib import SDE, VESDE, VPSDE, get_sde, subVPSDE
from solvers import SKIP_TYPES, SOLVERS, get_solver, half_log_snr, levels, time_grid, time_of

SDES = dict(ve=lambda: VESDE(0.01, 10), vp=VPSDE, subvp=subVPSDE)
STARTS = dict(ve=0.2, vp=0.02, subvp=0.02)  # times at which the score of the mixture is smooth


def identity(x):
    return x


def walked(solver, sde, score_fn, x, times, **settings):
    solver = get_solver(solver)(sde, score_fn, times, **settings)
    for i in range(len(times) - 1):
        x = solver.step(x, i)
    return x


# Levels and grids


@pytest.mark.parametrize('name', SDES)
def test_times_of_levels(name):
    sde, t = SDES[name](), torch.linspace(0.001, 1, 50, dtype=torch.float64)
    assert torch.allclose(time_of(sde, half_log_snr(sde, t)), t, atol=1e-12)


@pytest.mark.parametrize('name', SDES)
def test_grids(name):
    sde = SDES[name]()
    even = dict(
        time_uniform=identity,
        time_quadratic=torch.sqrt,
        logSNR=lambda t: half_log_snr(sde, t),
        karras=lambda t: (-half_log_snr(sde, t) / 5).exp(),
    )
    assert set(even) == set(SKIP_TYPES)
    for kind, scale in even.items():
        times = time_grid(sde, 20, 1e-3, kind, rho=5.0)
        gaps = scale(times).diff()
        assert times.shape == (21,) and times[0] == 1 and times[-1] == 1e-3
        assert torch.allclose(gaps, gaps.mean(), rtol=1e-6)
    with pytest.raises(
        UserError,
        match="skip_type must be one of time_uniform, time_quadratic, logSNR, karras, got 'even'",
    ):
        time_grid(sde, 20, 1e-3, 'even')


# Orders


ORDERS = [
    ('ddim', {}, 1),
    ('heun', {}, 2),
    ('dpm_solver', dict(dpm_solver_order=1), 1),
    ('dpm_solver', dict(dpm_solver_order=2), 2),
    ('dpm_solver', dict(dpm_solver_order=3), 3),
    ('dpmpp_2m', {}, 2),
    ('unipc', dict(dpm_solver_order=1), 2),
    ('unipc', dict(dpm_solver_order=2), 3),
]


@pytest.fixture(scope='module')
def problems():
    """For each SDE: a score function, a start, and where the flow carries it, by 1,000 steps of
    order 3.
    """
    found = {}
    for name, make in SDES.items():
        sde, target = make(), planar_mixture()
        score_fn = get_score_fn(sde, ExactNetwork(sde, target), continuous=True)
        x = sde.prior_sampling((100, 2)).double()
        end = walked(
            'dpm_solver', sde, score_fn, x, time_grid(sde, 1000, STARTS[name]), dpm_solver_order=3
        )
        found[name] = sde, score_fn, x, end
    return found


@pytest.mark.parametrize('name', SDES)
@pytest.mark.parametrize('solver, settings, order', ORDERS, ids=lambda value: str(value))
def test_order_of_convergence(problems, name, solver, settings, order):
    """log2 of how much the error falls from 150 steps to 300: the median, as points that begin near
    where paths part come late to it.
    """
    sde, score_fn, x, end = problems[name]
    errors = [
        (walked(solver, sde, score_fn, x, time_grid(sde, n, STARTS[name]), **settings) - end)
        .norm(dim=1)
        .median()
        for n in (150, 300)
    ]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.25


@pytest.mark.parametrize('name', SDES)
@pytest.mark.parametrize(
    'solver, settings',
    [('ddim', dict(eta=1.0)), ('heun', dict(churn=40.0)), ('dpmpp_2m_sde', {})],
    ids=str,
)
def test_solvers_with_noise_keep_the_marginals(name, solver, settings):
    """Of a Gaussian, whose mean and covariance at the end are known; n = 20,000, so that 4 standard
    errors are about 0.03 of a variance.
    """
    sde, target = SDES[name](), gaussian([1.0, -0.5], [0.3, 0.05])
    options = Options(method=solver, steps=400, noise_removal=False, eps=0.01, **settings)
    x = sample(Score(ExactNetwork(sde, target), sde), (20000, 2), options)[0].double()
    (alpha,), (sigma,) = levels(sde, 0.01)
    variances = alpha**2 * torch.tensor([0.3, 0.05]) + sigma**2
    assert torch.allclose(x.mean(0), alpha * target.mean, atol=0.03)
    assert torch.allclose(x.var(0), variances.double(), rtol=0.06)


# Agreement with diffusers


class Table(SDE):
    """Levels by the number of a step, as diffusers has them."""

    def __init__(self, alpha, sigma):
        super().__init__(len(alpha))
        self.alpha, self.std = alpha.double(), sigma.double()

    T = property(lambda self: self.N - 1)

    def marginal_prob(self, x, t):
        i = t.round().long()
        return self.alpha.to(x)[i].reshape(-1, *[1] * (x.ndim - 1)) * x, self.std.to(x)[i]

    def sde(self, x, t):
        raise NotImplementedError

    prior_sampling = prior_logp = sde


def chain(scheduler):
    """The SDE of a scheduler's chain; its exact score; the network that diffusers asks, which
    predicts noise; and a start.
    """
    sde = Table(scheduler.alphas_cumprod.sqrt(), (1 - scheduler.alphas_cumprod).sqrt())
    target = planar_mixture()

    def score_fn(x, t):
        alpha, sigma = levels(sde, t[:1])
        return target.score(x, alpha, sigma).to(x)

    def network(x, t):
        return -levels(sde, t)[1].to(x) * score_fn(x, t.double().expand(len(x)))

    return sde, score_fn, network, torch.randn(50, 2)


def stepped(scheduler, network, x):
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
    return x


MULTISTEP = [
    ('dpmpp_2m', {}, 'DPMSolverMultistepScheduler', {}),
    ('dpmpp_2m_sde', {}, 'DPMSolverMultistepScheduler', dict(algorithm_type='sde-dpmsolver++')),
    *(
        ('unipc', dict(dpm_solver_order=order), 'UniPCMultistepScheduler', dict(solver_order=order))
        for order in (1, 2, 3)
    ),
]


@pytest.mark.parametrize('steps', [8, 20])
@pytest.mark.parametrize('solver, settings, theirs, their_settings', MULTISTEP, ids=str)
def test_multistep_solvers_are_those_of_diffusers(solver, settings, theirs, their_settings, steps):
    diffusers = pytest.importorskip('diffusers')
    scheduler = getattr(diffusers, theirs)(
        final_sigmas_type='sigma_min', lower_order_final=steps < 15, **their_settings
    )
    scheduler.set_timesteps(steps)
    sde, score_fn, network, x = chain(scheduler)
    times = torch.cat([scheduler.timesteps.double(), torch.zeros(1)])
    torch.manual_seed(1)
    reference = stepped(scheduler, network, x)
    torch.manual_seed(1)
    assert (walked(solver, sde, score_fn, x, times, **settings) - reference).abs().max() < 1e-4


@pytest.mark.parametrize('eta', [0.0, 0.7, 1.0])
def test_ddim_is_that_of_diffusers(eta):
    diffusers = pytest.importorskip('diffusers')
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(20)
    sde, score_fn, network, x = chain(scheduler)
    torch.manual_seed(1)
    reference = x
    for t in scheduler.timesteps[:-1]:
        reference = scheduler.step(network(reference, t), t, reference, eta=eta, return_dict=False)[
            0
        ]
    torch.manual_seed(1)
    x = walked('ddim', sde, score_fn, x, scheduler.timesteps.double(), eta=eta)
    assert (x - reference).abs().max() < 1e-4


class Sigma(Table):
    """alpha = 1 and sigma = t, as Karras et al. 2022 have it."""

    def __init__(self):
        SDE.__init__(self, 1000)

    T = property(lambda self: 80.0)

    def marginal_prob(self, x, t):
        return x, t


@pytest.mark.parametrize(
    'solver, theirs',
    [('ddim', 'EDMEulerScheduler'), ('dpmpp_2m', 'EDMDPMSolverMultistepScheduler')],
)
def test_edm_schedulers_of_diffusers(solver, theirs):
    """On their grid, which is that of 'karras'; they ask a network with preconditioning (Karras et
    al. 2022, Table 1).
    """
    diffusers = pytest.importorskip('diffusers')
    scheduler, sde, target = getattr(diffusers, theirs)(), Sigma(), planar_mixture()
    scheduler.set_timesteps(12)
    sigmas = scheduler.sigmas.double()
    assert torch.allclose(time_grid(sde, 11, 0.002, 'karras', 7.0), sigmas[:-1], rtol=1e-5)

    def score_fn(x, t):
        return target.score(x, 1.0, t)

    start = 80 * torch.randn(50, 2, dtype=torch.float64)
    x = start
    for sigma, t in zip(sigmas, scheduler.timesteps):
        image, s = x + sigma**2 * score_fn(x, sigma), scheduler.config.sigma_data
        output = (image - s**2 / (sigma**2 + s**2) * x) / (sigma * s / (sigma**2 + s**2).sqrt())
        scheduler.scale_model_input(x, t)
        x = scheduler.step(output, t, x, return_dict=False)[0]
    mine = get_solver(solver)(sde, score_fn, sigmas[:-1])
    y = start
    for i in range(11):
        y = mine.step(y, i)
    if solver == 'ddim':
        assert (mine.denoised(y) - x).abs().max() < 1e-4
    else:  # ours lowers the order of its last step, theirs of that to sigma = 0
        long = get_solver(solver)(sde, score_fn, torch.cat([sigmas[:-1], torch.tensor([1e-9])]))
        y = start
        for i in range(12):
            y = long.step(y, i)
        assert (y - x).abs().max() < 1e-4


def test_heun_is_that_of_diffusers():
    diffusers = pytest.importorskip('diffusers')
    scheduler, target = diffusers.HeunDiscreteScheduler(use_karras_sigmas=True), planar_mixture()
    scheduler.set_timesteps(10)
    sigmas, sde = scheduler.sigmas.double()[[0, *range(1, 20, 2)]], Sigma()

    def score_fn(x, t):
        return target.score(x, 1.0, t)

    start = x = sigmas[0] * torch.randn(50, 2, dtype=torch.float64)
    for i, t in enumerate(scheduler.timesteps):
        sigma = (
            scheduler.sigmas[i].double()
            if scheduler.step_index is None
            else scheduler.sigmas[scheduler.step_index].double()
        )
        sigma = sigmas[(i + 1) // 2]
        x = scheduler.step(-sigma * score_fn(x, sigma), t, x, return_dict=False)[0]
    heun = get_solver('heun')(sde, score_fn, sigmas[:10])
    y = start
    for i in range(9):
        y = heun.step(y, i)
    assert (heun.denoised(y) - x).abs().max() < 1e-4


# Every way to use them


METHODS = ['pc', 'adaptive', *SOLVERS.names()]


def config_for(sde, method, **settings):
    config = load_config(
        dict(
            ve='configs.ve.digits_ncsnpp_continuous',
            vp='configs.vp.digits_ddpmpp_classes',
            subvp='configs.subvp.digits_ddpmpp_continuous',
        )[sde]
    )
    config.sampling.update(method=method, steps=dict(pc=200, ode=200).get(method, 20), **settings)
    return config


def distance_from(target, x):
    """How far mean and covariance are from the target's, in units of its standard deviation."""
    x = x.double().flatten(1)
    scale = target.covariance.diagonal().mean()
    return max(
        (x.mean(0) - target.mean).abs().max() / scale.sqrt(),
        (x.T.cov() - target.covariance).abs().max() / scale,
    )


@pytest.mark.parametrize('name', SDES)
@pytest.mark.parametrize('method', METHODS)
def test_plain_samples(name, method):
    config, target = config_for(name, method), planar_mixture()
    sde = get_sde(config)
    x, nfe = get_sampling_fn(config, sde, (4000, 2), identity, sde.sampling_eps)(
        ExactNetwork(sde, target)
    )
    assert distance_from(target, x) < (0.3 if method in ('ddim', 'pc', 'dpm_solver') else 0.2)
    evaluations = 200 * (1 + (config.sampling.corrector != 'none'))
    assert (
        nfe == dict(pc=evaluations, heun=39).get(method, 21)
        or method == 'adaptive'
        and 40 < nfe < 1000
    )


@pytest.mark.parametrize('name', SDES)
@pytest.mark.parametrize('method', METHODS)
def test_samples_of_classes(name, method):
    config, target = config_for(name, method), planar_mixture()
    sde, labels = get_sde(config), torch.arange(3).repeat_interleave(1000)
    sampler = get_sampling_fn(
        config, sde, (3000, 2), identity, sde.sampling_eps, classifier_free_guidance(labels, 1.0)
    )
    x, _ = sampler(ExactConditionalNetwork(sde, target))
    for k, part in enumerate(x.split(1000)):
        assert (part.double().mean(0) - target.component(k).mean).abs().max() < 0.1


@pytest.mark.parametrize('name', SDES)
@pytest.mark.parametrize('method', ['ode', *METHODS])
def test_inpainting(name, method):
    """One coordinate of a correlated Gaussian is known: it comes back as it was, and draws the
    other towards its conditional mean.
    """
    config = config_for(name, method)
    sde, mean, covariance = (
        get_sde(config),
        torch.tensor([[0.2, -0.3]]),
        torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]),
    )
    model, options = (
        Score(ExactNetwork(sde, GaussianMixture([1.0], mean, covariance)), sde),
        Options.of(config.sampling),
    )
    mask, known = Mask(torch.tensor([1.0, 0.0])), torch.full((1500, 2), 1.2)
    if method == 'ode':
        with pytest.raises(UserError, match="method='ode' does not support inpainting .*heun"):
            sample_measured(model, mask, known, options)
        return
    x, _ = sample_measured(
        model, mask, known, options, Loop(resample=1 if method == 'adaptive' else 3)
    )
    assert torch.allclose(x[:, 0], known[:, 0], atol=1e-6)
    assert 0.1 < x[:, 1].mean() < 0.75  # -0.3 without it, 0.5 given it


@pytest.mark.parametrize('name', SDES)
@pytest.mark.parametrize('method', ['heun', 'ddim', 'dpm_solver', 'dpmpp_2m', 'unipc'])
def test_codes(name, method):
    """Encoding and decoding come back to where they began, the better the more steps."""
    sde, target = SDES[name](), planar_mixture()
    model, x, errors = Score(ExactNetwork(sde, target), sde), target.sample(200).double(), []
    for steps in (30, 120):
        options = Options(method=method, eps=0.01, steps=steps)
        code, _ = latents.encode(model, x, options)
        errors.append((latents.decode(model, code, options)[0] - x).abs().mean())
    assert errors[1] < errors[0] / 2 and errors[1] < 0.1


def test_codes_of_solvers_with_noise_are_refused():
    with pytest.raises(UserError, match='adds noise'):
        latents.encode(Score(None, VPSDE()), torch.zeros(1, 2), Options(method='dpmpp_2m_sde'))


@pytest.mark.parametrize('name', SDES)
@pytest.mark.parametrize('skip_type', SKIP_TYPES)
@pytest.mark.parametrize('predictor', ['euler_maruyama', 'reverse_diffusion', 'ancestral_sampling'])
def test_predictors_on_any_grid(name, skip_type, predictor):
    config, target = (
        config_for(name, 'pc', predictor=predictor, corrector='none', skip_type=skip_type),
        planar_mixture(),
    )
    config.sampling.steps = 300
    sde = get_sde(config)
    x, nfe = get_sampling_fn(config, sde, (3000, 2), identity, sde.sampling_eps)(
        ExactNetwork(get_sde(config), target)
    )
    assert nfe == 300 and distance_from(target, x) < 0.2


def test_on_a_grid_ancestral_sampling_is_ddim_with_eta_1():
    sde, target = VPSDE(), planar_mixture()
    times = time_grid(sde, 20, 1e-3)
    score_fn = get_score_fn(sde, ExactNetwork(sde, target), continuous=True)
    ancestral, ddim = (
        get_predictor('ancestral_sampling')(sde, score_fn),
        get_solver('ddim')(sde, score_fn, times, eta=1.0),
    )
    x = torch.randn(50, 2, dtype=torch.float64)
    for i in range(20):
        torch.manual_seed(i)
        a, _ = ancestral.step(x, times[i].item(), times[i + 1].item())
        torch.manual_seed(i)
        x = ddim.step(x, i)
        assert torch.allclose(a, x, atol=1e-9)
    # the data themselves, without noise
    assert torch.allclose(ancestral.step(x, 1e-3, 0)[0], ddim.denoised(x), atol=1e-9)


@pytest.mark.parametrize('name', SDES)
def test_the_transition_between_two_times(name):
    """That of `transition_prob`, and from the data, which have no noise, the marginal."""
    sde, one = SDES[name](), torch.ones(1, dtype=torch.float64)
    (m_s, std_s), (m, std) = (sde.mean_and_std(time * one) for time in (0.3, 0.7))
    between = sde.transition_prob(one, 0.3 * one, 0.7 * one)
    assert transition(sde, 0.3, 0.7) == pytest.approx(
        [*map(float, (*between, std_s, std))], rel=1e-12
    )
    assert transition(sde, 0, 0.7) == pytest.approx(
        [float(m), float(std), 0.0, float(std)], rel=1e-12
    )


@pytest.mark.parametrize('s', [0.55, 0.0])
@pytest.mark.parametrize('name', SDES)
def test_steps_on_any_grid(name, s):
    """From x at 0.6 to 0.55 or to the data, with r and std of the transition: the mean, the noise,
    and the factor of the corrector's.
    """
    sde, t, x = (
        SDES[name](),
        torch.full((50,), 0.6, dtype=torch.float64),
        torch.randn(50, 2, dtype=torch.float64),
    )
    score_fn = get_score_fn(sde, ExactNetwork(sde, planar_mixture()), continuous=True)
    (r, std, std_s, std_t), score, (f, g) = transition(sde, s, 0.6), score_fn(x, t), sde.sde(x, t)
    dt, g = 0.6 - s, g[0]
    expected = dict(
        euler_maruyama=(x - (f - g**2 * score) * dt, g * math.sqrt(dt)),
        none=(x, 0.0),
        reverse_diffusion=((2 - r) * x + std**2 * score, std),
        ancestral_sampling=((x + std**2 * score) / r, std * std_s / std_t),
    )
    assert set(expected) == set(sampling.PREDICTORS.names())
    for predictor, (mean, noise) in expected.items():
        torch.manual_seed(1)
        stepped, x_mean = get_predictor(predictor)(sde, score_fn).step(x, 0.6, s)
        torch.manual_seed(1)
        torch.testing.assert_close(x_mean, mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            stepped, mean + noise * torch.randn_like(x), rtol=1e-9, atol=1e-9
        )
    for corrector in ('langevin', 'ald'):  # the size of a step of one is in proportion to alpha
        corrector = get_corrector(corrector)(sde, score_fn, 0.16, 1)
        torch.manual_seed(1)
        _, x_mean = corrector.step(x, 0.6, s)
        torch.manual_seed(1)
        _, published = corrector.update_fn(x, t)
        torch.testing.assert_close(
            x_mean - x, r**2 / sde.langevin_alpha(t)[0] * (published - x), rtol=1e-9, atol=1e-9
        )


class Published(Predictor):
    """A predictor as code for the 2021 release has it, with `update_fn` and nothing else."""

    def update_fn(self, x, t):
        return get_predictor('reverse_diffusion')(self.sde, self.score_fn).update_fn(x, t)


def test_a_predictor_of_ones_own_steps_along_the_times_of_the_sde():
    """For another grid it needs `step`; a corrector does not."""
    sde = VPSDE()
    model, drawn = Score(ExactNetwork(sde, planar_mixture()), sde), []
    for predictor in (Published, 'reverse_diffusion'):
        torch.manual_seed(1)
        drawn.append(sample(model, (9, 2), Options(method='pc', predictor=predictor, steps=40)))
    assert torch.equal(drawn[0][0], drawn[1][0]) and drawn[0][1] == drawn[1][1] == 40
    with pytest.raises(
        UserError, match="predictor Published has no method `step`, which skip_type='karras' needs"
    ):
        sample(
            model, (9, 2), Options(method='pc', predictor=Published, skip_type='karras', steps=40)
        )

    class Still(sampling.Corrector):
        def update_fn(self, x, t):
            assert t.shape == (9,) and (t == t[0]).all()
            seen.append(t[0].item())
            return x, x

    seen, options = (
        [],
        Options(
            method='pc',
            predictor='reverse_diffusion',
            corrector=Still,
            skip_type='karras',
            steps=40,
        ),
    )
    sample(model, (9, 2), options)
    assert seen == pytest.approx(sampling.times_of(sde, options)[:-1].tolist(), rel=1e-6)


@pytest.mark.parametrize('name', SDES)
def test_the_order_of_algorithm_1(name):
    config, target = (
        config_for(name, 'pc', predictor='reverse_diffusion', corrector='langevin'),
        planar_mixture(),
    )
    config.sampling.order = 'predictor_corrector'
    sde = get_sde(config)
    network = ExactNetwork(sde, target)
    x, nfe = get_sampling_fn(config, sde, (3000, 2), identity, sde.sampling_eps)(network)
    assert nfe == 399 and distance_from(target, x) < 0.2
    torch.manual_seed(1)
    published = get_sampling_fn(
        config_for(name, 'pc', predictor='reverse_diffusion', corrector='langevin'),
        sde,
        (9, 2),
        identity,
        sde.sampling_eps,
    )(network)[0]
    torch.manual_seed(1)
    assert not torch.equal(
        get_sampling_fn(config, sde, (9, 2), identity, sde.sampling_eps)(network)[0], published
    )


@pytest.mark.parametrize('predictor', ['reverse_diffusion', 'ancestral_sampling'])
@pytest.mark.parametrize('order', sampling.ORDERS)
def test_after_the_last_step_there_is_no_noise_left(predictor, order):
    """Of two points, 1 apart, that the last step leads to."""
    sde, target = (
        VESDE(0.01, 10, N=200),
        GaussianMixture([0.5, 0.5], [[0.5], [-0.5]], [[[1e-8]], [[1e-8]]]),
    )
    options = Options(method='pc', predictor=predictor, corrector='langevin', eps=1e-5, order=order)
    x, _ = sample(Score(ExactNetwork(sde, target), sde), (500, 1), options)
    assert (x.abs() - 0.5).abs().max() < 1e-3


def test_networks_of_few_noise_levels_are_refused():
    config = config_for('ve', 'heun')
    config.training.continuous, config.model.num_scales = False, 10
    with pytest.raises(
        UserError,
        match=r"method='heun' needs a network trained in continuous time "
        r".*num_scales=10: use method='pc'",
    ):
        get_sampling_fn(config, get_sde(config), (4, 2), identity, 1e-5)


def test_one_step_begins_with_the_prior():
    assert time_grid(VPSDE(), 0, 1e-3).tolist() == [1.0]


def test_without_a_corrector_the_orders_are_one():
    sde = VPSDE(N=40)
    model, drawn = Score(ExactNetwork(sde, planar_mixture()), sde), []
    for order in sampling.ORDERS:
        torch.manual_seed(1)
        drawn.append(
            sample(model, (9, 2), Options(method='pc', predictor='euler_maruyama', order=order))[0]
        )
    assert torch.equal(*drawn)
    with pytest.raises(
        UserError, match="order must be one of corrector_predictor, predictor_corrector, got 'x'"
    ):
        sample(model, (9, 2), Options(method='pc', predictor='euler_maruyama', order='x'))


class Still(nn.Module):
    """Says that there is no noise: VP samples stay near where they begin."""

    def forward(self, x, labels):
        return torch.zeros_like(x)


@pytest.mark.parametrize('method', ['ode', *METHODS])
def test_prior_mean_and_rounding(method):
    config = config_for('vp', method, prior_mean=50.0, corrector='none')
    sde = get_sde(config)
    torch.manual_seed(1)
    far = get_sampling_fn(config, sde, (3, 1, 2, 2), identity, 0.1)(Still())[0]
    config.sampling.prior_mean = 0.0
    torch.manual_seed(1)
    near = get_sampling_fn(config, sde, (3, 1, 2, 2), identity, 0.1)(Still())[0]
    assert (far - near).min() > 10
    config.sampling.round = True
    torch.manual_seed(1)
    levels = (
        255 * get_sampling_fn(config, sde, (3, 1, 2, 2), lambda x: x / 20 + 0.5, 0.1)(Still())[0]
    )
    assert (
        torch.allclose(levels, levels.round(), atol=1e-4)
        and 0 <= levels.min()
        and levels.max() <= 255
    )


def test_thresholding_keeps_images_within_their_range():
    x = torch.tensor([[0.5, -1.0], [4.0, -2.0]])
    assert torch.equal(solvers.threshold(x, share=1.0), torch.tensor([[0.5, -1.0], [1.0, -0.5]]))
    assert torch.equal(
        solvers.threshold((x + 1) / 2, centered=False, share=1.0),
        torch.tensor([[0.75, 0.0], [1.0, 0.25]]),
    )
    config = config_for('vp', 'dpmpp_2m', thresholding=True)
    sde, labels, target = (
        VPSDE(),
        torch.zeros(500, dtype=torch.long),
        gaussian([0.5, 0.5], [0.1, 0.1]),
    )
    guidance = classifier_free_guidance(labels, 30.0)
    sampler = get_sampling_fn(config, sde, (500, 2), identity, 1e-3, guidance)
    assert sampler(ExactConditionalNetwork(sde, target))[0].abs().max() <= 1
    config.sampling.method = 'pc'
    with pytest.raises(
        UserError, match="thresholding=True is not supported by method='pc': use one of ddim"
    ):
        get_sampling_fn(config, sde, (500, 2), identity, 1e-3)


@pytest.mark.parametrize('name', SDES)
def test_tighter_tolerances_take_more_steps(name):
    sde, target = SDES[name](), planar_mixture()
    model = Score(ExactNetwork(sde, target), sde)
    runs = [
        sample(model, (3000, 2), Options(method='adaptive', rtol=rtol, atol=rtol / 10, eps=1e-3))
        for rtol in (0.5, 0.01)
    ]
    assert runs[0][1] < runs[1][1] / 2 and distance_from(target, runs[1][0]) < 0.1


@pytest.mark.parametrize('name', ['ve', 'vp'])
@pytest.mark.parametrize('rtol', [0.05, 0.01])
def test_refused_steps_leave_the_variance_as_it_is(name, rtol):
    """In one dimension, where the size of a step depends most on its noise; with noise drawn anew
    it is up to twice as large. n = 4000, so that a standard error is 0.011.
    """
    sde, target = SDES[name](), gaussian([0.5], [0.09])
    options = Options(method='adaptive', rtol=rtol, atol=rtol / 10, noise_removal=False)
    (alpha,), (sigma,) = levels(sde, sde.sampling_eps)
    x, _ = sample(Score(ExactNetwork(sde, target), sde), (4000, 1), options)
    assert abs(x.double().std() / math.sqrt(0.09 * alpha**2 + sigma**2) - 1) < 0.05


def test_a_score_that_is_not_finite_ends_the_adaptive_solver():
    class Broken(nn.Module):
        def forward(self, x, labels):
            return x * torch.where(torch.arange(len(x)) == 1, math.nan, 1.0)[:, None]

    with pytest.raises(UserError, match='not finite'):
        sample(Score(Broken(), VPSDE()), (3, 2), Options(method='adaptive'))


def test_steps_of_an_image_do_not_depend_on_those_beside_it():
    sde, target = VPSDE(), planar_mixture()

    def draw(seeds):
        with per_image(seeds):
            return sample(
                Score(ExactNetwork(sde, target), sde), (len(seeds), 2), Options(method='adaptive')
            )[0]

    assert torch.allclose(draw([3, 4, 5])[1:2], draw([4]), atol=1e-5)


@pytest.mark.parametrize(
    'steps, order, expected',
    [
        (20, 3, [3] * 6 + [2]),
        (19, 3, [3] * 6 + [1]),
        (21, 3, [3] * 6 + [2, 1]),
        (9, 2, [2] * 4 + [1]),
        (8, 2, [2] * 4),
        (3, 1, [1] * 3),
        (3, 3, [2, 1]),
    ],
)
def test_dpm_solver_spends_what_it_is_given(steps, order, expected):
    assert get_solver('dpm_solver').orders(steps, order) == expected
    sde, target = VPSDE(), planar_mixture()
    options = Options(method='dpm_solver', steps=steps, noise_removal=False, dpm_solver_order=order)
    assert sample(Score(ExactNetwork(sde, target), sde), (10, 2), options)[1] == steps


@pytest.mark.parametrize('name, method', [('mine', 'mine'), ('Mine', 'Mine'), (None, 'mine')])
def test_a_solver_of_ones_own(monkeypatch, tmp_path, name, method):
    monkeypatch.setattr(SOLVERS, '_classes', dict(SOLVERS._classes))

    @solvers.register_solver(name=name)
    class Mine(solvers.Solver):
        def step(self, x, i):
            return x

    config = config_for('vp', method)
    preflight.check(config, tmp_path, 'train')
    x, nfe = get_sampling_fn(config, VPSDE(), (4, 2), identity, 1e-3)(
        ExactNetwork(VPSDE(), planar_mixture())
    )
    assert nfe == 1 and x.shape == (4, 2)
    with pytest.raises(ValueError, match="'MINE' is taken"):
        solvers.register_solver(name='MINE')(solvers.DDIM)


@pytest.mark.parametrize(
    'method, settings, message',
    [
        ('heun', dict(steps=1), "steps=1 is too few for method='heun'"),
        (
            'dpm_solver',
            dict(dpm_solver_order=4),
            'dpm_solver_order must be 1, 2 or 3 for dpm_solver, got 4',
        ),
    ],
)
def test_what_has_no_meaning_is_refused(method, settings, message):
    config = config_for('vp', method)
    config.sampling.update(settings)
    with pytest.raises(UserError, match=message):
        get_sampling_fn(config, VPSDE(), (4, 2), identity, 1e-3)


# What solvers are judged by


def test_subspace_mixture_is_the_mixture_fitted_to_images():
    """Against a mixture of the same covariances in all dimensions, in coordinates that the images
    themselves are turned to.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(30)
    images = (
        torch.rand(90, 12, generator=generator, dtype=torch.float64) * torch.arange(1, 13)
        + labels[:, None]
    )
    target = SubspaceMixture.fit(images, labels, rank=2)
    covariances = torch.stack(
        [
            torch.block_diag(inside, target.rest * torch.eye(12 - target.size, dtype=torch.float64))
            for inside in target.inside.covariances
        ]
    )
    means = torch.cat([target.inside.means, torch.zeros(3, 12 - target.size)], 1)
    full, x = (
        GaussianMixture(target.inside.weights, means, covariances),
        torch.randn(7, 12, dtype=torch.float64),
    )
    m, std = torch.rand(7), torch.rand(7) + 0.1
    assert target.size == 10 and torch.allclose(
        target.log_prob(x, m, std), full.log_prob(x, m, std), atol=1e-10
    )
    assert torch.allclose(target.score(x, m, std), full.score(x, m, std), atol=1e-10)
    assert torch.allclose(
        target.sample(50000).T.cov(), full.covariance, atol=0.02 * full.covariance.max()
    )
    for k in range(3):
        part = images[30 * k : 30 * k + 30]
        moments = part.T.cov(correction=0)
        assert torch.allclose(means[k].norm(), part.mean(0).norm())  # turned, but as long
        assert torch.allclose(
            torch.linalg.eigvalsh(covariances[k])[-2:], torch.linalg.eigvalsh(moments)[-2:]
        )
    assert math.isclose(target.constant.norm(), math.sqrt(12))


def test_subspace_mixture_in_3072_dimensions():
    labels = torch.arange(3).repeat_interleave(20)
    images = torch.rand(60, 3, 32, 32, dtype=torch.float64) + labels[:, None, None, None]
    target = SubspaceMixture.fit(images, labels, rank=8)
    x, sigma = target.sample(5), torch.tensor([0.01, 0.1, 1.0, 10.0, 50.0])
    exact = target.score(x, 1.0, sigma)
    assert x.shape == (5, 3, 32, 32) and target.size == 28
    assert (
        (target.score(x.float(), 1.0, sigma) - exact).flatten(1).norm(dim=1)
        / exact.flatten(1).norm(dim=1)
    ).max() < 1e-5


def test_quality_measures_and_draws(tmp_path):
    """The short version of benchmarks/quality.py, which goes on where it was."""
    command = [
        sys.executable,
        'benchmarks/quality.py',
        '--targets',
        'plane,images',
        '--sdes',
        've',
        '--solvers',
        'exact,heun',
        '--most',
        '18',
        '-n',
        '100',
        '--json',
        f'{tmp_path}/a.json',
        '--plots',
        f'{tmp_path}/plots',
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / 'a.json').read_text())['rows']
    assert len({row['solver'] for row in rows}) == 5 and (tmp_path / 'plots' / 've.png').is_file()
    plane = {
        row['solver']: row['distance']
        for row in rows
        if row['target'] == 'plane' and row['nfe'] in (0, 35)
    }
    assert plane['exact'] < 0.15 and plane['heun'] < 0.15
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0 and ' s\n' not in again.stderr and again.stdout == done.stdout
