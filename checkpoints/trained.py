"""Load trained networks from checkpoints, by path or by name.

    path = locate('runs/quickstart')  # or 'mnist-vp', 'google/ddpm-cifar10-32', a file
    network = load_averaged_model(checkpoints.config_of(path), path)

`score_model.ScoreModel.load` does this and adds the SDE and the scaling of the data.
"""

import json
import os
import pathlib

import torch
from absl import logging
from ml_collections import ConfigDict

import checkpoints
import sde_lib
from checkpoints import formats
from configs import defaults
from models.ema import ExponentialMovingAverage
from models.utils import create_model
from runtime.errors import CheckpointError, UserError

# networks that come with the library, as {name}.safetensors
PRETRAINED = pathlib.Path(__file__).parents[1] / 'assets' / 'pretrained'


def load_averaged_model(config: ConfigDict, path: str | os.PathLike) -> torch.nn.Module:
    """Load the network of a checkpoint with its EMA weights.

    The network is in evaluation mode, and its parameters require no gradients.

    Args:
        config: the config of the network; must not contradict the config in the checkpoint.
        path: a checkpoint of any of the formats of `checkpoints.formats`.

    Raises:
        CheckpointError: if the file is missing, corrupt, or does not fit the network.
        UserError: if the config in the checkpoint defines another network.
    """
    model = create_model(config)  # before `complete`: keys without a default must be in the config
    config = defaults.complete(config)
    state = dict(
        model=model,
        ema=ExponentialMovingAverage(model.parameters(), decay=config.model.ema_rate),
        step=0,
    )
    checkpoints.restore(path, state, config.device, config=config)
    state['ema'].copy_to(model.parameters())
    logging.info('Loaded %s (training step %d).', path, state['step'])
    return model.eval().requires_grad_(False)


def load_classifier(path: str | os.PathLike, config: ConfigDict) -> torch.nn.Module:
    """Load a classifier of noisy images that guides the model of `config`.

    Args:
        path: a checkpoint of `--mode classifier`, or its work directory.
        config: the config of the model to guide. Its SDE, image size and scaling must be those that
            the classifier was trained with.

    Raises:
        UserError: if the checkpoint is not a classifier, or was trained for another SDE or data.
    """
    path = checkpoints.latest(path) if pathlib.Path(path).is_dir() else pathlib.Path(path)
    content = checkpoints.load(path)
    # files of earlier versions have no key 'kind'
    if 'config' not in content or content.get('kind', 'classifier') != 'classifier':
        raise UserError(f'{path} is not a classifier checkpoint: train one with --mode classifier')
    own = defaults.complete(ConfigDict(json.loads(content['config'])))
    shared = [('training', 'sde')]
    shared += [('model', key) for key in sde_lib.get_sde(config).config_keys()]
    shared += [('data', key) for key in ('image_size', 'num_channels', 'centered')]
    for section, key in shared:
        trained, wanted = own[section].get(key), config[section].get(key)
        if trained != wanted:
            raise UserError(
                f'the classifier {path} was trained with config.{section}.{key}={trained}, '
                f'but this config has {wanted}: they must be equal'
            )
    own.device = config.device
    return load_averaged_model(own, path)


def locate(path: str | os.PathLike) -> pathlib.Path:
    """Return the checkpoint at a path, or of a model name.

    Args:
        path: a checkpoint, a work directory (its latest checkpoint), a folder with
            `model.safetensors` or a diffusers pipeline, the name of a model that comes with the
            library, or a repository of the Hugging Face hub, which is downloaded.

    Raises:
        CheckpointError: if no checkpoint is found.
    """
    place = pathlib.Path(path).expanduser()
    if not place.exists():
        place = _by_name(str(path))
    if (place / 'model.safetensors').is_file():
        return place / 'model.safetensors'
    is_workdir = (place / 'checkpoints').is_dir() or (place / 'checkpoints-meta').is_dir()
    if is_workdir or (place.is_dir() and not formats.diffusers.matches(place)):
        return checkpoints.latest(place)
    return place


def _by_name(name: str) -> pathlib.Path:
    """Return the file of a pretrained model, or the downloaded folder of a hub repository."""
    own = PRETRAINED / f'{name}.safetensors'
    if own.is_file():
        return own
    known = ', '.join(sorted(path.stem for path in PRETRAINED.glob('*.safetensors')))
    missing = f'no file, folder or pretrained model is called {name!r} (pretrained models: {known})'
    is_file = pathlib.Path(name).suffix in ('.pth', '.pt', '.safetensors')
    if name.count('/') != 1 or name[0] in './~' or is_file:
        raise CheckpointError(missing)
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise CheckpointError(
            f'{missing}; for a repository of the Hugging Face hub install huggingface_hub'
        ) from None
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ['*.json', '*.safetensors', '*.bin']
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f'{missing}; the Hugging Face hub reports: {str(error).splitlines()[0]}'
        ) from error
