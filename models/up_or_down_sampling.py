"""Resampling of feature maps by an integer factor, naive or with an FIR filter.

An FIR filter avoids aliasing (Zhang 2019; Karras et al. 2020). `k` is a 2-D filter, or a 1-D filter
that is applied to both axes. It is normalized to sum 1; None is the box filter. All images are
(B, C, H, W); `gain` multiplies the result.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from op import upfirdn2d

from .layers import default_init


def fir_filter(k: Sequence | np.ndarray | None, factor: int = 2, gain: float = 1) -> Tensor:
    """The filter `k` as a float32 matrix with sum `gain`.

    Raises:
        ValueError: if `k` is neither a vector nor a square matrix.
    """
    k = np.ones(factor) if k is None else np.asarray(k, np.float64)
    k = np.outer(k, k) if k.ndim == 1 else k
    if k.ndim != 2 or k.shape[0] != k.shape[1]:
        raise ValueError(
            f'a resampling filter must be a vector or a square matrix, got shape {k.shape}'
        )
    return torch.tensor(k / k.sum() * gain, dtype=torch.float32)


def upsample_2d(
    x: Tensor, k: Sequence | np.ndarray | None = None, factor: int = 2, gain: float = 1
) -> Tensor:
    """Enlarge `x` by `factor`: put zeros between its pixels, then filter."""
    return enlarge(x, fir_filter(k, factor, gain * factor**2), factor)


def downsample_2d(
    x: Tensor, k: Sequence | np.ndarray | None = None, factor: int = 2, gain: float = 1
) -> Tensor:
    """Filter `x` and keep every `factor`-th pixel."""
    return shrink(x, fir_filter(k, factor, gain), factor)


# The next functions take a filter (r, r) that is already on the device of `x`. A filter that is
# built in every call would have to be copied there.


def enlarge(x: Tensor, h: Tensor, factor: int = 2) -> Tensor:
    """`upsample_2d` with the filter h, whose sum is factor^2 times the gain."""
    spare = len(h) - factor
    return upfirdn2d(x, h, up=factor, pad=((spare + 1) // 2 + factor - 1, spare // 2))


def shrink(x: Tensor, h: Tensor, factor: int = 2) -> Tensor:
    """`downsample_2d` with the filter h, whose sum is the gain."""
    spare = len(h) - factor
    return upfirdn2d(x, h, down=factor, pad=((spare + 1) // 2, spare // 2))


def enlarge_conv(x: Tensor, w: Tensor, h: Tensor, factor: int = 2) -> Tensor:
    """`upsample_conv_2d` with the filter h, whose sum is factor^2 times the gain."""
    spare = len(h) - factor - (w.shape[-1] - 1)
    x = F.conv_transpose2d(x, w.flip(2, 3).transpose(0, 1), stride=factor)
    return upfirdn2d(x, h, pad=((spare + 1) // 2 + factor - 1, spare // 2 + factor - 1))


def conv_shrink(x: Tensor, w: Tensor, h: Tensor, factor: int = 2) -> Tensor:
    """`conv_downsample_2d` with the filter h, whose sum is the gain."""
    spare = len(h) - factor + (w.shape[-1] - 1)
    return F.conv2d(upfirdn2d(x, h, pad=((spare + 1) // 2, spare // 2)), w, stride=factor)


def naive_upsample_2d(x: Tensor, factor: int = 2) -> Tensor:
    """Repeat every pixel of `x` `factor` times along both axes."""
    return x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def naive_downsample_2d(x: Tensor, factor: int = 2) -> Tensor:
    """The means of the `factor` x `factor` tiles of `x`."""
    return F.avg_pool2d(x, factor)


def upsample_conv_2d(
    x: Tensor, w: Tensor, k: Sequence | np.ndarray | None = None, factor: int = 2, gain: float = 1
) -> Tensor:
    """`upsample_2d` and a convolution with `w` (out, in, r, r) in one operation.

    Zeros are put between the pixels of `x`; the result is cross-correlated with `w` and filtered.
    """
    return enlarge_conv(x, w, fir_filter(k, factor, gain * factor**2), factor)


def conv_downsample_2d(
    x: Tensor, w: Tensor, k: Sequence | np.ndarray | None = None, factor: int = 2, gain: float = 1
) -> Tensor:
    """Filter `x`, then cross-correlate with `w` (out, in, r, r) at a stride of `factor`."""
    return conv_shrink(x, w, fir_filter(k, factor, gain), factor)


class Conv2d(nn.Module):
    """A convolution that may also enlarge (`up`) or shrink (`down`) its input by 2."""

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        kernel: int,
        up: bool = False,
        down: bool = False,
        resample_kernel: Sequence[float] = (1, 3, 3, 1),
        use_bias: bool = True,
    ):
        super().__init__()
        if up and down:
            raise ValueError('up and down must not both be True')
        if kernel % 2 == 0:
            raise ValueError(f'the kernel size must be odd, got {kernel}')
        self.weight = nn.Parameter(default_init()((out_ch, in_ch, kernel, kernel)))
        self.bias = nn.Parameter(torch.zeros(out_ch)) if use_bias else None
        self.resampling = enlarge_conv if up else conv_shrink if down else None
        if self.resampling:
            self.register_buffer(
                'filter', fir_filter(resample_kernel, gain=4 if up else 1), persistent=False
            )

    def forward(self, x: Tensor) -> Tensor:
        h = (
            self.resampling(x, self.weight, self.filter)
            if self.resampling
            else F.conv2d(x, self.weight, padding='same')
        )
        return h if self.bias is None else h + self.bias[:, None, None]
