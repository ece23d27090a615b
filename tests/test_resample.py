"""The operation `resample`: its definition, derivatives, transforms and compilation."""

import warnings

import pytest
import torch

from models import layerspp
from models import up_or_down_sampling as resampling
from op import upfirdn2d
from op.upfirdn2d import SCALARS, resample
from resampling_cases import (
    FORMATS,
    RESAMPLINGS,
    check,
    check_compiled_is_eager,
    definition,
    double,
    filters,
    module,
    numbers,
    settings,
    transposed,
)


def test_operation_is_its_definition():
    for shape, taps_shape, setting in settings(1, 60):
        for layout in FORMATS:
            check(
                resample,
                numbers(shape, torch.float64, layout),
                filters(taps_shape, torch.float64),
                setting,
            )


def test_transposed_operation():
    """<A x, y> = <x, A* y> holds for A* from its formula and from differentiation."""
    for shape, taps_shape, setting in settings(2, 60):
        x, taps = numbers(shape, torch.float64).requires_grad_(), filters(taps_shape, torch.float64)
        out = resample(x, taps, *setting)
        y = torch.randn_like(out)
        back = definition(y, taps, *transposed(setting, taps_shape, shape[2:]))
        torch.testing.assert_close((out * y).sum(), (x * back).sum())
        torch.testing.assert_close(torch.autograd.grad(out, x, y)[0], back)


@pytest.mark.parametrize(
    'setting',
    [
        (2, 1, (2, 2), (8, 10), True),
        (1, 2, (1, 1), (2, 2), True),
        (1, 1, (0, 3), (3, 6), False),
        (3, 2, (-1, 4), (5, 7), True),
    ],
    ids=str,
)
def test_operation_passes_the_opcheck_of_pytorch(setting):
    """PyTorch's checks of derivatives, of shapes and strides without data, and of compilation."""
    for layout in FORMATS:
        x = numbers((2, 2, 4, 5), torch.float64, layout).requires_grad_()
        taps = filters((4, 4), torch.float64)
        torch.library.opcheck(resample, (x, taps, *setting))
    assert torch.autograd.gradcheck(lambda x: resample(x, taps, *setting), x)
    assert torch.autograd.gradgradcheck(lambda x: resample(x, taps, *setting), x)


@pytest.fixture
def kernels_everywhere(monkeypatch):
    """Treat CPU tensors as those of a GPU with kernels: `upfirdn2d` uses the operation."""
    monkeypatch.setattr(module, '_has_kernels', lambda device, dtype: True)


@pytest.mark.parametrize(
    'setting',
    [dict(), dict(up=2, pad=(2, 1)), dict(down=2, pad=(1, 1)), dict(up=2, down=3, pad=(-1, 2))],
    ids=str,
)
def test_derivatives_of_the_operation(kernels_everywhere, setting):
    x, kernel = double(2, 2, 4, 5).requires_grad_(), double(3, 2)
    assert torch.autograd.gradcheck(lambda x: upfirdn2d(x, kernel, **setting), x)
    assert torch.autograd.gradgradcheck(lambda x: upfirdn2d(x, kernel, **setting), x)


def test_transforms(kernels_everywhere):
    """torch.func and forward-mode differentiation work, which registered operations lack."""
    x, kernel = double(3, 2, 4, 5), double(4, 4)

    def resample(x):
        return upfirdn2d(x, kernel, up=2, pad=(2, 1))

    def energy(x):
        return resample(x).square().sum()

    grad = torch.autograd.grad(energy(x.requires_grad_()), x)[0]
    x = x.detach()
    torch.testing.assert_close(torch.func.grad(energy)(x), grad)
    torch.testing.assert_close(torch.func.vmap(lambda x: resample(x[None])[0])(x), resample(x))
    torch.testing.assert_close(torch.func.jvp(resample, (x,), (x,))[1], resample(x))
    assert torch.autograd.gradcheck(resample, x.requires_grad_(), check_forward_ad=True)


@pytest.mark.parametrize('layout', FORMATS)
@pytest.mark.parametrize('way', RESAMPLINGS)
def test_compiled_operation_is_eager(way, layout, kernels_everywhere):
    check_compiled_is_eager(way, layout)


def test_the_choice_of_kernels_is_constant_for_the_compiler():
    """The mark that torch.compile looks for is the one that PyTorch sets."""
    assert vars(module._has_kernels) == vars(torch.compiler.assume_constant_result(lambda: True))


@pytest.mark.parametrize('layout', FORMATS)
@pytest.mark.parametrize('way', RESAMPLINGS)
def test_compiled_is_eager(way, layout):
    check_compiled_is_eager(way, layout)


@pytest.mark.parametrize('down', [1, 2])
@pytest.mark.parametrize('dtype', SCALARS, ids=str)
def test_autocast_changes_nothing(dtype, down):
    x, taps = torch.randn(1, 2, 8, 8).to(dtype), torch.ones(4, 4)
    plain = upfirdn2d(x, taps, up=2, down=down)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(upfirdn2d(x, taps, up=2, down=down), plain, rtol=0, atol=0)


@pytest.mark.parametrize(
    'layer',
    [
        lambda: layerspp.Upsample(fir=True),
        lambda: layerspp.Downsample(fir=True),
        lambda: layerspp.Upsample(3, 4, with_conv=True, fir=True),
        lambda: layerspp.Downsample(3, 4, with_conv=True, fir=True),
    ],
)
def test_layers_keep_their_filters(layer, monkeypatch):
    """Filters are on the device of the layer, not in its state dict, and not built in forward."""
    layer = layer()
    (filter,) = layer.buffers()
    assert filter.shape == (4, 4) and not any('filter' in key for key in layer.state_dict())
    assert next(layer.to('meta').buffers()).is_meta
    monkeypatch.setattr(resampling, 'fir_filter', None)
    assert layer(torch.zeros(1, 3, 8, 8, device='meta')).shape[2] in (4, 16)


@pytest.fixture
def without_kernels(monkeypatch):
    """Treat CPU tensors as those of a GPU whose kernels cannot be compiled."""

    def fail(scalar, device):
        raise RuntimeError('NVRTC is on strike')

    monkeypatch.setattr(module, '_kernels', fail)
    monkeypatch.setattr(module, '_reasons', [])
    monkeypatch.setattr(
        module, '_has_kernels', lambda device, dtype: module._loads(SCALARS[dtype], device.index)
    )
    module._loads.cache_clear()
    yield
    module._loads.cache_clear()


def test_one_warning_without_kernels(without_kernels):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for dtype in (torch.float32, torch.float64, torch.float32):
            x = torch.randn(1, 1, 4, 4, dtype=dtype)
            setting = 2, 1, (2, 2), (8, 8), True
            torch.testing.assert_close(
                upfirdn2d(x, torch.ones(4, 4), up=2, pad=(2, 1)).double(),
                definition(x, torch.ones(4, 4), *setting),
                atol=1e-5,
                rtol=0,
            )
    (message,) = [str(warning.message) for warning in caught if 'upfirdn2d' in str(warning.message)]
    assert 'NVRTC is on strike' in message and 'slower' in message
