"""Samplers of the reverse-time SDE and of the probability-flow ODE (Song et al. 2021, Secs. 3.3 and 4, Appendices E to G).

A predictor takes a step of the reverse SDE, a corrector one of Langevin dynamics at a fixed time; both answer (x, x_mean), where
x_mean lacks the noise of the last step. A sampler, called with a network, returns samples and the number of network evaluations. Noise
comes from `randomness.normal_like`, so that images can be drawn from streams of their own.
"""
import abc

import torch

import ode_lib
from errors import UserError
from models.utils import get_score_fn, times_like
from randomness import batch_mean, normal_like, prior_sampling
from registry import Registry
from sde_lib import expand, get_sde

PREDICTORS = Registry('predictor (config.sampling.predictor)')
CORRECTORS = Registry('corrector (config.sampling.corrector)')
register_predictor, get_predictor = PREDICTORS.register, PREDICTORS.get
register_corrector, get_corrector = CORRECTORS.register, CORRECTORS.get
METHODS = ('pc', 'ode')


class Predictor(abc.ABC):
    """A step from time t to the next, for an SDE and a score function (x, t) -> shape of x."""

    def __init__(self, sde, score_fn, probability_flow=False):
        self.sde, self.score_fn = sde, score_fn
        self.rsde = sde.reverse(score_fn, probability_flow)

    @abc.abstractmethod
    def update_fn(self, x, t):
        """x (B, ...) at times t (B,) -> (x, x_mean) one step of T/N earlier."""


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
        dt = self.sde.T / self.sde.N
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


def predictor_corrector(predictor, corrector, x, timesteps, callback=None, project=None, resample=1, jump=1):
    """x (B, ...) carried along `timesteps` (n,), correcting at each time before stepping to the next (Algorithm 1): (x, x_mean).

    `callback(i, t, x)`, where given, sees the state after the i-th step. `project(x, t)`, where given, imposes on x what is known of it
    at times t (B,): at the start, behind the corrector, and behind the predictor, whose step leads to the next time. `resample`: each
    stretch of `jump` steps is walked so many times, the forward process carrying x back in between (Lugmayr et al. 2022, Algorithm 1 and
    Appendix B); but once where the last step is a stretch of its own.
    """
    project = project or (lambda x, t: x)
    times = [t.expand(len(x)) for t in timesteps]
    landings = [*times[1:], times[-1]]
    x = x_mean = project(x, times[0])
    for start in range(0, len(times), jump):
        stretch = range(start, min(start + jump, len(times)))
        for again in range(1 if start == len(times) - 1 else resample):
            if again:
                mean, std = predictor.sde.transition_prob(x, landings[stretch[-1]], times[start])
                x = mean + expand(std, x) * normal_like(x)
            for i in stretch:
                x, x_mean = corrector.update_fn(x, times[i])
                x, x_mean = predictor.update_fn(project(x, times[i]), times[i])
                x = project(x, landings[i])
                if callback:
                    callback(i, timesteps[i], x)
    return x, x_mean


def follow_flow(sde, score_fn, x, t0, t1, rtol=1e-5, atol=1e-5, method='RK45'):
    """x (B, ...) at time t0, carried to time t1 by the probability-flow ODE (Eq. 13), either way."""
    flow = sde.reverse(score_fn, probability_flow=True)

    def drift(t, x):
        return (flow.sde(x, times_like(x, t))[0],)
    return ode_lib.solve(drift, (x,), t0, t1, rtol, atol, method)[0][0]


def _start(sde, shape, model, device):
    """A draw from the prior, made on the CPU so that a seed means the same everywhere, on the sampler's device in the network's dtype."""
    parameter = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    x = prior_sampling(sde, shape)
    if parameter is not None:
        x = x.to(device or parameter.device, torch.promote_types(parameter.dtype, torch.float32))
    return x.to(device) if device else x


def get_sampling_sde(config):
    """The config's SDE with the number of steps that samplers are to take."""
    sde = get_sde(config)
    sde.N = config.sampling.get('steps') or sde.N
    return sde


