"""Resampling and activation, compared with slow definitions and finite differences."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import up_or_down_sampling as resampling
from op import FusedLeakyReLU, fused_leaky_relu, upfirdn2d
from resampling_cases import FIR, double


def slow_upfirdn2d(x, kernel, up, down, pad):
    """Compute `upfirdn2d` by its definition, pixel by pixel.

    Zeros are inserted between the pixels and around them (or borders are cropped); the flipped
    kernel is applied at every `down`-th position.
    """
    batch, channels, height, width = x.shape
    kh, kw = kernel.shape
    enlarged = np.zeros((batch, channels, height * up, width * up))
    enlarged[:, :, ::up, ::up] = x
    before, after = max(pad[0], 0), max(pad[1], 0)
    enlarged = np.pad(enlarged, [(0, 0), (0, 0), (before, after), (before, after)])
    front, back = max(-pad[0], 0), max(-pad[1], 0)
    enlarged = enlarged[:, :, front : enlarged.shape[2] - back, front : enlarged.shape[3] - back]
    rows = range(0, enlarged.shape[2] - kh + 1, down)
    columns = range(0, enlarged.shape[3] - kw + 1, down)
    out = np.zeros((batch, channels, len(rows), len(columns)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            out[:, :, i, j] = (
                enlarged[:, :, row : row + kh, column : column + kw] * kernel[::-1, ::-1]
            ).sum((2, 3))
    return out


def slow_correlation(x, w, stride=1):
    """Return the cross-correlation of x and w: sums over channels and taps, without padding."""
    r = w.shape[-1]
    rows, columns = range(0, x.shape[2] - r + 1, stride), range(0, x.shape[3] - r + 1, stride)
    out = np.zeros((len(x), len(w), len(rows), len(columns)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            out[:, :, i, j] = np.einsum(
                'bcij,ocij->bo', x[:, :, row : row + r, column : column + r], w
            )
    return out


# upfirdn2d ----------------------------------------------------------------------------------------


PADS = [(0, 0), (2, 1), (1, 3), (-1, 2), (3, -2), (-1, -1), (7, 9)]
# every kind of border in each branch of the code, and every pair of factors
CASES = [
    *(((3, 2), *factors, pad) for factors in ((1, 1), (1, 2), (2, 1), (2, 3)) for pad in PADS),
    *(((4, 4), up, down, (2, 1)) for up in (1, 2, 3) for down in (1, 2, 3)),
    ((1, 5), 3, 2, (7, 9)),
    ((1, 5), 1, 1, (-1, 2)),
]


@pytest.mark.parametrize('kernel_shape, up, down, pad', CASES, ids=str)
def test_upfirdn2d_is_its_definition(kernel_shape, up, down, pad):
    x, kernel = double(2, 3, 9, 7), double(*kernel_shape)
    value = upfirdn2d(x, kernel, up=up, down=down, pad=pad)
    expected = slow_upfirdn2d(x.numpy(), kernel.numpy(), up, down, pad)
    assert value.dtype == torch.float64 and value.shape == expected.shape
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-13)


def test_upfirdn2d_on_random_settings():
    """Random settings agree with the definition; settings with an empty output are skipped."""
    rng = np.random.default_rng(0)
    tried = 0
    while tried < 60:
        height, width, kh, kw = rng.integers(1, 9, 4)
        (up, down), pad = rng.integers(1, 5, 2).tolist(), tuple(rng.integers(-4, 6, 2).tolist())
        if (
            min(height * up + sum(pad) - kh, width * up + sum(pad) - kw) < 0
            or min(height, width) * up + min(0, *pad) < 0
        ):
            continue
        tried += 1
        x, kernel = double(1, 2, height, width), double(kh, kw)
        setting = dict(up=up, down=down, pad=pad)
        np.testing.assert_allclose(
            upfirdn2d(x, kernel, **setting),
            slow_upfirdn2d(x.numpy(), kernel.numpy(), **setting),
            rtol=0,
            atol=1e-13,
            err_msg=f'{tuple(x.shape)} {tuple(kernel.shape)} {setting}',
        )


@pytest.mark.parametrize(
    'setting',
    [dict(), dict(up=2, pad=(2, 1)), dict(down=2, pad=(1, 1)), dict(up=2, down=3, pad=(-1, 2))],
    ids=str,
)
def test_upfirdn2d_derivatives(setting):
    """First derivatives (for training) and second ones (for regularisers) by image and kernel."""
    inputs = double(2, 1, 4, 5).requires_grad_(), double(3, 2).requires_grad_()

    def resample(x, kernel):
        return upfirdn2d(x, kernel, **setting)

    assert torch.autograd.gradcheck(resample, inputs)
    assert torch.autograd.gradgradcheck(resample, inputs)


@pytest.mark.parametrize('up', [1, 2])
def test_upfirdn2d_of_an_image_smaller_than_the_kernel_raises_an_error(up):
    with pytest.raises(ValueError, match='1x6 .*smaller than the 4x4 kernel'):
        upfirdn2d(torch.zeros(1, 1, 1, 6), torch.ones(4, 4), up=up)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    'resample',
    [
        lambda x, w: resampling.upsample_2d(x, FIR),
        lambda x, w: resampling.downsample_2d(x, FIR),
        lambda x, w: resampling.upsample_conv_2d(x, w, FIR),
        lambda x, w: resampling.conv_downsample_2d(x, w, FIR),
        lambda x, w: fused_leaky_relu(x, w[0, :, 0, 0]),
    ],
    ids=['upsample', 'downsample', 'upsample_conv', 'conv_downsample', 'activation'],
)
def test_low_precision_dtypes_are_kept(resample, dtype):
    x, w = torch.randn(2, 3, 8, 8).to(dtype), torch.randn(4, 3, 3, 3).to(dtype)
    value, exact = resample(x, w), resample(x.double(), w.double())
    assert value.dtype == dtype
    # the tolerance is a few rounding errors of the result
    assert (value.double() - exact).abs().max() < 4 * torch.finfo(dtype).eps * exact.abs().max()


# Resampling by a factor ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    'k, factor',
    [
        (None, 2),
        (None, 3),
        (FIR, 2),
        ((1, 2, 1), 2),
        ((1, 4, 6, 4, 1), 2),
        ((1, 5, 10, 10, 5, 1), 2),
        ((1, 2, 3, 2, 1), 3),
    ],
    ids=str,
)
def test_upsampling_keeps_a_constant(k, factor):
    """A constant is kept away from the border, for filters whose phases all have equal weight."""
    length = factor if k is None else len(k)
    value = resampling.upsample_2d(
        torch.full((1, 2, 12, 10), 0.7, dtype=torch.float64), k, factor=factor, gain=3
    )
    assert value.shape == (1, 2, 12 * factor, 10 * factor)
    inner = value[..., length:-length, length:-length]
    torch.testing.assert_close(inner, torch.full_like(inner, 2.1), atol=1e-6, rtol=0)


@pytest.mark.parametrize('factor', [2, 3])
@pytest.mark.parametrize('k', [None, FIR, (1, 2, 1), (1, 4, 6, 4, 1)], ids=str)
def test_resampling_does_not_shift_images(k, factor):
    """A ramp keeps its slope and, for filters symmetric about a pixel's centre, its position."""
    ramp = torch.arange(24, dtype=torch.float64).expand(1, 1, 24, 24)
    value = resampling.downsample_2d(ramp, k, factor=factor)
    assert value.shape == (1, 1, 24 // factor, 24 // factor)
    # Output pixel i covers input pixels i factor .. i factor + factor - 1. If the length of the
    # filter and the factor differ in parity, the output is shifted by half a pixel.
    length = factor if k is None else len(k)
    shift = 0.5 if (length - factor) % 2 else 0.0
    centres = torch.arange(24 // factor, dtype=torch.float64) * factor + (factor - 1) / 2 - shift
    torch.testing.assert_close(
        value[0, 0, 3:-3, 3:-3], centres[3:-3].expand(24 // factor - 6, -1), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize('factor', [2, 3])
def test_naive_resampling(factor):
    x = double(2, 3, 4, 5)
    enlarged = resampling.naive_upsample_2d(x, factor)
    for i in range(4 * factor):
        for j in range(5 * factor):
            assert torch.equal(enlarged[:, :, i, j], x[:, :, i // factor, j // factor])
    torch.testing.assert_close(resampling.naive_downsample_2d(enlarged, factor), x)


# Resampling with a convolution --------------------------------------------------------------------


def fir(k, factor, gain):
    k = np.ones(factor) if k is None else np.array(k, float)
    return np.outer(k, k) / k.sum() ** 2 * gain


@pytest.mark.parametrize('gain', [1, 2.5])
@pytest.mark.parametrize('k', [None, FIR, (1, 2, 1)], ids=str)
@pytest.mark.parametrize('size', [1, 3, 5])
def test_upsample_conv_2d_is_its_definition(size, k, gain):
    """It inserts zeros between the pixels, cross-correlates with w (not flipped), then filters."""
    x, w = double(2, 3, 5, 4), double(4, 3, size, size)
    value = resampling.upsample_conv_2d(x, w, k, gain=gain)
    assert value.shape == (2, 4, 10, 8)

    between = np.zeros((2, 3, 9, 7))
    between[:, :, ::2, ::2] = x
    border = size - 1
    correlated = slow_correlation(
        np.pad(between, [(0, 0), (0, 0), (border, border), (border, border)]), w.numpy()
    )
    kernel = fir(k, 2, 4 * gain)
    # all positions where filter and image overlap
    full = slow_upfirdn2d(correlated, kernel, 1, 1, (len(kernel) - 1,) * 2)
    # The result is the window of these positions that starts at the same position as `upsample_2d`
    # with a centred convolution.
    start = len(kernel) - 1 + border - ((len(kernel) - 2 + 1) // 2 + 1) - (size - 1) // 2
    window = np.pad(full, [(0, 0), (0, 0), (0, 4), (0, 4)])[
        :, :, start : start + 10, start : start + 8
    ]
    np.testing.assert_allclose(value, window, rtol=0, atol=1e-6)  # the filter is rounded to float32


@pytest.mark.parametrize('factor', [2, 3])
@pytest.mark.parametrize('k', [None, FIR, (1, 2, 1)], ids=str)
@pytest.mark.parametrize('size', [1, 3, 5])
def test_upsample_conv_2d_is_upsampling_then_convolution(size, k, factor):
    """Away from the border the two are equal, because filter and convolution commute."""
    x, w = double(2, 3, 9, 8), double(4, 3, size, size)
    value = resampling.upsample_conv_2d(x, w, k, factor=factor)
    separate = F.conv2d(resampling.upsample_2d(x, k, factor=factor), w, padding=size // 2)
    assert value.shape == separate.shape
    torch.testing.assert_close(value[..., 6:-6, 6:-6], separate[..., 6:-6, 6:-6], rtol=0, atol=1e-5)


@pytest.mark.parametrize('gain', [1, 2.5])
@pytest.mark.parametrize('k', [None, FIR, (1, 2, 1)], ids=str)
@pytest.mark.parametrize('size', [1, 3, 5])
def test_conv_downsample_2d_is_its_definition(size, k, gain):
    """It filters at full size, then cross-correlates with w at every second position."""
    x, w, kernel = double(2, 3, 8, 12), double(4, 3, size, size), fir(k, 2, gain)
    value = resampling.conv_downsample_2d(x, w, k, gain=gain)
    assert value.shape == (2, 4, 4, 6)
    spare = len(kernel) - 2 + size - 1
    filtered = slow_upfirdn2d(x.numpy(), kernel, 1, 1, ((spare + 1) // 2, spare // 2))
    np.testing.assert_allclose(
        value, slow_correlation(filtered, w.numpy(), stride=2), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize('factor', [2, 3])
@pytest.mark.parametrize('k', [None, FIR, (1, 2, 1)], ids=str)
@pytest.mark.parametrize('size', [1, 3, 5])
def test_conv_downsample_2d_is_convolution_then_downsampling(size, k, factor):
    x, w = double(2, 3, 24, 18), double(4, 3, size, size)
    value = resampling.conv_downsample_2d(x, w, k, factor=factor)
    separate = resampling.downsample_2d(F.conv2d(x, w, padding=size // 2), k, factor=factor)
    assert value.shape == separate.shape
    torch.testing.assert_close(value[..., 2:-2, 2:-2], separate[..., 2:-2, 2:-2], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    'k, reason', [(np.ones((2, 3)), 'square'), (np.ones((2, 2, 2)), 'square')], ids=['2x3', '3-D']
)
def test_a_filter_of_another_shape_raises_an_error(k, reason):
    with pytest.raises(ValueError, match=reason):
        resampling.upsample_2d(torch.zeros(1, 1, 4, 4), k)


# Activation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('shape', [(4, 3), (4, 3, 5), (4, 3, 5, 2)], ids=str)
def test_fused_leaky_relu_is_its_definition(shape):
    x, bias = double(*shape), double(3)
    value = fused_leaky_relu(x, bias, negative_slope=0.3, scale=1.7)
    for channel in range(3):
        y = x[:, channel].numpy() + bias[channel].item()
        np.testing.assert_allclose(value[:, channel], 1.7 * np.where(y > 0, y, 0.3 * y), rtol=1e-12)


def test_fused_leaky_relu_derivatives():
    inputs = double(2, 3, 4).requires_grad_(), double(3).requires_grad_()
    assert torch.autograd.gradcheck(fused_leaky_relu, inputs)
    assert torch.autograd.gradgradcheck(fused_leaky_relu, inputs)


def test_fused_leaky_relu_module():
    layer = FusedLeakyReLU(3)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.5, -0.5, 0]))
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), fused_leaky_relu(x, layer.bias, 0.2, 2**0.5))
    assert list(layer.state_dict()) == ['bias']
