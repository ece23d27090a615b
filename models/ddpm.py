"""The network of DDPM (Ho et al. 2020), as the starting point of Song et al. 2021."""
import functools

from . import layers
from .unet import UNet
from .utils import accept, register_model


class DDPM(UNet):
    """(x (B, C, H, W), labels (B,)) -> (B, C, H, W). Labels are times, or indices of noise levels; nf must be a multiple of 32."""

    def __init__(self, config):
        model, act = config.model, layers.get_act(config)
        accept(config, 'model.normalization', 'GroupNorm')
        make = functools.partial(layers.ResnetBlockDDPM, act, temb_dim=4 * model.nf if model.conditional else None, dropout=model.dropout)
        super().__init__(config, act, block=make, attention=layers.AttnBlock, groups=32,
                         upsample=functools.partial(layers.Upsample, with_conv=model.resamp_with_conv),
                         downsample=functools.partial(layers.Downsample, with_conv=model.resamp_with_conv))


register_model(DDPM, name='ddpm')
