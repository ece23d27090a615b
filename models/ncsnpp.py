"""NCSN++ and DDPM++ (Song et al. 2021, Sec. 4.4 and Appendix H): two settings of one network.

NCSN++ has FIR resampling, BigGAN blocks, rescaled skips, a residual input pyramid and, with
continuous time, Fourier features of log sigma. DDPM++ has neither FIR nor pyramids, and uses the
positional embedding of DDPM.
"""

import functools

from ml_collections import ConfigDict

from . import layerspp
from .layers import get_act, group_norm
from .unet import Design, Parts, UNet
from .utils import accept, completed, register_model

# the accepted values of keys of config.model, in upper or lower case
OPTIONS = {
    'attention_type': ('ddpm',),
    'conv_size': (3,),
    'normalization': ('GroupNorm',),
    'resblock_type': ('biggan', 'ddpm'),
    'embedding_type': ('fourier', 'positional'),
    'progressive': ('none', 'output_skip', 'residual'),
    'progressive_input': ('none', 'input_skip', 'residual'),
    'progressive_combine': ('sum', 'cat'),
}


def _check(config):
    for name, values in OPTIONS.items():
        accept(config, f'model.{name}', *values)
    if config.model.embedding_type.lower() == 'fourier':
        why = "model.embedding_type='fourier' embeds a continuous noise level"
        accept(config, 'training.continuous', True, why=why)


def _parts(model, act, fir: dict) -> Parts:
    block = dict(
        act=act,
        dropout=model.dropout,
        temb_dim=4 * model.nf,
        skip_rescale=model.skip_rescale,
        init_scale=model.init_scale,
    )
    if model.resblock_type.lower() == 'biggan':
        make = functools.partial(layerspp.ResnetBlockBigGANpp, **block, **fir)
        up = functools.partial(make, up=True)
        down = functools.partial(make, down=True)
    else:
        make = functools.partial(layerspp.ResnetBlockDDPMpp, **block)
        up = functools.partial(layerspp.Upsample, with_conv=model.resamp_with_conv, **fir)
        down = functools.partial(layerspp.Downsample, with_conv=model.resamp_with_conv, **fir)
    attention = functools.partial(
        layerspp.AttnBlockpp,
        skip_rescale=model.skip_rescale,
        init_scale=model.init_scale,
        head_dim=model.attn_head_dim,
    )
    return Parts(
        block=lambda in_ch, out_ch: make(in_ch=in_ch, out_ch=out_ch),
        attention=attention,
        upsample=lambda channels: up(in_ch=channels),
        downsample=lambda channels: down(in_ch=channels),
    )


def _design(model, fir: dict) -> Design:
    return Design(
        embedding=model.embedding_type.lower(),
        fourier_scale=model.fourier_scale,
        progressive=model.progressive.lower(),
        progressive_input=model.progressive_input.lower(),
        progressive_combine=model.progressive_combine.lower(),
        fir=fir,
        skip_rescale=model.skip_rescale,
        init_scale=model.init_scale,
    )


class NCSNpp(UNet):
    """Map (x (B, C, H, W), labels (B,)) to an output (B, C, H, W).

    Labels are sigma if `model.embedding_type` is 'fourier', otherwise times or indices of noise
    levels.
    """

    def __init__(self, config: ConfigDict):
        config = completed(config)
        model, act = config.model, get_act(config)
        _check(config)
        fir = dict(fir=model.fir, fir_kernel=tuple(model.fir_kernel))
        super().__init__(config, act, _parts(model, act, fir), _design(model, fir))
        if model.attn_groups:
            for layer in self.around_attention():
                layer.GroupNorm_0 = group_norm(layer.GroupNorm_0.num_channels, model.attn_groups)

    def around_attention(self) -> list:
        """Return the modules whose first normalization has `model.attn_groups` groups.

        These are all attention modules, and all blocks of the up levels with attention.
        """
        positions = [
            attention
            for level in self.down_levels + self.up_levels
            for _, attention in level.blocks
            if attention is not None
        ]
        positions += [
            block
            for level in self.up_levels
            if level.blocks[-1][1] is not None
            for block, _ in level.blocks
        ]
        return [self.all_modules[position] for position in positions]


register_model(NCSNpp, name='ncsnpp')
register_model(NCSNpp, name='ddpmpp')
