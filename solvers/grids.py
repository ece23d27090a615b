"""The levels of an SDE at a time, and grids of times."""

import math

import torch

from runtime.errors import UserError


def table(values) -> torch.Tensor:
    """`values`, numbers or a tensor on any device, as (n,) in float64 on the CPU: not every device
    has float64.
    """
    return torch.as_tensor(
        values.cpu() if torch.is_tensor(values) else values, dtype=torch.float64
    ).reshape(-1)


def levels(sde, t):
    """alpha and sigma at times t (n,), each (n,) in float64 on the CPU."""
    return sde.mean_and_std(table(t))


def half_log_snr(sde, t):
    """lambda = log(alpha / sigma) at times t (n,), in float64 on the CPU."""
    alpha, sigma = levels(sde, t)
    return alpha.log() - sigma.log()


def time_of(sde, lam):
    """The times (n,) in [0, T] at which lambda has the values `lam` (n,), by bisection: lambda
    falls with t.
    """
    lam = table(lam)
    low, high = torch.zeros_like(lam), torch.full_like(lam, sde.T)
    for _ in range(60):
        middle = (low + high) / 2
        early = half_log_snr(sde, middle) > lam
        low, high = torch.where(early, middle, low), torch.where(early, high, middle)
    return (low + high) / 2


def time_grid(sde, n: int, eps: float, skip_type: str = 'logSNR', rho: float = 7.0):
    """n + 1 times from T down to `eps`, (n + 1,) in float64.

    `skip_type`: even steps in t ('time_uniform'), in sqrt(t) ('time_quadratic'), in lambda
    ('logSNR'), or in (sigma/alpha)^(1/rho) ('karras'; Karras et al. 2022, Eq. 5).
    """
    at = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    kind = skip_type.lower()
    if kind == 'time_uniform':
        times = sde.T + at * (eps - sde.T)
    elif kind == 'time_quadratic':
        times = (math.sqrt(sde.T) + at * (math.sqrt(eps) - math.sqrt(sde.T))) ** 2
    elif kind == 'logsnr':
        first, last = half_log_snr(sde, [sde.T, eps])
        times = time_of(sde, first + at * (last - first))
    elif kind == 'karras':
        first, last = (-half_log_snr(sde, [sde.T, eps]) / rho).exp()
        times = time_of(sde, -rho * (first + at * (last - first)).log())
    else:
        raise UserError(f'skip_type must be one of {", ".join(SKIP_TYPES)}, got {skip_type!r}')
    times[-1] = eps
    times[0] = sde.T
    return times


SKIP_TYPES = ('time_uniform', 'time_quadratic', 'logSNR', 'karras')


def transition(sde, s: float, t: float) -> tuple[float, float, float, float]:
    """The process between two times s < t, where s = 0 stands for the data themselves, without
    noise.

    Returns:
        r and std of x_t = r x_s + std z, and the standard deviations of the noise in x_s and in
        x_t, computed in float64.
    """
    (m_t, std_t), (m_s, std_s) = (
        [float(value) for value in levels(sde, [time])] if time else (1.0, 0.0) for time in (t, s)
    )
    r = m_t / m_s
    return r, math.sqrt(max(std_t**2 - (r * std_s) ** 2, 0.0)), std_s, std_t
