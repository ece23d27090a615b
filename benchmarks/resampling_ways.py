"""Ways to resample with the filter [1, 3, 3, 1]: `op.upfirdn2d`, and other PyTorch operations.

Functions `up_*` resize x (B, C, H, W) to (B, C, 2 H, 2 W). Functions `down_*` do the opposite.
"""

import importlib

import timing  # noqa: F401 (puts the library on the path)
import torch
import torch.nn.functional as F

from op import upfirdn2d

library = importlib.import_module('op.upfirdn2d')


LINE = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
SETTINGS = {'up': dict(up=2, pad=(2, 1)), 'down': dict(down=2, pad=(1, 1))}


def up_composed(x):
    """A transposed convolution per channel, as `upfirdn2d` uses without its own kernels."""
    return library._composed(x, taps(x, 4), 2, 1, (2, 2), (2 * x.shape[2], 2 * x.shape[3]))


def up_separable(x):
    """`up_composed` as two one-dimensional convolutions, one axis after the other."""
    h = (2 * LINE).to(x).expand(x.shape[1], 1, 1, 4)
    x = F.conv_transpose2d(x, h, stride=(1, 2), padding=(0, 1), groups=x.shape[1])
    return F.conv_transpose2d(
        x, h.transpose(2, 3), stride=(2, 1), padding=(1, 0), groups=x.shape[1]
    )


def up_cut_later(x):
    """`up_composed` without padding; the border of the output is cut off afterwards."""
    return F.pad(
        F.conv_transpose2d(x, taps(x, 4).expand(x.shape[1], 1, 4, 4), stride=2, groups=x.shape[1]),
        (-1, -1, -1, -1),
    )


def up_phases(x):
    """Four 3x3 filters per channel, one for each phase of the output, and a pixel shuffle."""
    # out[2 i] = h[0] x[i - 1] + h[2] x[i], out[2 i + 1] = h[1] x[i] + h[3] x[i + 1]
    phases = x.new_zeros(2, 3)
    phases[0, :2], phases[1, 1:] = (2 * LINE[::2]).to(x), (2 * LINE[1::2]).to(x)
    kernels = (
        (phases[:, None, :, None] * phases[None, :, None, :])
        .reshape(4, 1, 3, 3)
        .repeat(x.shape[1], 1, 1, 1)
    )
    return F.pixel_shuffle(F.conv2d(x, kernels, padding=1, groups=x.shape[1]), 2)


def up_slices(x):
    """Weighted sums of shifted images, interleaved; one axis after the other."""
    h = (2 * LINE).tolist()
    for axis in (3, 2):
        length = x.shape[axis]
        padded = F.pad(x, (1, 1) if axis == 3 else (0, 0, 1, 1))
        before, after = padded.narrow(axis, 0, length), padded.narrow(axis, 2, length)
        x = torch.stack([h[0] * before + h[2] * x, h[1] * x + h[3] * after], axis + 1).flatten(
            axis, axis + 1
        )
    return x


def down_composed(x):
    """A strided convolution per channel, as `upfirdn2d` uses without its own kernels."""
    return library._composed(x, taps(x, 1), 1, 2, (1, 1), (x.shape[2] // 2, x.shape[3] // 2))


def down_padded_before(x):
    """`down_composed` with the padding added in a separate operation before."""
    return F.conv2d(
        F.pad(x, (1, 1, 1, 1)), taps(x, 1).expand(x.shape[1], 1, 4, 4), stride=2, groups=x.shape[1]
    )


def down_separable(x):
    """`down_composed` as two one-dimensional convolutions, one axis after the other."""
    h = LINE.to(x).expand(x.shape[1], 1, 1, 4)
    x = F.conv2d(x, h, stride=(1, 2), padding=(0, 1), groups=x.shape[1])
    return F.conv2d(x, h.transpose(2, 3), stride=(2, 1), padding=(1, 0), groups=x.shape[1])


def down_phases(x):
    """The four phases of the image as channels, and a 2x2 filter on each."""
    x = F.pixel_unshuffle(F.pad(x, (1, 1, 1, 1)), 2)
    h = LINE.to(x).reshape(2, 2).T  # phase, tap
    kernels = (
        (h[:, None, :, None] * h[None, :, None, :])
        .reshape(1, 4, 2, 2)
        .expand(x.shape[1] // 4, 4, 2, 2)
    )
    return F.conv2d(x, kernels, groups=x.shape[1] // 4)


def down_slices(x):
    """Weighted sums of every second pixel at four offsets; one axis after the other."""
    h = LINE.tolist()
    padded = F.pad(x, (1, 1, 1, 1))
    x = sum(h[k] * padded[..., k : k + x.shape[3] - 1 : 2] for k in range(4))
    return sum(h[k] * x[..., k : k + x.shape[2] - 3 : 2, :] for k in range(4))


def taps(x, gain):
    return (torch.outer(LINE, LINE) * gain).to(x)


def ways(direction: str) -> dict:
    kernel = torch.outer(LINE, LINE) * (4 if direction == 'up' else 1)
    kernels = {}  # the filter stays on the device, as in the networks

    def own(x):
        if x.device not in kernels:
            kernels[x.device] = kernel.to(x.device)
        return upfirdn2d(x, kernels[x.device], **SETTINGS[direction])

    found = {
        name.partition('_')[2].replace('_', ' '): way
        for name, way in globals().items()
        if name.startswith(f'{direction}_')
    }
    return {'upfirdn2d': own, **found}
