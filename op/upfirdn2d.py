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
    channels, height, width = input.shape[1:]
    kh, kw = kernel.shape
    if min(height * up + before + behind - kh, width * up + before + behind - kw) < 0:
        raise ValueError(f'upfirdn2d: images of {height}x{width} with up={up} and pad={tuple(pad)} are smaller than the {kh}x{kw} kernel')
    taps = kernel.to(input).expand(channels, 1, kh, kw)  # one filter for each channel: several times faster than a batch of planes
    if up == 1:
        return F.conv2d(F.pad(input, (before, behind, before, behind)), taps.flip(2, 3), stride=down, groups=channels)
    # The transposed convolution is the filtered x_up with a full border: shift it to the border asked for.
    out = F.conv_transpose2d(input, taps, stride=up, groups=channels)
    return F.pad(out, (before - kw + 1, behind + up - kw, before - kh + 1, behind + up - kh))[..., ::down, ::down]
