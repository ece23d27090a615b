"""Save and restore training states, `{'optimizer', 'model', 'ema', 'step', 'rng'}`.

`content_of(state)` is the dict that a file contains, with the keys of the 2021 release. `restore`
reads any of the `formats` into a state. It is strict: missing keys, unexpected keys and wrong
shapes raise CheckpointError before anything changes.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from ml_collections import ConfigDict

from checkpoints import formats
from checkpoints.formats import torch_zip
from configs import stored
from runtime.errors import CheckpointError, reason_of

# Saving -------------------------------------------------------------------------------------------


def content_of(state: dict) -> dict:
    """Return `state` with every object replaced by its `state_dict()`.

    Adam's option `fused` is left out: it depends on the device, not on the training.
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


def mapped(fn: Callable, content: Any) -> Any:
    """Apply `fn` to every tensor in nested dicts and lists."""
    if torch.is_tensor(content):
        return fn(content)
    if isinstance(content, dict):
        return {key: mapped(fn, value) for key, value in content.items()}
    return [mapped(fn, value) for value in content] if isinstance(content, list) else content


def copied(content: dict) -> dict:
    """Return a contiguous copy in host memory, which later training steps do not change."""
    return mapped(
        lambda tensor: tensor.detach().to('cpu', copy=True, memory_format=torch.contiguous_format),
        content,
    )


# Restoring ----------------------------------------------------------------------------------------


def config_of(path: str | os.PathLike) -> ConfigDict | None:
    """Return the config of a checkpoint in any format, or None.

    It may be in the file, in config.json next to the file, or in the work directory of the file.
    """
    path = pathlib.Path(path)
    if formats.guess(path) == 'pytorch' and 'config' in (content := torch_zip.load(path)):
        return stored.from_dict(json.loads(content['config']))
    found = formats.config_of(path)
    for place in (path.with_name('config.json'), path.absolute().parent.parent / 'config.json'):
        if found is None and path.is_file() and place.is_file():
            found = stored.get_config(place)
    return found


def restore(
    path: str | os.PathLike,
    state: dict,
    device: str | torch.device = 'cpu',
    optional: Iterable[str] = ('rng',),
    content: dict | None = None,
    config: ConfigDict | None = None,
) -> dict:
    """Load every entry of `state` from a file or folder in any of the `formats`.

    Args:
        path: file or folder.
        state: training state; model, EMA and optimizer are changed in place.
        device: where the tensors of the file are loaded to.
        optional: entries that may be missing; files of the 2021 release have no `rng`. A missing
            optimizer is left unchanged; other missing entries become None.
        content: the result of `formats.read` for `path`, if the file has already been read.
        config: if given, it must define the same model as the config in the file (if any).

    Returns:
        `state`.

    Raises:
        CheckpointError: if an entry is missing or does not fit; `state` is then unchanged.
        UserError: if `config` defines another model.
    """
    model, optimizer = state['model'], state.get('optimizer')
    content = dict(content or formats.read(path, getattr(model, 'module', model), device))
    if config is not None and 'config' in content:
        stored.check(config, ConfigDict(json.loads(content['config'])), path)
    weights = _matched(path, model, content['model'])
    if 'named' in content.get('ema', {}):
        content['ema'] = _average(path, model, weights, content['ema'])
    if missing := state.keys() - content.keys() - set(optional):
        raise CheckpointError(
            f'{path} is an incomplete training state: it lacks {_listed(missing)}'
        )
    if 'optimizer' not in content:
        optimizer = None
    try:
        if optimizer is not None:
            _adapt_groups(optimizer, content['optimizer'])
        if 'ema' in state:
            state['ema'].load_state_dict({'decay': state['ema'].decay} | content['ema'])
    except KeyError as error:
        raise CheckpointError(
            f'{path} has an incomplete optimizer or EMA: {reason_of(error)}'
        ) from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f'{path} does not fit the config: {error}') from error
    model.load_state_dict(weights)
    if optimizer is not None:
        _load_optimizer(optimizer, content['optimizer'])
    for key in state.keys() - {'model', 'ema', 'optimizer'}:
        state[key] = content.get(key)
    return state


def _matched(path, model, loaded: dict, what: str = 'the file') -> dict:
    """Return the loaded tensors under the names of `model`, with or without 'module.'.

    Raises:
        CheckpointError: with every missing key, unexpected key and wrong shape.
    """
    own = model.state_dict()
    prefix = 'module.' if all(key.startswith('module.') for key in own) else ''
    loaded = {prefix + key.removeprefix('module.'): value for key, value in loaded.items()}
    missing = [key for key in own if key not in loaded]
    unexpected = [key for key in loaded if key not in own]
    wrong = {
        key: f'{tuple(loaded[key].shape)} in the file, {tuple(own[key].shape)} in the network'
        for key in own
        if key in loaded and loaded[key].shape != own[key].shape
    }
    faults = []
    if missing:
        faults.append(f'{what} lacks {_listed(missing)}')
    if unexpected:
        faults.append(f'{what} has the unexpected keys {_listed(unexpected)}')
    if wrong:
        first, difference = next(iter(wrong.items()))
        faults.append(f'{len(wrong)} shapes differ, first {first}: {difference}')
    if faults:
        raise CheckpointError(
            f'{path} does not match the network of the config: {"; ".join(faults)}',
            [
                *(f'missing: {key} {tuple(own[key].shape)}' for key in missing),
                *(f'unexpected: {key} {tuple(loaded[key].shape)}' for key in unexpected),
                *(f'shape mismatch: {key} {difference}' for key, difference in wrong.items()),
            ],
        )
    return loaded


def _listed(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def _average(path, model, weights: dict, average: dict) -> dict:
    """Return the state of our moving average for a file that stores averages by name."""
    named = _matched(path, model, average['named'], 'its EMA')
    parameters = list(model.named_parameters())
    untrained = [name for name, parameter in parameters if not parameter.requires_grad]
    found = {key: value for key, value in average.items() if key != 'named'}
    found['num_updates'] = None
    found['shadow_params'] = [
        named[name] for name, parameter in parameters if parameter.requires_grad
    ]
    if any(not torch.equal(named[name], weights[name]) for name in untrained):
        found['untrained'] = [named[name] for name in untrained]
    return found


def _adapt_groups(optimizer: torch.optim.Optimizer, saved: dict):
    """Add settings of `optimizer` that the file lacks to the saved parameter groups.

    Raises:
        ValueError: if the number of parameters in the file is not that of `optimizer`.
    """
    own_groups, groups = optimizer.param_groups, saved['param_groups']
    expected, counts = ([len(group['params']) for group in part] for part in (own_groups, groups))
    if counts != expected:
        raise ValueError(
            f'the optimizer groups in the file have {counts} parameters, expected {expected}'
        )
    for own, group in zip(own_groups, groups):
        group.update({key: value for key, value in own.items() if key not in group})
        group['fused'] = own.get('fused')  # depends on this device, not on the file


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict):
    """Load the optimizer; store its moments in the memory layout of their parameters.

    Fused optimizer steps require this layout.
    """
    optimizer.load_state_dict(saved)
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
