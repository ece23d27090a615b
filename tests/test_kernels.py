"""The CUDA kernels of upfirdn2d: compiled for GPUs that need not be here, run on the CPU, and on a
GPU where there is one.

What they compute is held against the definition, written out slowly; derivatives against finite
differences and transposition.
"""

import ctypes
import importlib
import itertools
import shutil
import subprocess
import warnings

import numpy as np
import pytest
import torch

from models import layerspp
from models import up_or_down_sampling as resampling
from op import nvrtc, upfirdn2d
from op.upfirdn2d import SCALARS, SOURCE, resample

module = importlib.import_module('op.upfirdn2d')
FIR = (1, 3, 3, 1)
FORMATS = {'planes': torch.contiguous_format, 'pixels': torch.channels_last}
gpu = pytest.mark.gpu


def definition(x, h, up, down, before, size, flip):
    """out[n] = sum_k h[k] x_up[n down + k - before] on both axes, window by window, in float64."""
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
    """The arguments of the transposed operation, whose output has the `size` of the input."""
    up, down, before, _, flip = setting
    return (
        down,
        up,
        [length - 1 - start for length, start in zip(taps_shape, before)],
        size,
        not flip,
    )


def settings(seed, n, meet=True):
    """n random (shape, taps' shape, (up, down, before, size, flip)), with borders cropped and
    empty; `meet`: filter and image do.
    """
    rng = np.random.default_rng(seed)
    while n:
        shape, taps = rng.integers(1, [4, 6, 10, 10]).tolist(), rng.integers(1, 6, 2).tolist()
        (up, down), before, size = (
            rng.integers(1, 4, 2).tolist(),
            rng.integers(-4, 7, 2).tolist(),
            rng.integers(1, 12, 2).tolist(),
        )
        if meet and not all(
            (1 - length) * up <= start < (places - 1) * down + reach
            for length, reach, start, places in zip(shape[2:], taps, before, size)
        ):
            continue
        n -= 1
        yield shape, taps, (up, down, before, size, bool(rng.integers(2)))


def tolerance(dtype, taps):
    """Some roundings of sums in the accumulation type, of numbers up to 4 or so, and one of the
    result in `dtype`.
    """
    accumulation = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    size = 4 * taps.abs().sum().item()
    return dict(rtol=0.6 * torch.finfo(dtype).eps, atol=8 * accumulation * size)


