"""Samplers of the reverse-time SDE and of the probability-flow ODE (Song et al. 2021, Secs. 3.3 and 4, Appendices E to G).

A predictor takes a step of the reverse SDE, a corrector one of Langevin dynamics at a fixed time; both answer (x, x_mean), where
x_mean lacks the noise of the last step. A sampler, called with a network, returns samples and the number of network evaluations. Noise
comes from `randomness.normal_like`, so that images can be drawn from streams of their own.
"""
import abc
import functools

import torch

import fast_sampling
import ode_lib
from errors import UserError
from models.utils import get_score_fn, times_like
from randomness import batch_mean, normal_like, prior_sampling
from registry import Registry
from sde_lib import OnGrid, expand, get_sde

PREDICTORS = Registry('predictor (config.sampling.predictor)')
CORRECTORS = Registry('corrector (config.sampling.corrector)')
register_predictor, get_predictor = PREDICTORS.register, PREDICTORS.get
register_corrector, get_corrector = CORRECTORS.register, CORRECTORS.get


class Predictor(abc.ABC):
    """A step from time t to the next, for an SDE and a score function (x, t) -> shape of x."""

    def __init__(self, sde, score_fn, probability_flow=False):
        self.sde, self.score_fn = sde, score_fn
        self.rsde = sde.reverse(score_fn, probability_flow)

    @abc.abstractmethod
    def update_fn(self, x, t):
        """x (B, ...) at times t (B,) -> (x, x_mean) one step earlier, of the length `sde.step_size(t)`, T/N unless the grid is another."""


class Corrector(abc.ABC):
    """Steps that bring x closer to p_t without changing t; `snr` sets their size, `n_steps` their number."""

    def __init__(self, sde, score_fn, snr, n_steps):
        self.sde, self.score_fn, self.snr, self.n_steps = sde, score_fn, snr, n_steps

    @abc.abstractmethod
    def update_fn(self, x, t):
        """x (B, ...) at times t (B,) -> (x, x_mean) at the same times."""


@register_predictor(name='euler_maruyama')
class EulerMaruyamaPredictor(Predictor):
    """x - f dt + g sqrt(dt) z with dt = T/N, on the reverse SDE."""

    def update_fn(self, x, t):
        dt = self.sde.step_size(t)
        dt = expand(dt, x) if torch.is_tensor(dt) else dt
        z = normal_like(x)
        drift, diffusion = self.rsde.sde(x, t)
        x_mean = x - drift * dt
        return x_mean + expand(diffusion, x) * dt ** 0.5 * z, x_mean


@register_predictor(name='reverse_diffusion')
class ReverseDiffusionPredictor(Predictor):
    """x - f + G z, with f and G of the forward chain reversed (Appendix E)."""

    def update_fn(self, x, t):
        f, G = self.rsde.discretize(x, t)
        x_mean = x - f
        return x_mean + expand(G, x) * normal_like(x), x_mean


@register_predictor(name='ancestral_sampling')
class AncestralSamplingPredictor(Predictor):
    """The reverse step of the SDE's own Markov chain (Eq. 4; Appendix F), for VPSDE and VESDE."""

    def __init__(self, sde, score_fn, probability_flow=False):
        if probability_flow:
            raise NotImplementedError('sampling.probability_flow=True has no meaning for ancestral sampling: use reverse_diffusion or '
                                      'euler_maruyama')
        super().__init__(sde, score_fn)
        sde.ancestral_step(torch.zeros(1), torch.full((1,), float(sde.T)), torch.zeros(1))  # refuses at once an SDE without a chain

    def update_fn(self, x, t):
        x_mean, std = self.sde.ancestral_step(x, t, self.score_fn(x, t))
        return x_mean + expand(std, x) * normal_like(x), x_mean


@register_predictor(name='none')
class NonePredictor(Predictor):
    """Stays where it is."""

    def update_fn(self, x, t):
        return x, x


