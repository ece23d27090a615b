"""Plain U-Nets of diffusers: DDPM, such as `google/ddpm-*`.

On the way up, a network of diffusers has attention after every block of a level. Ours has attention
only after the last block of a level (`model.up_attention='level'`). When such a network is written,
the missing attentions get an output projection of zero, so that they add nothing. When it is read,
these attentions are left out.
"""

import pathlib

import torch
from ml_collections import ConfigDict
from torch import nn

from configs import families
from models.unet import UNet

from ..layouts import Entry
from . import folder
from .family import COMMON_SETTINGS, Family, Setting, layer, place, rejected

# Settings of a scheduler with DDPM's noise levels. All these schedulers have the same defaults.
NOISE_LEVELS = dict(
    beta_schedule=Setting('linear', ('linear',)),
    prediction_type=Setting('epsilon', ('epsilon',)),
    trained_betas=Setting(None, (None,)),
    rescale_betas_zero_snr=Setting(False, (False,)),
)


class PlainUNets(Family):
    """Networks of the DDPM configs, with any scheduler that has DDPM's noise levels."""

    name = 'DDPM'
    kind = ''
    settings = COMMON_SETTINGS | dict(
        time_embedding_type=Setting('positional', ('positional',)),
        mid_block_scale_factor=Setting(1, (1,)),
        flip_sin_to_cos=Setting(True, (False,)),
        freq_shift=Setting(0, (1,)),
        downsample_padding=Setting(1, (0,)),
        center_input_sample=Setting(False, (False,)),
        downsample_type=Setting('conv', ('conv',)),
        upsample_type=Setting('conv', ('conv',)),
    )
    config_values = {
        'model.resamp_with_conv': True,
        'model.scale_by_sigma': False,
        'training.sde': 'vpsde',
        'training.continuous': False,
        'data.centered': True,
    }
    pipeline = 'DDPMPipeline'
    schedulers = (
        'DDPMScheduler',
        'DDIMScheduler',
        'PNDMScheduler',
        'DDPMParallelScheduler',
        'DDIMParallelScheduler',
        'DEISMultistepScheduler',
        'DPMSolverMultistepScheduler',
        'DPMSolverSinglestepScheduler',
        'UniPCMultistepScheduler',
    )

    def set_defaults(self, config: ConfigDict) -> None:
        families.ddpm(families.vp(config, continuous=False))

    def read_settings(self, config: ConfigDict, path: pathlib.Path, unet: dict) -> None:
        channels, outputs = config.data.num_channels, unet.get('out_channels', 3)
        if outputs != channels:
            raise ValueError(f'out_channels must be in_channels, got {outputs} and {channels}')
        config.model.update(groups=unet.get('norm_num_groups', 32), up_attention='block')
        inner = [
            f'up_blocks.{i}.attentions.{j}'
            for i, name in enumerate(reversed(unet['down_block_types']))
            if name.startswith('Attn')
            for j in range(config.model.num_res_blocks)
        ]
        weights = folder.load(path)
        if inner and all(adds_nothing(weights, attention) for attention in inner):
            config.model.up_attention = 'level'

    def read_scheduler(self, config: ConfigDict, scheduler: dict) -> None:
        if faults := rejected(scheduler, NOISE_LEVELS):
            raise ValueError('; '.join(faults))
        steps = scheduler.get('num_train_timesteps', 1000)
        config.model.update(
            beta_min=scheduler.get('beta_start', 1e-4) * steps,
            beta_max=scheduler.get('beta_end', 0.02) * steps,
            num_scales=steps,
        )

    def written_settings(self, model: ConfigDict) -> dict:
        return dict(
            norm_num_groups=model.groups,
            center_input_sample=False,
            time_embedding_type='positional',
            freq_shift=1,
            mid_block_scale_factor=1,
            downsample_padding=0,
        )

    def scheduler_config(self, config: ConfigDict) -> dict:
        model = config.model
        return dict(
            _class_name='DDPMScheduler',
            num_train_timesteps=model.num_scales,
            beta_start=model.beta_min / model.num_scales,
            beta_end=model.beta_max / model.num_scales,
            beta_schedule='linear',
            variance_type='fixed_large',
            clip_sample=False,
            prediction_type='epsilon',
        )

    def spare(self, network: UNet) -> dict[str, int]:
        found = {}
        for way, levels in (('down', network.down_levels), ('up', network.up_levels)):
            for i, level in enumerate(levels):
                if level.blocks[-1][1] is None:
                    continue
                for j, (position, attends) in enumerate(level.blocks):
                    if attends is None:
                        channels = network.all_modules[position].Conv_1.out_channels
                        found[f'{way}_blocks.{i}.attentions.{j}'] = channels
        return found

    def resampling(
        self, modules: nn.ModuleList, position: int, way: str, there: str
    ) -> dict[str, Entry]:
        return layer(f'{place(position)}.Conv_0', f'{there}.{way}samplers.0.conv')

    def outputs(self, network: UNet) -> dict[str, Entry]:
        norm, conv = network.head
        return layer(place(norm), 'conv_norm_out') | layer(place(conv), 'conv_out')


def adds_nothing(weights: dict, attention: str) -> bool:
    """Return whether an attention layer adds zero to its input."""
    return not any(
        weights.get(f'{attention}.to_out.0.{name}', torch.ones(1)).any()
        for name in ('weight', 'bias')
    )


def adding_nothing(attention: str, channels: int) -> dict[str, torch.Tensor]:
    """Return the weights of an attention layer that adds zero to its input."""
    weights = {
        f'{attention}.group_norm.weight': torch.ones(channels),
        f'{attention}.group_norm.bias': torch.zeros(channels),
    }
    for name in ('to_q', 'to_k', 'to_v', 'to_out.0'):
        weights[f'{attention}.{name}.weight'] = torch.zeros(channels, channels)
        weights[f'{attention}.{name}.bias'] = torch.zeros(channels)
    return weights
