"""A config that was written beside a checkpoint: a JSON file.

    python main.py --config configs/stored.py:celebahq.json --checkpoint celebahq.safetensors --workdir runs/celebahq --mode sample

Any key can be set on the command line, as in the configs that are Python.
"""
import json
import pathlib

import torch
from ml_collections import ConfigDict

from configs import defaults
from errors import UserError


def get_config(path: str) -> ConfigDict:
    """The config in the file, or under 'config' in it; keys that it lacks have their defaults. UserError where it cannot be read."""
    try:
        found = json.loads(pathlib.Path(path).read_text())
        found = found.get('config', found)
        config = defaults.base(found['data']['dataset'], found['data']['image_size'])
        for key, value in found.items():
            if isinstance(value, dict) and key in config:
                config[key].update({name: tuple(part) if isinstance(part, list) else part for name, part in value.items()})
            else:
                config[key] = value
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f'{path} holds no config: {error}') from error
    config.device = 'cuda:0' if torch.cuda.is_available() else 'cpu'
    return config
