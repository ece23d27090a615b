"""Training states in files: {'optimizer', 'model', 'ema', 'step'}, as the 2021 release writes them,
and `rng` where training saved it.

Files are written atomically (temporary file, then rename). Loading never executes code from the
file and also accepts the formats in `checkpoints.formats`. It is strict: missing and unexpected
keys raise CheckpointError.
"""

import concurrent.futures
import contextlib
import fcntl
import json
import os
import pathlib
import platform
import re
import time

import torch
from absl import logging
from ml_collections import ConfigDict

from checkpoints import formats
from checkpoints.formats import torch_zip
from configs import stored
from runtime.errors import CheckpointError, UserError


def save(path, state: dict, keep_previous: bool = False):
    """Writes the state dicts of `state['optimizer']`, `['model']` and `['ema']`, and whatever else
    `state` holds, to `path`.

    With `keep_previous` the file that was there before stays, as `previous(path)`. CheckpointError
    where it cannot be written: what was there is then as it was.
    """
    _write(pathlib.Path(path), _content(state), keep_previous)


def _content(state: dict) -> dict:
    """What a file holds. Adam's `fused` stays out: it is about this process, and another program
    may step other tensors with it.
    """
    content = {
        key: value.state_dict() if hasattr(value, 'state_dict') else value
        for key, value in state.items()
    }
    if 'optimizer' in content:
        groups = [
            {key: value for key, value in group.items() if key != 'fused'}
            for group in content['optimizer']['param_groups']
        ]
        content['optimizer'] = content['optimizer'] | dict(param_groups=groups)
    return content


def _mapped(fn, content):
    """The same dicts and lists with `fn` of every tensor in them."""
    if torch.is_tensor(content):
        return fn(content)
    if isinstance(content, dict):
        return {key: _mapped(fn, value) for key, value in content.items()}
    return [_mapped(fn, value) for value in content] if isinstance(content, list) else content


def _write(path: pathlib.Path, content: dict, keep_previous: bool = False):
    partial, linked = (
        path.with_name(f'{path.name}.{os.getpid()}.{kind}') for kind in ('partial', 'link')
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, 'w+b') as file:
            # Contiguous: a fused Adam pairs moments with weights by their place in memory, and
            # programs of others have contiguous weights.
            torch.save(_mapped(torch.Tensor.contiguous, content), file)
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
        content = _copied(_content(state))

        def work():
            _write(pathlib.Path(path), content, keep_previous)
            for old in _numbered(pathlib.Path(path).parent)[:-keep] if keep else ():
                old.unlink()

        self._pending.append(self._pool.submit(work))


def _copied(content):
    """A contiguous copy in host memory, which later steps do not change."""
    return _mapped(
        lambda tensor: tensor.detach().to('cpu', copy=True, memory_format=torch.contiguous_format),
        content,
    )


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


def config_of(path) -> ConfigDict | None:
    """The config in a checkpoint of any dialect, beside its weights, or in its work directory; None
    if there is none.
    """
    path = pathlib.Path(path)
    if formats.guess(path) == 'pytorch' and 'config' in (content := torch_zip.load(path)):
        return stored.from_dict(json.loads(content['config']))
    found = formats.config_of(path)
    for place in (path.with_name('config.json'), path.absolute().parent.parent / 'config.json'):
        if found is None and path.is_file() and place.is_file():
            found = stored.get_config(place)
    return found


