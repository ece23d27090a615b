"""The U-Net of DDPM, DDPM++ and NCSN++, with NCSN++'s optional pyramids (Song et al. 2021, Appendix
H, Fig. 9).

    labels -> embedding -> temb
    x -> stem -> down level 0 -> ... -> down level L-1 -> bottom
      -> up level L-1 -> ... -> up level 0 -> head -> output

Each level is `num_res_blocks` residual blocks (one more on the way up), attention behind each of
them (on the way up, behind the last) at the resolutions that ask for it, and a resampling to the
next level; what a down level makes is kept for the up level of the same size. A progressive input
feeds shrunken copies of x to the down levels; a progressive output sums up images, or features,
made at every up level.

The position of every block in `all_modules` is written down once, when it is built; `all_modules`
stays the sole owner, so that the parameters have the names and the order of the published
checkpoints.
"""

import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from runtime.errors import UserError

from .layers import conv3x3, dense, get_timestep_embedding, group_norm, merge
from .layerspp import Combine, Downsample, GaussianFourierProjection, Upsample
from .utils import accept, get_sigmas


class DownLevel(NamedTuple):
    """Positions: of residual blocks, each with the attention behind it or None; of the resampling;
    of the input pyramid's joint.
    """

    blocks: list[tuple[int, int | None]]
    resample: int | None
    pyramid: int | None


class UpLevel(NamedTuple):
    """Positions: of residual blocks, each with the attention behind it or None; of the output
    pyramid's layers; of the resampling.
    """

    blocks: list[tuple[int, int | None]]
    pyramid: list[int]
    resample: int | None


class Parts(NamedTuple):
    """What makes the parts of a network: `block(in_ch, out_ch)`, `attention(channels)`,
    `upsample(channels)`, `downsample(channels)`, of which the last two are called as blocks are,
    with (h, temb); and the groups of other normalizations (None: by their channels).
    """

    block: Callable
    attention: Callable
    upsample: Callable
    downsample: Callable
    groups: int | None = None


