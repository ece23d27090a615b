"""Read and write pipeline folders of diffusers without that library.

    model_index.json
    unet/{config.json, diffusion_pytorch_model.safetensors}
    scheduler/scheduler_config.json

Two families of the `UNet2DModel` of diffusers are also networks of this library. Networks of blocks
named Skip are NCSN++ with input and output skips (`ncsnpp.SkipUNets`); networks of plain blocks are
DDPM (`ddpm.PlainUNets`).
"""

import json
import os
import pathlib

import torch
from ml_collections import ConfigDict

from configs import stored
from models.ncsnpp import NCSNpp
from models.unet import UNet
from runtime.errors import CheckpointError, UserError, reason_of

from .. import safetensors
from ..layouts import to_ours, to_theirs
from .ddpm import PlainUNets, adding_nothing, adds_nothing
from .family import Family, network_of
from .folder import WEIGHTS, load, read_json, read_scheduler, unet_folder
from .ncsnpp import SkipUNets

# This file, next to model_index.json, has the whole config, the step and the kind of weights.
OUR_CONFIG = 'score_sde_config.json'
SKIP, PLAIN = SkipUNets(), PlainUNets()


def matches(path: pathlib.Path) -> bool:
    """Return whether a folder contains a pipeline or a network."""
    return path.is_dir() and any(
        (path / name).is_file() for name in ('model_index.json', 'config.json', 'unet/config.json')
    )


def family_of(network_or_config: UNet | ConfigDict) -> Family | None:
    """Return the family to which a network or config of ours may belong, or None."""
    if isinstance(network_or_config, ConfigDict):
        name = network_or_config.model.name
        return {'ddpm': PLAIN, 'ncsnpp': SKIP, 'ddpmpp': SKIP}.get(name)
    return SKIP if isinstance(network_or_config, NCSNpp) else PLAIN


# Reading ------------------------------------------------------------------------------------------


def config_of(path: str | os.PathLike, with_scheduler: bool = True) -> ConfigDict:
    """Return the config of a folder: our own config file, or else a config from its settings.

    Args:
        path: folder of a pipeline or of a network.
        with_scheduler: also read the noise levels; if False, only the network is described.

    Raises:
        CheckpointError: if no network of this library has these settings.
    """
    path = pathlib.Path(path)
    if (path / OUR_CONFIG).is_file():
        return stored.get_config(path / OUR_CONFIG)
    unet = read_json(unet_folder(path) / 'config.json')
    try:
        family = _family_of_settings(unet)
        config = family.config_of(path, unet)
    except UserError:
        raise
    except ValueError as error:
        raise CheckpointError(f'{path} is not a supported UNet2DModel: {error}') from error
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise CheckpointError(
            f'{path} is not a supported UNet2DModel: a setting in its config.json has a wrong type '
            f'or value ({reason_of(error)})'
        ) from error
    if with_scheduler:
        _read_noise_levels(path, family, config)
    return config


def _family_of_settings(unet: dict) -> Family:
    """Return the family of a `UNet2DModel` from its blocks; raise ValueError if it has none."""
    down, up = list(unet.get('down_block_types', ())), list(unet.get('up_block_types', ()))
    mirrored = up == [name.replace('Down', 'Up') for name in reversed(down)]
    family = next((family for family in (SKIP, PLAIN) if family.has_blocks(down)), None)
    kind = unet.get('_class_name', 'UNet2DModel')
    if kind != 'UNet2DModel' or not down or family is None or not mirrored:
        raise ValueError(
            'expected a UNet2DModel of plain blocks or of Skip blocks, with the same attention on '
            f'the way down and up, got {kind} with the blocks {", ".join(map(str, down + up))}'
        )
    return family


def _read_noise_levels(path: pathlib.Path, family: Family, config: ConfigDict):
    file, scheduler = read_scheduler(path)
    kind = scheduler.get('_class_name') or 'a scheduler without a name'
    if kind not in family.schedulers:
        raise CheckpointError(
            f'{file}: expected {" or ".join(family.schedulers)} for this network, got {kind}'
        )
    try:
        family.read_scheduler(config, scheduler)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f'{file} has unsupported settings: {error}') from error


