"""Training states in files: {'optimizer', 'model', 'ema', 'step'}, as the 2021 release writes them,
and `rng` where training saved it.

Files are written atomically (temporary file, then rename). Loading never executes code from the
file and also accepts the formats in `checkpoints.formats`. It is strict: missing and unexpected
keys raise CheckpointError.
"""

import concurrent.futures
import contextlib
import fcntl
import os
import pathlib
import platform
import re
import time

import torch
from absl import logging

from checkpoints.formats import torch_zip
from checkpoints.states import content_of, copied, mapped
from runtime.errors import CheckpointError, UserError


def save(path, state: dict, keep_previous: bool = False):
    """Writes the state dicts of `state['optimizer']`, `['model']` and `['ema']`, and whatever else
    `state` holds, to `path`.

    With `keep_previous` the file that was there before stays, as `previous(path)`. CheckpointError
    where it cannot be written: what was there is then as it was.
    """
    _write(pathlib.Path(path), content_of(state), keep_previous)


def _write(path: pathlib.Path, content: dict, keep_previous: bool = False):
    partial, linked = (
        path.with_name(f'{path.name}.{os.getpid()}.{kind}') for kind in ('partial', 'link')
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, 'w+b') as file:
            # Contiguous: a fused Adam pairs moments with weights by their place in memory, and
            # programs of others have contiguous weights.
            torch.save(mapped(torch.Tensor.contiguous, content), file)
            torch_zip.seal(file)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            try:
                os.link(path, linked)  # at no moment is there none of the two
            except OSError:  # a file system without links
                os.replace(path, previous(path))
            else:
                os.replace(linked, previous(path))
        os.replace(partial, path)
        _sync(path.parent)
    except (
        OSError,
        RuntimeError,
    ) as error:  # RuntimeError: of PyTorch's writer, when the file takes no more
        cause = (
            error
            if isinstance(error, OSError)
            else error.__context__
            if isinstance(error.__context__, OSError)
            else error
        )
        reason = getattr(cause, 'strerror', None) or str(cause).splitlines()[0]
        raise CheckpointError(
            f'{path} cannot be written: {reason}. Earlier checkpoints are as they were'
        ) from error
    finally:
        for leftover in (partial, linked):
            leftover.unlink(missing_ok=True)


def _sync(folder):
    """Has the names in a folder written to the disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems
        pass
    finally:
        os.close(handle)


def previous(path) -> pathlib.Path:
    """Where the file before that at `path` is kept."""
    path = pathlib.Path(path)
    return path.with_name(f'{path.stem}_previous{path.suffix}')


class Saver:
    """Save in a background thread while training continues: `save` only copies the state and
    returns.

    At most one save waits for the one being written; another call of `save` blocks. Errors are
    raised by the next `save` or `wait`, at the latest at the end of the `with` block.
    """

    def __enter__(self):
        self._pool, self._pending = concurrent.futures.ThreadPoolExecutor(1), []
        return self

    def __exit__(self, kind, *_):
        self._pool.shutdown(wait=True)
        if kind is None:
            self.wait()

    def wait(self, most: int = 0):
        """Returns when all but `most` saves are written."""
        while len(self._pending) > most or self._pending and self._pending[0].done():
            self._pending.pop(0).result()

    def save(self, path, state: dict, keep_previous: bool = False, keep: int = 0):
        """As the function `save`; of numbered snapshots at most `keep` stay (0: all), the
        newest.
        """
        self.wait(1)
        content = copied(content_of(state))

        def work():
            _write(pathlib.Path(path), content, keep_previous)
            for old in _numbered(pathlib.Path(path).parent)[:-keep] if keep else ():
                old.unlink()

        self._pending.append(self._pool.submit(work))


def _numbered(folder) -> list[pathlib.Path]:
    """The snapshots in a folder, in the order of their numbers."""
    snapshots = [
        path
        for path in pathlib.Path(folder).glob('checkpoint_*.pth')
        if re.fullmatch(r'checkpoint_\d+', path.stem)
    ]
    return sorted(snapshots, key=lambda path: int(path.stem.rpartition('_')[2]))


def snapshot_numbers(workdir) -> list[int]:
    """The numbers of the snapshots in a work directory, in increasing order."""
    return [
        int(path.stem.rpartition('_')[2])
        for path in _numbered(pathlib.Path(workdir, 'checkpoints'))
    ]


@contextlib.contextmanager
def only_writer(folder, what: str = 'training', flag: str = '--workdir'):
    """Lock a folder against a second process that writes into it, here or on a machine that shares
    the file system's locks.

    The lock ends with the process, however that ends. It is the file '{what}.lock'.

    Args:
        folder: the work directory of a training, or the folder of an evaluation.
        what: 'training' or 'evaluation'.
        flag: of the command line, that names the folder.

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
                'Could not lock %s (%s): a second %s there is not prevented.',
                folder,
                error.strerror,
                what,
            )
        for leftover in [
            *path.parent.glob('checkpoints*/*.partial'),
            *path.parent.glob('checkpoints*/*.link'),
        ]:
            leftover.unlink()  # of a process that was killed
        file.truncate(0)
        file.write(f'process {os.getpid()} on {platform.node()}')
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def load(path, device='cpu') -> dict:
    """The content of a file of `save`; CheckpointError where there is none that can be read."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise CheckpointError(f'there is no checkpoint {path}')
    content = torch_zip.load(path, device)
    if not isinstance(content, dict) or 'model' not in content:
        raise CheckpointError(f"{path} is no training state: it has no 'model'")
    return content


def snapshot_path(workdir, number: int) -> pathlib.Path:
    """The file of the numbered snapshot."""
    return pathlib.Path(workdir, 'checkpoints', f'checkpoint_{number}.pth')


def wait_for(path, minutes: float, poll_seconds: float = 10.0) -> pathlib.Path:
    """The path, once there is a file; CheckpointError where there is none after so many minutes."""
    path, deadline = pathlib.Path(path), time.monotonic() + 60 * minutes
    if not path.is_file() and minutes > 0:
        logging.info('Waiting up to %g minutes for %s.', minutes, path)
    while not path.is_file():
        if time.monotonic() >= deadline:
            raise CheckpointError(
                f'there is no checkpoint {path}'
                + (f' after {minutes:g} minutes of waiting' if minutes > 0 else '')
            )
        time.sleep(min(poll_seconds, max(0.0, deadline - time.monotonic())))
    return path


def resume_path(workdir) -> pathlib.Path:
    """The file from which an interrupted training goes on."""
    return pathlib.Path(workdir, 'checkpoints-meta', 'checkpoint.pth')


def find_resumable(workdir) -> pathlib.Path | None:
    """The checkpoint to resume from: the latest, or the previous one (with a warning) if the latest
    is corrupt. None if there is none.

    A corrupt latest file is renamed, so that it never replaces the previous one.

    Raises:
        CheckpointError: if both are corrupt.
    """
    path = resume_path(workdir)
    before, aside = previous(path), path.with_name(f'{path.stem}_damaged{path.suffix}')
    if not path.is_file():
        return before if before.is_file() and load(before) else None
    try:
        load(path)
        return path
    except CheckpointError as error:
        if not before.is_file():
            raise
        load(before)
        os.replace(path, aside)
        logging.warning(
            '%s. Resuming from the previous checkpoint %s; the corrupt file was renamed to %s.',
            error,
            before,
            aside,
        )
        return before


def latest(workdir) -> pathlib.Path:
    """The snapshot with the largest number, or where there is none the file to resume from;
    CheckpointError without either.
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
