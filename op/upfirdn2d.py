"""Upsample, FIR-filter and downsample images (Karras et al. 2019, 2020).

On both axes,

    y[n] = sum_k h[k] x_up[n down + K - 1 - k],

where `x_up` is x with up - 1 zeros after every pixel, then padded, and K is the length of the
filter h.

The underlying operation is registered with PyTorch as `score_sde::resample`. With h flipped (for a
convolution) or not, and an output of any size,

    out[n] = sum_k h[k] x_up[n down + k - before],
    x_up[m] = x[m / up] if up divides m, and 0 otherwise and outside of x,

and the transposed map, from the gradient of `out` to that of x, has the same form:

    grad_x[i] = sum_k h[K - 1 - k] grad_up[i up + k - (K - 1 - before)],
    grad_up[m] = grad_out[m / down].

Derivatives of any order are therefore the same operation. On a CUDA device the operation is a
kernel of upfirdn2d.cu, which is compiled on first use. On other devices, if the kernel does not
compile, and for gradients with respect to the filter, it is composed of PyTorch's convolutions.
"""

import functools
import pathlib
import struct
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import nvrtc

SOURCE = pathlib.Path(__file__).with_suffix('.cu')
# names of the types in the source
SCALARS = {
    torch.float64: 'double',
    torch.float32: 'float',
    torch.float16: 'half',
    torch.bfloat16: 'bfloat16',
}
THREADS, ROWS = 256, 4  # threads per block, and rows of a thread's strip; both as in the source


def upfirdn2d(
    input: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)
) -> Tensor:
    """Resample `input` (B, C, H, W) with the filter `kernel` (kh, kw).

    Both axes grow by the factor `up`, are padded with pad[0] zeros before and pad[1] after
    (negative: cropped) and filtered, and every `down`-th value is kept. H becomes
    (H up + pad[0] + pad[1] - kh) // down + 1. The result has the dtype of `input`, also under
    autocast, and its memory format.

    Raises:
        ValueError: if the result would be empty.
    """
    before, after = pad
    height, width = input.shape[2:]
    kh, kw = kernel.shape
    if min(height * up + before + after - kh, width * up + before + after - kw) < 0:
        raise ValueError(
            f'upfirdn2d: images of {height}x{width} with up={up} and pad={tuple(pad)} '
            f'are smaller than the {kh}x{kw} kernel'
        )
    size = (
        (height * up + before + after - kh) // down + 1,
        (width * up + before + after - kw) // down + 1,
    )
    if kernel.requires_grad or _in_transform() or not _has_kernels(input.device, input.dtype):
        return _composed(input, kernel, up, down, (before, before), size)
    taps = kernel.to(input.device, _accumulator(input.dtype))
    return (resample if torch.compiler.is_compiling() else _Eager.apply)(
        input, taps, up, down, (before, before), size, True
    )


def _composed(
    x: Tensor, kernel: Tensor, up: int, down: int, before: Sequence[int], size: Sequence[int]
) -> Tensor:
    """`resample` with a flipped filter, composed of PyTorch's operations.

    It works on any device, in any floating-point dtype, and has derivatives in `kernel`.
    """
    # autocast would convolve in another dtype than the kernels
    if x.device.type != 'meta' and torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return _composed(x, kernel, up, down, before, size)
    channels, height, width = x.shape[1:]
    kh, kw = kernel.shape
    # one filter for each channel is several times faster than a batch of planes
    taps = kernel.to(x).expand(channels, 1, kh, kw)
    axes = list(zip(x.shape[2:], kernel.shape, before, size))
    # A convolution that pads or crops the border itself is up to twice as fast (benchmarks/ops.py).
    if up == 1:
        after = [
            (places - 1) * down + reach - start - length for length, reach, start, places in axes
        ]
        if all(start >= 0 and 0 <= start - end < down for start, end in zip(before, after)):
            return F.conv2d(x, taps.flip(2, 3), stride=down, padding=tuple(before), groups=channels)
        return F.conv2d(
            F.pad(x, (before[1], after[1], before[0], after[0])),
            taps.flip(2, 3),
            stride=down,
            groups=channels,
        )
    # The transposed convolution is the filtered x_up with a full border: pad or crop it to the
    # requested border.
    front = [start - reach + 1 for _, reach, start, _ in axes]
    after = [(places - 1) * down - start - (length - 1) * up for length, _, start, places in axes]
    more = [end - start for start, end in zip(front, after)]
    if all(start <= 0 <= extra < up for start, extra in zip(front, more)):
        cut = [-start for start in front]
        out = F.conv_transpose2d(
            x, taps, stride=up, padding=cut, output_padding=more, groups=channels
        )
    else:
        out = F.pad(
            F.conv_transpose2d(x, taps, stride=up, groups=channels),
            (front[1], after[1], front[0], after[0]),
        )
    return out[..., ::down, ::down]