@register_corrector(name='langevin')
class LangevinCorrector(Corrector):
    """Langevin dynamics whose step keeps the ratio of noise to score, averaged over the batch, at `snr` (Algorithms 4 and 5).

    Images with streams of their own (randomness.py) have steps of their own.
    """

    def __init__(self, sde, score_fn, snr, n_steps):
        super().__init__(sde, score_fn, snr, n_steps)
        sde.langevin_alpha(torch.full((1,), float(sde.T)))  # refuses at once a chain of too few steps

    def update_fn(self, x, t):
        alpha, x_mean = self.sde.langevin_alpha(t), x
        for _ in range(self.n_steps):
            score, noise = self.score_fn(x, t), normal_like(x)
            score_norm, noise_norm = batch_mean(score.flatten(1).norm(dim=1)), batch_mean(noise.flatten(1).norm(dim=1))
            step = expand((self.snr * noise_norm / score_norm) ** 2 * 2 * alpha, x)
            x_mean = x + step * score
            x = x_mean + (2 * step).sqrt() * noise
        return x, x_mean


@register_corrector(name='ald')
class AnnealedLangevinDynamics(LangevinCorrector):
    """Langevin dynamics with steps of 2 alpha (snr std(t))^2, as NCSN takes them (Song & Ermon 2019, Algorithm 1)."""

    def update_fn(self, x, t):
        std, x_mean = self.sde.marginal_prob(x, t)[1], x
        step = expand((self.snr * std) ** 2 * 2 * self.sde.langevin_alpha(t), x)
        for _ in range(self.n_steps):
            x_mean = x + step * self.score_fn(x, t)
            x = x_mean + (2 * step).sqrt() * normal_like(x)
        return x, x_mean


@register_corrector(name='none')
class NoneCorrector(Corrector):
    """Stays where it is."""

    def update_fn(self, x, t):
        return x, x


def shared_predictor_update_fn(x, t, sde, model, predictor, probability_flow, continuous):
    """One step of a predictor class (None: no step) with a network: (x, x_mean). A loop builds its predictor once instead."""
    score_fn = get_score_fn(sde, model, train=False, continuous=continuous)
    return (predictor or NonePredictor)(sde, score_fn, probability_flow).update_fn(x, t)


def shared_corrector_update_fn(x, t, sde, model, corrector, continuous, snr, n_steps):
    """The steps of a corrector class (None: no step) with a network: (x, x_mean). A loop builds its corrector once instead."""
    score_fn = get_score_fn(sde, model, train=False, continuous=continuous)
    return (corrector or NoneCorrector)(sde, score_fn, snr, n_steps).update_fn(x, t)


class Counted:
    """A function that counts its calls."""

    def __init__(self, fn):
        self.fn, self.calls = fn, 0

    def __call__(self, *args, **settings):
        self.calls += 1
        return self.fn(*args, **settings)


def walk(step, sde, x, times, callback=None, project=None, resample=1, jump=1, begin=lambda: None):
    """x (B, ...) at times[0] carried along `times` (n + 1,) by `step(x, i) -> (x, x_mean)` from each to the next: (x, x_mean).

    `callback(i, t, x)`, where given, sees the state after the i-th step. `project(x, t)`, where given, imposes on x what is known of it
    at times t (B,): at the start and behind every step. `resample`: each stretch of `jump` steps is walked so many times, the forward
    process carrying x back in between (Lugmayr et al. 2022, Algorithm 1 and Appendix B), and `begin` being called anew; but once where
    the last step is a stretch of its own.
    """
    project, last = project or (lambda x, t: x), len(times) - 2
    times_like_x = [t.expand(len(x)) for t in times]
    x = x_mean = project(x, times_like_x[0])
    for start in range(0, last + 1, jump):
        stretch = range(start, min(start + jump, last + 1))
        for again in range(1 if start == last else resample):
            if again:
                mean, std = sde.transition_prob(x, times_like_x[stretch[-1] + 1], times_like_x[start])
                x = mean + expand(std, x) * normal_like(x)
                begin()
            for i in stretch:
                x, x_mean = step(x, i)
                x = project(x, times_like_x[i + 1])
                if callback:
                    callback(i, times[i], x)
    return x, x_mean


ORDERS = ('corrector_predictor', 'predictor_corrector')


