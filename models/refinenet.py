"""Blocks of RefineNet (Lin et al. 2017) as NCSN (Song & Ermon 2019) and NCSNv2 (2020) use them.

`norm(channels)` builds a normalization, which is called with (x, labels). NCSN normalizes before
every convolution of the refinement. NCSNv2 does not, so its `norm` is None.
Attribute names are those of the authors' checkpoints.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def _conv(in_planes, out_planes, kernel=3, bias=True, dilation=1):
    return nn.Conv2d(
        in_planes,
        out_planes,
        kernel,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        bias=bias,
    )


class ConvMeanPool(nn.Module):
    """A convolution, then the mean over 2x2 tiles."""

    def __init__(self, in_planes: int, out_planes: int, kernel: int):
        super().__init__()
        self.conv = _conv(in_planes, out_planes, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(x), 2)


class ResidualBlock(nn.Module):
    """A residual block: norm, act, conv, norm, act, conv, added to the input.

    `down` halves the size, except if `dilation` is above 1, which dilates the convolutions.
    """

    def __init__(
        self,
        in_planes: int,
        out_planes: int,
        down: bool,
        act: Callable,
        norm: Callable,
        dilation: int = 1,
    ):
        super().__init__()
        pool = down and dilation == 1
        middle = in_planes if down else out_planes
        self.conv1 = _conv(in_planes, middle, dilation=dilation)
        self.normalize2 = norm(middle)
        self.conv2 = (
            ConvMeanPool(middle, out_planes, 3)
            if pool
            else _conv(middle, out_planes, dilation=dilation)
        )
        self.shortcut = None
        if down or in_planes != out_planes:
            self.shortcut = (
                ConvMeanPool(in_planes, out_planes, 1)
                if pool
                else _conv(in_planes, out_planes, dilation=dilation)
            )
        self.normalize1 = norm(in_planes)
        self.act = act

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        h = self.conv1(self.act(self.normalize1(x, labels)))
        h = self.conv2(self.act(self.normalize2(h, labels)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class RCUBlock(nn.Module):
    """Residual convolution units: add the result of `n_stages` convolutions `n_blocks` times."""

    def __init__(
        self, planes: int, n_blocks: int, n_stages: int, act: Callable, norm: Callable | None = None
    ):
        super().__init__()
        self.names = [[f'{i}_{j}' for j in range(1, n_stages + 1)] for i in range(1, n_blocks + 1)]
        for name in sum(self.names, []):
            if norm:
                self.add_module(f'{name}_norm', norm(planes))
            self.add_module(f'{name}_conv', _conv(planes, planes, bias=False))
        self.act, self.normalized = act, norm is not None

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        for stages in self.names:
            h = x
            for name in stages:
                if self.normalized:
                    h = getattr(self, f'{name}_norm')(h, labels)
                h = getattr(self, f'{name}_conv')(self.act(h))
            x = x + h
        return x


class MSFBlock(nn.Module):
    """Multi-resolution fusion: convolve all inputs, interpolate them to one size and add them."""

    def __init__(
        self,
        in_planes: Sequence[int],
        features: int,
        interpolation: str,
        norm: Callable | None = None,
    ):
        super().__init__()
        self.convs = nn.ModuleList(_conv(planes, features) for planes in in_planes)
        self.norms = nn.ModuleList(norm(planes) for planes in in_planes) if norm else None
        self.mode = dict(
            mode=interpolation,
            align_corners=True if interpolation in ('bilinear', 'bicubic') else None,
        )

    def forward(self, inputs: list[Tensor], labels: Tensor | None, size: Sequence[int]) -> Tensor:
        if self.norms:
            inputs = [norm(x, labels) for norm, x in zip(self.norms, inputs)]
        return sum(
            F.interpolate(conv(x), size=size, **self.mode) for conv, x in zip(self.convs, inputs)
        )


class CRPBlock(nn.Module):
    """Chained residual pooling: add the results of a chain of poolings and convolutions to x.

    The pooling is average pooling with `norm`, and max pooling without.
    """

    def __init__(self, features: int, n_stages: int, act: Callable, norm: Callable | None = None):
        super().__init__()
        self.convs = nn.ModuleList(_conv(features, features, bias=False) for _ in range(n_stages))
        self.norms = nn.ModuleList(norm(features) for _ in range(n_stages)) if norm else None
        self.act = act

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        x = path = self.act(x)
        for i, conv in enumerate(self.convs):
            path = (
                F.avg_pool2d(self.norms[i](path, labels), 5, 1, 2)
                if self.norms
                else F.max_pool2d(path, 5, 1, 2)
            )
            path = conv(path)
            x = x + path
        return x


class RefineBlock(nn.Module):
    """Join a feature map of the encoder with the output of the next coarser refinement.

    Their numbers of channels are `in_planes`; the output has `features` channels.
    """

    def __init__(
        self,
        in_planes: Sequence[int],
        features: int,
        act: Callable,
        interpolation: str,
        norm: Callable | None = None,
        end: bool = False,
    ):
        super().__init__()
        self.adapt_convs = nn.ModuleList(RCUBlock(planes, 2, 2, act, norm) for planes in in_planes)
        self.output_convs = RCUBlock(features, 3 if end else 1, 2, act, norm)
        self.msf = (
            MSFBlock(in_planes, features, interpolation, norm) if len(in_planes) > 1 else None
        )
        self.crp = CRPBlock(features, 2, act, norm)

    def forward(self, inputs: list[Tensor], labels: Tensor | None) -> Tensor:
        """Join the inputs; the result has the size of the first.

        Args:
            inputs: the feature map and, except at the coarsest level, the coarser output.
            labels: passed to the normalizations.
        """
        adapted = [adapt(x, labels) for adapt, x in zip(self.adapt_convs, inputs)]
        h = adapted[0] if self.msf is None else self.msf(adapted, labels, inputs[0].shape[2:])
        return self.output_convs(self.crp(h, labels), labels)
