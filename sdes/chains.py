"""Tables of the discrete chains of DDPM and SMLD, whose limits are the VP and the VE SDE.

    x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z                     (Song et al. 2021, Eq. 10)
    x_i = x_{i-1} + sqrt(sigma_i^2 - sigma_{i-1}^2) z                   (Eq. 8)

Tables are made once for each schedule, dtype and device, so that a sampler's step copies nothing to
the device. They are shared: a caller must not write to them.
"""

import functools
import math

import torch
from torch import Tensor


def _cached(make):
    """Cache the tables of `make`; none is an inference tensor, which autograd would reject."""
    return functools.lru_cache(maxsize=64)(torch.inference_mode(False)(make))


@_cached
def linear_betas(
    beta_min: float, beta_max: float, n: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return beta_i (n,), from beta_min/n to beta_max/n (Appendix C); beta_max < n."""
    return torch.linspace(beta_min / n, beta_max / n, n, dtype=dtype, device='cpu').to(device)


@_cached
def log_alphabars(
    beta_min: float, beta_max: float, n: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return log alphabar_i (n,), the running sum of log(1 - beta_i), computed in float64."""
    betas = linear_betas(beta_min, beta_max, n, torch.float64, torch.device('cpu'))
    return torch.log1p(-betas).cumsum(0).to(dtype).to(device)


@_cached
def geometric_sigmas(
    sigma_min: float, sigma_max: float, n: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return sigma_i (n,), from sigma_min to sigma_max, evenly spaced in the logarithm; n > 1."""
    first, last = math.log(sigma_min), math.log(sigma_max)
    return torch.linspace(first, last, n, dtype=dtype, device='cpu').exp().to(device)
