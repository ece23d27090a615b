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

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import torch

import solvers
from configs.defaults import complete
from models.score import Score
from models.utils import get_score_fn, times_like
from runtime.errors import UserError
from runtime.randomness import batch_mean, normal_like, prior_sampling
from runtime.registry import Registry
from sde_lib import expand
from solvers import ode

PREDICTORS, CORRECTORS = Registry('predictor'), Registry('corrector')
register_predictor, get_predictor = PREDICTORS.register, PREDICTORS.get
register_corrector, get_corrector = CORRECTORS.register, CORRECTORS.get

# Predictors and correctors ------------------------------------------------------------------------


def transition(sde, s: float, t: float) -> tuple[float, float, float, float]:
    """The process between two times s < t, where s = 0 stands for the data themselves, without
    noise.

    Returns:
        r and std of x_t = r x_s + std z, and the standard deviations of the noise in x_s and in
        x_t, computed in float64.
    """
    (m_t, std_t), (m_s, std_s) = (
        [float(value) for value in solvers.levels(sde, [time])] if time else (1.0, 0.0)
        for time in (t, s)
    )
    r = m_t / m_s
    return r, math.sqrt(max(std_t**2 - (r * std_s) ** 2, 0.0)), std_s, std_t


class Predictor(abc.ABC):
    """A step towards the data, for an SDE and a score function (x, t) -> shape of x.

    `update_fn` takes the steps of the SDE's own N times, as in the 2021 release. A predictor that
    also has `step` can be used on any grid of times (`skip_type`).
    """

    def __init__(self, sde, score_fn, probability_flow=False):
        self.sde, self.score_fn = sde, score_fn
        self.rsde = sde.reverse(score_fn, probability_flow)

    @classmethod  # noqa: B027  (by default steps are defined for every SDE)
    def check(cls, sde):
        """Raise NotImplementedError or ValueError if the steps of `update_fn` are not defined for
        this SDE and its N.
        """

    @abc.abstractmethod
    def update_fn(self, x, t):
        """x (B, ...) at times t (B,) -> (x, x_mean) at t - T/N, where x_mean lacks the noise of the
        step.
        """

    def step(self, x, t: float, s: float):
        """x (B, ...) at time t -> (x, x_mean) at time s < t; s = 0 leads to the data."""
        raise NotImplementedError


class Corrector(abc.ABC):
    """Steps that bring x closer to p_t without changing t; `snr` sets their size, `n_steps` their
    number.
    """

    def __init__(self, sde, score_fn, snr, n_steps):
        self.sde, self.score_fn, self.snr, self.n_steps = sde, score_fn, snr, n_steps

    @classmethod  # noqa: B027  (by default steps are defined for every SDE)
    def check(cls, sde):
        """Raise NotImplementedError or ValueError if the steps of `update_fn` are not defined for
        this SDE and its N.
        """

    @abc.abstractmethod
    def update_fn(self, x, t):
        """x (B, ...) at times t (B,) -> (x, x_mean) at the same times."""

    def step(self, x, t: float, s: float):
        """x (B, ...) at time t -> (x, x_mean) at the same time, on a grid whose next time is s."""
        return self.update_fn(x, times_like(x, t))


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


@register_predictor(name='none')
class NonePredictor(Predictor):
    """Stays where it is."""

    def update_fn(self, x, t):
        return x, x

    def step(self, x, t, s):
        return x, x


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


@register_corrector(name='none')
class NoneCorrector(Corrector):
    """Stays where it is."""

    def update_fn(self, x, t):
        return x, x


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


# The loop -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Loop:
    """What happens between the steps of a sampler.

    Args:
        callback: `callback(i, t, x)` is called after the i-th step, which began at time t, with the
            state x that it led to.
        project: `project(x, t (B,)) -> x` imposes on x what is known of it: at the start and after
        every step.
        resample: how many times each stretch of `jump` steps is taken; in between, the forward
            process carries x back to its start (Lugmayr et al. 2022, Algorithm 1 and Appendix B). A
            last stretch of one step is taken once.
        jump: the length of a stretch.
    """

    callback: Callable | None = None
    project: Callable | None = None
    resample: int = 1
    jump: int = 1

    def __post_init__(self):
        for name in ('resample', 'jump'):
            if getattr(self, name) < 1:
                raise UserError(f'{name} must be at least 1, got {getattr(self, name)}')

    def projected(self, x, t):
        """x with what is known of it at times t (B,)."""
        return self.project(x, t) if self.project else x

    def walk(self, step, sde, x, times, begin=lambda: None):
        """Carry x (B, ...) at times[0] along `times` (n + 1,) by `step(x, i) -> (x, x_mean)`, from
        the i-th time to the next.

        `begin()` is called before a stretch is taken again. Returns (x, x_mean) at the last time.
        """
        last, times_of_x = len(times) - 2, [t.expand(len(x)) for t in times]
        x = x_mean = self.projected(x, times_of_x[0])
        for start in range(0, last + 1, self.jump):
            stretch = range(start, min(start + self.jump, last + 1))
            for again in range(1 if start == last else self.resample):
                if again:
                    mean, std = sde.transition_prob(
                        x, times_of_x[stretch[-1] + 1], times_of_x[start]
                    )
                    x = mean + expand(std, x) * normal_like(x)
                    begin()
                for i in stretch:
                    x, x_mean = step(x, i)
                    x = self.projected(x, times_of_x[i + 1])
                    if self.callback:
                        self.callback(i, times[i], x)
        return x, x_mean


