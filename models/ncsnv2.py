"""NCSN (Song & Ermon 2019) and NCSNv2 (Song & Ermon 2020): RefineNets that output the score.

NCSNv2 has variants for images of up to 95, 128 and 256 pixels. The encoder's stages and the
decoder's refinements are listed in tables; channels are multiples of `model.nf`. The normalization
of NCSN depends on the noise level. That of NCSNv2 does not; instead the output is divided by sigma
(Technique 3).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from runtime.errors import UserError

from .layers import get_act
from .normalization import get_normalization
from .refinenet import RefineBlock, ResidualBlock, _conv
from .utils import accept, completed, get_sigmas, register_model


class Stage(NamedTuple):
    """Two residual blocks with `width` x nf channels; if `down`, the first halves the size.

    With a `dilation` above 1 the convolutions are dilated and the size remains the same.
    """

    name: str
    width: int
    down: bool = True
    dilation: int = 1


class RefineNet(nn.Module):
    """Map (x (B, C, H, W), labels (B,)) to an output (B, C, H, W)."""

    stages: list[Stage]  # from fine to coarse
    refinements: list[tuple[str, int]]  # name and width, in the order in which they are created
    # names of the refinements from coarse to fine, if this order differs from the previous one
    applied: list[str] | None = None
    conditional = False

    def __init__(self, config: ConfigDict):
        super().__init__()
        config = completed(config)
        accept(config, 'model.num_classes', 0, why='only the U-Nets accept classes')
        model, norm, act = (
            config.model,
            get_normalization(config, self.conditional),
            get_act(config),
        )
        if model.nf < 2:
            raise UserError(
                f'config.model.nf must be >= 2 for {model.name}, whose normalization '
                f'compares the means of channels, got {model.nf}'
            )
        nf, inner_norm = model.nf, norm if self.conditional else None
        self.centered, self.act = config.data.centered, act
        self.begin_conv = _conv(config.data.num_channels, nf)
        self.normalizer = norm(nf)
        self.end_conv = _conv(nf, config.data.num_channels)

        width, widths = 1, []
        for stage in self.stages:
            make = functools.partial(ResidualBlock, act=act, norm=norm, dilation=stage.dilation)
            self.add_module(
                stage.name,
                nn.ModuleList(
                    [
                        make(width * nf, stage.width * nf, stage.down),
                        make(stage.width * nf, stage.width * nf, False),
                    ]
                ),
            )
            width = stage.width
            widths.append(width)
        coarser = []
        for i, (name, width) in enumerate(self.refinements):
            in_planes = [w * nf for w in [widths.pop(), *coarser]]
            self.add_module(
                name,
                RefineBlock(
                    in_planes,
                    width * nf,
                    act,
                    model.interpolation,
                    inner_norm,
                    end=i == len(self.refinements) - 1,
                ),
            )
            coarser = [width]

    def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return the output before scaling by sigma; conditional normalizations use `labels`."""
        h = self.begin_conv(x if self.centered else 2 * x - 1)
        kept = []
        for stage in self.stages:
            for block in getattr(self, stage.name):
                h = block(h, labels)
            kept.append(h)
        coarser = []
        for name in self.applied or [name for name, _ in self.refinements]:
            coarser = [getattr(self, name)([kept.pop(), *coarser], labels)]
        return self.end_conv(self.act(self.normalizer(coarser[0], labels)))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.features(x, labels)


@register_model(name='ncsn')
class NCSN(RefineNet):
    """The score at the noise levels `labels`: integers that begin with 0 at the largest sigma."""

    stages = [
        Stage('res1', 1, down=False),
        Stage('res2', 2),
        Stage('res3', 2, dilation=2),
        Stage('res4', 2, dilation=4),
    ]
    refinements = [('refine1', 2), ('refine2', 2), ('refine3', 1), ('refine4', 1)]
    conditional = True

    def __init__(self, config: ConfigDict):
        accept(config, 'model.scale_by_sigma', False)
        accept(
            config,
            'training.continuous',
            False,
            why='it has parameters for a fixed number of noise levels',
        )
        super().__init__(config)
        self.register_buffer(
            'sigmas', torch.tensor(get_sigmas(config), dtype=torch.float32), persistent=False
        )

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.features(x, labels.long())


@register_model(name='ncsnv2_64')
class NCSNv2(RefineNet):
    """The score at the noise levels `labels`.

    Integer labels begin with 0 at the largest sigma; floating-point labels are sigma itself.
    """

    stages = NCSN.stages
    refinements = NCSN.refinements

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.register_buffer('sigmas', torch.tensor(get_sigmas(config), dtype=torch.float32))
        self.scale_by_sigma = config.model.scale_by_sigma

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = self.features(x, None)
        if not self.scale_by_sigma:
            return h
        sigma = labels if labels.is_floating_point() else self.sigmas[labels]
        return h / sigma[:, None, None, None].to(h)


@register_model(name='ncsnv2_128')
class NCSNv2_128(NCSNv2):
    stages = [
        Stage('res1', 1, down=False),
        Stage('res2', 2),
        Stage('res3', 2),
        Stage('res4', 4, dilation=2),
        Stage('res5', 4, dilation=4),
    ]
    refinements = [('refine1', 4), ('refine2', 2), ('refine3', 2), ('refine4', 1), ('refine5', 1)]


@register_model(name='ncsnv2_256')
class NCSNv2_256(NCSNv2):
    stages = [
        Stage('res1', 1, down=False),
        Stage('res2', 2),
        Stage('res3', 2),
        Stage('res31', 2),
        Stage('res4', 4, dilation=2),
        Stage('res5', 4, dilation=4),
    ]
    refinements = [
        ('refine1', 4),
        ('refine2', 2),
        ('refine3', 2),
        ('refine31', 2),
        ('refine4', 1),
        ('refine5', 1),
    ]
    # The original code creates refine3 before refine31 but applies refine31 first. Both have the
    # same shapes, so a state dict loads in either order.
    applied = ['refine1', 'refine2', 'refine31', 'refine3', 'refine4', 'refine5']


def get_network(config: ConfigDict) -> Callable[[], nn.Module]:
    """Return a function that builds the NCSNv2 network for `data.image_size`, up to 256."""
    size = config.data.image_size
    for cls, largest in ((NCSNv2, 95), (NCSNv2_128, 128), (NCSNv2_256, 256)):
        if size <= largest:
            return functools.partial(cls, config)
    raise UserError(f'config.data.image_size must be at most 256 for NCSNv2, got {size}')


@register_model(name='ncsnv2')
def _by_image_size(config):
    return get_network(config)()
