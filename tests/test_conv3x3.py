"""3x3 convolutions and dropout: results and derivatives are those of PyTorch."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from op import Conv3x3, Dropout, conv3x3
from resampling_cases import double

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
    inputs = [double(2, 3, 4, 5), double(2, 3, 3, 3)]
    if bias:
        inputs.append(double(2))
    inputs = [tensor.requires_grad_() for tensor in inputs]
    torch.testing.assert_close(conv3x3(*inputs), F.conv2d(*inputs, padding=1), rtol=0, atol=0)
    assert torch.autograd.gradcheck(conv3x3, inputs)
    assert torch.autograd.gradgradcheck(conv3x3, inputs)


def test_gradients_are_a_good_citizen():
    torch.library.opcheck(
        winograd.gradients,
        [double(*shape).requires_grad_() for shape in ((2, 3, 4, 4), (2, 3, 3, 3), (2, 2, 4, 4))],
    )


def test_conv3x3_is_a_convolution_in_all_but_speed():
    """By name and state; in half precision and with few channels gradients are PyTorch's."""
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
    layer, x = Dropout(p), torch.ones(8, 32, 64, 64, dtype=dtype)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
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