def _in_transform() -> bool:
    """Whether torch.func or forward-mode differentiation is active.

    Registered operations support neither of them.
    """
    return (
        torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    )


# The operation ------------------------------------------------------------------------------------


@torch.library.custom_op('score_sde::resample', mutates_args=(), device_types='cpu')
def resample(
    x: Tensor,
    taps: Tensor,
    up: int,
    down: int,
    before: Sequence[int],
    size: Sequence[int],
    flip: bool,
) -> Tensor:
    """Return out[n] = sum_k h[k] x_up[n down + k - before], (B, C, *size), for `x` (B, C, H, W).

    h is `taps` (kh, kw), reversed if `flip`. On a CUDA device `taps` must have the dtype in which
    the kernels accumulate: float64 for images in float64, otherwise float32.
    """
    out = _composed(x, taps if flip else taps.flip(0, 1), up, down, before, size)
    return out.contiguous(memory_format=_memory_format(x))


@resample.register_fake
def _(x, taps, up, down, before, size, flip):
    return torch.empty(
        (*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=_memory_format(x)
    )


def _save(ctx, inputs, output):
    x, taps, *ctx.setting, ctx.flip = inputs
    ctx.input_size = x.shape[2:]
    ctx.save_for_backward(taps)


def _transposed(ctx, grad, call):
    """The gradients of all inputs; `call` applies the operation to `grad`."""
    (taps,), (up, down, before, _) = ctx.saved_tensors, ctx.setting
    before = [reach - 1 - start for reach, start in zip(taps.shape, before)]
    return call(grad, taps, down, up, before, ctx.input_size, not ctx.flip), *[None] * 6


resample.register_autograd(functools.partial(_transposed, call=resample), setup_context=_save)


class _Eager(torch.autograd.Function):
    """`resample` outside of torch.compile.

    Here the registered derivative would take more CPU time than the kernel takes GPU time.
    """

    @staticmethod
    def forward(ctx, *inputs):
        _save(ctx, inputs, None)
        return resample(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return _transposed(ctx, grad, _Eager.apply)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the kernels accumulate."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _memory_format(x: Tensor) -> torch.memory_format:
    """The format of the output: channels last if the channels of a pixel are adjacent in `x`."""
    return torch.channels_last if x.stride(1) == 1 and x.stride(3) > 1 else torch.contiguous_format


# The kernels on a CUDA device ---------------------------------------------------------------------


@resample.register_kernel('cuda')
def _launched(x, taps, up, down, before, size, flip):
    expected = x.device, _accumulator(x.dtype)
    if (taps.device, taps.dtype) != expected:
        raise ValueError(
            f'resample: the filter of {x.dtype} images must be {expected[1]} on '
            f'{expected[0]}, '
            f'got {taps.dtype} on {taps.device}'
        )
    form = _memory_format(x)
    out = torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=form)
    if out.numel():
        taps = taps.contiguous()
        dense = x.is_contiguous(memory_format=form) and (x.data_ptr() | out.data_ptr()) % 16 == 0
        kernel, blocks, geometry = plan(
            Layout(x.shape, x.stride()),
            Layout(out.shape, out.stride()),
            x.element_size(),
            taps.shape,
            (up, down, *before, flip),
            dense,
        )
        pointers = struct.pack('3P', x.data_ptr(), taps.data_ptr(), out.data_ptr())
        _kernels(SCALARS[x.dtype], x.device.index).launch(
            kernel, blocks, THREADS, pointers + geometry, (0, 8, 16, 24)
        )
    return out


class Launch(NamedTuple):
    kernel: str
    blocks: int
    geometry: bytes  # the struct Geometry of upfirdn2d.cu


class Layout(NamedTuple):
    """The layout of a tensor (B, C, H, W) in memory."""

    shape: tuple
    strides: tuple


@functools.lru_cache(4096)
def plan(
    x: Layout, out: Layout, itemsize: int, taps_shape: tuple[int, ...], setting: tuple, dense: bool
) -> Launch:
    """Choose the kernel that computes an output, and its arguments.

    Args:
        x, out: the layouts of input and output.
        itemsize: bytes of a value.
        taps_shape: (kh, kw).
        setting: up, down, the padding above and to the left, and whether the filter is flipped.
        dense: whether x has the memory format of the output, without gaps, and both start at a
            multiple of 16 bytes.
    """
    _, channels, height, width = x.shape
    batch, _, *size = out.shape
    up, down, *before, flip = setting
    # True if the values of a pixel are contiguous (channels last), False if those of a plane are
    pixels = out.strides[1] == 1 and out.strides[3] > 1
    # number of values that a thread moves at once: channels, or columns of the larger image
    vector = 16 // itemsize
    case = up, down, *before, *taps_shape, *size
    if case == (2, 1, 2, 2, 4, 4, 2 * height, 2 * width):
        name, rows, columns = 'up2', height, width
    elif case == (1, 2, 1, 1, 4, 4, height // 2, width // 2):
        name, rows, columns = 'down2', *size
    else:
        name, rows, columns = '', 0, 0
    strips = -(-rows // ROWS)
    if pixels:
        fits, tiles = channels % vector == 0, columns * (channels // vector)
    else:
        fits, tiles = (
            (width if name == 'down2' else 2 * width) % vector == 0,
            channels * columns // (vector // 2),
        )
    # the specialised kernels number their threads with 32 bits
    if name and dense and fits and (count := batch * strips * tiles) < 2**31:
        name += '_pixels' if pixels else '_planes'
    else:
        strips, count = 0, batch * channels * size[0] * size[1]
        name = 'general' if count < 2**31 else 'general_long'
    geometry = struct.pack(
        '14i9q',
        channels,
        height,
        width,
        *size,
        *taps_shape,
        up,
        down,
        *before,
        flip,
        pixels,
        strips,
        count,
        *x.strides,
        *out.strides,
    )
    return Launch(name, -(-count // THREADS), geometry)


@functools.cache
def _kernels(scalar: str, device: int) -> nvrtc.Module:
    """Return the compiled kernels for a type and a GPU; raise an error if compilation fails."""
    target = nvrtc.architecture(torch.cuda.get_device_capability(device))
    return nvrtc.Module(nvrtc.compile(SOURCE.read_text(), target, SCALAR=scalar)[0], device)


_reasons: list[str] = []  # why compiling failed; the warning contains the first reason


def _has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether tensors of this kind have kernels, which are compiled at the first call.

    If compiling fails, one warning is given per process.
    """
    return device.type == 'cuda' and dtype in SCALARS and _loads(SCALARS[dtype], device.index)


# torch.compiler.assume_constant_result does only this, but it imports the compiler, which takes 1 s
_has_kernels._dynamo_marked_constant = True


@functools.cache
def _loads(scalar: str, device: int) -> bool:
    try:
        _kernels(scalar, device)
    except Exception as error:  # PyTorch's operations give the same result
        _reasons.append(f'{type(error).__name__}: {error}')
        if len(_reasons) == 1:
            warnings.warn(
                "upfirdn2d could not load its CUDA kernels and uses PyTorch's convolutions, "
                f'which are slower. {_reasons[0]}',
                RuntimeWarning,
                stacklevel=4,
            )
        return False
    return True
