"""Samplers of the reverse-time SDE and of the probability-flow ODE (Song et al. 2021, Secs. 3.3 and
4, Appendices E to G).

    model = Score(network, sde)  # models/score.py; guidance is part of it
    x, nfe = sample(model, (16, 3, 32, 32), Options(method='heun', steps=18))

`Options` has the keys of a config's `sampling` section. 'pc' alternates a predictor, a step of the
reverse SDE, and a corrector, steps of Langevin dynamics at a fixed time; 'ode' follows the
probability flow, 'adaptive' the reverse SDE with error control; all other methods are those of
`solvers`. The functions of the 2021 release (`get_pc_sampler`, `get_ode_sampler`,
`get_sampling_fn`) are adapters of `sample`. Noise comes from `randomness.normal_like`, so that each
image can have its own stream of random numbers.
"""

import torch

import solvers
from configs.defaults import complete
from models.score import Score
from models.utils import get_score_fn, times_like
from runtime.errors import UserError
from runtime.randomness import batch_mean, normal_like, prior_sampling
from sde_lib import expand
from solvers import ode, predictor_corrector, transition
from solvers.loop import Loop
from solvers.ode import follow_flow
from solvers.options import Options
from solvers.predictor_corrector import (
    CORRECTORS,
    ORDERS,
    PREDICTORS,
    Corrector,
    NoneCorrector,
    NonePredictor,
    Predictor,
    get_corrector,
    get_predictor,
    register_corrector,
    register_predictor,
    times_of,
)

__all__ = [
    'AncestralSamplingPredictor',
    'AnnealedLangevinDynamics',
    'CORRECTORS',
    'Corrector',
    'EulerMaruyamaPredictor',
    'LangevinCorrector',
    'Loop',
    'NoneCorrector',
    'NonePredictor',
    'ORDERS',
    'Options',
    'PREDICTORS',
    'Predictor',
    'ReverseDiffusionPredictor',
    'check',
    'follow_flow',
    'get_corrector',
    'get_ode_sampler',
    'get_pc_sampler',
    'get_predictor',
    'get_sampling_fn',
    'methods',
    'register_corrector',
    'register_predictor',
    'round_to_8_bits',
    'sample',
    'shared_corrector_update_fn',
    'shared_predictor_update_fn',
    'times_of',
]


# Predictors and correctors ------------------------------------------------------------------------


@register_predictor(name='euler_maruyama')
class EulerMaruyamaPredictor(Predictor):
    """x - f dt + g sqrt(dt) z with dt = T/N, on the reverse SDE."""

    def update_fn(self, x, t):
        return self._step(x, t, self.sde.T / self.sde.N)

    def step(self, x, t, s):
        return self._step(x, times_like(x, t), t - s)

    def _step(self, x, t, dt):
        z = normal_like(x)
        drift, diffusion = self.rsde.sde(x, t)
        x_mean = x - drift * dt
        return x_mean + expand(diffusion, x) * dt**0.5 * z, x_mean


@register_predictor(name='reverse_diffusion')
class ReverseDiffusionPredictor(Predictor):
    """x - f + G z, with f and G of the forward chain reversed (Appendix E); on any grid the chain
    is the process at its times.
    """

    @classmethod
    def check(cls, sde):
        sde.discretize(torch.zeros(1, 1, 1, 1), torch.full((1,), float(sde.T)))

    def update_fn(self, x, t):
        return self._noised(x, *self.rsde.discretize(x, t))

    def step(self, x, t, s):
        (r, std, _, _), t = transition(self.sde, s, t), times_like(x, t)
        return self._noised(x, *self.rsde.reverse(x, t, (r - 1) * x, torch.full_like(t, std)))

    def _noised(self, x, f, G):
        x_mean = x - f
        return x_mean + expand(G, x) * normal_like(x), x_mean


