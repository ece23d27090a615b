"""Networks from checkpoints, and where checkpoints of a name lie."""

import json
import pathlib

from absl import logging
from ml_collections import ConfigDict

import checkpoints
import sde_lib
from checkpoints import formats
from configs import defaults
from models.ema import ExponentialMovingAverage
from models.utils import create_model
from runtime.errors import CheckpointError, UserError

PRETRAINED = pathlib.Path(__file__).parents[1] / 'assets' / 'pretrained'


def load_averaged_model(config, path):
    """The network of a checkpoint, with its averaged weights, ready to sample from; its parameters
    take no gradients.
    """
    model = create_model(config)  # reports keys that must not have a default
    config = defaults.complete(config)
    state = dict(
        model=model,
        ema=ExponentialMovingAverage(model.parameters(), decay=config.model.ema_rate),
        step=0,
    )
    checkpoints.restore(path, state, config.device, config=config)
    state['ema'].copy_to(model.parameters())
    logging.info('Loaded %s, of training step %d.', path, state['step'])
    return model.eval().requires_grad_(False)


def load_classifier(path, config):
    """Load a classifier of noisy images for the models of `config`.

    Args:
        path: a checkpoint of `--mode classifier`, or its work directory.
        config: of the model that it is to guide; SDE, image size and scaling must agree.
    """
    path = checkpoints.latest(path) if pathlib.Path(path).is_dir() else pathlib.Path(path)
    content = checkpoints.load(path)
    # older files do not say the kind
    if 'config' not in content or content.get('kind', 'classifier') != 'classifier':
        raise UserError(f'{path} is not a classifier checkpoint: train one with --mode classifier')
    own = defaults.complete(ConfigDict(json.loads(content['config'])))
    of_sde = sde_lib.get_sde(config).config_keys()
    for section, keys in (
        ('training', ['sde']),
        ('model', of_sde),
        ('data', ['image_size', 'num_channels', 'centered']),
    ):
        for key in keys:
            if own[section].get(key) != config[section].get(key):
                raise UserError(
                    f'the classifier {path} was trained with '
                    f'{section}.{key}={own[section].get(key)}, but the config has '
                    f'{config[section].get(key)}: they must be equal'
                )
    own.device = config.device
    return load_averaged_model(own, path)


def locate(path) -> pathlib.Path:
    """The checkpoint that `path` stands for, see `ScoreModel.load`."""
    place = pathlib.Path(path).expanduser()
    if not place.exists():
        place = _by_name(str(path))
    if (place / 'model.safetensors').is_file():
        return place / 'model.safetensors'
    is_workdir = (place / 'checkpoints').is_dir() or (place / 'checkpoints-meta').is_dir()
    return (
        checkpoints.latest(place)
        if is_workdir or place.is_dir() and not formats.diffusers.matches(place)
        else place
    )


def _by_name(name: str) -> pathlib.Path:
    """The file of a model that comes with the library, or the folder of a repository of the Hugging
    Face hub.
    """
    own = PRETRAINED / f'{name}.safetensors'
    if own.is_file():
        return own
    known = ', '.join(sorted(path.stem for path in PRETRAINED.glob('*.safetensors')))
    missing = f'no file, folder or pretrained model is called {name!r} (pretrained models: {known})'
    if (
        name.count('/') != 1
        or name[0] in './~'
        or pathlib.Path(name).suffix in ('.pth', '.pt', '.safetensors')
    ):
        raise CheckpointError(missing)
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise CheckpointError(
            f'{missing}; for a repository of the Hugging Face hub install huggingface_hub'
        ) from None
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=['*.json', '*.safetensors', '*.bin']
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f'{missing}; the Hugging Face hub answers: {str(error).splitlines()[0]}'
        ) from error
