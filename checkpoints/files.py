"""Files of training states: write them, lock their folder, find the one to resume from.

Files are written atomically (temporary file, then rename), and `Saver` writes in the background.
A work directory has numbered snapshots, checkpoints/checkpoint_N.pth, and the file to resume from,
checkpoints-meta/checkpoint.pth, with its previous version. Loading never executes code from a file.
"""

import concurrent.futures
import contextlib
import fcntl
import os
import pathlib
import platform
import re
import time
from collections.abc import Iterator

import torch
from absl import logging

from checkpoints.formats import torch_zip
from checkpoints.states import content_of, copied, mapped
from runtime.errors import CheckpointError, UserError

# Writing ------------------------------------------------------------------------------------------


def save(path: str | os.PathLike, state: dict, keep_previous: bool = False) -> None:
    """Write a training state to a file.

    Args:
        path: path of the file.
        state: objects with a `state_dict()` (optimizer, model, EMA) and plain values, by name.
        keep_previous: keep an existing file at `path` as `previous(path)`.

    Raises:
        CheckpointError: if the file cannot be written; existing files are then unchanged.
    """
    _write(pathlib.Path(path), content_of(state), keep_previous)


def _write(path: pathlib.Path, content: dict, keep_previous: bool = False):
    partial, link = (
        path.with_name(f'{path.name}.{os.getpid()}.{kind}') for kind in ('partial', 'link')
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, 'w+b') as file:
            # Contiguous, because a fused Adam pairs moments and weights by their memory layout, and
            # the weights of other programs are contiguous.
            torch.save(mapped(torch.Tensor.contiguous, content), file)
            torch_zip.seal(file)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            _keep(path, link)
        os.replace(partial, path)
        _sync(path.parent)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f'{path} cannot be written: {_cause(error)}. Earlier checkpoints are unchanged'
        ) from error
    finally:
        for leftover in (partial, link):
            leftover.unlink(missing_ok=True)


def _keep(path: pathlib.Path, link: pathlib.Path):
    """Store the file at `path` as `previous(path)`, so that one of the two always exists."""
    try:
        os.link(path, link)
    except OSError:  # a file system without links
        os.replace(path, previous(path))
    else:
        os.replace(link, previous(path))


def _cause(error: Exception) -> str:
    """Return in one line why writing failed.

    PyTorch's writer raises RuntimeError while it handles the OSError that is the real reason.
    """
    if not isinstance(error, OSError) and isinstance(error.__context__, OSError):
        error = error.__context__
    return getattr(error, 'strerror', None) or str(error).splitlines()[0]


def _sync(folder: pathlib.Path):
    """Flush the entries of a folder to the disk, where the file system supports it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        # Some network file systems do not support this.
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


class Saver:
    """Save in a background thread while training continues: `save` only copies the state.

    While one save is being written, at most one other save waits; a further call of `save` blocks.
    Errors are raised by the next `save` or `wait`, at the latest at the end of the `with` block.
    """

    def __enter__(self):
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._pending = []
        return self

    def __exit__(self, kind, *_):
        self._pool.shutdown(wait=True)
        if kind is None:
            self.wait()

    def wait(self, most: int = 0) -> None:
        """Block until at most `most` saves are pending; raise the error of a failed one."""
        while len(self._pending) > most or self._pending and self._pending[0].done():
            self._pending.pop(0).result()

    def save(
        self, path: str | os.PathLike, state: dict, keep_previous: bool = False, keep: int = 0
    ) -> None:
        """Save like the function `save`, then delete all but the newest `keep` snapshots.

        Args:
            path: path of the file.
            state: training state, copied before this method returns.
            keep_previous: keep an existing file at `path` as `previous(path)`.
            keep: number of numbered snapshots to keep in the folder; 0 for all.
        """
        self.wait(1)
        content = copied(content_of(state))
        path = pathlib.Path(path)

        def work():
            _write(path, content, keep_previous)
            for old in _numbered(path.parent)[:-keep] if keep else ():
                old.unlink()

        self._pending.append(self._pool.submit(work))


# Locking ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def only_writer(
    folder: str | os.PathLike, what: str = 'training', flag: str = '--workdir'
) -> Iterator[None]:
    """Lock a folder, so that no second process writes to it.

    The lock is the file '{what}.lock'. It is valid on all machines that share the locks of the file
    system, and ends with the process.

    Args:
        folder: the work directory of a training, or the folder of an evaluation.
        what: 'training' or 'evaluation'.
        flag: command-line flag that names the folder, for the error.

    Raises:
        UserError: if another process holds the lock.
    """
    path = pathlib.Path(folder, f'{what}.lock')
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a+') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f'another {what} is running in {folder} '
                f'({file.read().strip() or "unknown process"}): '
                f'wait for it, stop it, or choose another {flag}'
            ) from error
        except OSError as error:
            logging.warning(
                'Could not lock %s (%s): nothing prevents a second %s in it.',
                folder,
                error.strerror,
                what,
            )
        for leftover in [
            *path.parent.glob('checkpoints*/*.partial'),
            *path.parent.glob('checkpoints*/*.link'),
        ]:
            leftover.unlink()  # from a process that was killed
        file.truncate(0)
        file.write(f'process {os.getpid()} on {platform.node()}')
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


# Reading and finding ------------------------------------------------------------------------------


def load(path: str | os.PathLike, device: str | torch.device = 'cpu') -> dict:
    """Return the content of a file that `save` wrote.

    Raises:
        CheckpointError: if the file is missing, corrupt or not a training state.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise CheckpointError(f'checkpoint {path} does not exist')
    content = torch_zip.load(path, device)
    torch_zip.check_state(path, content)
    return content


