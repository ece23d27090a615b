"""Skip U-Nets of diffusers: NCSN++ with input and output skips, such as `google/ncsnpp-*`."""

import math
import pathlib

from ml_collections import ConfigDict
from torch import nn

from configs import families
from models.unet import DownLevel, UNet, UpLevel

from ..layouts import Entry
from .family import COMMON_SETTINGS, Family, Setting, block, layer, network_of, place


class SkipUNets(Family):
    """Networks of the 256- and 1024-pixel configs, with `ScoreSdeVeScheduler`."""

    name = 'NCSN++'
    kind = 'Skip'
    settings = COMMON_SETTINGS | dict(
        time_embedding_type=Setting('positional', ('fourier',)),
        mid_block_scale_factor=Setting(1, (math.sqrt(2),)),
        in_channels=Setting(3, (3,)),
        out_channels=Setting(3, (3,)),
    )
    config_values = {
        'model.resblock_type': 'biggan',
        'model.fir': True,
        'model.fir_kernel': [1, 3, 3, 1],
        'model.skip_rescale': True,
        'model.progressive': 'output_skip',
        'model.progressive_input': 'input_skip',
        'model.progressive_combine': 'sum',
        'model.embedding_type': 'fourier',
        'model.scale_by_sigma': True,
        'training.sde': 'vesde',
        'training.continuous': True,
        'data.num_channels': 3,
        'data.centered': False,
        'model.up_attention': 'level',
        'sampling.predictor': 'reverse_diffusion',
    }
    pipeline = 'ScoreSdeVePipeline'
    schedulers = ('ScoreSdeVeScheduler',)

    def set_defaults(self, config: ConfigDict) -> None:
        families.ncsnpp_256(families.ve(config, continuous=True))

    def read_settings(self, config: ConfigDict, path: pathlib.Path, unet: dict) -> None:
        widths = list(unet['block_out_channels'])
        groups = unet.get('norm_num_groups', 32)
        # If norm_num_groups is set, diffusers has that many groups in the middle and at the end,
        # where our groups depend on the widths.
        ours = {min(width // 4, 32) for width in (widths[0], widths[-1])}
        if groups is not None and ours != {groups}:
            raise ValueError(
                'norm_num_groups must be the first and the last of block_out_channels '
                f'divided by 4, at most 32, got norm_num_groups={groups}, '
                f'block_out_channels={widths}'
            )
        blocks = zip(widths, unet['down_block_types'])
        around_attention = [width for width, name in blocks if name.startswith('Attn')]
        config.model.update(
            center_input=unet.get('center_input_sample', False),
            attn_groups=32 if any(width < 128 for width in around_attention) else 0,
        )

    def read_scheduler(self, config: ConfigDict, scheduler: dict) -> None:
        config.model.update(
            sigma_min=float(scheduler.get('sigma_min', 0.01)),
            sigma_max=float(scheduler.get('sigma_max', 1348.0)),
            num_scales=scheduler.get('num_train_timesteps', 2000),
        )
        config.sampling.update(
            snr=float(scheduler.get('snr', 0.15)), n_steps_each=scheduler.get('correct_steps', 1)
        )

    def unfit(self, config: ConfigDict) -> list[str]:
        if faults := super().unfit(config):
            return faults
        around_attention = network_of(config).around_attention()
        groups = {part.GroupNorm_0.num_groups for part in around_attention}
        if groups <= {32}:
            return []
        return [
            f'config.model.attn_groups={config.model.attn_groups}: normalizations around attention '
            f'must have 32 groups, got {", ".join(map(str, sorted(groups)))}'
        ]

    def written_settings(self, model: ConfigDict) -> dict:
        return dict(
            norm_num_groups=None,
            center_input_sample=model.center_input,
            time_embedding_type='fourier',
            freq_shift=0,
            mid_block_scale_factor=math.sqrt(2),
            downsample_padding=1,
        )

    def scheduler_config(self, config: ConfigDict) -> dict:
        model, sampling = config.model, config.sampling
        return dict(
            _class_name='ScoreSdeVeScheduler',
            num_train_timesteps=model.num_scales,
            snr=sampling.snr,
            sigma_min=model.sigma_min,
            sigma_max=model.sigma_max,
            sampling_eps=1e-5,
            correct_steps=sampling.n_steps_each if sampling.corrector != 'none' else 0,
        )

    def level(
        self, modules: nn.ModuleList, level: DownLevel | UpLevel, way: str, there: str
    ) -> dict[str, Entry]:
        names = super().level(modules, level, way, there)
        if way == 'down' and level.pyramid is not None:
            names |= layer(f'{place(level.pyramid)}.Conv_0', f'{there}.skip_conv')
        return names

    def attention_number(self, way: str, number: int) -> int:
        return 0 if way == 'up' else number  # on the way up, a level has only one

    def resampling(
        self, modules: nn.ModuleList, position: int, way: str, there: str
    ) -> dict[str, Entry]:
        return block(modules, position, f'{there}.resnet_{way}')

    def outputs(self, network: UNet) -> dict[str, Entry]:
        names = {}
        *inner, last = [level.pyramid for level in network.up_levels]
        for i, (norm, conv) in enumerate(inner):
            names |= layer(place(norm), f'up_blocks.{i}.skip_norm')
            names |= layer(place(conv), f'up_blocks.{i}.skip_conv')
        return names | layer(place(last[0]), 'conv_norm_out') | layer(place(last[1]), 'conv_out')
