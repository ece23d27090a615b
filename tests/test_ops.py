"""Resampling, 3x3 convolutions, dropout and activation against their definitions, written out
slowly, and against finite differences.
"""

import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import up_or_down_sampling as resampling
from op import Conv3x3, Dropout, FusedLeakyReLU, conv3x3, fused_leaky_relu, upfirdn2d

FIR = (1, 3, 3, 1)


def slow_upfirdn2d(x, kernel, up, down, pad):
    """The definition, pixel by pixel: zeros between the pixels, zeros (or cuts) around, the flipped
    kernel at every `down`-th place.
    """
    batch, channels, height, width = x.shape
    kh, kw = kernel.shape
    enlarged = np.zeros((batch, channels, height * up, width * up))
    enlarged[:, :, ::up, ::up] = x
    before, behind = max(pad[0], 0), max(pad[1], 0)
    enlarged = np.pad(enlarged, [(0, 0), (0, 0), (before, behind), (before, behind)])
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
    """sum over channels and taps of x w, without padding."""
    r = w.shape[-1]
    rows, columns = range(0, x.shape[2] - r + 1, stride), range(0, x.shape[3] - r + 1, stride)
    out = np.zeros((len(x), len(w), len(rows), len(columns)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            out[:, :, i, j] = np.einsum(
                'bcij,ocij->bo', x[:, :, row : row + r, column : column + r], w
            )
    return out


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# upfirdn2d ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('pad', [(0, 0), (2, 1), (1, 3), (-1, 2), (3, -2), (-1, -1), (7, 9)])
@pytest.mark.parametrize('down', [1, 2, 3])
@pytest.mark.parametrize('up', [1, 2, 3])
@pytest.mark.parametrize('kernel_shape', [(4, 4), (3, 2), (1, 5)])
def test_upfirdn2d_is_its_definition(kernel_shape, up, down, pad):
    x, kernel = double(2, 3, 9, 7), double(*kernel_shape)
    value = upfirdn2d(x, kernel, up=up, down=down, pad=pad)
    expected = slow_upfirdn2d(x.numpy(), kernel.numpy(), up, down, pad)
    assert value.dtype == torch.float64 and value.shape == expected.shape
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-13)


def test_upfirdn2d_on_random_settings():
    """Combinations that nobody thought of, among those that leave at least a pixel."""
    rng, tried = np.random.default_rng(0), 0
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
    """First and second ones, in image and kernel: training needs the first, regularisers the
    second.
    """
    inputs = double(2, 1, 4, 5).requires_grad_(), double(3, 2).requires_grad_()

    def resample(x, kernel):
        return upfirdn2d(x, kernel, **setting)

    assert torch.autograd.gradcheck(resample, inputs)
    assert torch.autograd.gradgradcheck(resample, inputs)


@pytest.mark.parametrize('up', [1, 2])
def test_upfirdn2d_refuses_an_image_smaller_than_the_kernel(up):
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
def test_low_precision_stays(resample, dtype):
    x, w = torch.randn(2, 3, 8, 8).to(dtype), torch.randn(4, 3, 3, 3).to(dtype)
    value, exact = resample(x, w), resample(x.double(), w.double())
    assert value.dtype == dtype
    # a few roundings of the result
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
    """Away from the border, for filters that give all places between two pixels the same weight."""
    length = factor if k is None else len(k)
    value = resampling.upsample_2d(
        torch.full((1, 2, 12, 10), 0.7, dtype=torch.float64), k, factor=factor, gain=3
    )
    assert value.shape == (1, 2, 12 * factor, 10 * factor)
    inner = value[..., length:-length, length:-length]
    torch.testing.assert_close(inner, torch.full_like(inner, 2.1), atol=1e-6, rtol=0)


@pytest.mark.parametrize('factor', [2, 3])
@pytest.mark.parametrize('k', [None, FIR, (1, 2, 1), (1, 4, 6, 4, 1)], ids=str)
def test_resampling_stays_in_place(k, factor):
    """A ramp keeps its slope and, for filters symmetric about a pixel's centre, its place: nothing
    is shifted on the way down.
    """
    ramp = torch.arange(24, dtype=torch.float64).expand(1, 1, 24, 24)
    value = resampling.downsample_2d(ramp, k, factor=factor)
    assert value.shape == (1, 1, 24 // factor, 24 // factor)
    # Output pixel i covers input pixels i factor .. i factor + factor - 1; a filter whose length
    # has another parity is half a pixel off.
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
    """Zeros between the pixels, cross-correlation with w (not flipped), the filter; twice the
    size.
    """
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
    # all places where filter and image touch
    full = slow_upfirdn2d(correlated, kernel, 1, 1, (len(kernel) - 1,) * 2)
    # Of these, the result is the window that starts where `upsample_2d` and a centred convolution
    # start.
    start = len(kernel) - 1 + border - ((len(kernel) - 2 + 1) // 2 + 1) - (size - 1) // 2
    window = np.pad(full, [(0, 0), (0, 0), (0, 4), (0, 4)])[
        :, :, start : start + 10, start : start + 8
    ]
    np.testing.assert_allclose(value, window, rtol=0, atol=1e-6)  # the filter is rounded to float32


@pytest.mark.parametrize('factor', [2, 3])
@pytest.mark.parametrize('k', [None, FIR, (1, 2, 1)], ids=str)
@pytest.mark.parametrize('size', [1, 3, 5])
def test_upsample_conv_2d_is_upsampling_then_convolution(size, k, factor):
    """Filters commute, so away from the border the order makes no difference."""
    x, w = double(2, 3, 9, 8), double(4, 3, size, size)
    value = resampling.upsample_conv_2d(x, w, k, factor=factor)
    separate = F.conv2d(resampling.upsample_2d(x, k, factor=factor), w, padding=size // 2)
    assert value.shape == separate.shape
    torch.testing.assert_close(value[..., 6:-6, 6:-6], separate[..., 6:-6, 6:-6], rtol=0, atol=1e-5)


@pytest.mark.parametrize('gain', [1, 2.5])
@pytest.mark.parametrize('k', [None, FIR, (1, 2, 1)], ids=str)
@pytest.mark.parametrize('size', [1, 3, 5])
def test_conv_downsample_2d_is_its_definition(size, k, gain):
    """The filter at full size, then cross-correlation with w at every second place; half the
    size.
    """
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
def test_a_filter_that_is_none_is_refused(k, reason):
    with pytest.raises(ValueError, match=reason):
        resampling.upsample_2d(torch.zeros(1, 1, 4, 4), k)


# 3x3 convolutions ---------------------------------------------------------------------------------

winograd = importlib.import_module('op.conv3x3')


@pytest.fixture
def any_size(monkeypatch):
    """Gradients by `winograd.gradients` for few channels too, one image after another."""
    monkeypatch.setattr(winograd, 'CHANNELS', 1)
    monkeypatch.setattr(winograd, 'PRODUCTS', 0)
    monkeypatch.setattr(winograd, 'VALUES', 0)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('chunk', [1, 2, 3, 8])
@pytest.mark.parametrize('size', [(8, 8), (4, 6), (5, 7), (2, 2), (1, 1), (6, 1)], ids=str)
def test_gradients_are_those_of_the_convolution(size, chunk, layout, monkeypatch):
    x, grad = (double(3, channels, *size).contiguous(memory_format=layout) for channels in (5, 4))
    weight = double(4, 5, 3, 3)
    tiles = -(-size[0] // 2) * -(-size[1] // 2)
    monkeypatch.setattr(winograd, 'VALUES', 16 * tiles * 5 * chunk)
    for value, expected in zip(
        winograd.gradients(x, weight, grad), gradients_of_pytorch(x, weight, grad), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)


def gradients_of_pytorch(x, weight, grad):
    inputs = x.detach().requires_grad_(), weight.detach().requires_grad_()
    return torch.autograd.grad(F.conv2d(*inputs, padding=1), inputs, grad)


def test_float32_is_as_exact_as_the_gradients_of_pytorch():
    inputs = torch.randn(8, 64, 16, 16), torch.randn(64, 64, 3, 3), torch.randn(8, 64, 16, 16)
    exact = gradients_of_pytorch(*(values.double() for values in inputs))
    for ours, theirs, value in zip(
        winograd.gradients(*inputs), gradients_of_pytorch(*inputs), exact, strict=True
    ):
        ours, theirs = ((found - value).abs().max() / value.abs().max() for found in (ours, theirs))
        assert ours < min(2 * theirs, 1e-5)


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
def test_conv3x3_has_the_derivatives_of_the_convolution(bias, any_size):
    inputs = [
        tensor.requires_grad_()
        for tensor in (double(2, 3, 4, 5), double(2, 3, 3, 3), *[double(2)] * bias)
    ]
    torch.testing.assert_close(conv3x3(*inputs), F.conv2d(*inputs, padding=1), rtol=0, atol=0)
    assert torch.autograd.gradcheck(conv3x3, inputs)
    assert torch.autograd.gradgradcheck(conv3x3, inputs)


def test_gradients_are_a_good_citizen():
    torch.library.opcheck(
        winograd.gradients,
        [double(*shape).requires_grad_() for shape in ((2, 3, 4, 4), (2, 3, 3, 3), (2, 2, 4, 4))],
    )


def test_conv3x3_is_a_convolution_in_all_but_speed():
    """By name and in state, compiled and not; in other precisions and with few channels the
    gradients are PyTorch's.
    """
    layer, reference = Conv3x3(128, 128), torch.nn.Conv2d(128, 128, 3, padding=1)
    assert isinstance(layer, torch.nn.Conv2d)
    reference.load_state_dict(layer.state_dict())
    x = torch.randn(8, 128, 16, 16)
    expected = torch.autograd.grad(reference(x).square().sum(), tuple(reference.parameters()))
    for call in layer, torch.compile(layer, fullgraph=True):
        for value, exact in zip(
            torch.autograd.grad(call(x).square().sum(), tuple(layer.parameters())),
            expected,
            strict=True,
        ):
            torch.testing.assert_close(
                value, exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item()
            )
    assert 'Conv3x3' in layer(x).grad_fn.name()
    with torch.autocast('cpu', torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16 and 'Conv3x3' not in layer(x).grad_fn.name()
    for few, images in (
        (Conv3x3(64, 128), torch.randn(2, 64, 32, 32)),
        (layer, torch.randn(2, 128, 4, 4)),
    ):
        assert 'Conv3x3' not in few(images).grad_fn.name()
    torch.testing.assert_close(
        torch.func.functional_call(layer, dict(layer.named_parameters()), x), reference(x)
    )
    jacobian = torch.func.jacrev(lambda x: layer(x)[0, :2, 0, 0])(x)
    torch.testing.assert_close(jacobian, torch.func.jacrev(lambda x: reference(x)[0, :2, 0, 0])(x))


@pytest.mark.parametrize('p', (0.1, 0.7))
@pytest.mark.parametrize('dtype', (torch.float32, torch.bfloat16))
def test_dropout_drops_a_share_and_scales_the_rest(p, dtype):
    layer, x = (
        Dropout(p),
        torch.ones(8, 32, 64, 64, dtype=dtype)
        .to(memory_format=torch.channels_last)
        .requires_grad_(),
    )
    torch.manual_seed(0)
    y = layer(x)
    dropped = (y == 0).double()
    assert abs(dropped.mean() - p) < 4 * (p * (1 - p) / x.numel()) ** 0.5
    # no pattern along the layout
    assert dropped.mean((0, 2, 3)).std() < 2 * (p * (1 - p) / x[:, 0].numel()) ** 0.5
    assert y.is_contiguous(memory_format=torch.channels_last) and y.dtype == dtype
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p), dtype=dtype).item()}
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(0)
    assert torch.equal(layer(x), y) and not torch.equal(layer(x), y)
    assert layer.eval()(x) is x
    assert torch.autograd.gradgradcheck(
        lambda x: torch.manual_seed(1) and layer.train()(x),
        torch.rand(2, 3).double().requires_grad_(),
    )


def test_dropout_is_that_of_pytorch_where_it_must_be():
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(Dropout(1.0)(x), torch.zeros_like(x)) and torch.equal(Dropout(0.0)(x), x)
    y = Dropout(0.5, inplace=True)(x)
    assert y is x
    assert repr(Dropout(0.5)) == 'Dropout(p=0.5, inplace=False)'
    with pytest.raises(ValueError, match='probability'):
        Dropout(1.5)
    both = torch.func.vmap(Dropout(0.5), randomness='different')(torch.ones(2, 1000))
    assert not torch.equal(*both) and set(both.unique().tolist()) == {0.0, 2.0}


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