@register_predictor(name='ancestral_sampling')
class AncestralSamplingPredictor(Predictor):
    """The reverse step of the SDE's own Markov chain (Eq. 4; Appendix F), for VPSDE and VESDE; on
    any grid a draw from p(x_s | x_t, x_0) with the denoised x_0, for any SDE.
    """

    def __init__(self, sde, score_fn, probability_flow=False):
        if probability_flow:
            raise NotImplementedError(
                'probability_flow=True is not defined for '
                'ancestral_sampling: use reverse_diffusion or '
                'euler_maruyama'
            )
        super().__init__(sde, score_fn)

    @classmethod
    def check(cls, sde):
        sde.ancestral_step(torch.zeros(1), torch.full((1,), float(sde.T)), torch.zeros(1))

    def update_fn(self, x, t):
        x_mean, std = self.sde.ancestral_step(x, t, self.score_fn(x, t))
        return x_mean + expand(std, x) * normal_like(x), x_mean

    def step(self, x, t, s):
        r, std, std_s, std_t = transition(self.sde, s, t)
        x_mean = (x + std**2 * self.score_fn(x, times_like(x, t))) / r
        return x_mean + std_s * std / std_t * normal_like(x), x_mean


@register_corrector(name='langevin')
class LangevinCorrector(Corrector):
    """Langevin dynamics whose step keeps the ratio of noise to score, averaged over the batch, at
    `snr` (Algorithms 4 and 5).

    Images with streams of their own (runtime/randomness.py) have steps of their own. On any grid
    alpha is r^2 of `transition`.
    """

    @classmethod
    def check(cls, sde):
        sde.langevin_alpha(torch.full((1,), float(sde.T)))

    def update_fn(self, x, t):
        return self._steps(x, t, self.sde.langevin_alpha(t))

    def step(self, x, t, s):
        alpha, t = transition(self.sde, s, t)[0] ** 2, times_like(x, t)
        return self._steps(x, t, torch.full_like(t, alpha))

    def _steps(self, x, t, alpha):
        x_mean = x
        for _ in range(self.n_steps):
            score, noise = self.score_fn(x, t), normal_like(x)
            score_norm, noise_norm = (
                batch_mean(score.flatten(1).norm(dim=1)),
                batch_mean(noise.flatten(1).norm(dim=1)),
            )
            step = expand((self.snr * noise_norm / score_norm) ** 2 * 2 * alpha, x)
            x_mean = x + step * score
            x = x_mean + (2 * step).sqrt() * noise
        return x, x_mean


@register_corrector(name='ald')
class AnnealedLangevinDynamics(LangevinCorrector):
    """Langevin dynamics with steps of 2 alpha (snr std(t))^2, as NCSN takes them (Song & Ermon
    2019, Algorithm 1).
    """

    def _steps(self, x, t, alpha):
        std, x_mean = self.sde.mean_and_std(t)[1], x
        step = expand((self.snr * std) ** 2 * 2 * alpha, x)
        for _ in range(self.n_steps):
            x_mean = x + step * self.score_fn(x, t)
            x = x_mean + (2 * step).sqrt() * normal_like(x)
        return x, x_mean


def shared_predictor_update_fn(x, t, sde, model, predictor, probability_flow, continuous):
    """One step of a predictor class (None: no step) with a network: (x, x_mean). A loop builds its
    predictor once instead.
    """
    score_fn = get_score_fn(sde, model, train=False, continuous=continuous)
    return (predictor or NonePredictor)(sde, score_fn, probability_flow).update_fn(x, t)


def shared_corrector_update_fn(x, t, sde, model, corrector, continuous, snr, n_steps):
    """The steps of a corrector class (None: no step) with a network: (x, x_mean). A loop builds its
    corrector once instead.
    """
    score_fn = get_score_fn(sde, model, train=False, continuous=continuous)
    return (corrector or NoneCorrector)(sde, score_fn, snr, n_steps).update_fn(x, t)


# Sampling -----------------------------------------------------------------------------------------