def check(call, x, taps, setting):
    """call(x, taps, ...) is the definition, to the last digit that can be expected; its output has
    the dtype and memory format of x.
    """
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
    """Normal numbers; `layout` is one of FORMATS, or the name of a kernel that ends in one."""
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
    """(kernel, shape, setting) for which the fast kernels are made, `vector` values to 16 bytes:
    strips and tiles with and without rest.
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


# The source compiles, and its kernels keep to their registers -------------------------------------


@pytest.mark.parametrize('target', ['sm_75', 'sm_80', 'sm_90', 'sm_100', 'compute_90'])
@pytest.mark.parametrize('scalar', ['float', 'bfloat16'])
def test_source_compiles(scalar, target):
    pytest.importorskip(
        'cuda.bindings.nvrtc',
        reason='cuda-bindings, of the CUDA builds of PyTorch, is not installed',
    )
    try:
        nvrtc.architecture((9, 0))
    except RuntimeError as error:  # the bindings are here, the library is not
        pytest.skip(f'NVRTC cannot be loaded: {error}')
    image, log = nvrtc.compile(SOURCE.read_text(), target, SCALAR=scalar)
    names = {'general', 'general_long', 'up2_planes', 'up2_pixels', 'down2_planes', 'down2_pixels'}
    if target.startswith('compute'):
        assert all(f'.entry {name}('.encode() in image for name in names)
        # the log, a single NUL, was not written into the byte that all of Python shares
        assert log == '' and bytes([32])[0] == 32
        return
    assert image.startswith(b'\x7fELF')
    found = nvrtc.resources(log)
    assert set(found) == names
    for name, kernel in found.items():
        assert kernel['spills'] == kernel['stack'] == kernel['shared'] == 0, f'{name}: {kernel}'
        # two blocks to a multiprocessor, at least
        assert 0 < kernel['registers'] <= 128, f'{name}: {kernel}'


def test_what_the_compiler_refuses_is_told():
    pytest.importorskip(
        'cuda.bindings.nvrtc',
        reason='cuda-bindings, of the CUDA builds of PyTorch, is not installed',
    )
    with pytest.raises(RuntimeError, match='COMPILATION.*sm_90.*"nonsense" is undefined'):
        nvrtc.compile('__global__ void kernel() { nonsense; }', 'sm_90')


@pytest.mark.parametrize(
    'capability, target',
    [((9, 0), 'sm_90'), ((7, 5), 'sm_75'), ((99, 0), 'compute_121'), ((9, 9), 'compute_90')],
)
def test_targets(capability, target, monkeypatch):
    """Machine code where NVRTC knows the GPU, else the newest code that a newer driver can
    translate.
    """
    bindings = pytest.importorskip(
        'cuda.bindings.nvrtc',
        reason='cuda-bindings, of the CUDA builds of PyTorch, is not installed',
    )
    monkeypatch.setattr(bindings, 'nvrtcGetSupportedArchs', lambda: (0, [75, 80, 90, 121]))
    assert nvrtc.architecture(capability) == target
    with pytest.raises(RuntimeError, match='does not compile for compute capability 7.0'):
        nvrtc.architecture((7, 0))


# The source, run on the CPU -----------------------------------------------------------------------

SHIM = r"""
#include <string.h>
struct Index { unsigned x, y, z; };
static thread_local Index threadIdx, blockIdx, blockDim;
#define __device__
#define __global__
#define __launch_bounds__(...)
#include "upfirdn2d.cu"
typedef void Kernel(const void*, const void*, void*, Geometry);
extern "C" void launch(Kernel* kernel, unsigned blocks, unsigned threads, const char* arguments) {
    struct { const void *x, *taps; void* out; Geometry g; } a;
    memcpy(&a, arguments, sizeof a);
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) kernel(a.x, a.taps, a.out, a.g);
}
"""


@pytest.fixture(scope='module')
def emulated(tmp_path_factory):
    """The kernels of each type as a library for this processor: {scalar: library}."""
    if not (compiler := shutil.which('g++')):
        pytest.skip('needs g++')
    folder, libraries = tmp_path_factory.mktemp('emulated'), {}
    (folder / 'shim.cpp').write_text(SHIM)
    for scalar in SCALARS.values():
        path = folder / f'{scalar}.so'
        command = [
            compiler,
            *'-std=c++17 -O1 -w -shared -fPIC'.split(),
            f'-DSCALAR={scalar}',
            f'-I{SOURCE.parent}',
            '-o',
            path,
        ]
        done = subprocess.run([*command, folder / 'shim.cpp'], capture_output=True, text=True)
        if done.returncode and '_Float16' in done.stderr:
            pytest.skip('needs a g++ that knows _Float16')
        assert not done.returncode, done.stderr
        libraries[scalar] = ctypes.CDLL(str(path))
    return libraries


def surrounded(x):
    """A copy of x between NaNs, which show in results if they are read."""
    room = torch.full((x.numel() + 128,), torch.nan, dtype=x.dtype)
    return room.as_strided(x.shape, x.stride(), 64).copy_(x)


@pytest.fixture
def emulation(emulated, monkeypatch):
    """A function like `resample` that goes the way of CUDA tensors, except that kernels run here.
    `.launched` lists their names.

    `.instead` names kernels to run in place of others.
    """

    def empty(shape, **kwargs):
        # what is not written stays NaN
        rooms.append(torch.full((int(np.prod(shape)) + 128,), torch.nan, dtype=kwargs['dtype']))
        if kwargs['memory_format'] == torch.channels_last:
            return rooms[-1][64:-64].view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
        return rooms[-1][64:-64].view(shape)

    class Module:
        def __init__(self, scalar, _):
            self.library = emulated[scalar]

        def launch(self, name, blocks, threads, arguments, offsets):
            assert offsets == (0, 8, 16, 24)
            launched.append(name)
            name = call.instead.get(name, name)
            self.library.launch(
                ctypes.cast(self.library[name], ctypes.c_void_p),
                blocks,
                threads,
                ctypes.c_char_p(arguments),
            )

    def call(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(module, '_kernels', Module)
            patch.setattr(torch, 'empty', empty)
            out = module._launched(*arguments)
        assert rooms[-1][:64].isnan().all() and rooms[-1][-64:].isnan().all(), (
            'written outside of the output'
        )
        return out

    rooms, launched = [], []
    call.launched, call.instead = launched, {}
    return call


@pytest.mark.parametrize('dtype', SCALARS, ids=str)
def test_emulated_fast_kernels(emulation, dtype):
    """Each is chosen where it should be, and right; so is the one of its transposed."""
    for name, shape, setting in fast_cases(128 // torch.finfo(dtype).bits):
        taps = filters((4, 4), dtype)
        check(emulation, surrounded(numbers(shape, dtype, name)), taps, setting)
        assert emulation.launched[-1] == name, f'{shape} {setting}'
        if name.startswith('up2'):
            back = transposed(setting, taps.shape, shape[2:])
            check(
                emulation, surrounded(numbers((*shape[:2], *setting[3]), dtype, name)), taps, back
            )
            assert emulation.launched[-1] == name.replace('up2', 'down2')


@pytest.mark.parametrize('layout', ['planes', 'pixels'])
@pytest.mark.parametrize('dtype', SCALARS, ids=str)
@pytest.mark.parametrize('kernel', ['general', 'general_long'])
def test_emulated_general_kernel(emulation, kernel, dtype, layout):
    emulation.instead['general'] = kernel
    for shape, taps_shape, setting in settings(0, 60, meet=False):
        check(
            emulation,
            surrounded(numbers(shape, dtype, layout)),
            filters(taps_shape, dtype),
            setting,
        )
        assert emulation.launched[-1] == 'general'


def test_emulated_views(emulation):
    """Inputs with gaps, in another order, repeated without memory, or off the 16 bytes: slower, but
    right.
    """
    wide, taps = torch.randn(2, 8, 9, 24), filters((4, 4), torch.float32)
    for x in [
        wide[:, :, :4, :8],
        wide[:, ::2, 1::2, ::3],
        wide[..., :4].transpose(2, 3)[..., 1:9],
        wide[..., :1, :1].expand(2, 8, 4, 8),
        torch.randn(2, 4, 8, 8).permute(0, 3, 1, 2),
        torch.randn(1 + 2 * 8 * 4 * 8)[1:].view(2, 8, 4, 8),
    ]:
        check(emulation, x, taps, (2, 1, (2, 2), (2 * x.shape[2], 2 * x.shape[3]), True))
    assert emulation.launched == ['general'] * 4 + ['up2_pixels', 'general']


@pytest.mark.parametrize(
    'shape, layout',
    [((2, 6, 4, 4), 'pixels'), ((2, 3, 4, 6), 'planes'), ((2, 4, 6, 5), 'planes')],
    ids=str,
)
def test_emulated_remainders(emulation, shape, layout):
    """Channels or columns that do not make whole pieces of 16 bytes."""
    x, taps, (height, width) = (
        numbers(shape, torch.float32, layout),
        filters((4, 4), torch.float32),
        shape[2:],
    )
    check(emulation, x, taps, (1, 2, (1, 1), (height // 2, width // 2), True))
    x = numbers((*shape[:3], width - 1), torch.float32, layout)
    check(emulation, x, taps, (2, 1, (2, 2), (2 * height, 2 * width - 2), True))
    assert emulation.launched == [
        'general',
        'up2_planes' if layout == 'planes' and width % 2 else 'general',
    ]


def test_emulated_emptiness(emulation):
    taps = torch.ones(4, 4)
    assert emulation(torch.ones(0, 3, 4, 4), taps, 2, 1, (2, 2), (8, 8), True).shape == (0, 3, 8, 8)
    assert emulation(torch.ones(2, 0, 4, 4), taps, 1, 2, (1, 1), (2, 2), True).shape == (2, 0, 2, 2)
    assert not emulation.launched


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_emulated_rounding(emulation, dtype):
    """Every value of 16 bits goes through unchanged; sums are rounded to the nearest, ties to even,
    overflow to infinity, NaN stays.
    """
    one = torch.ones(1, 1)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).reshape(1, 1, 256, 256)
    out = emulation(every, one, 1, 1, (0, 0), (256, 256), True)
    assert torch.equal(out.isnan(), every.isnan()) and torch.equal(
        out[~out.isnan()], every[~every.isnan()]
    )
    for tap in (torch.full((1, 1), 1 / 3), torch.full((1, 1), 1.5)):  # the latter makes ties
        out = emulation(every, tap, 1, 1, (0, 0), (256, 256), True)
        torch.testing.assert_close(
            out, (every.float() * tap).to(dtype), rtol=0, atol=0, equal_nan=True
        )
    # that of a GPU: rounded up, it would be zero
    nan = torch.full((1, 1), 2**31 - 1, dtype=torch.int32).view(torch.float32)
    assert (
        emulation(torch.ones(1, 1, 1, 2, dtype=dtype), nan, 1, 1, (0, 0), (1, 2), True)
        .isnan()
        .all()
    )
    largest = torch.full((1, 1, 1, 2), torch.finfo(dtype).max, dtype=dtype)
    assert emulation(largest, torch.full((1, 1), 1.5), 1, 1, (0, 0), (1, 2), True).isinf().all()


def test_tensors_beyond_32_bits():
    """Offsets are 64 bits wide everywhere; only the number of fast threads is not."""

    def of(batch):
        shape, out = (batch, 256, 1024, 1024), (batch, 256, 2048, 2048)
        strides = [(256 * h * h, h * h, h, 1) for h in (1024, 2048)]
        return module.plan(
            module.Layout(shape, strides[0]),
            module.Layout(out, strides[1]),
            2,
            (4, 4),
            (2, 1, 2, 2, True),
            True,
        )

    assert of(64).kernel == 'up2_planes' and of(64).blocks == 64 * 256 * 256 * 256 // 256
    assert of(256).kernel == 'general_long' and of(256).blocks == 256 * 256 * 2048 * 2048 // 256


# The operation ------------------------------------------------------------------------------------


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
    """<A x, y> = <x, A* y>, with A* by its formula and by differentiation."""
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
def test_operation_is_registered_well(setting):
    """Derivatives, shapes and strides without data, and compilation, as PyTorch itself checks
    them.
    """
    for layout in FORMATS:
        x, taps = (
            numbers((2, 2, 4, 5), torch.float64, layout).requires_grad_(),
            filters((4, 4), torch.float64),
        )
        torch.library.opcheck(resample, (x, taps, *setting))
    assert torch.autograd.gradcheck(lambda x: resample(x, taps, *setting), x)
    assert torch.autograd.gradgradcheck(lambda x: resample(x, taps, *setting), x)


RESAMPLINGS = {
    'upfirdn2d': lambda x, w: upfirdn2d(x, w[0, 0], up=2, down=3, pad=(-1, 4)),
    'upsample': lambda x, w: resampling.upsample_2d(x, FIR),
    'box': lambda x, w: resampling.upsample_2d(x, None, factor=3),
    'downsample': lambda x, w: resampling.downsample_2d(x, list(FIR), gain=2),
    'upsample_conv': lambda x, w: resampling.upsample_conv_2d(x, w, FIR),
    'conv_downsample': lambda x, w: resampling.conv_downsample_2d(x, w, FIR),
}


@pytest.fixture
def kernels_everywhere(monkeypatch):
    """CPU tensors pass for those of a GPU with kernels: `upfirdn2d` takes the operation."""
    monkeypatch.setattr(module, '_has_kernels', lambda device, dtype: True)


@pytest.mark.parametrize(
    'setting',
    [dict(), dict(up=2, pad=(2, 1)), dict(down=2, pad=(1, 1)), dict(up=2, down=3, pad=(-1, 2))],
    ids=str,
)
def test_derivatives_by_way_of_the_operation(kernels_everywhere, setting):
    x, kernel = double(2, 2, 4, 5).requires_grad_(), double(3, 2)
    assert torch.autograd.gradcheck(lambda x: upfirdn2d(x, kernel, **setting), x)
    assert torch.autograd.gradgradcheck(lambda x: upfirdn2d(x, kernel, **setting), x)


def test_transforms(kernels_everywhere):
    """torch.func and forward-mode differentiation, of which registered operations know nothing, do
    without it.
    """
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
    test_compiled_is_eager(way, layout)


def test_the_compiler_takes_the_choice_of_kernels_as_constant():
    """The mark that torch.compile looks for is the one that PyTorch sets."""
    assert vars(module._has_kernels) == vars(torch.compiler.assume_constant_result(lambda: True))


@pytest.mark.parametrize('layout', FORMATS)
@pytest.mark.parametrize('way', RESAMPLINGS)
def test_compiled_is_eager(way, layout, device='cpu'):
    """In one graph, backward as well; and the output keeps the memory format of the input."""
    torch._dynamo.reset()
    x, w = (
        numbers((2, 3, 6, 6), torch.float32, layout, device).requires_grad_(),
        torch.randn(3, 3, 3, 3, device=device),
    )
    results = []
    for f in (
        RESAMPLINGS[way],
        torch.compile(RESAMPLINGS[way], fullgraph=True, backend='aot_eager'),
    ):
        out = f(x, w)
        assert module._memory_format(out) == FORMATS[layout]
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    torch.testing.assert_close(*results)


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
    """On their device and not in their state dict: none is made, and copied there, in the forward
    pass.
    """
    layer = layer()
    (filter,) = layer.buffers()
    assert filter.shape == (4, 4) and not any('filter' in key for key in layer.state_dict())
    assert next(layer.to('meta').buffers()).is_meta
    monkeypatch.setattr(resampling, 'fir_filter', None)
    assert layer(torch.zeros(1, 3, 8, 8, device='meta')).shape[2] in (4, 16)


# Without kernels ----------------------------------------------------------------------------------


@pytest.fixture
def without_kernels(monkeypatch):
    """A place where kernels are wanted (CPU tensors pass for those of a GPU) and cannot be had."""

    def refuse(scalar, device):
        raise RuntimeError('NVRTC is on strike')

    monkeypatch.setattr(module, '_kernels', refuse)
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


def test_kernels_serve_where_they_are(emulation, kernels_everywhere, monkeypatch):
    """`upfirdn2d` turns border into size, and goes to the kernels unless the filter wants a
    gradient.
    """
    monkeypatch.setattr(module, 'resample', emulation)
    x, kernel = numbers((2, 4, 6, 8), torch.float32), torch.randn(4, 4)
    for setting in [
        dict(up=2, pad=(2, 1)),
        dict(down=2, pad=(1, 1)),
        dict(pad=(2, 1)),
        dict(up=3, down=2, pad=(-2, 5)),
        dict(down=3, pad=(9, -3)),
    ]:
        composed = upfirdn2d(x, kernel.clone().requires_grad_(), **setting)
        torch.testing.assert_close(
            upfirdn2d(x, kernel, **setting), composed.detach(), atol=1e-5, rtol=1e-5
        )
    assert emulation.launched == ['up2_planes', 'down2_planes', 'general', 'general', 'general']


# On a GPU -----------------------------------------------------------------------------------------


@gpu
@pytest.mark.parametrize('layout', FORMATS)
@pytest.mark.parametrize('dtype', SCALARS, ids=str)
def test_gpu_kernels(dtype, layout):
    for _, shape, setting in fast_cases(128 // torch.finfo(dtype).bits):
        check(
            resample, numbers(shape, dtype, layout, 'cuda'), filters((4, 4), dtype, 'cuda'), setting
        )
    for shape, taps_shape, setting in settings(0, 60, meet=False):
        check(
            resample,
            numbers(shape, dtype, layout, 'cuda'),
            filters(taps_shape, dtype, 'cuda'),
            setting,
        )


@gpu
def test_gpu_has_kernels():
    assert all(module._has_kernels(torch.device('cuda', 0), dtype) for dtype in SCALARS), (
        module._reasons
    )


@gpu
@pytest.mark.parametrize(
    'setting',
    [(2, 1, (2, 2), (8, 16), True), (1, 2, (1, 1), (2, 4), True), (3, 2, (-1, 4), (5, 7), False)],
    ids=str,
)
@pytest.mark.parametrize('layout', FORMATS)
def test_gpu_derivatives(layout, setting):
    x, taps = (
        numbers((1, 2, 4, 8), torch.float64, layout, 'cuda').requires_grad_(),
        filters((4, 4), torch.float64, 'cuda'),
    )
    assert torch.autograd.gradcheck(lambda x: resample(x, taps, *setting), x)
    assert torch.autograd.gradgradcheck(lambda x: resample(x, taps, *setting), x)
    torch.library.opcheck(resample, (x, taps, *setting))


@gpu
@pytest.mark.parametrize('layout', FORMATS)
@pytest.mark.parametrize('way', RESAMPLINGS)
def test_gpu_compiled_is_eager(way, layout):
    test_compiled_is_eager(way, layout, 'cuda')


@gpu
def test_gpu_graph():
    """Forward and backward, recorded once and replayed with other numbers."""
    x = torch.randn(2, 8, 8, 8, device='cuda', requires_grad=True)
    # a copy cannot be recorded
    enlarging, shrinking = (resampling.fir_filter(FIR, gain=gain).cuda() for gain in (4, 1))

    def step():
        out = resampling.shrink(resampling.enlarge(x, enlarging), shrinking)
        return out, *torch.autograd.grad(out.square().sum(), x)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, grad = step()
    with torch.no_grad():
        x.normal_()
    graph.replay()
    for value, expected in zip((out, grad), step()):
        torch.testing.assert_close(value, expected)


@gpu
@pytest.mark.parametrize('stream', [True, False])
def test_gpu_order(stream):
    """A kernel waits for what was asked of the current stream before; threads that have no CUDA
    context yet may call.
    """
    from concurrent.futures import ThreadPoolExecutor

    taps, x = torch.ones(4, 4, device='cuda'), torch.zeros(8, 8, 256, 256, device='cuda')
    resample(x, taps, 2, 1, (2, 2), (512, 512), True)
    torch.cuda.synchronize()

    def work():
        with torch.cuda.stream(torch.cuda.Stream() if stream else torch.cuda.default_stream()):
            torch.cuda._sleep(10**7)
            y = torch.ones_like(x)
            out = resample(y, taps, 2, 1, (2, 2), (512, 512), True)
            assert out[..., 2:-2, 2:-2].eq(4).all()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
    work()


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two CUDA devices')
def test_gpu_second_device():
    """Whatever device is current."""
    for device in ('cuda:1', 'cuda:0', 'cuda:1'):
        x, taps = torch.randn(2, 8, 8, 8, device=device), torch.ones(4, 4, device=device)
        check(resample, x, taps, (2, 1, (2, 2), (16, 16), True))


@gpu
def test_gpu_filter_from_the_cpu_and_its_gradient():
    x, kernel = (
        torch.randn(2, 3, 8, 8, device='cuda', dtype=torch.float64, requires_grad=True),
        torch.randn(4, 4, dtype=torch.float64),
    )
    setting = 2, 1, (2, 2), (16, 16), True
    out = upfirdn2d(x, kernel, up=2, pad=(2, 1))
    np.testing.assert_allclose(
        out.detach().cpu(), definition(x.detach(), kernel, *setting), atol=1e-12
    )
    kernel = kernel.cuda().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda kernel: upfirdn2d(x[:1, :1, :3, :3].detach(), kernel, up=2, pad=(2, 1)), kernel
    )
