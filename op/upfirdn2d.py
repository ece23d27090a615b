"""Upsample, FIR-filter, downsample:  y[n] = sum_k h[k] x_up[n down + K - 1 - k]  on both axes (Karras et al. 2019, 2020).

`x_up` is x with up - 1 zeros behind every pixel, then padded; K is the length of the filter h.
Everything here is a composition of PyTorch's own convolutions: any device, any floating dtype, derivatives of any order.
"""
import torch
import torch.nn.functional as F


def upfirdn2d(input: torch.Tensor, kernel: torch.Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """Resamples `input` (B, C, H, W) with the filter `kernel` (kh, kw).

    Both axes grow by `up`, get pad[0] zeros in front and pad[1] behind (negative: are cropped), are filtered, and every `down`-th
    value is kept: H becomes (H up + pad[0] + pad[1] - kh) // down + 1. ValueError where nothing would be left.
    """
    before, behind = pad
    batch, channels, height, width = input.shape
    kh, kw = kernel.shape
    if min(height * up + before + behind - kh, width * up + before + behind - kw) < 0:
        raise ValueError(f'upfirdn2d: images of {height}x{width} with up={up} and pad={tuple(pad)} are smaller than the {kh}x{kw} kernel')
    planes = input.reshape(batch * channels, 1, height, width)
    taps = kernel.to(input)[None, None]
    if up == 1:
        out = F.conv2d(F.pad(planes, (before, behind, before, behind)), taps.flip(2, 3), stride=down)
    else:  # the transposed convolution is the filtered x_up with a full border: shift it to the border asked for
        out = F.conv_transpose2d(planes, taps, stride=up)
        out = F.pad(out, (before - kw + 1, behind + up - kw, before - kh + 1, behind + up - kh))[..., ::down, ::down]
    return out.reshape(batch, channels, *out.shape[2:])
