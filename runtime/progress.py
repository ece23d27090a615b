"""Progress of long loops, which also check for signals between steps or network evaluations.

On a terminal, progress is shown as a bar. Otherwise a log line every 30 seconds has the number of
finished units, the total and the time left.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from absl import logging
from tqdm import tqdm

from runtime import distributed, interruption

LOG_SECONDS, BAR_SECONDS = 30.0, 0.2


def duration(seconds: float) -> str:
    """A time span in its two largest units: '45 s', '3 min 20 s', '2 h 5 min', '4 d 3 h'."""
    seconds = round(seconds)
    if seconds < 60:
        return f'{seconds} s'
    units = (('d', 86400), ('h', 3600), ('min', 60), ('s', 1))
    k = next(k for k, (_, length) in enumerate(units) if seconds >= length)
    (large, length), (small, part) = units[k : k + 2]
    return f'{seconds // length} {large} {seconds % length // part} {small}'


class Shown:
    """Progress of a task, to be used in a `with` block.

    Args:
        what: the task, such as 'drawing samples 1 to 64'.
        total: the number of units, None if unknown.
        unit: the name of one unit (singular), such as 'step'.
        initial: the number of units that were done before.
        in_log: whether log lines replace the bar if stderr is not a terminal.
        leave: whether the finished bar remains on the terminal.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        unit: str = 'step',
        initial: int = 0,
        in_log: bool = True,
        leave: bool = True,
    ):
        self.what, self.total, self.unit, self.initial = what, total, unit, initial
        plural = unit + ('es' if unit.endswith('ch') else 's')
        self.bar = tqdm(
            desc=what,
            total=total,
            unit=f' {plural}',
            initial=initial,
            leave=leave,
            dynamic_ncols=True,
            mininterval=0,
            miniters=1,
            disable=not (sys.stderr.isatty() and distributed.is_main()),
        )
        self.seconds = (
            BAR_SECONDS
            if not self.bar.disable
            else LOG_SECONDS
            if in_log and distributed.is_main()
            else float('inf')
        )
        self.started = self.shown = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def is_due(self) -> bool:
        """Whether the next call of `show` would show anything."""
        return time.monotonic() >= self.shown + self.seconds

    def show(self, done: int, total: int | None = None) -> None:
        """Show that `done` units are done, if the last display was long enough ago.

        Args:
            done: the number of finished units.
            total: an estimate of the total number of units, if it is not known.
        """
        if not self.is_due():
            return
        self.shown = time.monotonic()
        if not self.bar.disable:
            self.bar.total = total or self.total
            self.bar.update(done - self.bar.n)
            return
        of = (
            f'of about {total}'
            if total
            else f'of {self.total}'
            if self.total
            else 'of an unknown number'
        )
        total, elapsed = total or self.total, self.shown - self.started
        left = (
            f'{duration(elapsed * (total - done) / (done - self.initial))} left'
            if total and done > self.initial
            else (f'after {duration(elapsed)}')
        )
        logging.info('Reached %s %d %s in %s, %s.', self.unit, done, of, self.what, left)


def progress(
    iterable: Iterable, what: str, total: int, unit: str, initial: int = 0, in_log: bool = True
) -> Iterator:
    """Yield the items of `iterable` and show the progress; see `Shown` for the arguments."""
    with Shown(what, total, unit, initial, in_log) as shown:
        for done, item in enumerate(iterable, initial + 1):
            yield item
            shown.show(done)
        shown.bar.update(total - shown.bar.n)


@contextlib.contextmanager
def watched(
    model: torch.nn.Module,
    what: str,
    times: torch.Tensor | np.ndarray | Sequence[float],
    label_of: Callable,
    steps: bool,
) -> Iterator[None]:
    """Show progress and check for signals at each network evaluation in the block.

    The progress of a solver is computed from the time label of its last call of the network. The
    label is read only when progress is shown, because reading it makes the host wait for the
    device.

    Args:
        model: the network, called as `model(x, labels)`.
        what: the task, for the bar and the log.
        times: (n + 1,) times that the solver passes, in its order, with about the same number of
            network evaluations between any two neighbours.
        label_of: a function that maps times (n,) to the time labels of the network.
        steps: whether `times` are the steps of the solver. If not, network evaluations are counted
            and the total number of evaluations is estimated.
    """
    labels = label_of(torch.as_tensor(times)).double().cpu().numpy()
    sign, last, count, furthest = np.sign(labels[-1] - labels[0]), len(labels) - 1, 0, 0.0

    def between(_, inputs, __):
        nonlocal count, furthest
        interruption.look()
        count += 1
        if shown.is_due():
            reached = np.interp(
                sign * inputs[1].detach().double().cpu().numpy(), sign * labels, np.arange(last + 1)
            )
            furthest = max(furthest, float(reached.mean()))
            if steps:
                shown.show(int(furthest))
            else:
                shown.show(count, round(count * last / furthest) if furthest else None)

    with Shown(
        what, last if steps else None, 'step' if steps else 'network evaluation', leave=False
    ) as shown:
        hook = model.register_forward_hook(between)
        try:
            yield
        finally:
            hook.remove()