class Design(NamedTuple):
    """The options of NCSN++ by their names in the config, with the values of DDPM; `fir`: `fir` and
    `fir_kernel` of the pyramids.
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
    """(x (B, C, H, W), labels (B,), classes (B,) or None) -> (B, C, H, W). Height and width must be
    multiples of 2^(levels - 1).

    `config` gives the sizes (`data.image_size`, `data.num_channels`, `model.nf`, `ch_mult`,
    `num_res_blocks`, `attn_resolutions`). With `training.recompute` the backward pass recomputes
    what happens within each block, instead of keeping it. With `model.num_classes` an embedding of
    the class is added to that of the time; the last of the embeddings stands for any class: for
    None, and in training for the share `model.label_dropout` of the images (Ho & Salimans 2022).
    """

    def __init__(self, config, act, parts: Parts, design: Design = Design()):
        super().__init__()
        model, data = config.model, config.data
        self.act, self.embedding, self.conditional = act, design.embedding, model.conditional
        self.nf, self.skip_rescale, self.scale_by_sigma = (
            model.nf,
            design.skip_rescale,
            model.scale_by_sigma,
        )
        self.centers = not data.centered and model.center_input  # x in [0, 1] to [-1, 1]
        self.progressive, self.progressive_input = design.progressive, design.progressive_input
        self.recompute, self.channels = config.training.recompute, data.num_channels
        self.register_buffer('sigmas', torch.tensor(get_sigmas(config), dtype=torch.float32))
        self.all_modules = nn.ModuleList()
        add = self._add

        self.fourier = (
            add(GaussianFourierProjection(self.nf, design.fourier_scale))
            if self.embedding == 'fourier'
            else None
        )
        if self.conditional:
            embedding_dim = 2 * self.nf if self.embedding == 'fourier' else self.nf
            self.embedding_layers = (
                add(dense(embedding_dim, 4 * self.nf)),
                add(dense(4 * self.nf, 4 * self.nf)),
            )
        self.pyramid_down = (
            Downsample(**design.fir) if self.progressive_input == 'input_skip' else None
        )
        self.pyramid_up = Upsample(**design.fir) if self.progressive == 'output_skip' else None

        accept(config, 'model.up_attention', 'level', 'block')
        self.stem = add(conv3x3(self.channels, self.nf))
        kept = self._add_down_levels(config, parts, design)
        width = kept[-1]
        self.bottom = (
            add(parts.block(width, width)),
            add(parts.attention(width)),
            add(parts.block(width, width)),
        )
        width = self._add_up_levels(config, parts, design, kept)
        if self.progressive != 'output_skip':
            self.head = (
                add(group_norm(width, parts.groups)),
                add(conv3x3(width, self.channels, init_scale=design.init_scale)),
            )

        self.num_classes, self.label_dropout = model.num_classes, model.label_dropout
        if self.num_classes:
            accept(
                config,
                'model.conditional',
                True,
                why='the embedding of a class is added to that of the time',
            )
            self.label_embedding = nn.Embedding(self.num_classes + 1, 4 * self.nf)

    def _levels(self, config) -> list[tuple[int, bool]]:
        """The channels of each resolution, and whether attention follows its blocks."""
        model = config.model
        return [
            (self.nf * mult, config.data.image_size // 2**i in model.attn_resolutions)
            for i, mult in enumerate(model.ch_mult)
        ]

    def _add_down_levels(self, config, parts: Parts, design: Design) -> list[int]:
        """Add the levels on the way down; return the channels of every feature map that is kept,
        the last at the bottom.
        """
        kept, width, pyramid_width = [self.nf], self.nf, self.channels
        add, levels, self.down_levels = self._add, self._levels(config), []
        for i, (out, attends) in enumerate(levels):
            blocks = []
            for _ in range(config.model.num_res_blocks):
                blocks.append(
                    (add(parts.block(width, out)), add(parts.attention(out)) if attends else None)
                )
                width = out
                kept.append(width)
            resample = joint = None
            if i < len(levels) - 1:
                resample = add(parts.downsample(width))
                if self.progressive_input == 'input_skip':
                    joint = add(Combine(pyramid_width, width, design.progressive_combine))
                    width *= 2 if design.progressive_combine == 'cat' else 1
                elif self.progressive_input == 'residual':
                    joint = add(Downsample(pyramid_width, width, with_conv=True, **design.fir))
                    pyramid_width = width
                kept.append(width)
            self.down_levels.append(DownLevel(blocks, resample, joint))
        return kept

    def _add_up_levels(self, config, parts: Parts, design: Design, kept: list[int]) -> int:
        """Add the levels on the way up, which take what was `kept`; return the channels of the
        last.
        """
        add, levels, self.up_levels = self._add, self._levels(config), []
        width, pyramid_width, last = kept[-1], None, config.model.num_res_blocks
        attends_each = config.model.up_attention.lower() == 'block'
        for i, (out, attends) in reversed(list(enumerate(levels))):
            blocks = []
            for j in range(last + 1):
                here = attends and (attends_each or j == last)
                blocks.append(
                    (
                        add(parts.block(width + kept.pop(), out)),
                        add(parts.attention(out)) if here else None,
                    )
                )
                width = out
            layers = []
            if self.progressive == 'output_skip':
                layers = [
                    add(group_norm(width)),
                    add(conv3x3(width, self.channels, init_scale=design.init_scale)),
                ]
            elif self.progressive == 'residual' and i == len(levels) - 1:
                layers = [add(group_norm(width)), add(conv3x3(width, width))]
            elif self.progressive == 'residual':
                layers = [add(Upsample(pyramid_width, width, with_conv=True, **design.fir))]
            pyramid_width = width
            self.up_levels.append(
                UpLevel(blocks, layers, add(parts.upsample(width)) if i > 0 else None)
            )
        assert not kept, 'every feature map that was kept is used once'
        return width

    def _add(self, module: nn.Module) -> int:
        self.all_modules.append(module)
        return len(self.all_modules) - 1

    def _run(self, position, *inputs):
        module = self.all_modules[position]
        return (
            checkpoint(module, *inputs, use_reentrant=False)
            if self.recompute and torch.is_grad_enabled()
            else module(*inputs)
        )

    def _norm_act_conv(self, positions, h):
        norm, conv = positions
        return self.all_modules[conv](self.act(self.all_modules[norm](h)))

    def _embed(self, labels, classes):
        """temb (B, 4 nf), or None for a network that is not told the time."""
        if not self.conditional:
            return None
        first, second = (self.all_modules[i] for i in self.embedding_layers)
        dtype = first.weight.dtype
        labels = labels.to(torch.promote_types(dtype, torch.float32))
        features = (
            self.all_modules[self.fourier](labels.log())
            if self.embedding == 'fourier'
            else get_timestep_embedding(labels, self.nf)
        )
        temb = second(self.act(first(features.to(dtype))))
        if not self.num_classes:
            return temb
        if classes is None:
            return temb + self.label_embedding.weight[-1]
        if self.training:
            classes = torch.where(
                torch.rand(len(classes), device=classes.device) < self.label_dropout,
                self.num_classes,
                classes,
            )
        return temb + self.label_embedding(classes)

    def _join_input(self, position, h, pyramid):
        """h with the next smaller copy of the input in it, and that copy."""
        if self.progressive_input == 'input_skip':
            pyramid = self.pyramid_down(pyramid)
            return self.all_modules[position](pyramid, h), pyramid
        pyramid = merge(self.all_modules[position](pyramid), h, self.skip_rescale)
        return pyramid, pyramid

    def _join_output(self, positions, h, pyramid):
        """h, and the output pyramid with what this level adds."""
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

    def forward(self, x, labels, classes=None):
        self._check(x, labels, classes)
        run, temb = self._run, self._embed(labels, classes)
        pyramid = 2 * x - 1 if self.centers else x

        h = self.all_modules[self.stem](pyramid)
        kept = [h]
        for level in self.down_levels:
            for block, attention in level.blocks:
                h = run(block, h, temb)
                if attention is not None:
                    h = run(attention, h)
                kept.append(h)
            if level.resample is not None:
                h = run(level.resample, h, temb)
                if level.pyramid is not None:
                    h, pyramid = self._join_input(level.pyramid, h, pyramid)
                kept.append(h)

        first, attention, second = self.bottom
        h = run(second, run(attention, run(first, h, temb)), temb)

        pyramid = None
        for level in self.up_levels:
            for block, attention in level.blocks:
                h = run(block, torch.cat([h, kept.pop()], 1), temb)
                if attention is not None:
                    h = run(attention, h)
            if level.pyramid:
                h, pyramid = self._join_output(level.pyramid, h, pyramid)
            if level.resample is not None:
                h = run(level.resample, h, temb)

        h = pyramid if self.progressive == 'output_skip' else self._norm_act_conv(self.head, h)
        return h / self._sigma(labels).to(h)[:, None, None, None] if self.scale_by_sigma else h

    def _sigma(self, labels):
        """The noise level of each label: the label itself for Fourier features, else an index into
        the table, largest first.
        """
        return labels if self.embedding == 'fourier' else self.sigmas[labels.long()]
