"""Read the files in a diffusers folder: settings in JSON, and the weights of the network."""

import json
import pathlib

import torch

from runtime.errors import CheckpointError

from .. import safetensors, torch_zip

WEIGHTS = (
    'diffusion_pytorch_model.safetensors',
    'diffusion_pytorch_model.bin',
    'diffusion_pytorch_model.fp16.safetensors',
)
# Names of the layers of attention in files from before 2023.
OLD_NAMES = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}


def read_json(path: pathlib.Path) -> dict:
    """Return the settings in a JSON file, by name.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f'{path} cannot be read: {error}') from error
    if not isinstance(found, dict):
        raise CheckpointError(f'{path} cannot be read: expected a JSON object with settings')
    return found


def unet_folder(path: pathlib.Path) -> pathlib.Path:
    """Return the folder of the network: `unet`, or `path` itself."""
    return path / 'unet' if (path / 'unet').is_dir() else path


def read_scheduler(path: pathlib.Path) -> tuple[pathlib.Path, dict]:
    """Return the file with the settings of the scheduler, and its settings.

    Raises:
        CheckpointError: if the folder has no such file.
    """
    places = (path / 'scheduler' / 'scheduler_config.json', path / 'scheduler_config.json')
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise CheckpointError(
            f'{path} has no scheduler, which defines the noise levels of its training: '
            'pass --config'
        )
    return file, read_json(file)


def load(path: pathlib.Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the network, under the names in current versions of diffusers.

    Raises:
        CheckpointError: if there are no weights, or they cannot be read.
    """
    folder = unet_folder(path)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f'{folder} has no weights: none of {", ".join(WEIGHTS)}')
    weights = torch_zip.load(file) if file.suffix == '.bin' else safetensors.load(file)[0]
    if not isinstance(weights, dict):
        raise CheckpointError(
            f'{file}: expected a dict of weights by name, got {type(weights).__name__}'
        )
    renamed = {_present_name(name): value for name, value in weights.items()}
    # Older files have the frequencies under both names, or only under the old name.
    old, new = (renamed.get(f'time_proj.{name}') for name in ('W', 'weight'))
    if old is not None and (new is None or torch.equal(old, new)):
        renamed['time_proj.weight'] = renamed.pop('time_proj.W')
    return renamed


def _present_name(name: str) -> str:
    parts = name.split('.')
    if 'attentions' in parts and len(parts) > 1:
        parts[-2] = OLD_NAMES.get(parts[-2], parts[-2])
    return '.'.join(parts)
