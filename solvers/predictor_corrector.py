"""Predictor-corrector sampling."""

import abc

import torch

from models.utils import times_like
from runtime.errors import UserError
from runtime.registry import Registry
from solvers.grids import time_grid
from solvers.options import Options

PREDICTORS, CORRECTORS = Registry('predictor'), Registry('corrector')
register_predictor, get_predictor = PREDICTORS.register, PREDICTORS.get
register_corrector, get_corrector = CORRECTORS.register, CORRECTORS.get


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


@register_predictor(name='none')
class NonePredictor(Predictor):
    """Stays where it is."""

    def update_fn(self, x, t):
        return x, x

    def step(self, x, t, s):
        return x, x


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


@register_corrector(name='none')
class NoneCorrector(Corrector):
    """Stays where it is."""

    def update_fn(self, x, t):
        return x, x


ORDERS = ('corrector_predictor', 'predictor_corrector')


def pair(options):
    """The classes of predictor and corrector."""
    return (
        _class(PREDICTORS, options.predictor, NonePredictor),
        _class(CORRECTORS, options.corrector, NoneCorrector),
    )


def _class(registry, chosen, default):
    return registry.get(chosen) if isinstance(chosen, str) else chosen or default


def draw(sde, score_fn, x, options, loop):
    """Algorithm 1, along the SDE's N times or along the grid `skip_type`. The last step goes from
    the last time to the data.

    Order 'corrector_predictor' corrects at each time before the step from it, as the 2021 release
    does; 'predictor_corrector' corrects after each step, as Algorithm 1 does, except after the last
    one, which leaves no noise.
    """
    chain, (predictor, corrector) = sde.with_steps(options.steps or sde.N), pair(options)
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


def check(sde, options, loop):
    predictor, corrector = pair(options)
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
        time_grid(sde, steps - 1, eps, options.skip_type, options.rho)
        if options.skip_type
        else sde.with_steps(steps).timesteps(eps)
    )
    return torch.cat([times, torch.zeros_like(times[:1])])
