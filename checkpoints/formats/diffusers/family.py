"""Base class of the two families of `UNet2DModel`: common settings, and names of parameters.

A family reads the settings of a folder into a config, writes them from a config, and contains the
table of names. `ncsnpp` and `ddpm` define the two families.
"""

import math
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import torch
from ml_collections import ConfigDict
from torch import nn

from configs import defaults
from configs.defaults import complete
from models.unet import DownLevel, UNet, UpLevel
from models.utils import get_model

from ..layouts import PIXEL, SAME, TRANSPOSED, Entry, Layout


class Setting(NamedTuple):
    """Accepted values of a setting, and its value if the file does not contain it."""

    default: object
    accepted: tuple


COMMON_SETTINGS = dict(
    act_fn=Setting('silu', ('silu', 'swish')),
    norm_eps=Setting(1e-5, (1e-6,)),
    resnet_time_scale_shift=Setting('default', ('default',)),
    add_attention=Setting(True, (True,)),
    attn_norm_num_groups=Setting(None, (None,)),
    class_embed_type=Setting(None, (None,)),
    num_class_embeds=Setting(None, (None,)),
    mid_block_type=Setting('UNetMidBlock2D', ('UNetMidBlock2D',)),
    time_embedding_dim=Setting(None, (None,)),
)
COMMON_CONFIG = {'model.conditional': True, 'model.nonlinearity': 'swish', 'model.num_classes': 0}


def rejected(settings: dict, table: dict[str, Setting]) -> list[str]:
    """Return a sentence for each setting that does not have an accepted value."""
    faults = []
    for key, (default, accepted) in table.items():
        got = settings.get(key, default)
        if not any(_equal(got, value) for value in accepted):
            faults.append(f'{key} must be {" or ".join(map(repr, accepted))}, got {key}={got!r}')
    return faults


def _equal(got, value) -> bool:
    if isinstance(got, float) and isinstance(value, (int, float)):
        return math.isclose(got, value, rel_tol=1e-6)
    return got == value


def network_of(config: ConfigDict) -> UNet:
    """Return the network of a config on the device 'meta', where tensors have no values."""
    with torch.device('meta'):
        return get_model(config.model.name)(config)