# Sampling -----------------------------------------------------------------------------------------

ORDERS = ('corrector_predictor', 'predictor_corrector')
DEFAULT_TOLERANCES = {'ode': (1e-5, 1e-5), 'adaptive': (0.05, 1 / 256)}  # rtol, atol


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How samples are drawn: the keys of a config's `sampling` section, explained in
    configs/defaults.py, and three more.

    `eps`: the time at which sampling stops; None: `sde.sampling_eps`. `centered`: whether the
    network sees images in [-1, 1] rather than in [0, 1], for `thresholding`. `own`: settings of
    solvers that are not in this library, by name. `predictor` and `corrector` may be classes as
    well as names.
    """

    method: str = 'unipc'
    predictor: type | str | None = 'none'
    corrector: type | str | None = 'none'
    order: str = ORDERS[0]
    n_steps_each: int = 1
    snr: float = 0.16
    probability_flow: bool = False
    noise_removal: bool = True
    steps: int = 0
    skip_type: str = ''
    rho: float = 7.0
    eta: float = 0.0
    churn: float = 0.0
    dpm_solver_order: int = 2
    ode_method: str = 'dopri5'
    rtol: float = 0.0
    atol: float = 0.0
    prior_mean: float | torch.Tensor = 0.0
    eps: float | None = None
    thresholding: bool = False
    centered: bool = True
    own: Mapping = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, settings: Mapping, **more) -> 'Options':
        """The options that `settings` describes, a config's `sampling` section or another mapping
        with its keys; `more`: further fields.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        fields = {key: value for key, value in settings.items() if key in names} | dict(
            own={key: value for key, value in settings.items() if key not in names}
        )
        return cls(**fields | more)

    def solver(self):
        """The solver class of `solvers` that `method` names, or None."""
        return solvers.SOLVERS.find(self.method)

    def solver_settings(self) -> dict:
        """The settings that this solver takes."""
        solver, given = self.solver(), vars(self) | dict(self.own)
        return {key: given[key] for key in solver.settings if key in given} | (
            dict(steps=self.steps or solver.default_steps) if 'steps' in solver.settings else {}
        )

    def solver_times(self, sde, denoise: bool | None = None):
        """The times (n + 1,) of this solver's grid, from T down, in float64."""
        solver, steps = self.solver(), self.steps or self.solver().default_steps
        settings = self.solver_settings() | dict(
            denoise=self.noise_removal if denoise is None else denoise
        )
        intervals = solver.intervals(
            steps, **{key: value for key, value in settings.items() if key != 'steps'}
        )
        if intervals < 1:
            raise UserError(f'steps={steps} is too few for method={self.method!r}')
        return solvers.time_grid(
            sde, intervals, self.stop(sde), self.skip_type or solver.skip_type, self.rho
        )

    def correct(self) -> Callable | None:
        """The function that is applied to every estimate of an image, if any."""
        return (
            functools.partial(solvers.threshold, centered=self.centered)
            if self.thresholding
            else None
        )

    def tolerances(self) -> tuple[float, float]:
        """rtol and atol of 'ode' and 'adaptive'; 0.0 stands for the method's default."""
        rtol, atol = DEFAULT_TOLERANCES[self.method.lower()]
        return self.rtol or rtol, self.atol or atol

    def stop(self, sde) -> float:
        """The time at which sampling stops."""
        return sde.sampling_eps if self.eps is None else self.eps

    def pair(self):
        """The classes of predictor and corrector."""
        return (
            _class(PREDICTORS, self.predictor, NonePredictor),
            _class(CORRECTORS, self.corrector, NoneCorrector),
        )