def methods() -> list[str]:
    """The values of `Options.method`."""
    return ['pc', 'ode', 'adaptive', *solvers.SOLVERS.names()]


def check(model: Score, options: Options, loop: Loop = Loop()):
    """Raise NotImplementedError or ValueError, naming the option, if samples cannot be drawn so;
    the network may be None.
    """
    sde, method = model.sde, options.method.lower()
    if method not in map(str.lower, methods()):
        raise UserError(f'method must be one of {", ".join(methods())}, got {options.method!r}')
    if options.thresholding and not options.solver():
        raise UserError(
            f'thresholding=True is not supported by method={method!r}: use one of '
            f'{", ".join(solvers.SOLVERS.names())}'
        )
    if method not in ('pc', 'ode') and not model.continuous and sde.N < 100:
        raise UserError(
            f'method={method!r} needs a network trained in continuous time or on at '
            'least 100 noise levels, got '
            f"num_scales={sde.N}: use method='pc'"
        )
    if method == 'ode':
        ode.check_method(options.ode_method)
        if loop.project:
            raise UserError(
                "method='ode' does not support inpainting and other measurements: use "
                "'pc', 'adaptive' or one of " + ', '.join(solvers.SOLVERS.names())
            )
    elif method == 'adaptive' and (loop.resample, loop.jump) != (1, 1):
        raise UserError("method='adaptive' does not support resample and jump: set both to 1")
    elif method == 'pc':
        predictor_corrector.check(sde, options, loop)
    elif options.solver():
        options.solver()(
            sde,
            None,
            options.solver_times(sde),
            correct=options.correct(),
            **options.solver_settings(),
        )


@torch.no_grad()
def sample(
    model: Score, shape, options: Options = Options(), *, z=None, loop: Loop = Loop(), device=None
):
    """Draw samples of a model.

    Args:
        model: the score to follow, with its guidance.
        shape: of the samples, (B, ...).
        options: the method and its settings.
        z: where to begin, of `shape`, such as latent codes; None: a draw from the prior.
        loop: what happens between the steps.
        device: where to sample; None: the device of the network.

    Returns:
        The samples as the network sees them, and the number of network evaluations.

    Raises:
        NotImplementedError, ValueError: if the options have no definition for this SDE.
    """
    check(model, options, loop)
    x = _start(model, shape, device, options.prior_mean) if z is None else z
    score_fn, counter = model.counted()
    method = options.method.lower()
    draw = {'pc': predictor_corrector.draw, 'ode': _ode, 'adaptive': _adaptive}.get(method, _solver)
    return draw(model.sde, score_fn, x, options, loop), counter.calls


def _start(model, shape, device, prior_mean):
    """A draw from the prior, made on the CPU so that a seed means the same everywhere, on the
    sampler's device in the network's dtype.
    """
    parameter, x = model.parameter(), prior_sampling(model.sde, shape)
    x = x + (prior_mean.to(x) if torch.is_tensor(prior_mean) else prior_mean)
    if parameter is not None:
        x = x.to(device or parameter.device, torch.promote_types(parameter.dtype, torch.float32))
    return x.to(device) if device else x


def _solver(sde, score_fn, x, options, loop):
    """The solvers of `solvers`."""
    times = options.solver_times(sde)
    solver = options.solver()(
        sde, score_fn, times, correct=options.correct(), **options.solver_settings()
    )
    x, _ = loop.walk(
        lambda x, i: (solver.step(x, i),) * 2, sde, x, times.to(x.device, x.dtype), solver.forget
    )
    return solver.denoised(x) if options.noise_removal else x


def _adaptive(sde, score_fn, x, options, loop):
    """The reverse SDE in steps of each image's own."""
    eps = options.stop(sde)
    x = solvers.adaptive(sde, score_fn, x, eps, *options.tolerances(), loop.callback, loop.project)
    t = times_like(x, eps)
    return sde.denoise(x, t, score_fn(x, t)) if options.noise_removal else x


