"""Blocks of DDPM's U-Net (Ho et al. 2020), which NCSN++ and DDPM++ also use.

Feature maps are (B, C, H, W), embeddings (B, D). Attribute names such as `GroupNorm_0` are those of
the published checkpoints.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor, nn

from runtime.errors import UserError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    'elu': F.elu,
    'relu': F.relu,
    'lrelu': lambda x: F.leaky_relu(x, 0.2),
    'swish': F.silu,
}


def get_act(config: ConfigDict) -> Callable[[Tensor], Tensor]:
    """The activation function that `config.model.nonlinearity` names."""
    name = config.model.nonlinearity.lower()
    if name not in ACTIVATIONS:
        raise UserError(
            'config.model.nonlinearity must be one of '
            f'{", ".join(map(repr, ACTIVATIONS))}, got {config.model.nonlinearity!r}'
        )
    return ACTIVATIONS[name]


def default_init(scale: float = 1.0) -> Callable[[Sequence[int]], Tensor]:
    """Return a function from a shape to uniform weights of variance scale / fan_avg.

    Shapes are (out, in, ...); matrices may also be (in, out), as the average of the fans is
    symmetric. A scale of 0 is replaced by 1e-10.

    References:
        Glorot & Bengio 2010.
    """

    def init(shape):
        taps = math.prod(shape[2:])
        fan_avg = (shape[0] + shape[1]) * taps / 2
        return (2 * torch.rand(*shape) - 1) * math.sqrt(3 * (scale or 1e-10) / fan_avg)

    return init


def _initialized(layer, init_scale: float):
    with torch.no_grad():
        layer.weight.copy_(default_init(init_scale)(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.zero_()
    return layer


def dense(in_dim: int, out_dim: int) -> nn.Linear:
    """A linear layer with the initialization of DDPM."""
    return _initialized(nn.Linear(in_dim, out_dim), 1.0)


def conv1x1(
    in_planes: int,
    out_planes: int,
    stride: int = 1,
    bias: bool = True,
    init_scale: float = 1.0,
    padding: int = 0,
) -> nn.Conv2d:
    return _initialized(nn.Conv2d(in_planes, out_planes, 1, stride, padding, bias=bias), init_scale)


def conv3x3(
    in_planes: int,
    out_planes: int,
    stride: int = 1,
    bias: bool = True,
    dilation: int = 1,
    init_scale: float = 1.0,
    padding: int = 1,
) -> nn.Conv2d:
    return _initialized(
        nn.Conv2d(in_planes, out_planes, 3, stride, padding, dilation, bias=bias), init_scale
    )


def group_norm(channels: int, groups: int | None = None) -> nn.GroupNorm:
    """Group normalization with `groups` groups; None: min(channels // 4, 32), as in NCSN++."""
    groups = groups or min(channels // 4, 32)
    if groups == 0:
        raise UserError(f'channels must be >= 4 for group normalization, got {channels}')
    if channels % groups:
        raise UserError(f'channels must be divisible by groups={groups}, got {channels}')
    return nn.GroupNorm(groups, channels, eps=1e-6)


def merge(x: Tensor, h: Tensor, rescale: bool) -> Tensor:
    """The sum of two branches, divided by sqrt(2) if `rescale`, to keep the variance."""
    return (x + h) / math.sqrt(2) if rescale else x + h


def get_timestep_embedding(
    timesteps: Tensor, embedding_dim: int, max_positions: int = 10000
) -> Tensor:
    """Return sines and cosines of `timesteps` (B,) at geometric frequencies, (B, embedding_dim).

    The embedding_dim / 2 frequencies go from 1 to 1/max_positions. The sines precede the cosines.
    If `embedding_dim` is odd, the last value is zero.

    References:
        Vaswani et al. 2017, Sec. 3.5.
    """
    if timesteps.ndim != 1:
        raise ValueError(f'timesteps must have shape (batch,), got {tuple(timesteps.shape)}')
    timesteps = timesteps if timesteps.is_floating_point() else timesteps.float()
    half = embedding_dim // 2
    steps = torch.arange(half, dtype=timesteps.dtype, device=timesteps.device)
    angles = timesteps[:, None] * torch.exp(steps * (-math.log(max_positions) / max(half - 1, 1)))
    return F.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, embedding_dim % 2))