def snapshot_path(workdir: str | os.PathLike, number: int) -> pathlib.Path:
    """Return the path of a numbered snapshot."""
    return pathlib.Path(workdir, 'checkpoints', f'checkpoint_{number}.pth')


def snapshot_numbers(workdir: str | os.PathLike) -> list[int]:
    """Return the numbers of the snapshots in a work directory, in increasing order."""
    return [_number(path) for path in _numbered(pathlib.Path(workdir, 'checkpoints'))]


def _number(snapshot: pathlib.Path) -> int:
    return int(snapshot.stem.rpartition('_')[2])


def _numbered(folder) -> list[pathlib.Path]:
    """Return the snapshots in a folder, in the order of their numbers."""
    snapshots = [
        path
        for path in pathlib.Path(folder).glob('checkpoint_*.pth')
        if re.fullmatch(r'checkpoint_\d+', path.stem)
    ]
    return sorted(snapshots, key=_number)


def resume_path(workdir: str | os.PathLike) -> pathlib.Path:
    """Return the path of the file from which an interrupted training resumes."""
    return pathlib.Path(workdir, 'checkpoints-meta', 'checkpoint.pth')


def previous(path: str | os.PathLike) -> pathlib.Path:
    """Return the path of the previous version of the file at `path`."""
    path = pathlib.Path(path)
    return path.with_name(f'{path.stem}_previous{path.suffix}')


def wait_for(path: str | os.PathLike, minutes: float, poll_seconds: float = 10.0) -> pathlib.Path:
    """Wait until a file exists and return its path.

    Raises:
        CheckpointError: if it does not exist after `minutes`.
    """
    path = pathlib.Path(path)
    deadline = time.monotonic() + 60 * minutes
    if not path.is_file() and minutes > 0:
        logging.info('Waiting up to %g minutes for %s.', minutes, path)
    while not path.is_file():
        if time.monotonic() >= deadline:
            raise CheckpointError(
                f'checkpoint {path} does not exist'
                + (f' after {minutes:g} minutes of waiting' if minutes > 0 else '')
            )
        time.sleep(min(poll_seconds, max(0.0, deadline - time.monotonic())))
    return path


def find_resumable(workdir: str | os.PathLike) -> pathlib.Path | None:
    """Return the checkpoint to resume from, or None if there is none.

    It is the latest checkpoint, or the previous one (with a warning) if the latest is corrupt. A
    corrupt latest file is renamed, so that it never replaces the previous one.

    Raises:
        CheckpointError: if both are corrupt.
    """
    path = resume_path(workdir)
    before = previous(path)
    if not path.is_file():
        return before if before.is_file() and load(before) else None
    try:
        load(path)
    except CheckpointError as error:
        if not before.is_file():
            raise
        load(before)
        aside = path.with_name(f'{path.stem}_corrupt{path.suffix}')
        os.replace(path, aside)
        logging.warning(
            '%s. Resuming from the previous checkpoint %s; the corrupt file was renamed to %s.',
            error,
            before,
            aside,
        )
        return before
    return path


def latest(workdir: str | os.PathLike) -> pathlib.Path:
    """Return the snapshot with the largest number, else the file to resume from.

    Raises:
        CheckpointError: if there is neither.
    """
    folder = pathlib.Path(workdir, 'checkpoints')
    if snapshots := _numbered(folder):
        return snapshots[-1]
    if resume_path(workdir).is_file():
        return resume_path(workdir)
    raise CheckpointError(
        f'found no checkpoint in {folder} or at {resume_path(workdir)}: train '
        'first, or pass a checkpoint file'
    )
