"""Normalizations of NCSN and NCSNv2, among them InstanceNorm++.

Instance normalization removes the mean mu_c of each channel. InstanceNorm++ adds it again as a
second signal (Song & Ermon 2019, Appendix A):

    z_c = gamma_c (x_c - mu_c)/sigma_c + beta_c + alpha_c (mu_c - m)/v,

where m and v are the mean and standard deviation of the mu_c. Every normalization is called with
(x, labels) and may ignore the labels; x is (B, C, H, W), labels (B,).
"""

import functools
from collections.abc import Callable

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from runtime.errors import UserError


def _instance_norm_plus(x, gamma, alpha, beta):
    variances, means = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    own = (x - means) / torch.sqrt(variances + 1e-5)
    means = (means - means.mean(1, keepdim=True)) / torch.sqrt(means.var(1, keepdim=True) + 1e-5)
    gamma, alpha, beta = (v.reshape(-1, x.shape[1], 1, 1) for v in (gamma, alpha, beta))
    return gamma * (own + means * alpha) + beta


class InstanceNorm2dPlus(nn.Module):
    """InstanceNorm++ with one gamma, alpha and beta for all noise levels."""

    def __init__(self, num_features: int):
        super().__init__()
        self.alpha = nn.Parameter(1 + 0.02 * torch.randn(num_features))
        self.gamma = nn.Parameter(1 + 0.02 * torch.randn(num_features))
        self.beta = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return _instance_norm_plus(x, self.gamma, self.alpha, self.beta)


class ConditionalInstanceNorm2dPlus(nn.Module):
    """InstanceNorm++ with a gamma, alpha and beta for each noise level."""

    def __init__(self, num_features: int, num_classes: int):
        super().__init__()
        self.embed = nn.Embedding(num_classes, 3 * num_features)
        with torch.no_grad():
            self.embed.weight[:, : 2 * num_features].normal_(1, 0.02)
            self.embed.weight[:, 2 * num_features :].zero_()

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return _instance_norm_plus(x, *self.embed(labels).chunk(3, 1))


class InstanceNorm2d(nn.InstanceNorm2d):
    """Instance normalization with learned scale and offset."""

    def __init__(self, num_features: int):
        super().__init__(num_features, affine=True)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().forward(x)


class VarianceNorm2d(nn.Module):
    """Division by each channel's standard deviation with a learned scale; means are kept."""

    def __init__(self, num_features: int):
        super().__init__()
        self.alpha = nn.Parameter(1 + 0.02 * torch.randn(num_features))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.alpha[:, None, None] * x / torch.sqrt(x.var((2, 3), keepdim=True) + 1e-5)


NORMALIZATIONS = {
    'InstanceNorm++': InstanceNorm2dPlus,
    'InstanceNorm': InstanceNorm2d,
    'VarianceNorm': VarianceNorm2d,
}


def get_normalization(config: ConfigDict, conditional: bool = False) -> Callable[..., nn.Module]:
    """Return a function from a number of channels to a normalization.

    Args:
        config: `config.model.normalization` names the normalization.
        conditional: whether it has separate parameters for each noise level.
    """
    name = config.model.normalization
    known = ['InstanceNorm++'] if conditional else NORMALIZATIONS
    if name not in known:
        raise UserError(
            f'config.model.normalization must be {" or ".join(map(repr, known))} for '
            f'{config.model.name}, got {name!r}'
        )
    if conditional:
        return functools.partial(ConditionalInstanceNorm2dPlus, num_classes=config.model.num_scales)
    return NORMALIZATIONS[name]
