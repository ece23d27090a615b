"""Predictor-corrector sampling (Song et al. 2021, Algorithm 1) for any predictor and corrector.

A predictor takes a step of the reverse-time SDE; a corrector takes steps of Langevin dynamics at a
fixed time. The module `predictors` has those of the paper; `sampling` has the decorators that
register new ones.
"""

import abc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.utils import times_like
from runtime.errors import UserError
from runtime.registry import Registry
from sde_lib import SDE
from solvers.grids import time_grid
from solvers.loop import Loop
from solvers.options import Options

PREDICTORS, CORRECTORS = Registry('predictor'), Registry('corrector')
ORDERS = ('corrector_predictor', 'predictor_corrector')


class Predictor(abc.ABC):
    """A step of the reverse-time SDE, from time t to an earlier one.

    `update_fn` takes a step between the N times of the SDE, as in the 2021 release. A predictor
    that also has `step` works on any grid of times (`skip_type`).

    Args:
        score_fn: the score `(x, t (B,)) -> shape of x`.
        probability_flow: whether to follow the ODE, without noise.
    """

    def __init__(self, sde: SDE, score_fn: Callable, probability_flow: bool = False):
        self.sde, self.score_fn = sde, score_fn
        self.rsde = sde.reverse(score_fn, probability_flow)

    @classmethod  # noqa: B027  (by default steps are defined for every SDE)
    def check(cls, sde: SDE) -> None:
        """Raise an error if `update_fn` is not defined for this SDE and its N.

        Raises:
            NotImplementedError, ValueError: the message names what is missing.
        """

    @abc.abstractmethod
    def update_fn(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x, x_mean) at t - T/N from x (B, ...) at t (B,); x_mean lacks the noise."""

    def step(self, x: Tensor, t: float, s: float) -> tuple[Tensor, Tensor]:
        """Return (x, x_mean) at time s < t from x (B, ...) at time t; s = 0 means the data."""
        raise NotImplementedError


@PREDICTORS.register(name='none')
class NonePredictor(Predictor):
    """A predictor without a step: x_s = x."""

    def update_fn(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x, x

    def step(self, x: Tensor, t: float, s: float) -> tuple[Tensor, Tensor]:
        return x, x


class Corrector(abc.ABC):
    """Steps that bring x closer to p_t without changing t.

    Args:
        score_fn: the score `(x, t (B,)) -> shape of x`.
        snr: the signal-to-noise ratio that sets the size of a step.
        n_steps: the number of steps at each time.
    """

    def __init__(self, sde: SDE, score_fn: Callable, snr: float, n_steps: int):
        self.sde, self.score_fn, self.snr, self.n_steps = sde, score_fn, snr, n_steps

    @classmethod  # noqa: B027  (by default steps are defined for every SDE)
    def check(cls, sde: SDE) -> None:
        """Raise an error if `update_fn` is not defined for this SDE and its N.

        Raises:
            NotImplementedError, ValueError: the message names what is missing.
        """

    @abc.abstractmethod
    def update_fn(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x, x_mean) from x (B, ...), both at times t (B,)."""

    def step(self, x: Tensor, t: float, s: float) -> tuple[Tensor, Tensor]:
        """Return (x, x_mean) from x (B, ...), both at time t of a grid whose next time is s."""
        return self.update_fn(x, times_like(x, t))


@CORRECTORS.register(name='none')
class NoneCorrector(Corrector):
    """A corrector without a step: x does not change."""

    def update_fn(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def classes(options: Options) -> tuple[type[Predictor], type[Corrector]]:
    """The classes of predictor and corrector; the options contain names or classes."""
    predictor, corrector = options.predictor, options.corrector
    if isinstance(predictor, str):
        predictor = PREDICTORS.get(predictor)
    if isinstance(corrector, str):
        corrector = CORRECTORS.get(corrector)
    return predictor or NonePredictor, corrector or NoneCorrector


def times(sde: SDE, options: Options) -> Tensor:
    """The times of the steps (n + 1,): the SDE's N times or a grid, and 0 for the data."""
    steps, eps = options.steps or sde.N, options.stop(sde)
    if options.skip_type:
        grid = time_grid(sde, steps - 1, eps, options.skip_type, options.rho)
    else:
        grid = sde.with_steps(steps).timesteps(eps)
    return torch.cat([grid, torch.zeros_like(grid[:1])])


class _Steps:
    """The predictor and the corrector of a run, each called as `(x, i)` for the i-th time.

    `times` (n + 1,) are the times of the states. The last two are eps, because the last step, to
    the data, counts as a step that ends at eps.
    """

    def __init__(self, sde, score_fn, x, options: Options):
        chain = sde.with_steps(options.steps or sde.N)
        predictor, corrector = classes(options)
        self.predictor = predictor(chain, score_fn, options.probability_flow)
        self.corrector = corrector(chain, score_fn, options.snr, options.n_steps_each)
        self.grid = None
        if options.skip_type:
            grid = times(sde, options)
            self.grid = grid.tolist()
            points = grid[:-1].to(x.device, x.dtype)
        else:
            points = chain.timesteps(options.stop(sde), x.device, x.dtype)
        self.times = torch.cat([points, points[-1:]])
        self.t = [t.expand(len(x)) for t in self.times]

    def predict(self, x, i):
        if self.grid:
            return self.predictor.step(x, self.grid[i], self.grid[i + 1])
        return self.predictor.update_fn(x, self.t[i])

    def correct(self, x, i):
        if self.grid:
            return self.corrector.step(x, self.grid[i], self.grid[i + 1])
        return self.corrector.update_fn(x, self.t[i])


def draw(sde: SDE, score_fn: Callable, x: Tensor, options: Options, loop: Loop) -> Tensor:
    """Carry x (B, ...) from the prior to the data along the SDE's N times or the grid `skip_type`.

    Order 'corrector_predictor' corrects at each time before the step from it, as the 2021 release
    does. 'predictor_corrector' corrects after each step, as Algorithm 1 does, except after the last
    step, which leaves no noise.
    """
    steps = _Steps(sde, score_fn, x, options)
    t, last = steps.t, len(steps.times) - 2
    has_predictor = not isinstance(steps.predictor, NonePredictor)
    corrects_first = options.order == ORDERS[0] or isinstance(steps.corrector, NoneCorrector)

    def corrector_predictor(x, i):
        x, _ = steps.correct(x, i)
        return steps.predict(loop.projected(x, t[i]), i)

    def predictor_corrector(x, i):
        x, x_mean = steps.predict(x, i)
        if i == last and has_predictor:
            return x, x_mean
        return steps.correct(loop.projected(x, t[i + 1]), min(i + 1, last))

    step = corrector_predictor if corrects_first else predictor_corrector
    x, x_mean = loop.walk(step, sde, x, steps.times)
    return x_mean if options.noise_removal else x


def check(sde: SDE, options: Options, loop: Loop) -> None:
    """Raise an error that names the option if `draw` is not defined for these arguments.

    Raises:
        NotImplementedError, ValueError: by this function, the grid or the classes.
    """
    predictor, corrector = classes(options)
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
    times(sde, options)
    unused: Any = None  # the score function does not exist yet
    predictor(chain, unused, options.probability_flow)
    corrector(chain, unused, options.snr, options.n_steps_each)
    if not options.skip_type:
        predictor.check(chain)
        if corrector is not NoneCorrector:
            corrector.check(chain)