class NIN(nn.Module):
    """A 1x1 convolution with a matrix W (in, out) and a bias b ("network in network").

    References:
        Lin et al. 2013.
    """

    def __init__(self, in_dim: int, num_units: int, init_scale: float = 0.1):
        super().__init__()
        self.W = nn.Parameter(default_init(init_scale)((in_dim, num_units)))
        self.b = nn.Parameter(torch.zeros(num_units))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.W.t()[..., None, None], self.b)


class AttnBlock(nn.Module):
    """Self-attention over all pixels, added to the input; one head, or heads of size `head_dim`."""

    def __init__(
        self,
        channels: int,
        skip_rescale: bool = False,
        init_scale: float = 0.0,
        groups: int | None = 32,
        head_dim: int = 0,
    ):
        super().__init__()
        if head_dim and channels % head_dim:
            raise UserError(f'channels must be divisible by head_dim={head_dim}, got {channels}')
        self.heads = channels // (head_dim or channels)
        self.GroupNorm_0 = group_norm(channels, groups)
        for i in range(3):  # queries, keys, values
            self.add_module(f'NIN_{i}', NIN(channels, channels))
        self.NIN_3 = NIN(channels, channels, init_scale)
        self.skip_rescale = skip_rescale

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        q, k, v = (
            project(h).flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
            for project in (self.NIN_0, self.NIN_1, self.NIN_2)
        )
        h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        return merge(x, self.NIN_3(h), self.skip_rescale)


class Upsample(nn.Module):
    """Double the size by repeating pixels, then apply a 3x3 convolution if `with_conv`."""

    def __init__(self, channels: int, with_conv: bool = False):
        super().__init__()
        if with_conv:
            self.Conv_0 = conv3x3(channels, channels)
        self.with_conv = with_conv

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode='nearest')
        return self.Conv_0(x) if self.with_conv else x


class Downsample(nn.Module):
    """Halve the size by a 3x3 convolution of stride 2 if `with_conv`, else by averaging."""

    def __init__(self, channels: int, with_conv: bool = False):
        super().__init__()
        if with_conv:
            self.Conv_0 = conv3x3(channels, channels, stride=2, padding=0)
        self.with_conv = with_conv

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        return self.Conv_0(F.pad(x, (0, 1, 0, 1))) if self.with_conv else F.avg_pool2d(x, 2)


class ResnetBlock(nn.Module):
    """A residual block: norm, act, conv, + time, norm, act, dropout, conv, added to the input.

    Subclasses define how the input is mapped to the shape of the output.
    """

    # name of the layer that maps the input to the output's shape, if the shapes differ
    projection: str | None = None

    def __init__(
        self,
        act: Callable,
        in_ch: int,
        out_ch: int,
        temb_dim: int | None,
        dropout: float,
        skip_rescale: bool = False,
        init_scale: float = 0.0,
        groups: int | None = None,
    ):
        super().__init__()
        self.GroupNorm_0 = group_norm(in_ch, groups)
        self.Conv_0 = conv3x3(in_ch, out_ch)
        self.Dense_0 = dense(temb_dim, out_ch) if temb_dim is not None else None
        self.GroupNorm_1 = group_norm(out_ch, groups)
        self.Dropout_0 = nn.Dropout(dropout)
        self.Conv_1 = conv3x3(out_ch, out_ch, init_scale=init_scale)
        self.act, self.skip_rescale = act, skip_rescale

    def resample(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.act(self.GroupNorm_0(x))
        x, h = self.resample(x), self.Conv_0(self.resample(h))
        if temb is not None:
            h = h + self.Dense_0(self.act(temb))[..., None, None]
        h = self.Conv_1(self.Dropout_0(self.act(self.GroupNorm_1(h))))
        return merge(
            getattr(self, self.projection)(x) if self.projection else x, h, self.skip_rescale
        )


class ResnetBlockDDPM(ResnetBlock):
    """The residual block of DDPM.

    `design` contains `skip_rescale`, `init_scale` and `groups` of `ResnetBlock`.
    """

    def __init__(
        self,
        act: Callable,
        in_ch: int,
        out_ch: int | None = None,
        temb_dim: int | None = None,
        conv_shortcut: bool = False,
        dropout: float = 0.1,
        **design,
    ):
        out_ch = out_ch or in_ch
        super().__init__(act, in_ch, out_ch, temb_dim, dropout, **{'groups': 32} | design)
        if in_ch != out_ch:
            self.projection = 'Conv_2' if conv_shortcut else 'NIN_0'
            self.add_module(
                self.projection, conv3x3(in_ch, out_ch) if conv_shortcut else NIN(in_ch, out_ch)
            )