def predictor_corrector(predictor, corrector, x, timesteps, callback=None, project=None, resample=1, jump=1, order=ORDERS[0]):
    """x (B, ...) carried along `timesteps` (n,), by n steps of the predictor, the last from the last of them: (x, x_mean).

    `order`: 'corrector_predictor' corrects at each time before stepping to the next, as published code does; 'predictor_corrector' steps
    first and corrects at the next, as Algorithm 1 has it, but not after the last step. Everything else as for `walk`; `project` comes
    between the two as well.
    """
    times, project = [*timesteps, timesteps[-1]], project or (lambda x, t: x)
    corrects_first = order == ORDERS[0] or isinstance(corrector, NoneCorrector)

    def step(x, i):
        t, s = (times[j].expand(len(x)) for j in (i, i + 1))
        if corrects_first:
            return predictor.update_fn(project(corrector.update_fn(x, t)[0], t), t)
        if i == len(timesteps) - 1 and not isinstance(predictor, NonePredictor):
            return predictor.update_fn(x, t)  # to the data themselves, where there is no noise for a corrector to work with
        return corrector.update_fn(project(predictor.update_fn(x, t)[0], s), s)
    return walk(step, predictor.sde, x, times, callback, project, resample, jump)


def follow_flow(sde, score_fn, x, t0, t1, rtol=1e-5, atol=1e-5, method='RK45'):
    """x (B, ...) at time t0, carried to time t1 by the probability-flow ODE (Eq. 13), either way."""
    flow = sde.reverse(score_fn, probability_flow=True)

    def drift(t, x):
        return (flow.sde(x, times_like(x, t))[0],)
    return ode_lib.solve(drift, (x,), t0, t1, rtol, atol, method)[0][0]


def _start(sde, shape, model, device, prior_mean=0.0):
    """A draw from the prior, made on the CPU so that a seed means the same everywhere, on the sampler's device in the network's dtype."""
    parameter = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    x = prior_sampling(sde, shape)
    x = x + (prior_mean.to(x) if torch.is_tensor(prior_mean) else prior_mean)
    if parameter is not None:
        x = x.to(device or parameter.device, torch.promote_types(parameter.dtype, torch.float32))
    return x.to(device) if device else x


def methods() -> list[str]:
    """What `config.sampling.method` may be."""
    return ['pc', 'ode', 'adaptive', *fast_sampling.SOLVERS.names()]


def get_sampling_sde(config):
    """The config's SDE with the number of steps that 'pc' is to take, and on the grid of times that `skip_type` says, if any."""
    sde, settings = get_sde(config), config.sampling
    if settings.method.lower() not in ('pc', 'ode'):
        return sde
    sde.N = settings.get('steps') or sde.N
    skip_type = settings.get('skip_type')
    if settings.method.lower() == 'ode' or not skip_type:
        return sde
    return OnGrid(sde, fast_sampling.time_grid(sde, sde.N - 1, sde.sampling_eps, skip_type, settings.get('rho', 7.0)))


def get_sampling_fn(config, sde, shape, inverse_scaler, eps, guidance=None, *, project=None, resample=1, jump=1):
    """The sampler that `config.sampling` describes, for samples of `shape`, stopping at time `eps`; `guidance`, `project`, `resample` and
    `jump` as samplers take them."""
    sampling, method = config.sampling, config.sampling.method.lower()
    common = dict(denoise=sampling.noise_removal, eps=eps, device=config.device, continuous=config.training.continuous, guidance=guidance,
                  prior_mean=sampling.get('prior_mean', 0.0))
    correct = functools.partial(fast_sampling.threshold, centered=config.data.centered) if sampling.get('thresholding', False) else None
    if sampling.get('round', False):
        inverse_scaler = _rounded(inverse_scaler)
    if method not in map(str.lower, methods()):
        raise UserError(f'config.sampling.method is {sampling.method!r}: known are {", ".join(methods())}')
    if correct and not fast_sampling.SOLVERS.find(method):
        raise UserError(f'config.sampling.thresholding=True needs a solver that estimates images, which method={method!r} does not')
    if method not in ('pc', 'ode') and not config.training.continuous and sde.N < 100:
        raise UserError(f'config.sampling.method={method!r} needs a network that knows all times, or 100 noise levels or more: this one '
                        f"knows config.model.num_scales={sde.N}; use 'pc'")
    if project and method == 'ode':
        raise UserError("config.sampling.method='ode': nothing can be imposed on the steps of that solver; use 'pc', 'adaptive' or one of "
                        + ', '.join(fast_sampling.SOLVERS.names()))
    tolerances = {key: sampling.get(key) or default for key, default in DEFAULT_TOLERANCES.get(method, {}).items()}
    if method == 'ode':
        return get_ode_sampler(sde, shape, inverse_scaler, method=sampling.get('ode_method', 'dopri5'), **common, **tolerances)
    common |= dict(project=project, resample=resample, jump=jump)
    if method == 'pc':
        return get_pc_sampler(sde, shape, get_predictor(sampling.predictor), get_corrector(sampling.corrector),
                              inverse_scaler, sampling.snr, n_steps=sampling.n_steps_each, probability_flow=sampling.probability_flow,
                              order=sampling.get('order', ORDERS[0]), **common)
    if method == 'adaptive':
        return get_adaptive_sampler(sde, shape, inverse_scaler, **common, **tolerances)
    solver = fast_sampling.get_solver(method)
    return get_fast_sampler(sde, shape, solver, inverse_scaler, sampling.get('steps'), skip_type=sampling.get('skip_type'),
                            rho=sampling.get('rho', 7.0), correct=correct, **common,
                            **{key: sampling[key] for key in solver.settings if key in sampling and key != 'steps'})


