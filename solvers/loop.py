"""What all samplers do between their steps."""

import dataclasses
from collections.abc import Callable

from runtime.errors import UserError
from runtime.randomness import normal_like
from sde_lib import expand


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
