"""Log-likelihoods by the probability flow (Song et al. 2021, Sec. 4.3, Appendix D.2).

Along the ODE dx/dt = F(x, t) the density obeys the instantaneous change of variables (Chen et al.
2018)

    log p_0(x_0) = log p_T(x_T) + integral over [0, T] of div F(x_t, t) dt,

where div F = E[e^T (dF/dx) e] is estimated with random probes e of mean 0 and covariance I
(Hutchinson 1990), or computed exactly with one derivative per dimension.

Units. A network sees y = scaler(x), where x are the data in [0, 1]. `nats` is log p(x), the density
of the data themselves; `bpd` is the negative log2 of the probability of an image on a grid of
`levels` grey levels, per dimension: bpd = log2(levels) - log p(x) / (D log 2). If the data are
uniformly dequantized, the mean of bpd over the dequantization noise is an upper bound on the
bits/dim of the discrete image (Theis et al. 2016).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.score import Score
from models.utils import gradients, times_like
from runtime.errors import UserError
from sde_lib import SDE
from solvers import ode

PROBES: dict[str, Callable[[Tensor], Tensor]] = {
    'Rademacher': lambda x: torch.randint_like(x, low=0, high=2) * 2 - 1,
    'Gaussian': torch.randn_like,
}


class Likelihood(NamedTuple):
    """The likelihoods of B images.

    `nats` is log p(x), `bpd` is bits/dim, both (B,) with the standard error of Hutchinson's
    estimator: 0 if exact, NaN for a single probe. `z` are the latent codes x_T (shape of the data),
    `nfe` is the number of network evaluations.
    """

    nats: Tensor
    nats_stderr: Tensor
    bpd: Tensor
    bpd_stderr: Tensor
    z: Tensor
    nfe: int


def _value_and_products(fn, x, t, probes):
    """Compute fn(x, t), and e^T (dfn/dx) e for each of K probes e, (K, B).

    The cost is one forward pass, and one backward pass per probe.
    """
    with gradients(x, t, *probes) as (x, t, *probes):
        x = x.detach().requires_grad_()
        value = fn(x, t)
        grads = [
            torch.autograd.grad((value * e).sum(), x, retain_graph=i < len(probes) - 1)[0]
            for i, e in enumerate(probes)
        ]
    return value.detach(), torch.stack(
        [(grad * e).flatten(1).sum(1) for grad, e in zip(grads, probes)]
    )


def get_div_fn(fn: Callable) -> Callable:
    """Return `div_fn(x, t, eps)`: Hutchinson's estimate (B,) of the divergence of fn(x, t).

    The function takes x (B, ...), t (B,) and the probe `eps` (shape of x).
    """
    return lambda x, t, eps: _value_and_products(fn, x, t, [eps])[1][0]


def _basis(x):
    """Return the D unit vectors, each expanded to the shape of x."""
    basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    return [e.reshape(1, *x.shape[1:]).expand_as(x) for e in basis]


def _log_jacobian(inverse_scaler, y):
    """Return log |det d inverse_scaler / dy| (B,); the scaler acts on each value separately."""
    with gradients(y) as (y,):
        y = y.detach().requires_grad_()
        slope = torch.autograd.grad(inverse_scaler(y).sum(), y)[0]
    return slope.abs().log().flatten(1).sum(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the estimator and of the ODE solver.

    Args:
        hutchinson_type: distribution of the probes, 'Rademacher' or 'Gaussian'; or 'exact', which
            computes the divergence by D backward passes (for small D).
        probes: the number of random probes over which the divergence is averaged.
        rtol, atol, method: tolerances and name of the ODE solver, see `ode.solve`.
        eps: the time at which the flow starts.
    """

    hutchinson_type: str = 'Rademacher'
    probes: int = 1
    rtol: float = 1e-5
    atol: float = 1e-5
    method: str = 'RK45'
    eps: float = 1e-5

    def __post_init__(self):
        if self.hutchinson_type not in (*PROBES, 'exact'):
            raise UserError(
                "hutchinson_type must be 'Rademacher', 'Gaussian' or 'exact', got "
                f'{self.hutchinson_type!r}'
            )
        if self.probes < 1:
            raise UserError(f'probes must be at least 1, got {self.probes}')
        ode.check_method(self.method)


class _Flow:
    """The probability flow of a batch, and div F estimated with K probes, or exact (K = 1)."""

    def __init__(self, model: Score, y, options: Options):
        self.exact = options.hutchinson_type == 'exact'
        if self.exact:
            self.directions = _basis(y)
        else:
            draw = PROBES[options.hutchinson_type]
            self.directions = [draw(y) for _ in range(options.probes)]
        self.y, self.estimates = y, 1 if self.exact else options.probes
        self.reverse = model.sde.reverse(model.counted()[0], probability_flow=True)

    def zeros(self):
        """The initial value of the integral of div F, (K, B)."""
        return self.y.new_zeros(self.estimates, len(self.y))

    def drift(self, x, t):
        """Return F(x, t), shape of x."""
        return self.reverse.sde(x, t)[0]

    def derivative(self, t, x, log_ratio):
        """Return dx/dt (shape of x) and div F (K, B)."""
        value, products = _value_and_products(self.drift, x, times_like(x, t), self.directions)
        return value, products.sum(0, keepdim=True) if self.exact else products

    def standard_error(self, estimates):
        """The standard error (B,) of the mean of the estimates (K, B); NaN for a single probe."""
        if self.exact:
            return torch.zeros_like(estimates[0])
        if self.estimates == 1:
            return estimates[0] * math.nan
        return estimates.std(0) / math.sqrt(self.estimates)


@torch.no_grad()
def log_likelihood(
    model: Score,
    y: Tensor,
    inverse_scaler: Callable = lambda y: y,
    levels: int = 256,
    options: Options = Options(),
) -> Likelihood:
    """Compute log-likelihoods by the probability flow.

    Args:
        model: the score to follow, with its guidance.
        y: data (B, ...) as the network sees them.
        inverse_scaler: maps `y` to the data x, value by value; its slope gives the units of the
            density.
        levels: the number of grey levels of the data, for bits/dim; 1 for data without grey levels.
        options: settings of the estimator and of the ODE solver.
    """
    flow = _Flow(model, y, options)
    start, times = (y, flow.zeros()), (options.eps, model.sde.T)
    (z, log_ratio), nfe = ode.solve(
        flow.derivative, start, *times, options.rtol, options.atol, options.method
    )
    estimates = model.sde.prior_logp(z) + log_ratio - _log_jacobian(inverse_scaler, y)
    stderr = flow.standard_error(estimates)
    nats, per_dim = estimates.mean(0), 1 / (y[0].numel() * math.log(2))
    return Likelihood(nats, stderr, math.log2(levels) - nats * per_dim, stderr * per_dim, z, nfe)


def get_likelihood_fn(
    sde: SDE,
    inverse_scaler: Callable,
    hutchinson_type: str = 'Rademacher',
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = 'RK45',
    eps: float = 1e-5,
    *,
    continuous: bool = True,
) -> Callable:
    """Return a function `likelihood_fn(model, data)` with the interface of the 2021 release.

    It returns (bits/dim (B,), latent codes, nfe); see `log_likelihood`.
    """
    options = Options(hutchinson_type=hutchinson_type, rtol=rtol, atol=atol, method=method, eps=eps)

    def likelihood_fn(model, data):
        result = log_likelihood(
            Score(model, sde, continuous), data, inverse_scaler, options=options
        )
        return result.bpd, result.z, result.nfe

    return likelihood_fn
