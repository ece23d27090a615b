"""Training states: what is saved of one, and how a file is restored into one."""

import json
import pathlib

import torch
from ml_collections import ConfigDict

from checkpoints import formats
from checkpoints.formats import torch_zip
from configs import stored
from runtime.errors import CheckpointError


def content_of(state: dict) -> dict:
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


def mapped(fn, content):
    """The same dicts and lists with `fn` of every tensor in them."""
    if torch.is_tensor(content):
        return fn(content)
    if isinstance(content, dict):
        return {key: mapped(fn, value) for key, value in content.items()}
    return [mapped(fn, value) for value in content] if isinstance(content, list) else content


def copied(content):
    """A contiguous copy in host memory, which later steps do not change."""
    return mapped(
        lambda tensor: tensor.detach().to('cpu', copy=True, memory_format=torch.contiguous_format),
        content,
    )


def config_of(path) -> ConfigDict | None:
    """The config in a checkpoint of any format, beside its weights, or in its work directory; None
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
