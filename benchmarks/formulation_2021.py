"""Plain PyTorch code of the 2021 release, without its CUDA extension: the baseline for speed."""

import contextlib

import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import up_or_down_sampling


def plain_upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)):
    """`upfirdn2d` as in the 2021 release without its CUDA extension.

    It inserts zeros, pads, convolves, and subsamples.
    """
    batch, channels, height, width = input.shape
    x = input.reshape(-1, 1, height, 1, width, 1)
    x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1)).reshape(-1, 1, height * up, width * up)
    x = F.conv2d(F.pad(x, (*pad, *pad)), kernel.flip(0, 1).to(x)[None, None])[..., ::down, ::down]
    return x.reshape(batch, channels, *x.shape[2:])


@contextlib.contextmanager
def formulation_2021():
    """Use resampling and attention as in the 2021 release, in plain PyTorch."""
    kept, up_or_down_sampling.upfirdn2d = up_or_down_sampling.upfirdn2d, plain_upfirdn2d
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        up_or_down_sampling.upfirdn2d = kept