def read(
    path: str | os.PathLike, network: torch.nn.Module, device: str | torch.device = 'cpu'
) -> dict:
    """Return a training state in which the weights of the folder are also the EMA weights.

    Raises:
        CheckpointError: if the network in the folder is not the network of the config.
    """
    path = pathlib.Path(path)
    if not isinstance(network, UNet):
        raise CheckpointError(
            f'{path} is a diffusers network: expected a ddpm or ncsnpp network in the config, '
            f'got {type(network).__name__}'
        )
    weights = load(path)
    _check_same_network(path, network)
    family = family_of(network)
    spare = family.spare(network)
    for attention in spare:
        if not adds_nothing(weights, attention):
            raise CheckpointError(
                f'{path} does not fit the network of the config: the layer {attention} needs '
                "config.model.up_attention='block'"
            )
    dropped = tuple(f'{attention}.' for attention in spare)
    kept = {
        name: value for name, value in weights.items() if not (dropped and name.startswith(dropped))
    }
    found = to_ours(family.table(network), kept, network)
    notes = read_json(path / OUR_CONFIG) if (path / OUR_CONFIG).is_file() else {}
    return dict(model=found, ema=dict(named=found), step=notes.get('step', 0))


def _check_same_network(path: pathlib.Path, network: UNet):
    """Raise CheckpointError if the network differs from the one that the folder describes."""
    reference = network_of(config_of(path, with_scheduler=False))
    same_names = network.state_dict().keys() == reference.state_dict().keys()
    pairs = zip(_settings_of(network, same_names), _settings_of(reference, same_names))
    details = [
        f'{there} in the folder, {here.partition(": ")[2]} by the config'
        for here, there in pairs
        if here != there
    ]
    if details:
        more = f', and {len(details) - 1} more' if len(details) > 1 else ''
        raise CheckpointError(
            f'{path} does not fit the network of the config: {details[0]}{more}', details
        )


def _settings_of(network: UNet, with_layers: bool) -> list[str]:
    """Return the settings of a network that are not parameters, also those of its layers."""
    names = (
        'embedding',
        'centers',
        'scale_by_sigma',
        'skip_rescale',
        'progressive',
        'progressive_input',
    )
    found = [f'network: {type(network).__name__}']
    found += [f'{name}: {getattr(network, name)}' for name in names]
    if with_layers:
        layers = list(network.named_modules())
        found += [f'{name}: {layer}' for name, layer in layers if not next(layer.children(), None)]
        found += [
            f'{name}: {layer.heads} heads' for name, layer in layers if hasattr(layer, 'heads')
        ]
    return found


# Writing ------------------------------------------------------------------------------------------


def unfit(config: ConfigDict) -> list[str]:
    """Return the reasons why the network of a config cannot be a diffusers pipeline, if any."""
    family = family_of(config)
    if family is None:
        return [f'config.model.name={config.model.name!r}: diffusers has only U-Nets']
    return family.unfit(config)


def write(
    path: str | os.PathLike, network: UNet, weights: dict, config: ConfigDict, notes: dict
) -> None:
    """Write a pipeline folder.

    Raises:
        UserError: if diffusers cannot express the network.
    """
    if faults := unfit(config):
        raise UserError('diffusers cannot express this network: ' + '; '.join(faults))
    path = pathlib.Path(path)
    family = family_of(config)
    theirs = to_theirs(family.table(network), weights)
    for attention, channels in family.spare(network).items():
        theirs |= adding_nothing(attention, channels)
    scheduler = family.scheduler_config(config)
    files = {
        'unet/config.json': family.unet_config(config),
        'scheduler/scheduler_config.json': scheduler,
        OUR_CONFIG: dict(notes, config=json.loads(config.to_json_best_effort())),
        'model_index.json': dict(
            _class_name=family.pipeline,
            scheduler=['diffusers', scheduler['_class_name']],
            unet=['diffusers', 'UNet2DModel'],
        ),
    }
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(content, indent=2) + '\n')
    safetensors.save(path / 'unet' / WEIGHTS[0], theirs)
