"""The 3x3 convolution with padding 1, and gradients of its weights by Winograd's minimal filtering on processors.

    y[o, p] = sum_{c, k} w[o, c, k] x[c, p + k - 1],        grad_w[o, c, k] = sum_p grad_y[o, p] x[c, p + k - 1].

A 2x2 tile of grad_y meets a 4x4 tile of x in 3x3 sums of four products each. Along one axis those of two values g and four values x are

    g_0 x_k + g_1 x_{k + 1} = (A [(G g) * (B x)])_k,        k = 0, 1, 2,

with the matrices A, G and B below (F(3, 2) of Winograd 1980; Lavin & Gray 2016, Sec. 4.1): 4 products in place of 6; with both axes 16 in
place of 36. As the sum over tiles and images may be taken before A, what remains to do is 16 matrix products.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .upfirdn2d import _in_transform

# B is [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]] and G is [[1, 0], [1, 1], [1, -1], [0, 1]]: `_mix_inputs`, `_mix_grads`.
A = torch.tensor([[1, .5, .5, 0], [0, .5, -.5, 0], [0, .5, .5, 1]])
VALUES = 2**21  # of x in transformed tiles that are made at once: few enough to stay in the cache
CHANNELS, PRODUCTS = 128, 2**21  # with fewer, PyTorch's own gradients are as quick (benchmarks/ops.py); products: of each of the 16


class Conv3x3(nn.Conv2d):
    """`nn.Conv2d(in_channels, out_channels, 3, padding=1)`."""

    def __init__(self, in_channels, out_channels, bias=True):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, input):
        return conv3x3(input, self.weight, self.bias)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)` of `x` (B, C, H, W) and `weight` (O, C, 3, 3), also in its derivatives of any order."""
    if torch.is_grad_enabled() and weight.requires_grad and not _in_transform() and _is_quicker(x, weight):
        return _Conv3x3.apply(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1)


def _is_quicker(x, weight) -> bool:
    """Whether `weight_grad` is quicker here than PyTorch's."""
    if x.device.type != 'cpu' or x.ndim != 4 or min(weight.shape[:2]) < CHANNELS or torch.is_autocast_enabled('cpu'):
        return False
    work = len(x) * ((x.shape[2] + 1) // 2) * ((x.shape[3] + 1) // 2) * weight.shape[0] * weight.shape[1]
    return work >= PRODUCTS and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (_input_grad(x, weight, grad) if for_x else None,
                weight_grad(x, grad) if for_weight else None, grad.sum((0, 2, 3)) if for_bias else None)


def _input_grad(x, weight, grad):
    """The gradient in `x`; of its values nothing is read, but `torch.nn.grad.conv2d_input` would lay out a stand-in for them."""
    return torch.ops.aten.convolution_backward(grad, x, weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (True, False, False))[0]


@torch.library.custom_op('score_sde::conv3x3_weight_grad', mutates_args=(), device_types='cpu')
def weight_grad(x: Tensor, grad: Tensor) -> Tensor:
    """grad_w (O, C, 3, 3) as above, channels last, from `x` (B, C, H, W) and `grad` (B, O, H, W)."""
    (batch, channels, height, width), out_channels = x.shape, grad.shape[1]
    rows, columns = (height + 1) // 2, (width + 1) // 2  # of tiles; an odd size gets a zero more
    x, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    if height % 2 or width % 2:
        x, grad = (F.pad(values, (0, 0, 0, width % 2, 0, height % 2)) for values in (x, grad))
    size = min(max(VALUES // (16 * rows * columns * max(channels, out_channels)), 1), batch)
    sums = x.new_zeros(16, out_channels, channels)
    buffers = [x.new_empty(shape) for shape in ((4, size, rows, x.shape[2], channels), (4, 4, size, rows, columns, channels),
                                                (4, size, rows, grad.shape[2], out_channels), (4, 4, size, rows, columns, out_channels))]
    for images, grads in zip(x.split(size), grad.split(size)):
        if len(images) < size:
            buffers = [buffer.new_empty((*buffer.shape[:-4], len(images), *buffer.shape[-3:])) for buffer in buffers]
        half, tiles, grad_half, grad_tiles = buffers
        _mix_inputs(images, 1, half)
        _mix_grads(grads, 1, grad_half)
        for i in range(4):
            _mix_inputs(half[i], 2, tiles[i])
            _mix_grads(grad_half[i], 2, grad_tiles[i])
        sums.baddbmm_(grad_tiles.view(16, -1, out_channels).mT, tiles.view(16, -1, channels))
    taps = torch.kron(A, A).to(sums) @ sums.view(16, -1)
    return taps.view(3, 3, out_channels, channels).permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def _mix_inputs(x, axis, out):
    """B along an axis, for tiles of 4 that begin at every second place, the first one before the border, beyond which all is zero."""
    even, odd, *out = (values.movedim(axis, 0) for values in (*_every_second(x, axis), *out))
    torch.neg(odd[:1], out=out[0][:1])
    torch.sub(odd[:-1], odd[1:], out=out[0][1:])
    torch.add(even, odd, out=out[1])
    torch.sub(odd, even, out=out[2])
    torch.sub(even[1:], even[:-1], out=out[3][:-1])
    torch.neg(even[-1:], out=out[3][-1:])


def _mix_grads(grad, axis, out):
    """G along an axis, for tiles of 2."""
    a, b = _every_second(grad, axis)
    out[0].copy_(a)
    torch.add(a, b, out=out[1])
    torch.sub(a, b, out=out[2])
    out[3].copy_(b)


def _every_second(x, axis):
    return x.unflatten(axis, (-1, 2)).unbind(axis + 1)


@weight_grad.register_fake
def _(x, grad):
    return torch.empty(grad.shape[1], x.shape[1], 3, 3, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, direction):
    """grad_w is linear in both: the derivatives are convolutions with a direction in the space of weights."""
    x, grad = ctx.saved_tensors
    return _input_grad(x, direction, grad), F.conv2d(x, direction, padding=1)


weight_grad.register_autograd(_gradients, setup_context=_save)