class Family:
    """One family of `UNet2DModel`. Subclasses set the attributes and define the missing methods."""

    name: str  # name in errors
    kind: str  # part of the names of the blocks
    settings: dict[str, Setting]  # required settings of the UNet2DModel
    config_values: dict[str, object]  # required values of our config
    pipeline: str
    schedulers: tuple[str, ...]

    # Reading --------------------------------------------------------------------------------------

    def has_blocks(self, names: Iterable[str]) -> bool:
        """Return whether the named blocks of the way down belong to this family."""
        return set(names) <= {f'{self.kind}DownBlock2D', f'Attn{self.kind}DownBlock2D'}

    def config_of(self, path: pathlib.Path, unet: dict) -> ConfigDict:
        """Return the config of a network, without the noise levels of its SDE.

        Args:
            path: the folder.
            unet: settings of the `UNet2DModel`.

        Raises:
            ValueError: if no network of this library has these settings.
        """
        if faults := rejected(unet, self.settings):
            raise ValueError('; '.join(faults))
        widths = list(unet.get('block_out_channels', ()))
        size = unet.get('sample_size')
        size = size[0] if isinstance(size, (list, tuple)) else size
        if not size or not widths or any(width % widths[0] for width in widths):
            raise ValueError(
                'expected a sample_size, and block_out_channels that are multiples of the first, '
                f'got sample_size={size}, block_out_channels={widths}'
            )
        attends = [name.startswith('Attn') for name in unet['down_block_types']]
        config = defaults.base('FOLDER', size)
        self.set_defaults(config)
        config.data.num_channels = unet.get('in_channels', 3)
        config.model.update(
            nf=widths[0],
            ch_mult=tuple(width // widths[0] for width in widths),
            num_res_blocks=unet.get('layers_per_block', 2),
            attn_resolutions=tuple(size // 2**i for i, here in enumerate(attends) if here),
            dropout=unet.get('dropout', 0.0),
            attn_head_dim=unet.get('attention_head_dim', 8) or 0,
        )
        self.read_settings(config, path, unet)
        return config

    def set_defaults(self, config: ConfigDict) -> None:
        """Set the values that all networks of the family have in common."""
        raise NotImplementedError

    def read_settings(self, config: ConfigDict, path: pathlib.Path, unet: dict) -> None:
        """Set the values that only this family has; raise ValueError if we have no such network."""
        raise NotImplementedError

    def read_scheduler(self, config: ConfigDict, scheduler: dict) -> None:
        """Set the noise levels from a scheduler's settings; raise ValueError if not supported."""
        raise NotImplementedError

    # Writing --------------------------------------------------------------------------------------

    def unfit(self, config: ConfigDict) -> list[str]:
        """Return a sentence for each value of a config that diffusers cannot express."""
        config = complete(config)
        faults = []
        for key, value in (self.config_values | COMMON_CONFIG).items():
            section, name = key.split('.')
            got = config[section][name]
            if (list(got) if isinstance(value, list) else got) != value:
                faults.append(
                    f'config.{key}={got!r}, but {self.name} networks of diffusers have {value!r}'
                )
        return faults

    def unet_config(self, config: ConfigDict) -> dict:
        """Return the settings of the `UNet2DModel` that is the network of a config."""
        model, data = complete(config).model, config.data
        levels = range(len(model.ch_mult))
        attends = [data.image_size // 2**i in model.attn_resolutions for i in levels]
        down = [f'{"Attn" if here else ""}{self.kind}DownBlock2D' for here in attends]
        return dict(
            _class_name='UNet2DModel',
            sample_size=data.image_size,
            in_channels=data.num_channels,
            out_channels=data.num_channels,
            block_out_channels=[model.nf * mult for mult in model.ch_mult],
            layers_per_block=model.num_res_blocks,
            down_block_types=down,
            up_block_types=[name.replace('Down', 'Up') for name in reversed(down)],
            act_fn='silu',
            norm_eps=1e-6,
            attention_head_dim=model.attn_head_dim or None,
            dropout=float(model.dropout),
            flip_sin_to_cos=False,
            **self.written_settings(model),
        )

    def written_settings(self, model: ConfigDict) -> dict:
        """Return the settings of the `UNet2DModel` that only this family has."""
        raise NotImplementedError

    def scheduler_config(self, config: ConfigDict) -> dict:
        """Return the settings of the scheduler whose sampling is closest to that of the config."""
        raise NotImplementedError

    # Names ----------------------------------------------------------------------------------------

    def table(self, network: UNet) -> dict[str, Entry]:
        """Return {our name: entry} with the names of a network's parameters in diffusers."""
        modules = network.all_modules
        names = {}
        if network.fourier is not None:
            names[f'{place(network.fourier)}.W'] = Entry('time_proj.weight')
        for position, there in zip(network.embedding_layers, ('linear_1', 'linear_2')):
            names |= layer(place(position), f'time_embedding.{there}')
        names |= layer(place(network.stem), 'conv_in')
        for way, levels in (('down', network.down_levels), ('up', network.up_levels)):
            for i, level in enumerate(levels):
                names |= self.level(modules, level, way, f'{way}_blocks.{i}')
        first, middle, second = network.bottom
        names |= block(modules, first, 'mid_block.resnets.0')
        names |= attention(middle, 'mid_block.attentions.0')
        names |= block(modules, second, 'mid_block.resnets.1')
        return names | self.outputs(network)

    def spare(self, network: UNet) -> dict[str, int]:
        """Return the attentions that only the `UNet2DModel` has, with their channels."""
        return {}

    def level(
        self, modules: nn.ModuleList, level: DownLevel | UpLevel, way: str, there: str
    ) -> dict[str, Entry]:
        """Return the names of a level of blocks.

        Args:
            modules: all modules of the network.
            level: `models.unet.DownLevel` or `UpLevel`.
            way: 'down' or 'up'.
            there: name of the level in diffusers.
        """
        names = {}
        for j, (position, attends) in enumerate(level.blocks):
            names |= block(modules, position, f'{there}.resnets.{j}')
            if attends is not None:
                names |= attention(attends, f'{there}.attentions.{self.attention_number(way, j)}')
        if level.resample is not None:
            names |= self.resampling(modules, level.resample, way, there)
        return names

    def attention_number(self, way: str, number: int) -> int:
        """Return the number in diffusers of the attention after a block."""
        return number

    def resampling(
        self, modules: nn.ModuleList, position: int, way: str, there: str
    ) -> dict[str, Entry]:
        """Return the names of the layer that resamples a level's output."""
        raise NotImplementedError

    def outputs(self, network: UNet) -> dict[str, Entry]:
        """Return the names of the output layers, which convert features to images."""
        raise NotImplementedError


# Names of layers ----------------------------------------------------------------------------------


def place(position: int) -> str:
    """Return our name of the module at a position."""
    return f'all_modules.{position}'


def layer(own: str, there: str, layout: Layout = SAME) -> dict[str, Entry]:
    """Return the names of the weight and bias of a layer."""
    return {
        f'{own}.weight': Entry(f'{there}.weight', layout),
        f'{own}.bias': Entry(f'{there}.bias'),
    }


def matrix(own: str, there: str, layout: Layout) -> dict[str, Entry]:
    """Return the names of our W and b, which are a weight and a bias in diffusers."""
    return {f'{own}.W': Entry(f'{there}.weight', layout), f'{own}.b': Entry(f'{there}.bias')}


def block(modules: nn.ModuleList, position: int, there: str) -> dict[str, Entry]:
    """Return the names of a residual block."""
    own, shortcut = place(position), modules[position].projection
    pairs = dict(
        GroupNorm_0='norm1',
        Conv_0='conv1',
        Dense_0='time_emb_proj',
        GroupNorm_1='norm2',
        Conv_1='conv2',
    )
    names = {}
    for ours, theirs in pairs.items():
        names |= layer(f'{own}.{ours}', f'{there}.{theirs}')
    if not shortcut:
        return names
    if shortcut.startswith('NIN'):
        return names | matrix(f'{own}.{shortcut}', f'{there}.conv_shortcut', PIXEL)
    return names | layer(f'{own}.{shortcut}', f'{there}.conv_shortcut')


def attention(position: int, there: str) -> dict[str, Entry]:
    """Return the names of an attention block."""
    own = place(position)
    names = layer(f'{own}.GroupNorm_0', f'{there}.group_norm')
    for i, name in enumerate(('to_q', 'to_k', 'to_v', 'to_out.0')):
        names |= matrix(f'{own}.NIN_{i}', f'{there}.{name}', TRANSPOSED)
    return names
