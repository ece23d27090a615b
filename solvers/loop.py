"""The loop that all samplers share: steps along times, with a projection after each one.

For inpainting, the projection replaces the known part of x_t. Resampling makes the known and the
unknown part agree: after a stretch of steps, the forward process carries x back to the beginning of
the stretch, and the stretch is repeated (Lugmayr et al. 2022, Algorithm 1).
"""

import dataclasses
from collections.abc import Callable

from torch import Tensor

from runtime.errors import UserError
from runtime.randomness import normal_like
from sde_lib import SDE, expand


@dataclasses.dataclass(frozen=True)
class Loop:
    """The operations between the steps of a sampler.

    Args:
        callback: `callback(i, t, x)` is called after the i-th step, which began at time t and led
            to the state x (B, ...).
        project: `project(x, t (B,))` returns x with its known part replaced. It is called at the
            start and after every step.
        resample: how many times each stretch of `jump` steps is taken (Lugmayr et al. 2022,
            Appendix B). If the last stretch has one step, it is taken once.
        jump: the number of steps in a stretch.
    """

    callback: Callable | None = None
    project: Callable | None = None
    resample: int = 1
    jump: int = 1

    def __post_init__(self):
        for name in ('resample', 'jump'):
            if getattr(self, name) < 1:
                raise UserError(f'{name} must be at least 1, got {getattr(self, name)}')

    def projected(self, x: Tensor, t: Tensor) -> Tensor:
        """Return `project(x, t)` for times t (B,), or x if `project` is None."""
        return self.project(x, t) if self.project else x

    def walk(
        self, step: Callable, sde: SDE, x: Tensor, times: Tensor, begin: Callable = lambda: None
    ) -> tuple[Tensor, Tensor]:
        """Carry x (B, ...) from times[0] to times[-1].

        Args:
            step: `step(x, i)` carries x from the i-th time to the next and returns (x, x_mean).
            times: (n + 1,).
            begin: called before a stretch is repeated.

        Returns:
            x and x_mean at the last time.
        """
        n = len(times) - 1
        t = [time.expand(len(x)) for time in times]
        x = x_mean = self.projected(x, t[0])
        for start in range(0, n, self.jump):
            end = min(start + self.jump, n)
            for repeat in range(1 if start == n - 1 else self.resample):
                if repeat:
                    x = _noised(sde, x, t[end], t[start])
                    begin()
                for i in range(start, end):
                    x, x_mean = step(x, i)
                    x = self.projected(x, t[i + 1])
                    if self.callback:
                        self.callback(i, times[i], x)
        return x, x_mean


def _noised(sde, x, s, t):
    """Return x (B, ...) carried by the forward process from times s to later times t, both (B,)."""
    mean, std = sde.transition_prob(x, s, t)
    return mean + expand(std, x) * normal_like(x)
