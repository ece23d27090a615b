"""Formats of checkpoints: detect the format of a file, read and write weights under our names.

| format | content | can be read | can be written |
|---|---|---|---|
| `pytorch` | `.pth` of this library, the 2021 PyTorch release, or NCSN (a list) | yes | not NCSN |
| `flax` | a training state of the 2021 JAX release: `checkpoint_N`, msgpack | U-Nets | no |
| `diffusers` | a pipeline folder of diffusers, or the `unet` in it | U-Nets | some U-Nets |
| `safetensors` | only weights; the config is in a JSON file next to them | yes | yes |

Loading never executes code from a file. Tables derived from the network translate the names of
tensors.
"""

import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from ml_collections import ConfigDict

from runtime.errors import CheckpointError

from . import diffusers, jax, safetensors, torch_zip


class Format(NamedTuple):
    """The functions of a format.

    Args:
        matches: `matches(path)` returns whether a file or folder has this format.
        read: `read(path, network, device)` returns a training state.
        config_of: `config_of(path)` returns the config or None.
        write: `write(path, network, weights, config, notes)`; None if writing is not supported.
    """

    matches: Callable
    read: Callable
    config_of: Callable = lambda path: None
    write: Callable | None = None


FORMATS = {
    'diffusers': Format(diffusers.matches, diffusers.read, diffusers.config_of, diffusers.write),
    'safetensors': Format(
        safetensors.matches, safetensors.read, safetensors.config_of, safetensors.write
    ),
    'pytorch': Format(torch_zip.matches, torch_zip.read),
    'flax': Format(jax.matches, jax.read),
}


def guess(path: str | os.PathLike) -> str:
    """Detect the format of a file from its first bytes, or of a folder from its files.

    Raises:
        CheckpointError: if `path` does not exist, or no format matches.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise CheckpointError(f'checkpoint {path} does not exist')
    try:
        found = next((name for name, format in FORMATS.items() if format.matches(path)), None)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror}') from error
    if found is None:
        raise CheckpointError(
            f'{path} is not a checkpoint of a known format ({", ".join(FORMATS)}); '
            'it may be corrupt'
        )
    return found


def read(
    path: str | os.PathLike, network: torch.nn.Module, device: str | torch.device = 'cpu'
) -> dict:
    """Return the training state in a file or folder, for one of our networks.

    Args:
        path: file or folder.
        network: the network, without DataParallel.
        device: where tensors are loaded to.

    Returns:
        A dict with 'model' and 'step', and with 'ema' and 'optimizer' if the file has them. Tensors
        have our names, with or without 'module.'; tensors that the network does not have keep the
        names of the file. 'ema' is the state of our moving average, or has its tensors under
        'named'.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    return FORMATS[guess(path)].read(path, network, device)


def config_of(path: str | os.PathLike) -> ConfigDict | None:
    """Return the config stored in or next to a file or folder, or None."""
    return FORMATS[guess(path)].config_of(path)
