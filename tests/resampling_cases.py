"""Inputs for `upfirdn2d` and its kernels, and the definition as a reference."""

import importlib
import itertools

import numpy as np
import torch

from models import up_or_down_sampling as resampling
from op import upfirdn2d

module = importlib.import_module('op.upfirdn2d')
FIR = (1, 3, 3, 1)
FORMATS = {'planes': torch.contiguous_format, 'pixels': torch.channels_last}


def definition(x, h, up, down, before, size, flip):
    """Compute out[n] = sum_k h[k] x_up[n down + k - before] on both axes, in float64."""
    x, h = x.double().cpu().numpy(), h.double().cpu().numpy()
    h = h[::-1, ::-1] if flip else h
    border = [max(start, 0) for start in before]
    ends = [
        (length - 1) * down + taps - start for length, taps, start in zip(size, h.shape, before)
    ]
    enlarged = np.zeros(
        (
            *x.shape[:2],
            *(
                front + max(end, length * up)
                for front, end, length in zip(border, ends, x.shape[2:])
            ),
        )
    )
    enlarged[
        ...,
        border[0] : border[0] + x.shape[2] * up : up,
        border[1] : border[1] + x.shape[3] * up : up,
    ] = x
    out = np.zeros((*x.shape[:2], *size))
    for i, j in itertools.product(*map(range, size)):
        top, left = i * down - before[0] + border[0], j * down - before[1] + border[1]
        out[..., i, j] = (enlarged[..., top : top + h.shape[0], left : left + h.shape[1]] * h).sum(
            (2, 3)
        )
    return torch.from_numpy(out)


def transposed(setting, taps_shape, size):
    """Return the arguments of the transposed operation, which maps to the `size` of the input."""
    up, down, before, _, flip = setting
    return (
        down,
        up,
        [length - 1 - start for length, start in zip(taps_shape, before)],
        size,
        not flip,
    )


def settings(seed, n, meet=True):
    """Yield n random (shape, shape of the taps, (up, down, before, size, flip)).

    Args:
        meet: leave out settings with an output that does not depend on the image.
    """
    rng = np.random.default_rng(seed)
    while n:
        shape, taps = rng.integers(1, [4, 6, 10, 10]).tolist(), rng.integers(1, 6, 2).tolist()
        up, down = rng.integers(1, 4, 2).tolist()
        before = rng.integers(-4, 7, 2).tolist()
        size = rng.integers(1, 12, 2).tolist()
        if meet and not all(
            (1 - length) * up <= start < (places - 1) * down + reach
            for length, reach, start, places in zip(shape[2:], taps, before, size)
        ):
            continue
        n -= 1
        yield shape, taps, (up, down, before, size, bool(rng.integers(2)))


def tolerance(dtype, taps):
    """Allow a few rounding errors of sums of numbers up to about 4, and one in `dtype`."""
    accumulation = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    size = 4 * taps.abs().sum().item()
    return dict(rtol=0.6 * torch.finfo(dtype).eps, atol=8 * accumulation * size)


def check(call, x, taps, setting):
    """Compare call(x, taps, *setting) with the definition; check its dtype and memory format."""
    out = call(x, taps, *setting)
    assert out.dtype == x.dtype and out.shape == (*x.shape[:2], *setting[3])
    assert out.is_contiguous(memory_format=module._memory_format(x))
    np.testing.assert_allclose(
        out.double().cpu(),
        definition(x, taps, *setting),
        **tolerance(x.dtype, taps),
        err_msg=f'{tuple(x.shape)} {x.stride()} {x.dtype} {tuple(taps.shape)} {setting}',
    )


def numbers(shape, dtype, layout='planes', device='cpu'):
    """Draw normal numbers; `layout` is one of FORMATS, or a kernel name that ends in one."""
    return (
        torch.randn(shape, dtype=torch.float64)
        .to(device, dtype)
        .contiguous(memory_format=FORMATS[layout.split('_')[-1]])
    )


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def filters(shape, dtype, device='cpu'):
    return torch.randn(*shape, dtype=torch.float64).to(
        device, torch.float64 if dtype == torch.float64 else torch.float32
    )


def fast_cases(vector):
    """Yield (kernel, shape, setting) of the fast kernels, with and without remainders.

    Args:
        vector: the number of values in 16 bytes.
    """
    for batch, channels, rows, tiles, flip in [
        (2, 3, 1, 2, False),
        (1, 2, 4, 1, True),
        (2, 1, 5, 3, False),
        (1, 3, 9, 1, True),
    ]:
        for layout, c, h, w in [
            ('planes', channels, rows, tiles * vector // 2),
            ('pixels', channels * vector, rows, tiles),
        ]:
            yield f'up2_{layout}', (batch, c, h, w), (2, 1, (2, 2), (2 * h, 2 * w), flip)
            odd = flip and layout == 'pixels'
            yield (
                f'down2_{layout}',
                (batch, c, 2 * h + odd, 2 * w + odd),
                (1, 2, (1, 1), (h, w), flip),
            )


RESAMPLINGS = {
    'upfirdn2d': lambda x, w: upfirdn2d(x, w[0, 0], up=2, down=3, pad=(-1, 4)),
    'upsample': lambda x, w: resampling.upsample_2d(x, FIR),
    'box': lambda x, w: resampling.upsample_2d(x, None, factor=3),
    'downsample': lambda x, w: resampling.downsample_2d(x, list(FIR), gain=2),
    'upsample_conv': lambda x, w: resampling.upsample_conv_2d(x, w, FIR),
    'conv_downsample': lambda x, w: resampling.conv_downsample_2d(x, w, FIR),
}


def check_compiled_is_eager(way, layout, device='cpu'):
    """Check that a compiled call is one graph (backward too), with the eager results.

    The output has the memory format of the input.
    """
    torch._dynamo.reset()
    x = numbers((2, 3, 6, 6), torch.float32, layout, device).requires_grad_()
    w = torch.randn(3, 3, 3, 3, device=device)
    results = []
    for f in (
        RESAMPLINGS[way],
        torch.compile(RESAMPLINGS[way], fullgraph=True, backend='aot_eager'),
    ):
        out = f(x, w)
        assert module._memory_format(out) == FORMATS[layout]
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    torch.testing.assert_close(*results)
