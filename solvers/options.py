"""The settings of all samplers in one object: `Options(method='heun', steps=18)`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from runtime.errors import UserError
from sde_lib import SDE, expand
from solvers.few_steps import SOLVERS, Solver
from solvers.grids import time_grid

DEFAULT_TOLERANCES = {'ode': (1e-5, 1e-5), 'adaptive': (0.05, 1 / 256)}  # rtol, atol


def threshold(x0: Tensor, centered: bool = True, share: float = 0.995) -> Tensor:
    """Clip estimates of images (B, ...) to [-s, s] and divide by s, which differs between images.

    s >= 1 is the quantile `share` of the absolute values (Saharia et al. 2022, "dynamic
    thresholding").

    Args:
        centered: whether images lie in [-1, 1] rather than in [0, 1].
    """
    x0 = x0 if centered else 2 * x0 - 1
    # image by image, as torch.quantile limits the size of its input
    s = torch.stack([image.abs().float().quantile(share) for image in x0.flatten(1)])
    s = expand(s.clamp(min=1).to(x0), x0)
    x0 = x0.clamp(-s, s) / s
    return x0 if centered else (x0 + 1) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of samplers: the keys of a config's `sampling` section, and three more.

    configs/keys.py explains the keys. `predictor` and `corrector` may be classes or names.

    Args:
        eps: the time at which sampling stops. None: `sde.sampling_eps`.
        centered: whether the network sees images in [-1, 1] rather than in [0, 1], for
            `thresholding`.
        own: settings of solvers that are not in this library, by name.
    """

    method: str = 'unipc'
    predictor: type | str | None = 'none'
    corrector: type | str | None = 'none'
    order: str = 'corrector_predictor'
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
    prior_mean: float | Tensor = 0.0
    eps: float | None = None
    thresholding: bool = False
    centered: bool = True
    own: Mapping = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, settings: Mapping, **more) -> 'Options':
        """The options in `settings`, a config's `sampling` section or a mapping with its keys.

        Keys that are not fields go into `own`; `more` contains further fields.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        fields = {key: value for key, value in settings.items() if key in names}
        own = {key: value for key, value in settings.items() if key not in names}
        return cls(**fields | {'own': own} | more)

    def solver(self) -> type[Solver] | None:
        """The few-step solver that `method` names; None for 'pc', 'ode' and 'adaptive'."""
        return SOLVERS.find(self.method)

    def _solver(self) -> type[Solver]:
        solver = self.solver()
        assert solver is not None, f'method={self.method!r} is not a few-step solver'
        return solver

    def solver_settings(self) -> dict:
        """The settings that the solver's constructor takes."""
        solver, given = self._solver(), vars(self) | dict(self.own)
        settings = {key: given[key] for key in solver.settings if key in given}
        if 'steps' in solver.settings:
            settings['steps'] = self.steps or solver.default_steps
        return settings

    def solver_times(self, sde: SDE, denoise: bool | None = None) -> Tensor:
        """The times (n + 1,) of the solver's grid, from T down, in float64.

        Args:
            denoise: whether a step from the last time to the data follows. None: `noise_removal`.
        """
        solver = self._solver()
        steps = self.steps or solver.default_steps
        settings = self.solver_settings()
        settings['denoise'] = self.noise_removal if denoise is None else denoise
        settings.pop('steps', None)
        intervals = solver.intervals(steps, **settings)
        if intervals < 1:
            raise UserError(f'steps={steps} is too few for method={self.method!r}')
        skip_type = self.skip_type or solver.skip_type
        return time_grid(sde, intervals, self.stop(sde), skip_type, self.rho)

    def build_solver(self, sde: SDE, score_fn: Callable, times: Tensor | None = None) -> Solver:
        """The solver for a score function `(x, t (B,)) -> shape of x`.

        Args:
            times: the times of its steps. None: `solver_times`.
        """
        times = self.solver_times(sde) if times is None else times
        settings = self.solver_settings()
        return self._solver()(sde, score_fn, times, correct=self.correct(), **settings)

    def correct(self) -> Callable | None:
        """The function that is applied to every estimate of an image, if any."""
        return functools.partial(threshold, centered=self.centered) if self.thresholding else None

    def tolerances(self) -> tuple[float, float]:
        """Return rtol and atol of 'ode' and 'adaptive'; 0.0 selects the default of the method."""
        rtol, atol = DEFAULT_TOLERANCES[self.method.lower()]
        return self.rtol or rtol, self.atol or atol

    def stop(self, sde: SDE) -> float:
        """The time at which sampling stops."""
        return sde.sampling_eps if self.eps is None else self.eps