def _ode(sde, score_fn, x, options, loop):
    """The probability flow; noise is removed by one predictor step without noise."""
    eps = options.stop(sde)
    x = follow_flow(sde, score_fn, x, sde.T, eps, *options.tolerances(), options.ode_method)
    return (
        ReverseDiffusionPredictor(sde, score_fn).update_fn(x, times_like(x, eps))[1]
        if options.noise_removal
        else x
    )


def round_to_8_bits(x):
    """Images in [0, 1] (B, ...) with values k / 255."""
    return (x.clamp(0, 1) * 255).round() / 255


# The functions of the 2021 release ----------------------------------------------------------------


def get_pc_sampler(
    sde,
    shape,
    predictor,
    corrector,
    inverse_scaler,
    snr,
    n_steps=1,
    probability_flow=False,
    continuous=False,
    denoise=True,
    eps=1e-3,
    device=None,
    *,
    guidance=None,
):
    """Return `pc_sampler(model) -> (samples, nfe)`: predictor-corrector sampling over `sde.N` times
    from T to `eps` (Algorithm 1).

    `predictor`, `corrector`: classes, or None. `snr`, `n_steps`: of the corrector.
    `probability_flow`: the predictor follows the ODE. `continuous`: how the network was trained.
    `denoise`: leave out the noise of the last step. `device`: None is the network's. `guidance`:
    from the network's score function to the one that is followed.
    """
    options = Options(
        method='pc',
        predictor=predictor,
        corrector=corrector,
        snr=snr,
        n_steps_each=n_steps,
        probability_flow=probability_flow,
        noise_removal=denoise,
        eps=eps,
    )
    return _sampler(
        sde,
        shape,
        options,
        inverse_scaler,
        Loop(),
        device=device,
        continuous=continuous,
        guidance=guidance,
    )


def get_ode_sampler(
    sde,
    shape,
    inverse_scaler,
    denoise=False,
    rtol=1e-5,
    atol=1e-5,
    method='RK45',
    eps=1e-3,
    device=None,
    *,
    continuous=True,
    guidance=None,
):
    """Return `ode_sampler(model, z=None) -> (samples, nfe)`: the probability-flow ODE from T to
    `eps` (Eq. 13).

    It starts from the latent code `z` (`shape`) or a draw from the prior. `denoise`: add one
    noiseless predictor step. `rtol`, `atol`, `method`: see `ode.solve`. Everything else as for
    `get_pc_sampler`.
    """
    options = Options(
        method='ode', noise_removal=denoise, rtol=rtol, atol=atol, ode_method=method, eps=eps
    )
    return _sampler(
        sde,
        shape,
        options,
        inverse_scaler,
        Loop(),
        device=device,
        continuous=continuous,
        guidance=guidance,
    )


def get_sampling_fn(config, sde, shape, inverse_scaler, eps, guidance=None, loop: Loop = Loop()):
    """Return the sampler `fn(model) -> (samples, nfe)` that `config.sampling` describes, for
    samples of `shape`, stopping at `eps`.
    """
    config = complete(config)
    options = Options.of(
        config.sampling,
        eps=eps,
        **{'centered': config.data.centered} if 'centered' in config.data else {},
    )

    def images(x):
        return round_to_8_bits(inverse_scaler(x)) if config.sampling.round else inverse_scaler(x)

    return _sampler(
        sde,
        shape,
        options,
        images,
        loop,
        device=config.device,
        continuous=config.training.continuous,
        guidance=guidance,
    )


def _sampler(sde, shape, options, inverse_scaler, loop, *, device, continuous, guidance):
    check(Score(None, sde, continuous), options, loop)

    def sampler(model, z=None):
        score = Score(model, sde, continuous).guided_by(guidance)
        x, nfe = sample(score, shape, options, z=z, loop=loop, device=device)
        return inverse_scaler(x), nfe

    return sampler
