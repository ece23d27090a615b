"""Leaky ReLU of a biased input, scaled to keep the variance (Karras et al. 2020)."""

import torch
import torch.nn.functional as F
from torch import nn


def fused_leaky_relu(
    input: torch.Tensor, bias: torch.Tensor, negative_slope: float = 0.2, scale: float = 2**0.5
) -> torch.Tensor:
    """Return scale * leaky_relu(input + bias) for `input` (B, C, ...) and `bias` (C,)."""
    return scale * F.leaky_relu(input + bias.reshape(-1, *[1] * (input.ndim - 2)), negative_slope)


class FusedLeakyReLU(nn.Module):
    """`fused_leaky_relu` with a learned bias for each of `channel` channels."""

    def __init__(self, channel: int, negative_slope: float = 0.2, scale: float = 2**0.5):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channel))
        self.negative_slope, self.scale = negative_slope, scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return fused_leaky_relu(input, self.bias, self.negative_slope, self.scale)