def get_sampling_fn(config, sde, shape, inverse_scaler, eps, guidance=None):
    """The sampler that `config.sampling` describes, for samples of `shape`, stopping at time `eps`; `guidance` as samplers take it."""
    sampling, continuous, device = config.sampling, config.training.continuous, config.device
    if sampling.method.lower() == 'ode':
        return get_ode_sampler(sde, shape, inverse_scaler, denoise=sampling.noise_removal, rtol=sampling.get('rtol', 1e-5),
                               atol=sampling.get('atol', 1e-5), method=sampling.get('ode_method', 'RK45'), eps=eps, device=device,
                               continuous=continuous, guidance=guidance)
    if sampling.method.lower() == 'pc':
        return get_pc_sampler(sde, shape, get_predictor(sampling.predictor.lower()), get_corrector(sampling.corrector.lower()),
                              inverse_scaler, sampling.snr, n_steps=sampling.n_steps_each, probability_flow=sampling.probability_flow,
                              continuous=continuous, denoise=sampling.noise_removal, eps=eps, device=device, guidance=guidance)
    raise UserError(f'config.sampling.method is {sampling.method!r}: known are {", ".join(METHODS)}')


def get_pc_sampler(sde, shape, predictor, corrector, inverse_scaler, snr, n_steps=1, probability_flow=False, continuous=False, denoise=True,
                   eps=1e-3, device=None, *, guidance=None, project=None, resample=1, jump=1):
    """-> pc_sampler(model, callback=None) -> (samples, nfe), over `sde.N` times from T to `eps` (Algorithm 1).

    `predictor`, `corrector`: classes, or None. `snr`, `n_steps`: of the corrector. `probability_flow`: the predictor steps along the
    ODE. `continuous`: how the network was trained. `denoise`: leave out the noise of the last step (of the predictor: without one there
    is no difference). `device`: None is the network's. `guidance`: from the network's score function to the one that is followed.
    `project`, `resample`, `jump`: see `predictor_corrector`.
    A combination without a definition is refused here, before any step: NotImplementedError or ValueError.
    """
    predictor, corrector = predictor or NonePredictor, corrector or NoneCorrector
    if predictor is NonePredictor and corrector is NoneCorrector:
        raise UserError("sampling.predictor and sampling.corrector are both 'none': nothing would turn the prior's noise into samples")
    if n_steps < 1 and corrector is not NoneCorrector:
        raise UserError(f'sampling.n_steps_each must be at least 1, got {n_steps}')
    if resample < 1 or jump < 1:
        raise UserError(f'resample={resample} and jump={jump}: both must be at least 1')
    if resample > 1 and predictor is NonePredictor:
        raise UserError(f"resample={resample}: without a predictor (sampling.predictor='none') there is no step to repeat")
    unused = get_score_fn(sde, None)  # the classes refuse what they must when they are built
    predictor(sde, unused, probability_flow), corrector(sde, unused, snr, n_steps)

    @torch.no_grad()
    def pc_sampler(model, callback=None):
        score_fn = Counted(get_score_fn(sde, model, train=False, continuous=continuous))
        guided = guidance(score_fn) if guidance else score_fn
        x = _start(sde, shape, model, device)
        timesteps = torch.linspace(sde.T, eps, sde.N, device=x.device, dtype=x.dtype)
        x, x_mean = predictor_corrector(predictor(sde, guided, probability_flow), corrector(sde, guided, snr, n_steps), x, timesteps,
                                        callback, project, resample, jump)
        return inverse_scaler(x_mean if denoise else x), score_fn.calls

    return pc_sampler


def get_ode_sampler(sde, shape, inverse_scaler, denoise=False, rtol=1e-5, atol=1e-5, method='RK45', eps=1e-3, device=None,
                    continuous=True, *, guidance=None):
    """-> ode_sampler(model, z=None) -> (samples, nfe): the probability-flow ODE from T to `eps` (Eq. 13), from the latent code `z`
    (`shape`) or a draw from the prior. `denoise` adds one noiseless predictor step. `rtol`, `atol`, `method`: see `ode_lib.solve`.
    `guidance`: from the network's score function to the one that is followed.
    """
    ode_lib.check_method(method)

    @torch.no_grad()
    def ode_sampler(model, z=None):
        score_fn = Counted(get_score_fn(sde, model, train=False, continuous=continuous))
        guided = guidance(score_fn) if guidance else score_fn
        x = _start(sde, shape, model, device) if z is None else z
        x = follow_flow(sde, guided, x, sde.T, eps, rtol, atol, method)
        if denoise:
            x = ReverseDiffusionPredictor(sde, guided).update_fn(x, times_like(x, eps))[1]
        return inverse_scaler(x), score_fn.calls

    return ode_sampler
