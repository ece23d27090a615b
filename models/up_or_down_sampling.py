"""Resampling of feature maps by an integer factor: with an FIR filter, which does not alias (Zhang 2019; Karras et al. 2020), or naively.

`k` is a 1-D filter (its outer product is taken) or a 2-D one, normalised here to sum 1; None is the box filter. All images are
(B, C, H, W); `gain` multiplies the result.
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from op import upfirdn2d

from .layers import default_init


def _filter(k, factor: int, gain: float) -> torch.Tensor:
    k = np.ones(factor) if k is None else np.asarray(k, np.float64)
    k = np.outer(k, k) if k.ndim == 1 else k
    if k.ndim != 2 or k.shape[0] != k.shape[1]:
        raise ValueError(f'a resampling filter must be a vector or a square matrix, got shape {k.shape}')
    return torch.tensor(k / k.sum() * gain, dtype=torch.float32)


def upsample_2d(x, k=None, factor: int = 2, gain: float = 1):
    """`x` enlarged by `factor`: zeros put between its pixels, then filtered."""
    k = _filter(k, factor, gain * factor ** 2)
    spare = len(k) - factor
    return upfirdn2d(x, k, up=factor, pad=((spare + 1) // 2 + factor - 1, spare // 2))


def downsample_2d(x, k=None, factor: int = 2, gain: float = 1):
    """`x` filtered, and every `factor`-th pixel of it."""
    k = _filter(k, factor, gain)
    spare = len(k) - factor
    return upfirdn2d(x, k, down=factor, pad=((spare + 1) // 2, spare // 2))


def naive_upsample_2d(x, factor: int = 2):
    """Every pixel of `x` repeated `factor` times along both axes."""
    return x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def naive_downsample_2d(x, factor: int = 2):
    """The means of the `factor` x `factor` tiles of `x`."""
    return F.avg_pool2d(x, factor)


def upsample_conv_2d(x, w, k=None, factor: int = 2, gain: float = 1):
    """`x` with zeros between its pixels, cross-correlated with `w` (out, in, r, r), then filtered: `upsample_2d` and a convolution."""
    k = _filter(k, factor, gain * factor ** 2)
    spare = len(k) - factor - (w.shape[-1] - 1)
    x = F.conv_transpose2d(x, w.flip(2, 3).transpose(0, 1), stride=factor)
    return upfirdn2d(x, k, pad=((spare + 1) // 2 + factor - 1, spare // 2 + factor - 1))


def conv_downsample_2d(x, w, k=None, factor: int = 2, gain: float = 1):
    """`x` filtered, then cross-correlated with `w` (out, in, r, r) at a stride of `factor`."""
    k = _filter(k, factor, gain)
    spare = len(k) - factor + (w.shape[-1] - 1)
    return F.conv2d(upfirdn2d(x, k, pad=((spare + 1) // 2, spare // 2)), w, stride=factor)


class Conv2d(nn.Module):
    """A convolution that may enlarge (`up`) or shrink (`down`) its input by 2 on the way."""

    def __init__(self, in_ch, out_ch, kernel, up=False, down=False, resample_kernel=(1, 3, 3, 1), use_bias=True):
        super().__init__()
        if up and down:
            raise ValueError('a convolution goes up or down, not both')
        if kernel % 2 == 0:
            raise ValueError(f'the kernel size must be odd, got {kernel}')
        self.weight = nn.Parameter(default_init()((out_ch, in_ch, kernel, kernel)))
        self.bias = nn.Parameter(torch.zeros(out_ch)) if use_bias else None
        self.up, self.down, self.resample_kernel = up, down, resample_kernel

    def forward(self, x):
        resampling = upsample_conv_2d if self.up else conv_downsample_2d if self.down else None
        h = resampling(x, self.weight, self.resample_kernel) if resampling else F.conv2d(x, self.weight, padding='same')
        return h if self.bias is None else h + self.bias[:, None, None]
