"""The U-Net of DDPM (Ho et al. 2020) in the version of Song et al. 2021."""

import functools

from ml_collections import ConfigDict

from . import layers
from .unet import Parts, UNet
from .utils import accept, completed, register_model


class DDPM(UNet):
    """Map (x (B, C, H, W), labels (B,)) to an output (B, C, H, W).

    Labels are times or indices of noise levels. `model.nf` must be a multiple of `model.groups`,
    which is 32 in the 2021 release.
    """

    def __init__(self, config: ConfigDict):
        config = completed(config)
        model, act, groups = config.model, layers.get_act(config), config.model.groups
        accept(config, 'model.normalization', 'GroupNorm')
        make = functools.partial(
            layers.ResnetBlockDDPM,
            act,
            temb_dim=4 * model.nf if model.conditional else None,
            dropout=model.dropout,
            groups=groups,
        )
        super().__init__(
            config,
            act,
            Parts(
                block=make,
                groups=groups,
                attention=functools.partial(
                    layers.AttnBlock, groups=groups, head_dim=model.attn_head_dim
                ),
                upsample=functools.partial(layers.Upsample, with_conv=model.resamp_with_conv),
                downsample=functools.partial(layers.Downsample, with_conv=model.resamp_with_conv),
            ),
        )


register_model(DDPM, name='ddpm')
