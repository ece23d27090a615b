"""NCSN++ and DDPM++ (Song et al. 2021, Sec. 4.4 and Appendix H): two dresses of one network, chosen
by the config.

NCSN++ has FIR resampling, BigGAN blocks, rescaled skips, a residual input pyramid and, with
continuous time, Fourier features of log sigma; DDPM++ has none of FIR and pyramids, and embeds
positions.
"""

import functools

from . import layerspp
from .layers import get_act, group_norm
from .unet import Design, Parts, UNet
from .utils import accept, completed, register_model


class NCSNpp(UNet):
    """(x (B, C, H, W), labels (B,)) -> (B, C, H, W). Labels: sigma where `model.embedding_type` is
    'fourier', else times or indices.
    """

    def __init__(self, config):
        config = completed(config)
        model, act = config.model, get_act(config)
        accept(config, 'model.attention_type', 'ddpm')
        accept(config, 'model.conv_size', 3)
        accept(config, 'model.normalization', 'GroupNorm')
        accept(config, 'model.resblock_type', 'biggan', 'ddpm')
        accept(config, 'model.embedding_type', 'fourier', 'positional')
        accept(config, 'model.progressive', 'none', 'output_skip', 'residual')
        accept(config, 'model.progressive_input', 'none', 'input_skip', 'residual')
        accept(config, 'model.progressive_combine', 'sum', 'cat')
        if model.embedding_type.lower() == 'fourier':
            accept(
                config,
                'training.continuous',
                True,
                why="model.embedding_type='fourier' embeds a continuous noise level",
            )

        fir = dict(fir=model.fir, fir_kernel=tuple(model.fir_kernel))
        block = dict(
            act=act,
            dropout=model.dropout,
            temb_dim=4 * model.nf,
            skip_rescale=model.skip_rescale,
            init_scale=model.init_scale,
        )
        if model.resblock_type.lower() == 'biggan':
            make = functools.partial(layerspp.ResnetBlockBigGANpp, **block, **fir)
            up, down = functools.partial(make, up=True), functools.partial(make, down=True)
        else:
            make = functools.partial(layerspp.ResnetBlockDDPMpp, **block)
            up = functools.partial(layerspp.Upsample, with_conv=model.resamp_with_conv, **fir)
            down = functools.partial(layerspp.Downsample, with_conv=model.resamp_with_conv, **fir)
        parts = Parts(
            block=lambda in_ch, out_ch: make(in_ch=in_ch, out_ch=out_ch),
            attention=functools.partial(
                layerspp.AttnBlockpp,
                skip_rescale=model.skip_rescale,
                init_scale=model.init_scale,
                head_dim=model.attn_head_dim,
            ),
            upsample=lambda channels: up(in_ch=channels),
            downsample=lambda channels: down(in_ch=channels),
        )
        super().__init__(
            config,
            act,
            parts,
            Design(
                embedding=model.embedding_type.lower(),
                fourier_scale=model.fourier_scale,
                progressive=model.progressive.lower(),
                progressive_input=model.progressive_input.lower(),
                progressive_combine=model.progressive_combine.lower(),
                fir=fir,
                skip_rescale=model.skip_rescale,
                init_scale=model.init_scale,
            ),
        )
        if model.attn_groups:
            for layer in self.around_attention():
                layer.GroupNorm_0 = group_norm(layer.GroupNorm_0.num_channels, model.attn_groups)

    def around_attention(self) -> list:
        """The attention of every level, and the blocks on the way up around it, whose first
        normalization `model.attn_groups` is about.
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
