"""The gradients of 3x3 convolutions, by `op.conv3x3` and by PyTorch."""

import functools
import importlib

import torch
import torch.nn.functional as F

from timing import seconds

winograd = importlib.import_module('op.conv3x3')


CONVOLUTIONS = [
    (32, 32, 8),
    (32, 32, 32),
    (64, 64, 8),
    (64, 64, 32),
    (128, 128, 32),
    (256, 256, 16),
    (512, 256, 16),
    (256, 256, 8),
    (256, 256, 4),
]  # channels in and out, size


def measure_convolution(channels, out_channels, size, batch, repeats) -> dict:
    """Time a 3x3 convolution, channels last, and its gradients in input and weights.

    Returns:
        Milliseconds of a forward pass, and the time of both gradients in forward passes.
    """
    x, weight, grad = (
        torch.randn(shape).contiguous(memory_format=torch.channels_last)
        for shape in (
            (batch, channels, size, size),
            (out_channels, channels, 3, 3),
            (batch, out_channels, size, size),
        )
    )
    pytorch = functools.partial(winograd._plain_gradients, for_x=True, for_weight=True)
    few = x[:2], weight, grad[:2]
    for value, exact in zip(
        winograd.gradients(*few), pytorch(*(values.double() for values in few)), strict=True
    ):
        assert (value - exact).abs().max() < 1e-5 * exact.abs().max()
    ways = dict(
        forward=lambda: F.conv2d(x, weight, padding=1),
        winograd=lambda: winograd.gradients(x, weight, grad),
        pytorch=lambda: pytorch(x, weight, grad),
    )
    least = {name: min(seconds(way, 'cpu', 1) for _ in range(2)) for name, way in ways.items()}
    for _ in range(repeats):
        for name, way in ways.items():
            least[name] = min(least[name], seconds(way, 'cpu', max(1, int(0.003 / least[name]))))
    return dict(
        channels=channels,
        out_channels=out_channels,
        size=size,
        batch=batch,
        forward_ms=1e3 * least['forward'],
        **{name: least[name] / least['forward'] for name in ('pytorch', 'winograd')},
    )
