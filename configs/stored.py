r"""Configs stored as JSON.

They are stored in checkpoints, as `config.json` in a work directory, and next to converted weights.

    python main.py --config configs/stored.py:celebahq.json --checkpoint celebahq.safetensors \
        --workdir runs/celebahq --mode sample
    python main.py --workdir runs/celebahq --mode sample        # reads runs/celebahq/config.json

Any key can be overridden on the command line, as with configs written in Python.
"""

import json
import os
import pathlib
from collections.abc import Iterator

import torch
from absl import logging
from ml_collections import ConfigDict

import sde_lib
from configs import defaults
from runtime.errors import UserError, reason_of

# The keys outside config.model that define a trained model, and those in it that do not.
DEFINING = {
    'training.sde',
    'training.continuous',
    'data.image_size',
    'data.num_channels',
    'data.centered',
}
TRAINING_ONLY = {'dropout', 'label_dropout', 'ema_rate', 'init_scale'}  # of config.model
PASSING = {'device', 'force_config'}  # valid for one run only


def get_config(path: str | os.PathLike) -> ConfigDict:
    """Return the config in a JSON file, or under its key 'config', with defaults of missing keys.

    Raises:
        UserError: if the file cannot be read or is not a config.
    """
    try:
        found = json.loads(pathlib.Path(path).read_text())
        found = found.get('config', found) if isinstance(found, dict) else found
        if not isinstance(found, dict) or not isinstance(found.get('data'), dict):
            raise TypeError("expected a JSON object with the section 'data'")
        return from_dict(found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f'{path} is not a config: {reason_of(error)}') from error


def from_dict(found: dict) -> ConfigDict:
    """Return the config that was stored as `found`, with defaults and a device of this machine."""
    config = defaults.base(found['data']['dataset'], found['data']['image_size'])
    for key, value in found.items():
        if isinstance(value, dict) and key in config:
            config[key].update(
                {
                    name: tuple(part) if isinstance(part, list) else part
                    for name, part in value.items()
                }
            )
        else:
            config[key] = value
    config.device = 'cuda:0' if torch.cuda.is_available() else 'cpu'
    return config


def write(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Write `config` to `workdir/config.json`, atomically."""
    path = pathlib.Path(workdir, 'config.json')
    partial = path.with_name('config.json.partial')
    partial.write_text(as_json(config, indent=1) + '\n')
    partial.replace(path)


def as_json(config: ConfigDict, indent: int | None = None) -> str:
    """Return the JSON text of a config as it is stored.

    The key `force_config` is left out, because it is valid for one run only.
    """
    return ConfigDict(
        {key: value for key, value in config.to_dict().items() if key != 'force_config'}
    ).to_json(indent=indent)


def differences(config: ConfigDict, stored: ConfigDict) -> Iterator[tuple[str, object, object]]:
    """Yield ('section.key', stored value, value in `config`) for each key that differs.

    Keys of both configs are compared, except PASSING.
    """
    ours = _flat(config)
    for key, value in _flat(stored).items():
        any_case = key.rpartition('.')[2] in ('sde', 'name')  # names of classes
        if key not in ours or key in PASSING:
            continue
        if _plain(ours[key], any_case) != _plain(value, any_case):
            yield key, value, ours[key]


def _flat(config: ConfigDict) -> dict[str, object]:
    """Return {'section.key': value}, and {'key': value} for the keys outside sections."""
    found = {}
    for name, content in config.items():
        if isinstance(content, ConfigDict):
            found |= {f'{name}.{key}': value for key, value in content.items()}
        else:
            found[name] = content
    return found


def _plain(value, any_case: bool = False):
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value.lower() if any_case and isinstance(value, str) else value


def defines_model(key: str, stored: ConfigDict) -> bool:
    """Whether another value of `key` changes the meaning or the shape of a trained network."""
    section, _, name = key.partition('.')
    return (
        key in DEFINING
        or section == 'model'
        and name not in TRAINING_ONLY | _keys_of_other_sdes(stored.training.sde)
    )


def _keys_of_other_sdes(name: str) -> set[str]:
    """Return the keys of `config.model` that other SDEs have but the SDE called `name` does not.

    The set is empty if that SDE is not registered.
    """
    used = sde_lib.SDES.find(name)
    known = {key for other in sde_lib.SDES.names() for key in sde_lib.SDES.get(other).config_keys()}
    return known - set(used.config_keys()) if used else set()


def check(config: ConfigDict, stored: ConfigDict, path: str | os.PathLike) -> None:
    """Raise UserError if `config` defines another model than `stored`, with a line for each key.

    `path` is the checkpoint that was trained with `stored`. If the name of the network differs,
    only the name is reported, because the other keys depend on it. With `config.force_config` the
    lines are logged as warnings instead.
    """
    config, stored = defaults.complete(config), defaults.complete(stored)
    found = {
        key: (old, new)
        for key, old, new in differences(config, stored)
        if defines_model(key, stored)
    }
    lines = {
        key: f'config.{key}={new!r} differs from {old!r}, with which {path} was trained'
        for key, (old, new) in found.items()
    }
    if 'model.name' in lines:
        lines = {'model.name': lines['model.name']}
    if lines and not config.force_config:
        raise UserError('\n'.join(f'{line} (--force_config accepts it)' for line in lines.values()))
    for key in lines:
        logging.warning(
            'Used config.%s=%r, although %s was trained with %r.',
            key,
            found[key][1],
            path,
            found[key][0],
        )