def _listed(names, most: int = 4) -> str:
    names = list(names)
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def _fitted(path, model, loaded: dict, what: str = 'it') -> dict:
    """The tensors of a file under the model's own names, with or without 'module.', if they are all
    there in the right shapes.
    """
    own = model.state_dict()
    prefix = 'module.' if all(key.startswith('module.') for key in own) else ''
    loaded = {prefix + key.removeprefix('module.'): value for key, value in loaded.items()}
    shapes = {
        key: (tuple(loaded[key].shape), tuple(own[key].shape)) for key in own if key in loaded
    }
    missing, unknown = (
        [key for key in own if key not in loaded],
        [key for key in loaded if key not in own],
    )
    wrong = [key for key, (there, here) in shapes.items() if there != here]
    faults = []
    if missing:
        faults.append(f'{what} lacks {_listed(missing)}')
    if unknown:
        faults.append(f'{what} has the unexpected keys {_listed(unknown)}')
    if wrong:
        there, here = shapes[wrong[0]]
        faults.append(
            f'{len(wrong)} shapes differ, first {wrong[0]}: {there} in the file, {here} '
            'in the network'
        )
    if faults:
        raise CheckpointError(
            f'{path} does not match the network of the config: {"; ".join(faults)}',
            [
                *(f'missing: {key} {tuple(own[key].shape)}' for key in missing),
                *(f'unexpected: {key} {tuple(loaded[key].shape)}' for key in unknown),
                *(
                    f'shape mismatch: {key} {shapes[key][0]} in the file, {shapes[key][1]} in the '
                    'network'
                    for key in wrong
                ),
            ],
        )
    return loaded


def _average(path, model, weights: dict, average: dict) -> dict:
    """The state of a moving average whose tensors a file has by name, under 'named'."""
    named = _fitted(path, model, average['named'], 'its average')
    parameters = list(model.named_parameters())
    untrained = [name for name, parameter in parameters if not parameter.requires_grad]
    of_its_own = any(not torch.equal(named[name], weights[name]) for name in untrained)
    return (
        {key: value for key, value in average.items() if key != 'named'}
        | dict(
            num_updates=None,
            shadow_params=[
                named[name] for name, parameter in parameters if parameter.requires_grad
            ],
        )
        | (dict(untrained=[named[name] for name in untrained]) if of_its_own else {})
    )


def restore(path, state: dict, device='cpu', optional=('rng',), content=None, config=None) -> dict:
    """Loads every entry of `state` (model, ema, optimizer in place) from a file or folder of any of
    the `formats` and returns `state`.

    What is `optional` may be missing (published files lack `rng`): the optimizer is then as it was,
    `rng` None. CheckpointError, with nothing changed, where anything else is missing or does not
    fit. `content`: what `formats.read` returned for `path`, if it was read before. `config`:
    UserError if it defines another model than the config in the file, if there is one.
    """
    content = dict(
        content or formats.read(path, getattr(state['model'], 'module', state['model']), device)
    )
    if config is not None and 'config' in content:
        stored.check(config, ConfigDict(json.loads(content['config'])), path)
    model = _fitted(path, state['model'], content['model'])
    if 'named' in content.get('ema', {}):
        content['ema'] = _average(path, state['model'], model, content['ema'])
    if missing := state.keys() - content.keys() - set(optional):
        raise CheckpointError(f'{path} lacks {_listed(missing)}')
    has_optimizer = 'optimizer' in state and 'optimizer' in content
    try:
        if has_optimizer:
            groups = state['optimizer'].param_groups, content['optimizer']['param_groups']
            counts = [[len(group['params']) for group in part] for part in groups]
            if counts[0] != counts[1]:
                raise ValueError(
                    f'the optimizer in it has {counts[1]} parameters, that of the '
                    f'config {counts[0]}'
                )
            for own, group in zip(*groups):
                # what the file does not tell
                group.update({key: value for key, value in own.items() if key not in group})
                group['fused'] = own.get('fused')  # how it computes is no matter of the file
        if 'ema' in state:
            state['ema'].load_state_dict({'decay': state['ema'].decay} | content['ema'])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f'{path} does not fit the config: {error}') from error
    state['model'].load_state_dict(model)
    if has_optimizer:
        state['optimizer'].load_state_dict(content['optimizer'])
        # moments in the layout of their parameters: fused steps rely on it
        for parameter, values in state['optimizer'].state.items():
            for key, value in values.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    for key in state.keys() - {'model', 'ema', 'optimizer'}:
        state[key] = content.get(key)
    return state


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
