"""Signals that ask the process to stop (SIGTERM, SIGINT): stop within seconds and lose no work.

A command is decorated with `interruptible()`. Within it a signal raises `Interrupted`, as Ctrl-C
raises KeyboardInterrupt; the process then ends with status 143 or 130. Work that must not be
interrupted, such as a training step, runs in a `held()` block: there a signal is only noted, and
the loop checks `signal_noted()`. Work within such a block that may be interrupted, such as drawing
the samples of a snapshot after its checkpoint was saved, runs in a `released()` block.

If several processes share one job, `look()` also notices signals that another process received: see
`share`.
"""

import contextlib
import os
import signal
import threading
import time
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl import logging

from runtime.errors import UserError

if TYPE_CHECKING:
    import torch


class Interrupted(SystemExit):
    """Ends the process with status 128 + signal number.

    Attributes:
        signal: the number of the signal.
        after: words for the log line about the last finished work, such as ' after step 7'.
    """

    def __init__(self, number: int, after: str = ''):
        super().__init__(128 + number)
        self.signal, self.after = number, after


_noted = types.SimpleNamespace(signal=0, time=0.0, while_held=False, held=False, active=False)
_shared = types.SimpleNamespace(store=None, asked=0.0)
_KEY, _SECONDS = 'signal', 0.5


def signal_noted() -> int:
    """The number of the signal that asked this process to stop, 0 if none has."""
    return _noted.signal


def share(store: 'torch.distributed.Store | None') -> None:
    """Share signals among the processes of a job.

    Args:
        store: a store that all processes can access; None to stop sharing.
    """
    _shared.store = store


def look() -> None:
    """Raise Interrupted if a signal was noted, unless the work is `held`.

    Signals of other processes are noticed within half a second.
    """
    if not _noted.signal and _shared.store and time.monotonic() > _shared.asked + _SECONDS:
        _shared.asked = time.monotonic()
        if _shared.store.check([_KEY]):
            _noted.signal = int(_shared.store.get(_KEY))
    if _noted.signal and not _noted.held:
        raise Interrupted(_noted.signal)


def _note(number, _):
    """Handle a signal; a second signal ends the process at once.

    Signals within two seconds of the first are ignored, because launchers and process groups
    deliver the same signal twice.
    """
    if _noted.signal:
        if time.monotonic() > _noted.time + 2:
            os._exit(128 + number)
        return
    _noted.signal, _noted.time, _noted.while_held = number, time.monotonic(), _noted.held
    if _shared.store:
        _shared.store.set(_KEY, str(number))
    if not _noted.held:
        raise Interrupted(number)
    logging.info(
        'Received signal %d: stopping after this step. A second signal stops at once.', number
    )


@contextlib.contextmanager
def interruptible(advice: str = 'Run the same command to resume.') -> Iterator[None]:
    """Make SIGTERM and SIGINT raise Interrupted within the block or the decorated function.

    The interruption is logged together with `advice`.

    A signal to a whole process group also ends processes that this one waits for, such as compilers
    or other processes of the job. Any error after a signal therefore becomes Interrupted too,
    except in `held` work of several processes, which agree on when to stop. A nested block, or a
    block outside the main thread, does nothing.
    """
    if _noted.active or threading.current_thread() is not threading.main_thread():
        yield
        return
    _noted.signal, _noted.while_held, _noted.held, _noted.active = 0, False, False, True
    before = {number: signal.signal(number, _note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except Interrupted as error:
        logging.info('Stopped by signal %d%s. %s', error.signal, error.after, advice)
        raise
    except UserError:
        raise
    except Exception as error:
        if not _noted.signal or _noted.while_held and _shared.store:
            raise
        logging.info('Stopped by signal %d (%s). %s', _noted.signal, type(error).__name__, advice)
        raise Interrupted(_noted.signal) from error
    finally:
        _noted.signal, _noted.active = 0, False
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _set_held(held: bool):
    before, _noted.held = _noted.held, held
    try:
        yield
    finally:
        _noted.held = before


def held() -> contextlib.AbstractContextManager[None]:
    """A block in which a signal is only noted: the caller checks `signal_noted()`."""
    return _set_held(True)


@contextlib.contextmanager
def released() -> Iterator[None]:
    """A block that a signal may interrupt although a surrounding one is `held`."""
    with _set_held(False):
        look()
        yield
