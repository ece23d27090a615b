"""The U-Net of DDPM, DDPM++ and NCSN++, with the optional pyramids of NCSN++.

    labels -> embedding -> temb
    x -> stem -> down level 0 -> ... -> down level L-1 -> bottom
      -> up level L-1 -> ... -> up level 0 -> head -> output

A level has `num_res_blocks` residual blocks (one more on the way up), then resamples to the next
level. At the resolutions of `attn_resolutions`, attention follows each block on the way down and
the last block on the way up. Every feature map of the way down is concatenated to the input of a
block on the way up. A progressive input feeds downsampled copies of x to the down levels; a
progressive output sums images, or features, of all up levels.

Every block is appended to `all_modules`, and its position is recorded when the network is built.
`all_modules` is the only owner of the blocks, so parameters have the names and the order of the
published checkpoints.

References:
    Ho et al. 2020, Appendix B; Song et al. 2021, Appendix H and Fig. 9.
"""

import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from runtime.errors import UserError

from .layers import conv3x3, dense, get_timestep_embedding, group_norm, merge
from .layerspp import Combine, Downsample, GaussianFourierProjection, Upsample
from .utils import accept, get_sigmas


class DownLevel(NamedTuple):
    """Positions in `all_modules` of the parts of a level on the way down.

    blocks: residual blocks, each with the attention that follows it, or None.
    resample: the downsampling, or None at the last level.
    pyramid: the layer that joins the input pyramid to the features, or None.
    """

    blocks: list[tuple[int, int | None]]
    resample: int | None
    pyramid: int | None


class UpLevel(NamedTuple):
    """Positions in `all_modules` of the parts of a level on the way up.

    blocks: residual blocks, each with the attention that follows it, or None.
    pyramid: layers of the output pyramid.
    resample: the upsampling, or None at the last level.
    """

    blocks: list[tuple[int, int | None]]
    pyramid: list[int]
    resample: int | None


class Parts(NamedTuple):
    """Functions that build the parts of a network.

    `block(in_ch, out_ch)`, `attention(channels)`, `upsample(channels)` and `downsample(channels)`
    return modules. Blocks and both resamplings are called with (h, temb). `groups` is the number of
    groups of the head's normalization; with None it depends on the number of channels.
    """

    block: Callable
    attention: Callable
    upsample: Callable
    downsample: Callable
    groups: int | None = None


class Design(NamedTuple):
    """The options of NCSN++ by their names in the config; the defaults are those of DDPM.

    `fir` has the keys `fir` and `fir_kernel`, for the resampling in pyramids.
    """

    embedding: str = 'positional'
    fourier_scale: float = 16.0
    progressive: str = 'none'
    progressive_input: str = 'none'
    progressive_combine: str = 'sum'
    fir: Mapping = types.MappingProxyType({})
    skip_rescale: bool = False
    init_scale: float = 0.0


