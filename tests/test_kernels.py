"""The CUDA kernels of upfirdn2d without a GPU: compiled for several GPUs, and run on the CPU.

Results are compared with the slow definition of `resampling_cases`.
"""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
import torch

from op import nvrtc, upfirdn2d
from op.upfirdn2d import SCALARS, SOURCE
from resampling_cases import (
    check,
    fast_cases,
    filters,
    module,
    numbers,
    settings,
    transposed,
)

# The source compiles, and its kernels use few enough registers ------------------------------------


@pytest.mark.parametrize('target', ['sm_75', 'sm_80', 'sm_90', 'sm_100', 'compute_90'])
@pytest.mark.parametrize('scalar', ['float', 'bfloat16'])
def test_source_compiles(scalar, target):
    pytest.importorskip(
        'cuda.bindings.nvrtc',
        reason='cuda-bindings, of the CUDA builds of PyTorch, is not installed',
    )
    try:
        nvrtc.architecture((9, 0))
    except RuntimeError as error:  # the bindings are installed, the library is not
        pytest.skip(f'NVRTC cannot be loaded: {error}')
    image, log = nvrtc.compile(SOURCE.read_text(), target, SCALAR=scalar)
    names = {'general', 'general_long', 'up2_planes', 'up2_pixels', 'down2_planes', 'down2_pixels'}
    if target.startswith('compute'):
        assert all(f'.entry {name}('.encode() in image for name in names)
        # Python shares one object for a single byte: the log, a single NUL, did not overwrite it
        assert log == '' and bytes([32])[0] == 32
        return
    assert image.startswith(b'\x7fELF')
    found = nvrtc.resources(log)
    assert set(found) == names
    for name, kernel in found.items():
        assert kernel['spills'] == kernel['stack'] == kernel['shared'] == 0, f'{name}: {kernel}'
        # at least two blocks fit on a multiprocessor
        assert 0 < kernel['registers'] <= 128, f'{name}: {kernel}'


def test_compiler_errors_are_reported():
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
    """The target is machine code if NVRTC supports the GPU, else the newest code for its driver."""
    bindings = pytest.importorskip(
        'cuda.bindings.nvrtc',
        reason='cuda-bindings, of the CUDA builds of PyTorch, is not installed',
    )
    monkeypatch.setattr(bindings, 'nvrtcGetSupportedArchs', lambda: (0, [75, 80, 90, 121]))
    assert nvrtc.architecture(capability) == target
    with pytest.raises(RuntimeError, match='does not support compute capability 7.0'):
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
    """The kernels compiled for the CPU, as one library for each type: {scalar: library}."""
    if not (compiler := shutil.which('g++')):
        pytest.skip('needs g++')
    folder, libraries = tmp_path_factory.mktemp('emulated'), {}
    (folder / 'shim.cpp').write_text(SHIM)
    for scalar in SCALARS.values():
        path = folder / f'{scalar}.so'
        command = [
            compiler,
            *('-std=c++17', '-O1', '-w', '-shared', '-fPIC'),
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
    """Return a copy of x surrounded by NaNs; a kernel that reads beyond x gives NaN."""
    room = torch.full((x.numel() + 128,), torch.nan, dtype=x.dtype)
    return room.as_strided(x.shape, x.stride(), 64).copy_(x)


@pytest.fixture
def emulation(emulated, monkeypatch):
    """A function like `resample` for CUDA tensors, with kernels that run on the CPU.

    Its list `launched` has the names of the launched kernels; its dict `instead` replaces kernels.
    """

    def empty(shape, **kwargs):
        # values that no kernel writes remain NaN
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
    """Each fast kernel is chosen in its cases and correct; so is the kernel of the transpose."""
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
    """Views with gaps, with permuted or expanded axes, or not aligned to 16 bytes."""
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
    """Rows of channels or columns whose size is not a multiple of 16 bytes."""
    height, width = shape[2:]
    x, taps = numbers(shape, torch.float32, layout), filters((4, 4), torch.float32)
    check(emulation, x, taps, (1, 2, (1, 1), (height // 2, width // 2), True))
    x = numbers((*shape[:3], width - 1), torch.float32, layout)
    check(emulation, x, taps, (2, 1, (2, 2), (2 * height, 2 * width - 2), True))
    assert emulation.launched == [
        'general',
        'up2_planes' if layout == 'planes' and width % 2 else 'general',
    ]


def test_emulated_empty_tensors(emulation):
    taps = torch.ones(4, 4)
    assert emulation(torch.ones(0, 3, 4, 4), taps, 2, 1, (2, 2), (8, 8), True).shape == (0, 3, 8, 8)
    assert emulation(torch.ones(2, 0, 4, 4), taps, 1, 2, (1, 1), (2, 2), True).shape == (2, 0, 2, 2)
    assert not emulation.launched


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_emulated_rounding(emulation, dtype):
    """16-bit values, NaN and infinity do not change; sums are rounded to nearest, ties to even."""
    one = torch.ones(1, 1)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).reshape(1, 1, 256, 256)
    out = emulation(every, one, 1, 1, (0, 0), (256, 256), True)
    assert torch.equal(out.isnan(), every.isnan()) and torch.equal(
        out[~out.isnan()], every[~every.isnan()]
    )
    for tap in (torch.full((1, 1), 1 / 3), torch.full((1, 1), 1.5)):  # 1.5 gives ties
        out = emulation(every, tap, 1, 1, (0, 0), (256, 256), True)
        torch.testing.assert_close(
            out, (every.float() * tap).to(dtype), rtol=0, atol=0, equal_nan=True
        )
    # the NaN of a GPU, whose bits would become zero if they were rounded up
    nan = torch.full((1, 1), 2**31 - 1, dtype=torch.int32).view(torch.float32)
    assert (
        emulation(torch.ones(1, 1, 1, 2, dtype=dtype), nan, 1, 1, (0, 0), (1, 2), True)
        .isnan()
        .all()
    )
    largest = torch.full((1, 1, 1, 2), torch.finfo(dtype).max, dtype=dtype)
    assert emulation(largest, torch.full((1, 1), 1.5), 1, 1, (0, 0), (1, 2), True).isinf().all()


def test_tensors_beyond_32_bits():
    """Offsets have 64 bits in all kernels; only the number of threads of fast kernels has 32."""

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


def test_kernels_are_used_if_available(emulation, monkeypatch):
    """`upfirdn2d` computes the output size and uses kernels unless the filter needs a gradient."""
    monkeypatch.setattr(module, '_has_kernels', lambda device, dtype: True)
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
