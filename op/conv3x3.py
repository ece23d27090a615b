"""The 3x3 convolution with padding 1, and its gradients by Winograd's minimal filtering on
processors.

    y[o, p] = sum_{c, k} w[o, c, k] x[c, p + k - 1]

Both gradients are derivatives of sum_p g[o, p] y[o, p], where a 2x2 tile of g meets a 4x4 tile of
x. Along one axis it is

    sum_{j, k} g_j w_k x_{j + k} = sum_i (G g)_i (A^T w)_i (B x)_i,
    j = 0, 1,  k = 0, 1, 2,  i = 0, 1, 2, 3,

with the matrices A, G and B below (F(3, 2) of Winograd 1980; Lavin & Gray 2016, Sec. 4.1): 4
products in place of 6; with both axes 16 in place of 36. The gradient in w is A of the products
with x, that in x is B^T of those with w; as sums over tiles may be taken before A, and those over
channels before B^T, what remains to do is 16 matrix products for each.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .upfirdn2d import _in_transform

# G is [[1, 0], [1, 1], [1, -1], [0, 1]] and B [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1,
# 0, 1]]: `_mix_grads`, `_mix_inputs`.
A = torch.tensor([[1, 0.5, 0.5, 0], [0, 0.5, -0.5, 0], [0, 0.5, 0.5, 1]])
VALUES = 2**21  # of x in transformed tiles that are made at once: few enough to stay in the cache
# with fewer, PyTorch's own gradients are as quick (benchmarks/ops.py); products: of each of the 16
CHANNELS, PRODUCTS = 128, 2**23


class Conv3x3(nn.Conv2d):
    """`nn.Conv2d(in_channels, out_channels, 3, padding=1)`."""

    def __init__(self, in_channels, out_channels, bias=True):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, input):
        return conv3x3(input, self.weight, self.bias)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)` of `x` (B, C, H, W) and `weight` (O, C, 3, 3), also in
    its derivatives of any order.
    """
    if (
        torch.is_grad_enabled()
        and weight.requires_grad
        and not _in_transform()
        and _is_quicker(x, weight)
    ):
        return _Conv3x3.apply(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1)


def _is_quicker(x, weight) -> bool:
    """Whether `gradients` is quicker here than PyTorch."""
    if (
        x.device.type != 'cpu'
        or x.ndim != 4
        or min(weight.shape[:2]) < CHANNELS
        or torch.is_autocast_enabled('cpu')
    ):
        return False
    work = (
        len(x)
        * ((x.shape[2] + 1) // 2)
        * ((x.shape[3] + 1) // 2)
        * weight.shape[0]
        * weight.shape[1]
    )
    return (
        work >= PRODUCTS and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
    )


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        for_bias = grad.sum((0, 2, 3)) if for_bias else None
        if for_weight:
            return *gradients(x, weight, grad), for_bias
        return _plain_gradients(x, weight, grad, for_x, False)[0], None, for_bias


def _plain_gradients(x, weight, grad, for_x, for_weight):
    """PyTorch's gradients in `x` and `weight`; that in one of them depends on the other's values
    alone, and on `grad`.
    """
    one, mask = (1, 1), (for_x, for_weight, False)
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, one, one, one, False, (0, 0), 1, mask
    )[:2]


@torch.library.custom_op('score_sde::conv3x3_gradients', mutates_args=(), device_types='cpu')
def gradients(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients in `x` (B, C, H, W) and `weight` (O, C, 3, 3), both channels last, where that
    in the output is `grad` (B, O, H, W).
    """
    (batch, channels, height, width), out_channels = x.shape, grad.shape[1]
    x, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    if height % 2 or width % 2:  # the last tiles are filled up by zeros
        x, grad = (F.pad(values, (0, 0, 0, width % 2, 0, height % 2)) for values in (x, grad))
    grad_x = x.new_empty(x.shape)
    rows, columns = x.shape[1] // 2, x.shape[2] // 2  # of tiles
    both_axes = torch.kron(A, A).to(x)
    mixed_weight = (both_axes.T @ weight.permute(3, 2, 0, 1).reshape(9, -1)).view(
        16, out_channels, channels
    )
    sums = torch.zeros_like(mixed_weight)
    size = min(max(VALUES // (16 * rows * columns * max(channels, out_channels)), 1), batch)
    buffers = []
    for images, grads, out in zip(x.split(size), grad.split(size), grad_x.split(size)):
        if not buffers or len(images) < size:
            buffers = [
                x.new_empty(shape)
                for count in (channels, out_channels)
                for shape in (
                    (4, len(images), rows, 2 * columns, count),
                    (4, 4, len(images), rows, columns, count),
                )
            ]
        half, tiles, grad_half, grad_tiles = buffers
        _mix_inputs(images, 1, half)
        _mix_inputs(half, 3, tiles)
        _mix_grads(grads, 1, grad_half)
        _mix_grads(grad_half, 3, grad_tiles)
        x_matrices, grad_matrices = (
            tiles.view(16, -1, channels),
            grad_tiles.view(16, -1, out_channels),
        )
        sums.baddbmm_(grad_matrices.mT, x_matrices)
        torch.bmm(grad_matrices, mixed_weight, out=x_matrices)
        _unmix(tiles, 3, half)
        _unmix(half, 1, out)
    grad_weight = (
        (both_axes @ sums.view(16, -1)).view(3, 3, out_channels, channels).permute(2, 3, 1, 0)
    )
    grad_x = grad_x[:, :height, :width].permute(0, 3, 1, 2)
    return tuple(
        values.contiguous(memory_format=torch.channels_last) for values in (grad_x, grad_weight)
    )


def _mix_inputs(x, axis, out):
    """B along an axis, for tiles of 4 that begin at every second place, the first one before the
    border, beyond which all is zero.
    """
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


def _unmix(tiles, axis, out):
    """B^T along an axis, with the values of tiles added up where they overlap: the transpose of
    `_mix_inputs`.
    """
    even, odd, *tiles = (values.movedim(axis, 0) for values in (*_every_second(out, axis), *tiles))
    torch.sub(tiles[1], tiles[2], out=even).sub_(tiles[3])
    even[1:].add_(tiles[3][:-1])
    torch.add(tiles[1], tiles[2], out=odd).sub_(tiles[0])
    odd[:-1].add_(tiles[0][1:])


def _every_second(x, axis):
    return x.unflatten(axis, (-1, 2)).unbind(axis + 1)


@gradients.register_fake
def _(x, weight, grad):
    return tuple(
        torch.empty(values.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for values in (x, weight)
    )


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _second_derivatives(ctx, for_x, for_weight):
    """Both gradients are linear in `grad`, that in `x` is in `weight` and that in `weight` in
    `x`.
    """
    x, weight, grad = ctx.saved_tensors
    in_x, in_weight = _plain_gradients(for_x, for_weight, grad, True, True)
    return in_x, in_weight, F.conv2d(for_x, weight, padding=1) + F.conv2d(x, for_weight, padding=1)


gradients.register_autograd(_second_derivatives, setup_context=_save)