class UNet(nn.Module):
    """Map (x (B, C, H, W), labels (B,), classes (B,) or None) to an output (B, C, H, W).

    Height and width must be multiples of 2^(levels - 1). `config` gives the sizes:
    `data.image_size`, `data.num_channels`, `model.nf`, `ch_mult`, `num_res_blocks` and
    `attn_resolutions`. With `training.recompute` the activations within each block are recomputed
    in the backward pass instead of kept.

    With `model.num_classes` an embedding of the class is added to that of the time. The last
    embedding means "any class": it is used if `classes` is None, and in training for a random
    fraction `model.label_dropout` of the images (Ho & Salimans 2022).
    """

    def __init__(self, config: ConfigDict, act: Callable, parts: Parts, design: Design = Design()):
        super().__init__()
        model, data = config.model, config.data
        accept(config, 'model.up_attention', 'level', 'block')
        self.act = act
        self.nf = model.nf
        self.channels = data.num_channels
        self.conditional = model.conditional
        self.centers = not data.centered and model.center_input  # x in [0, 1] to [-1, 1]
        self.scale_by_sigma = model.scale_by_sigma
        self.recompute = config.training.recompute
        self.embedding = design.embedding
        self.progressive = design.progressive
        self.progressive_input = design.progressive_input
        self.skip_rescale = design.skip_rescale
        self.register_buffer('sigmas', torch.tensor(get_sigmas(config), dtype=torch.float32))

        self.all_modules = nn.ModuleList()  # in the order of the published checkpoints
        self._add_time_embedding(design)
        self._add_pyramids(design)
        self.stem = self._add(conv3x3(self.channels, self.nf))
        kept = self._add_down_levels(config, parts, design)
        self._add_bottom(parts, width=kept[-1])
        width = self._add_up_levels(config, parts, design, kept)
        self._add_head(parts, design, width)
        self._add_class_embedding(config)

    def _add(self, module: nn.Module) -> int:
        """Append a module to `all_modules` and return its position."""
        self.all_modules.append(module)
        return len(self.all_modules) - 1

    def _add_time_embedding(self, design: Design):
        fourier = self.embedding == 'fourier'
        self.fourier = (
            self._add(GaussianFourierProjection(self.nf, design.fourier_scale)) if fourier else None
        )
        if self.conditional:
            features = 2 * self.nf if fourier else self.nf
            self.embedding_layers = (
                self._add(dense(features, 4 * self.nf)),
                self._add(dense(4 * self.nf, 4 * self.nf)),
            )

    def _add_pyramids(self, design: Design):
        """Add the resampling of images for skip pyramids; it has no parameters."""
        shrinks, grows = self.progressive_input == 'input_skip', self.progressive == 'output_skip'
        self.pyramid_down = Downsample(**design.fir) if shrinks else None
        self.pyramid_up = Upsample(**design.fir) if grows else None

    def _levels(self, config) -> list[tuple[int, bool]]:
        """Return the channels of each level, and whether attention follows its blocks."""
        model = config.model
        return [
            (self.nf * mult, config.data.image_size // 2**i in model.attn_resolutions)
            for i, mult in enumerate(model.ch_mult)
        ]

    def _add_block(self, parts: Parts, in_ch: int, out_ch: int, attends: bool):
        """Add a residual block, and attention if it `attends`; return both positions."""
        block = self._add(parts.block(in_ch, out_ch))
        return block, self._add(parts.attention(out_ch)) if attends else None

    def _add_down_levels(self, config, parts: Parts, design: Design) -> list[int]:
        """Add the levels on the way down.

        Returns:
            The channels of every feature map that the way up uses; the last one is at the bottom.
        """
        self.down_levels = []
        kept, width, pyramid_width = [self.nf], self.nf, self.channels
        levels = self._levels(config)
        for i, (out_ch, attends) in enumerate(levels):
            blocks = []
            for _ in range(config.model.num_res_blocks):
                blocks.append(self._add_block(parts, width, out_ch, attends))
                width = out_ch
                kept.append(width)
            resample = joint = None
            if i < len(levels) - 1:
                resample = self._add(parts.downsample(width))
                joint, width, pyramid_width = self._add_joint(design, width, pyramid_width)
                kept.append(width)
            self.down_levels.append(DownLevel(blocks, resample, joint))
        return kept

    def _add_joint(
        self, design: Design, width: int, pyramid_width: int
    ) -> tuple[int | None, int, int]:
        """Add the layer that joins the input pyramid, if any, to the features of a level.

        Returns:
            The layer's position or None, and the channels of features and pyramid after it.
        """
        if self.progressive_input == 'input_skip':
            joint = self._add(Combine(pyramid_width, width, design.progressive_combine))
            joined = 2 * width if design.progressive_combine == 'cat' else width
            return joint, joined, pyramid_width
        if self.progressive_input == 'residual':
            joint = self._add(Downsample(pyramid_width, width, with_conv=True, **design.fir))
            return joint, width, width
        return None, width, pyramid_width

    def _add_bottom(self, parts: Parts, width: int):
        self.bottom = (
            self._add(parts.block(width, width)),
            self._add(parts.attention(width)),
            self._add(parts.block(width, width)),
        )

    def _add_up_levels(self, config, parts: Parts, design: Design, kept: list[int]) -> int:
        """Add the levels on the way up, which use all feature maps in `kept`.

        Returns:
            The channels of the last level.
        """
        self.up_levels = []
        width, pyramid_width, last = kept[-1], None, config.model.num_res_blocks
        attends_each = config.model.up_attention.lower() == 'block'
        for i, (out_ch, attends) in reversed(list(enumerate(self._levels(config)))):
            blocks = []
            for j in range(last + 1):
                here = attends and (attends_each or j == last)
                blocks.append(self._add_block(parts, width + kept.pop(), out_ch, here))
                width = out_ch
            pyramid = self._add_output(design, width, pyramid_width)
            pyramid_width = width
            resample = self._add(parts.upsample(width)) if i > 0 else None
            self.up_levels.append(UpLevel(blocks, pyramid, resample))
        assert not kept, 'every kept feature map is used once'
        return width

    def _add_output(self, design: Design, width: int, pyramid_width: int | None) -> list[int]:
        """Add the layers of a level for the output pyramid, if any, and return their positions.

        `pyramid_width` is the channels of the pyramid before the level, None at the first level.
        """
        if self.progressive == 'none':
            return []
        if self.progressive == 'residual' and pyramid_width is not None:
            return [self._add(Upsample(pyramid_width, width, with_conv=True, **design.fir))]
        norm = self._add(group_norm(width))
        if self.progressive == 'residual':
            return [norm, self._add(conv3x3(width, width))]
        return [norm, self._add(conv3x3(width, self.channels, init_scale=design.init_scale))]

    def _add_head(self, parts: Parts, design: Design, width: int):
        """Add the layers from features to images, unless an output pyramid of images has them."""
        if self.progressive != 'output_skip':
            self.head = (
                self._add(group_norm(width, parts.groups)),
                self._add(conv3x3(width, self.channels, init_scale=design.init_scale)),
            )

    def _add_class_embedding(self, config):
        self.num_classes = config.model.num_classes
        self.label_dropout = config.model.label_dropout
        if self.num_classes:
            why = 'the embedding of a class is added to that of the time'
            accept(config, 'model.conditional', True, why=why)
            self.label_embedding = nn.Embedding(self.num_classes + 1, 4 * self.nf)

    def _run(self, position, *inputs):
        module = self.all_modules[position]
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(module, *inputs, use_reentrant=False)
        return module(*inputs)

    def _run_block(self, block, attention, h, temb):
        """Return h after a residual block and the attention that may follow it."""
        h = self._run(block, h, temb)
        return h if attention is None else self._run(attention, h)

    def _norm_act_conv(self, positions, h):
        norm, conv = positions
        return self.all_modules[conv](self.act(self.all_modules[norm](h)))

    def _embed(self, labels, classes):
        """Return temb (B, 4 nf), or None for a network that is not conditioned on the time."""
        if not self.conditional:
            return None
        first, second = (self.all_modules[i] for i in self.embedding_layers)
        dtype = first.weight.dtype
        labels = labels.to(torch.promote_types(dtype, torch.float32))
        if self.embedding == 'fourier':
            features = self.all_modules[self.fourier](labels.log())
        else:
            features = get_timestep_embedding(labels, self.nf)
        temb = second(self.act(first(features.to(dtype))))
        return temb + self._embed_classes(classes) if self.num_classes else temb

    def _embed_classes(self, classes):
        if classes is None:
            return self.label_embedding.weight[-1]
        if self.training:
            dropped = torch.rand(len(classes), device=classes.device) < self.label_dropout
            classes = torch.where(dropped, self.num_classes, classes)
        return self.label_embedding(classes)

    def _join_input(self, position, h, pyramid):
        """Return h joined with the next level of the input pyramid, and that level."""
        if self.progressive_input == 'input_skip':
            pyramid = self.pyramid_down(pyramid)
            return self.all_modules[position](pyramid, h), pyramid
        pyramid = merge(self.all_modules[position](pyramid), h, self.skip_rescale)
        return pyramid, pyramid

    def _join_output(self, positions, h, pyramid):
        """Return h, and the output pyramid after adding the contribution of this level."""
        if pyramid is None:
            return h, self._norm_act_conv(positions, h)
        if self.progressive == 'output_skip':
            return h, self.pyramid_up(pyramid) + self._norm_act_conv(positions, h)
        pyramid = merge(self.all_modules[positions[0]](pyramid), h, self.skip_rescale)
        return pyramid, pyramid

    def _check(self, x, labels, classes):
        factor = 2 ** (len(self.down_levels) - 1)
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % factor or x.shape[3] % factor:
            raise UserError(
                f'x must have shape (batch, {self.channels}, height, width) with '
                f'height and width multiples of {factor}, '
                f'got {tuple(x.shape)}'
            )
        if labels.shape != x.shape[:1]:
            raise UserError(
                f'labels must have shape (batch,) = ({len(x)},), got {tuple(labels.shape)}'
            )
        if classes is not None and not self.num_classes:
            raise UserError(
                'this network was built without classes (num_classes=0): call it without classes'
            )
        if classes is not None and (classes.shape != x.shape[:1] or classes.is_floating_point()):
            raise UserError(
                f'classes must be integers of shape (batch,) = ({len(x)},), got '
                f'{tuple(classes.shape)} {classes.dtype}'
            )

    def forward(self, x: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        self._check(x, labels, classes)
        temb = self._embed(labels, classes)
        kept = self._go_down(2 * x - 1 if self.centers else x, temb)
        h, pyramid = self._go_up(self._cross_bottom(kept[-1], temb), temb, kept)
        h = pyramid if self.progressive == 'output_skip' else self._norm_act_conv(self.head, h)
        return h / self._sigma(labels).to(h)[:, None, None, None] if self.scale_by_sigma else h

    def _go_down(self, x, temb) -> list:
        """Return the feature maps of the way down; the last one is at the bottom."""
        h, pyramid = self.all_modules[self.stem](x), x
        kept = [h]
        for level in self.down_levels:
            for block, attention in level.blocks:
                h = self._run_block(block, attention, h, temb)
                kept.append(h)
            if level.resample is not None:
                h = self._run(level.resample, h, temb)
                if level.pyramid is not None:
                    h, pyramid = self._join_input(level.pyramid, h, pyramid)
                kept.append(h)
        return kept

    def _cross_bottom(self, h, temb):
        first, attention, second = self.bottom
        return self._run(second, self._run_block(first, attention, h, temb), temb)

    def _go_up(self, h, temb, kept: list):
        """Return the last level's features, and the output pyramid or None; `kept` is emptied."""
        pyramid = None
        for level in self.up_levels:
            for block, attention in level.blocks:
                h = self._run_block(block, attention, torch.cat([h, kept.pop()], 1), temb)
            if level.pyramid:
                h, pyramid = self._join_output(level.pyramid, h, pyramid)
            if level.resample is not None:
                h = self._run(level.resample, h, temb)
        return h, pyramid

    def _sigma(self, labels):
        """Return the noise level of each label.

        With Fourier features it is the label itself. Otherwise the label is an index into the
        table of noise levels, which begins with the largest.
        """
        return labels if self.embedding == 'fourier' else self.sigmas[labels.long()]
