"""Safetensors: weights under the names of the network, with the config in a JSON file next to them.

The header contains the step, and whether the weights are averaged (EMA) or raw.
"""

import os
import pathlib
import types
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch
from ml_collections import ConfigDict

from configs import stored
from runtime.errors import CheckpointError

from .torch_zip import bare


def matches(path: pathlib.Path) -> bool:
    """Return whether a file begins with a header length (eight bytes), followed by JSON."""
    if not path.is_file():
        return False
    with open(path, 'rb') as file:
        return file.read(9)[8:] == b'{'


def load(path: str | os.PathLike, device: str | torch.device = 'cpu') -> tuple[dict, dict]:
    """Return the tensors by name, and the notes in the header."""
    try:
        with safetensors.safe_open(str(path), 'pt', device=str(device)) as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f'{path} cannot be read as safetensors: {error}') from error


def config_of(path: str | os.PathLike) -> ConfigDict | None:
    """Return the config in the JSON file next to the file, or None."""
    beside = pathlib.Path(path).with_suffix('.json')
    return stored.get_config(beside) if beside.is_file() else None


def read(
    path: str | os.PathLike, network: torch.nn.Module, device: str | torch.device = 'cpu'
) -> dict:
    """Return a training state in which the weights of the file are also the EMA weights."""
    weights, notes = load(path, device)
    weights = bare(weights)
    return dict(model=weights, ema=dict(named=weights), step=int(notes.get('step', 0)))


def save(path: pathlib.Path, weights: dict, notes: Mapping = types.MappingProxyType({})) -> None:
    """Write tensors by name, with notes in the header."""
    path.write_bytes(
        safetensors.torch.save(
            {name: value.contiguous() for name, value in weights.items()},
            {'format': 'pt'} | {key: str(value) for key, value in notes.items()},
        )
    )


def write(
    path: str | os.PathLike,
    network: torch.nn.Module,
    weights: dict,
    config: ConfigDict,
    notes: dict,
) -> None:
    """Write `weights` with `notes` in the header, and the config next to them."""
    path = pathlib.Path(path)
    save(path, weights, notes)
    path.with_suffix('.json').write_text(config.to_json_best_effort(indent=1) + '\n')