def _class(registry, chosen, default):
    return registry.get(chosen) if isinstance(chosen, str) else chosen or default


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
        _check_pc(sde, options, loop)
    elif options.solver():
        options.solver()(
            sde,
            None,
            options.solver_times(sde),
            correct=options.correct(),
            **options.solver_settings(),
        )


def _check_pc(sde, options, loop):
    predictor, corrector = options.pair()
    if predictor is NonePredictor and corrector is NoneCorrector:
        raise UserError(
            "predictor='none' and corrector='none' would return the prior noise "
            'unchanged: choose a predictor or a corrector'
        )
    if options.n_steps_each < 1 and corrector is not NoneCorrector:
        raise UserError(f'n_steps_each must be at least 1, got {options.n_steps_each}')
    if options.order not in ORDERS:
        raise UserError(f'order must be one of {", ".join(ORDERS)}, got {options.order!r}')
    if loop.resample > 1 and predictor is NonePredictor:
        raise UserError(
            f"resample={loop.resample} needs a predictor: with predictor='none' there "
            'is no step to repeat'
        )
    if options.skip_type and predictor.step is Predictor.step:
        raise UserError(
            f'predictor {predictor.__name__} has no method `step`, which '
            f'skip_type={options.skip_type!r} needs'
        )
    chain = sde.with_steps(options.steps or sde.N)
    times_of(sde, options)  # the grid and the classes raise errors of their own
    (
        predictor(chain, None, options.probability_flow),
        corrector(chain, None, options.snr, options.n_steps_each),
    )
    if not options.skip_type:
        predictor.check(chain)
        if corrector is not NoneCorrector:
            corrector.check(chain)


def times_of(sde, options: Options):
    """The times (n + 1,) between which a sampler takes its steps, or None if it chooses them
    itself.
    """
    if options.solver():
        return options.solver_times(sde)
    if options.method.lower() != 'pc':
        return None
    steps, eps = options.steps or sde.N, options.stop(sde)
    times = (
        solvers.time_grid(sde, steps - 1, eps, options.skip_type, options.rho)
        if options.skip_type
        else sde.with_steps(steps).timesteps(eps)
    )
    return torch.cat([times, torch.zeros_like(times[:1])])


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
    draw = {'pc': _predictor_corrector, 'ode': _ode, 'adaptive': _adaptive}.get(method, _solver)
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


def _predictor_corrector(sde, score_fn, x, options, loop):
    """Algorithm 1, along the SDE's N times or along the grid `skip_type`. The last step goes from
    the last time to the data.

    Order 'corrector_predictor' corrects at each time before the step from it, as the 2021 release
    does; 'predictor_corrector' corrects after each step, as Algorithm 1 does, except after the last
    one, which leaves no noise.
    """
    chain, (predictor, corrector) = sde.with_steps(options.steps or sde.N), options.pair()
    predictor = predictor(chain, score_fn, options.probability_flow)
    corrector = corrector(chain, score_fn, options.snr, options.n_steps_each)
    if options.skip_type:
        grid = times_of(sde, options)
        at = grid.tolist()
        times = torch.cat([grid[:-1], grid[-2:-1]]).to(x.device, x.dtype)
        predict, correct = (
            (lambda x, i, t: predictor.step(x, at[i], at[i + 1])),
            lambda x, i, t: corrector.step(x, at[i], at[i + 1]),
        )
    else:
        times = chain.timesteps(options.stop(sde), x.device, x.dtype)
        times = torch.cat([times, times[-1:]])
        predict, correct = (
            (lambda x, i, t: predictor.update_fn(x, t)),
            lambda x, i, t: corrector.update_fn(x, t),
        )
    corrects_first = options.order == ORDERS[0] or isinstance(corrector, NoneCorrector)
    times_of_x, last = [t.expand(len(x)) for t in times], len(times) - 2

    def step(x, i):
        t, s = times_of_x[i], times_of_x[i + 1]
        if corrects_first:
            return predict(loop.projected(correct(x, i, t)[0], t), i, t)
        if i == last and not isinstance(predictor, NonePredictor):
            return predict(x, i, t)
        return correct(loop.projected(predict(x, i, t)[0], s), min(i + 1, last), s)

    x, x_mean = loop.walk(step, sde, x, times)
    return x_mean if options.noise_removal else x


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


def follow_flow(sde, score_fn, x, t0, t1, rtol=1e-5, atol=1e-5, method='RK45'):
    """x (B, ...) at time t0, carried to time t1 by the probability-flow ODE (Eq. 13), either
    way.
    """
    flow = sde.reverse(score_fn, probability_flow=True)

    def drift(t, x):
        return (flow.sde(x, times_like(x, t))[0],)

    return ode.solve(drift, (x,), t0, t1, rtol, atol, method)[0][0]


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
