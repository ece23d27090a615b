"""How samples are drawn."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import torch

from runtime.errors import UserError
from solvers import few_steps
from solvers.grids import time_grid

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
        return few_steps.SOLVERS.find(self.method)

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
        return time_grid(
            sde, intervals, self.stop(sde), self.skip_type or solver.skip_type, self.rho
        )

    def correct(self) -> Callable | None:
        """The function that is applied to every estimate of an image, if any."""
        return (
            functools.partial(few_steps.threshold, centered=self.centered)
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
