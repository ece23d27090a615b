"""Levels of signal and noise, and grids of times between T and the end of sampling.

Every SDE here is linear, so that x_t given x_0 is Gaussian,

    x_t = alpha_t x_0 + sigma_t z,    lambda_t = log(alpha_t / sigma_t),

where lambda, half the logarithm of the signal-to-noise ratio, falls with t (Lu et al. 2022a, Secs.
2.1 and 3.1). Solvers work with alpha, sigma and lambda alone, as float64 numbers on the CPU.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.errors import UserError
from sde_lib import SDE

SKIP_TYPES = ('time_uniform', 'time_quadratic', 'logSNR', 'karras')
HALVINGS = 60  # bisections of [0, T], down to the resolution of float64


def table(values: float | Sequence[float] | Tensor) -> Tensor:
    """Return numbers or a tensor as (n,) in float64 on the CPU; some devices lack float64."""
    values = values.cpu() if torch.is_tensor(values) else values
    return torch.as_tensor(values, dtype=torch.float64).reshape(-1)


def levels(sde: SDE, t: float | Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma, each (n,), at times t (n,)."""
    return sde.mean_and_std(table(t))


def half_log_snr(sde: SDE, t: float | Sequence[float] | Tensor) -> Tensor:
    """Return lambda = log(alpha / sigma) at times t (n,)."""
    alpha, sigma = levels(sde, t)
    return alpha.log() - sigma.log()


def time_of(sde: SDE, lam: float | Sequence[float] | Tensor) -> Tensor:
    """The times (n,) in [0, T] at which lambda has the values `lam` (n,), by bisection."""
    lam = table(lam)
    low, high = torch.zeros_like(lam), torch.full_like(lam, sde.T)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        early = half_log_snr(sde, middle) > lam
        low, high = torch.where(early, middle, low), torch.where(early, high, middle)
    return (low + high) / 2


def time_grid(sde: SDE, n: int, eps: float, skip_type: str = 'logSNR', rho: float = 7.0) -> Tensor:
    """The n + 1 times from T down to `eps` that are evenly spaced on a scale, (n + 1,).

    Args:
        skip_type: the scale. 'time_uniform': t. 'time_quadratic': sqrt(t). 'logSNR': lambda.
            'karras': (sigma / alpha)^(1 / rho) (Karras et al. 2022, Eq. 5).
        rho: the exponent of 'karras'; the other scales ignore it.
    """
    share = torch.linspace(0, 1, n + 1, dtype=torch.float64)

    def even(scale):
        first, last = scale(sde.T), scale(eps)
        return first + share * (last - first)

    match skip_type.lower():
        case 'time_uniform':
            times = even(float)
        case 'time_quadratic':
            times = even(math.sqrt) ** 2
        case 'logsnr':
            times = time_of(sde, even(lambda t: half_log_snr(sde, t)))
        case 'karras':
            roots = even(lambda t: (-half_log_snr(sde, t) / rho).exp())
            times = time_of(sde, -rho * roots.log())
        case _:
            raise UserError(f'skip_type must be one of {", ".join(SKIP_TYPES)}, got {skip_type!r}')
    times[-1] = eps
    times[0] = sde.T
    return times


class Transition(NamedTuple):
    """The transition x_t = r x_s + std z between two times s < t, with z ~ N(0, I).

    std_s and std_t are the standard deviations of the noise in x_s and in x_t.
    """

    r: float
    std: float
    std_s: float
    std_t: float


def transition(sde: SDE, s: float, t: float) -> Transition:
    """Return the transition between two times s < t; s = 0 means the data, without noise.

    r = alpha_t / alpha_s, and std^2 = sigma_t^2 - r^2 sigma_s^2 (Kingma et al. 2021, Appendix A).
    """
    alpha_t, sigma_t = map(float, levels(sde, t))
    alpha_s, sigma_s = map(float, levels(sde, s)) if s else (1.0, 0.0)
    r = alpha_t / alpha_s
    std = math.sqrt(max(sigma_t**2 - (r * sigma_s) ** 2, 0.0))
    return Transition(r, std, sigma_s, sigma_t)
