"""Blocks of NCSN++ and DDPM++: FIR resampling, BigGAN blocks, rescaled skips.

References:
    Song et al. 2021, Sec. 4.4 and Appendix H.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .layers import NIN, AttnBlock, ResnetBlock, ResnetBlockDDPM, conv1x1, conv3x3  # noqa: F401 (NIN: notebooks)
from .up_or_down_sampling import (
    Conv2d,
    enlarge,
    fir_filter,
    naive_downsample_2d,
    naive_upsample_2d,
    shrink,
)

# The blocks of DDPM with NCSN++'s normalization, whose number of groups depends on the number of
# channels.
AttnBlockpp = functools.partial(AttnBlock, groups=None)
ResnetBlockDDPMpp = functools.partial(ResnetBlockDDPM, groups=None)


class GaussianFourierProjection(nn.Module):
    """Sines and cosines of x (B,) at fixed random frequencies: (B, 2 embedding_size).

    The frequencies are normal with standard deviation `scale`.
    """

    def __init__(self, embedding_size: int = 256, scale: float = 1.0):
        super().__init__()
        frequencies = scale * torch.randn(embedding_size)
        self.W = nn.Parameter(frequencies, requires_grad=False)

    def _apply(self, fn, recurse=True):
        """Move and cast W, but keep at least float32, because angles are hundreds of radians."""
        precise = self.W.detach()
        super()._apply(fn, recurse)
        if torch.finfo(self.W.dtype).bits < 32:
            self.W = nn.Parameter(precise.to(self.W.device), requires_grad=False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        # in this order, large angles round as in the 2021 release
        angles = x[:, None] * self.W * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], 1)


class Combine(nn.Module):
    """Combine y with x, to which a 1x1 convolution first gives as many channels as y has.

    The two are added ('sum') or concatenated ('cat').
    """

    def __init__(self, dim1: int, dim2: int, method: str = 'cat'):
        super().__init__()
        if method not in ('cat', 'sum'):
            raise ValueError(f"method must be 'cat' or 'sum', got {method!r}")
        self.Conv_0 = conv1x1(dim1, dim2)
        self.method = method

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.Conv_0(x)
        return torch.cat([h, y], 1) if self.method == 'cat' else h + y


class Upsample(nn.Module):
    """Double the size by an FIR filter or by repetition; `with_conv` adds a 3x3 convolution."""

    def __init__(
        self,
        in_ch: int | None = None,
        out_ch: int | None = None,
        with_conv: bool = False,
        fir: bool = False,
        fir_kernel: Sequence[float] = (1, 3, 3, 1),
    ):
        super().__init__()
        self.fir, self.with_conv = fir, with_conv
        if fir and with_conv:
            self.Conv2d_0 = Conv2d(in_ch, out_ch or in_ch, 3, up=True, resample_kernel=fir_kernel)
        elif fir:
            self.register_buffer('filter', fir_filter(fir_kernel, gain=4), persistent=False)
        elif with_conv:
            self.Conv_0 = conv3x3(in_ch, out_ch or in_ch)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        if self.fir:
            return self.Conv2d_0(x) if self.with_conv else enlarge(x, self.filter)
        x = naive_upsample_2d(x)
        return self.Conv_0(x) if self.with_conv else x


class Downsample(nn.Module):
    """Halve the size by an FIR filter or by averaging.

    With `with_conv`, a strided 3x3 convolution follows the filter or replaces the averaging.
    """

    def __init__(
        self,
        in_ch: int | None = None,
        out_ch: int | None = None,
        with_conv: bool = False,
        fir: bool = False,
        fir_kernel: Sequence[float] = (1, 3, 3, 1),
    ):
        super().__init__()
        self.fir, self.with_conv = fir, with_conv
        if fir and with_conv:
            self.Conv2d_0 = Conv2d(in_ch, out_ch or in_ch, 3, down=True, resample_kernel=fir_kernel)
        elif fir:
            self.register_buffer('filter', fir_filter(fir_kernel), persistent=False)
        elif with_conv:
            self.Conv_0 = conv3x3(in_ch, out_ch or in_ch, stride=2, padding=0)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        if self.fir:
            return self.Conv2d_0(x) if self.with_conv else shrink(x, self.filter)
        return (
            self.Conv_0(nn.functional.pad(x, (0, 1, 0, 1)))
            if self.with_conv
            else naive_downsample_2d(x)
        )


class ResnetBlockBigGANpp(ResnetBlock):
    """The residual block of BigGAN (Brock et al. 2019), which may also resample its input."""

    def __init__(  # noqa: PLR0913, the signature of the 2021 release
        self,
        act: Callable,
        in_ch: int,
        out_ch: int | None = None,
        temb_dim: int | None = None,
        up: bool = False,
        down: bool = False,
        dropout: float = 0.1,
        fir: bool = False,
        fir_kernel: Sequence[float] = (1, 3, 3, 1),
        skip_rescale: bool = True,
        init_scale: float = 0.0,
    ):
        out_ch = out_ch or in_ch
        super().__init__(
            act, in_ch, out_ch, temb_dim, dropout, skip_rescale, init_scale, groups=None
        )
        if in_ch != out_ch or up or down:
            self.projection = 'Conv_2'
            self.Conv_2 = conv1x1(in_ch, out_ch)
        self.resampler = (
            (Upsample if up else Downsample)(fir=fir, fir_kernel=fir_kernel) if up or down else None
        )

    def resample(self, x: Tensor) -> Tensor:
        return x if self.resampler is None else self.resampler(x)
