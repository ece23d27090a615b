"""Training states in files: {'optimizer', 'model', 'ema', 'step'}, as the 2021 release writes them, and `rng` where training saved it.

A file is complete or it is not there: it is written beside its place and renamed. Reading executes nothing (`weights_only`), yet takes
the numpy scalars of published files; it is strict, and says what is missing.
"""
import os
import pathlib
import pickle
import re
import time
import zipfile

import numpy as np
import torch
from absl import logging

from errors import UserError


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another network."""


def save(path, state: dict):
    """Writes the state dicts of `state['optimizer']`, `['model']` and `['ema']`, and whatever else `state` holds, to `path`."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {key: value.state_dict() if hasattr(value, 'state_dict') else value for key, value in state.items()}
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    try:
        with open(partial, 'wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _numpy_scalars():
    """What a pickled numpy scalar is made of, under the names it has in files of numpy 1 and of numpy 2."""
    scalar = np.float64(0).__reduce__()[0]
    return [(scalar, 'numpy.core.multiarray.scalar'), (scalar, 'numpy._core.multiarray.scalar'), np.dtype, np.dtypes.Float64DType,
            np.dtypes.Float32DType, np.dtypes.Int64DType]


def load(path, device='cpu') -> dict:
    """The content of a checkpoint file; CheckpointError where there is none that can be read."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise CheckpointError(f'there is no checkpoint {path}')
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = '' if isinstance(error, OSError) else ': ' + (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f'{path} cannot be read as a checkpoint; it may be cut short, or of another kind{reason}') from error
    if not isinstance(content, dict) or 'model' not in content:
        raise CheckpointError(f"{path} is no training state: it has no 'model'")
    return content


def _listed(names, most: int = 4) -> str:
    names = list(names)
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def _fitted(path, model, loaded: dict) -> dict:
    """The parameters of a file under the model's own names, with or without 'module.', if they are all there in the right shapes."""
    own = model.state_dict()
    prefix = 'module.' if all(key.startswith('module.') for key in own) else ''
    loaded = {prefix + key.removeprefix('module.'): value for key, value in loaded.items()}
    faults = []
    if missing := [key for key in own if key not in loaded]:
        faults.append(f'it lacks {_listed(missing)}')
    if unknown := [key for key in loaded if key not in own]:
        faults.append(f'it has, beyond the network, {_listed(unknown)}')
    if wrong := [key for key in own if key in loaded and own[key].shape != loaded[key].shape]:
        key = wrong[0]
        faults.append(f'{len(wrong)} shapes differ, first {key}: {tuple(loaded[key].shape)} in the file, '
                      f'{tuple(own[key].shape)} in the network')
    if faults:
        raise CheckpointError(f'{path} does not fit the network of the config: {"; ".join(faults)}')
    return loaded


def restore(path, state: dict, device='cpu') -> dict:
    """Loads every entry of `state` (model, ema, optimizer in place) from the file at `path` and returns `state`.

    `rng`, where `state` asks for it, may be missing in the file (published ones lack it): it is then None. CheckpointError, with
    nothing changed, where anything else is missing or does not fit.
    """
    content = load(path, device)
    if missing := state.keys() - content.keys() - {'rng'}:
        raise CheckpointError(f'{path} lacks {_listed(missing)}')
    model = _fitted(path, state['model'], content['model'])
    try:
        if 'optimizer' in state:
            counts = [[len(group['params']) for group in optimizer['param_groups']]
                      for optimizer in (state['optimizer'].state_dict(), content['optimizer'])]
            if counts[0] != counts[1]:
                raise ValueError(f'the optimizer in it has {counts[1]} parameters, that of the config {counts[0]}')
            for own, group in zip(state['optimizer'].param_groups, content['optimizer']['param_groups']):
                group['fused'] = own.get('fused')  # how it computes is no matter of the file
        if 'ema' in state:
            state['ema'].load_state_dict(content['ema'])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f'{path} does not fit the config: {error}') from error
    state['model'].load_state_dict(model)
    if 'optimizer' in state:
        state['optimizer'].load_state_dict(content['optimizer'])
        for parameter, values in state['optimizer'].state.items():  # moments in the layout of their parameters: fused steps rely on it
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
            raise CheckpointError(f'there is no checkpoint {path}' + (f' after {minutes:g} minutes of waiting' if minutes > 0 else ''))
        time.sleep(min(poll_seconds, max(0.0, deadline - time.monotonic())))
    return path


def resume_path(workdir) -> pathlib.Path:
    """The file from which an interrupted training goes on."""
    return pathlib.Path(workdir, 'checkpoints-meta', 'checkpoint.pth')


def latest(workdir) -> pathlib.Path:
    """The snapshot with the largest number, or where there is none the file to resume from; CheckpointError without either."""
    folder = pathlib.Path(workdir, 'checkpoints')
    snapshots = [path for path in folder.glob('checkpoint_*.pth') if re.fullmatch(r'checkpoint_\d+', path.stem)]
    if snapshots:
        return max(snapshots, key=lambda path: int(path.stem.rpartition('_')[2]))
    if resume_path(workdir).is_file():
        return resume_path(workdir)
    raise CheckpointError(f'there is no checkpoint in {folder} nor {resume_path(workdir)}: train first, or name one with --checkpoint')
