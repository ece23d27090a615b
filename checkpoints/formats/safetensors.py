"""Weights alone, in a safetensors file, under the network's names; the config as JSON beside them,
and in the header what they are.
"""

import pathlib
import types

import safetensors
import safetensors.torch
from ml_collections import ConfigDict

from configs import stored
from runtime.errors import CheckpointError

from .torch_zip import bare


def matches(path: pathlib.Path) -> bool:
    """A header length in eight bytes, then JSON."""
    if not path.is_file():
        return False
    with open(path, 'rb') as file:
        return file.read(9)[8:] == b'{'


def load(path, device='cpu') -> tuple[dict, dict]:
    """Tensors by name, and the notes in the header."""
    try:
        with safetensors.safe_open(str(path), 'pt', device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f'{path} cannot be read as safetensors: {error}') from error


def config_of(path) -> ConfigDict | None:
    """The config beside the file, where there is one."""
    beside = pathlib.Path(path).with_suffix('.json')
    return stored.get_config(beside) if beside.is_file() else None


def read(path, network, device='cpu') -> dict:
    """The weights, which stand for their average too."""
    weights, notes = load(path, device)
    weights = bare(weights)
    return dict(model=weights, ema=dict(named=weights), step=int(notes.get('step', 0)))


def save(path, weights: dict, notes: dict = types.MappingProxyType({})):
    """A file of tensors by name, with notes in its header."""
    path.write_bytes(
        safetensors.torch.save(
            {name: value.contiguous() for name, value in weights.items()},
            {'format': 'pt'} | {key: str(value) for key, value in notes.items()},
        )
    )


def write(path, network, weights: dict, config, notes: dict):
    """`weights` by the names of the network, `notes` in the header, and the config beside."""
    path = pathlib.Path(path)
    save(path, weights, notes)
    path.with_suffix('.json').write_text(config.to_json_best_effort(indent=1) + '\n')