DEFAULT_TOLERANCES = {'ode': dict(rtol=1e-5, atol=1e-5), 'adaptive': dict(rtol=0.05, atol=1 / 256)}


def _rounded(inverse_scaler):
    """-> x -> the nearest images of 8 bits."""
    return lambda x: (inverse_scaler(x).clamp(0, 1) * 255).round() / 255


def get_pc_sampler(sde, shape, predictor, corrector, inverse_scaler, snr, n_steps=1, probability_flow=False, continuous=False, denoise=True,
                   eps=1e-3, device=None, *, guidance=None, project=None, resample=1, jump=1, order=ORDERS[0], prior_mean=0.0):
    """-> pc_sampler(model, callback=None) -> (samples, nfe), over `sde.N` times from T to `eps` (Algorithm 1).

    `predictor`, `corrector`: classes, or None. `snr`, `n_steps`: of the corrector. `probability_flow`: the predictor steps along the
    ODE. `continuous`: how the network was trained. `denoise`: leave out the noise of the last step (of the predictor: without one there
    is no difference). `device`: None is the network's. `guidance`: from the network's score function to the one that is followed.
    `project`, `resample`, `jump`, `order`: see `predictor_corrector`. `prior_mean`: a number or an image added to the prior's draw.
    A combination without a definition is refused here, before any step: NotImplementedError or ValueError.
    """
    predictor, corrector = predictor or NonePredictor, corrector or NoneCorrector
    if predictor is NonePredictor and corrector is NoneCorrector:
        raise UserError("sampling.predictor and sampling.corrector are both 'none': nothing would turn the prior's noise into samples")
    if n_steps < 1 and corrector is not NoneCorrector:
        raise UserError(f'sampling.n_steps_each must be at least 1, got {n_steps}')
    if order not in ORDERS:
        raise UserError(f'sampling.order is {order!r}: known are {" and ".join(ORDERS)}')
    _check_repeats(resample, jump)
    if resample > 1 and predictor is NonePredictor:
        raise UserError(f"resample={resample}: without a predictor (sampling.predictor='none') there is no step to repeat")
    unused = get_score_fn(sde, None)  # the classes refuse what they must when they are built
    predictor(sde, unused, probability_flow), corrector(sde, unused, snr, n_steps)

    @torch.no_grad()
    def pc_sampler(model, callback=None):
        score_fn = Counted(get_score_fn(sde, model, train=False, continuous=continuous))
        guided = guidance(score_fn) if guidance else score_fn
        x = _start(sde, shape, model, device, prior_mean)
        timesteps = sde.timesteps(eps, x.device, x.dtype)
        x, x_mean = predictor_corrector(predictor(sde, guided, probability_flow), corrector(sde, guided, snr, n_steps), x, timesteps,
                                        callback, project, resample, jump, order)
        return inverse_scaler(x_mean if denoise else x), score_fn.calls

    pc_sampler.times = torch.cat([sde.timesteps(eps), torch.zeros(1)])  # of its steps, for those who show progress
    return pc_sampler


def _check_repeats(resample, jump):
    if resample < 1 or jump < 1:
        raise UserError(f'resample={resample} and jump={jump}: both must be at least 1')


