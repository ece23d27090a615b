"""Checkpoints of others, read as ours: what a file is, and its weights under the names of the
network that a config describes.

| format | what it is | read | written |
|---|---|---|---|
| `pytorch` | `.pth` of this library, the 2021 PyTorch release, or NCSN (a list) | yes | ours |
| `flax` | a training state of the 2021 JAX release: `checkpoint_N`, msgpack | U-Nets | no |
| `diffusers` | its pipeline folder, or the `unet` in it | U-Nets | if its blocks can |
| `safetensors` | weights alone, the config in a JSON file beside them | yes | yes |

Nothing in a file is executed. Names are translated by tables that follow from the network, so that
nothing is guessed.
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from runtime.errors import CheckpointError

from . import diffusers, jax, safetensors, torch_zip


class Format(NamedTuple):
    """`matches(path)`; `read(path, network, device)` -> a training state; `config_of(path)` -> the
    config or None; `write(path, network, weights, config, notes)`.
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


def guess(path) -> str:
    """The format of a file by its first bytes, of a folder by what is in it; CheckpointError where
    none fits.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise CheckpointError(f'there is no checkpoint {path}')
    try:
        found = next((name for name, format in FORMATS.items() if format.matches(path)), None)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror}') from error
    if found is None:
        raise CheckpointError(
            f'{path} is no checkpoint of a kind known here '
            f'({", ".join(FORMATS)}); it may be damaged'
        )
    return found


def read(path, network, device='cpu') -> dict:
    """The training state in a file or folder, for a network of ours: 'model', 'step', and 'ema' and
    'optimizer' where it has them.

    Tensors go by our names, with or without 'module.'; those that the network does not have keep
    the names they have there. 'ema' is the state of our moving average, or has its tensors under
    'named'.
    """
    return FORMATS[guess(path)].read(path, network, device)


def config_of(path):
    """The config that a file or folder brings along; None where it has none."""
    return FORMATS[guess(path)].config_of(path)