def get_fast_sampler(sde, shape, solver, inverse_scaler, steps=None, skip_type=None, rho=7.0, denoise=True, eps=1e-3, device=None,
                     continuous=True, *, guidance=None, project=None, resample=1, jump=1, correct=None, prior_mean=0.0, **settings):
    """-> fast_sampler(model, z=None, callback=None) -> (samples, nfe), by a solver of fast_sampling.py.

    It begins with the code `z` (`shape`), or a draw from the prior. `solver`: a class; `steps`: what it is to spend, None is its
    `default_steps`; `skip_type`, `rho`: see `time_grid`, None is the grid that suits it. `denoise`: end with its estimate of the image,
    one evaluation more. `settings`: its own, see there. `correct`: put on every estimate of the image, see `threshold`. Everything else as
    for `get_pc_sampler`.
    """
    _check_repeats(resample, jump)
    steps = steps or solver.default_steps
    intervals = solver.intervals(steps, denoise=denoise, **settings)
    settings = {key: value for key, value in dict(settings, steps=steps).items() if key in solver.settings}
    if intervals < 1:
        raise UserError(f'config.sampling.steps={steps} are too few for {solver.__name__}')
    times = fast_sampling.time_grid(sde, intervals, eps, skip_type or solver.skip_type, rho)
    solver(sde, None, times, correct=correct, **settings)  # refuses what it must

    @torch.no_grad()
    def fast_sampler(model, z=None, callback=None):
        score_fn = Counted(get_score_fn(sde, model, train=False, continuous=continuous))
        stepper = solver(sde, guidance(score_fn) if guidance else score_fn, times, correct=correct, **settings)
        x = _start(sde, shape, model, device, prior_mean) if z is None else z
        x, _ = walk(lambda x, i: (stepper.step(x, i),) * 2, sde, x, times.to(x.device, x.dtype), callback, project, resample, jump,
                    stepper.forget)
        return inverse_scaler(stepper.denoised(x) if denoise else x), score_fn.calls

    fast_sampler.times = times
    return fast_sampler


def get_adaptive_sampler(sde, shape, inverse_scaler, rtol=0.05, atol=1 / 256, denoise=True, eps=1e-3, device=None, continuous=True, *,
                         guidance=None, project=None, resample=1, jump=1, prior_mean=0.0):
    """-> adaptive_sampler(model, callback=None) -> (samples, nfe), by `fast_sampling.adaptive`. Everything else as for `get_pc_sampler`."""
    if resample != 1 or jump != 1:
        raise UserError("sampling.method='adaptive' has no steps that could be repeated: set control.resample and control.jump to 1")

    @torch.no_grad()
    def adaptive_sampler(model, callback=None):
        score_fn = Counted(get_score_fn(sde, model, train=False, continuous=continuous))
        guided = guidance(score_fn) if guidance else score_fn
        x = fast_sampling.adaptive(sde, guided, _start(sde, shape, model, device, prior_mean), eps, rtol, atol, callback, project)
        t = times_like(x, eps)
        return inverse_scaler(sde.denoise(x, t, guided(x, t)) if denoise else x), score_fn.calls

    return adaptive_sampler


def get_ode_sampler(sde, shape, inverse_scaler, denoise=False, rtol=1e-5, atol=1e-5, method='RK45', eps=1e-3, device=None,
                    continuous=True, *, guidance=None, prior_mean=0.0):
    """-> ode_sampler(model, z=None) -> (samples, nfe): the probability-flow ODE from T to `eps` (Eq. 13), from the latent code `z`
    (`shape`) or a draw from the prior. `denoise` adds one noiseless predictor step. `rtol`, `atol`, `method`: see `ode_lib.solve`.
    `guidance`: from the network's score function to the one that is followed.
    """
    ode_lib.check_method(method)

    @torch.no_grad()
    def ode_sampler(model, z=None):
        score_fn = Counted(get_score_fn(sde, model, train=False, continuous=continuous))
        guided = guidance(score_fn) if guidance else score_fn
        x = _start(sde, shape, model, device, prior_mean) if z is None else z
        x = follow_flow(sde, guided, x, sde.T, eps, rtol, atol, method)
        if denoise:
            x = ReverseDiffusionPredictor(sde, guided).update_fn(x, times_like(x, eps))[1]
        return inverse_scaler(x), score_fn.calls

    return ode_sampler
