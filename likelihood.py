"""Log-likelihoods by the probability flow (Song et al. 2021, Sec. 4.3, Appendix D.2).

Along the ODE dx/dt = F(x, t) the density obeys the instantaneous change of variables (Chen et al.
2018)

    log p_0(x_0) = log p_T(x_T) + integral over [0, T] of div F(x_t, t) dt,

with div F = E[e^T (dF/dx) e] over probes e of mean 0 and covariance I (Hutchinson 1990), or
exactly, by one derivative per dimension.

Units. A network sees y = scaler(x), where x are the data in [0, 1]. `nats` is log p(x), the density
of the data themselves; `bpd` is the negative log2 of the probability of an image on a grid of
`levels` grey levels, per dimension: bpd = log2(levels) - log p(x) / (D log 2). That is an upper
bound on average if the data are uniformly dequantised (Theis et al. 2016).
"""

import dataclasses
import math
from typing import NamedTuple

import torch

from models.score import Score
from models.utils import gradients, times_like
from runtime.errors import UserError
from solvers import ode

PROBES = {
    'Rademacher': lambda x: torch.randint_like(x, low=0, high=2) * 2 - 1,
    'Gaussian': torch.randn_like,
}


class Likelihood(NamedTuple):
    """For B images: log p(x) and bits/dim, each (B,) with the standard error of Hutchinson's
    estimator (0 if exact, NaN for a single probe), the latent codes x_T (shape of the data), and
    the number of network evaluations.
    """

    nats: torch.Tensor
    nats_stderr: torch.Tensor
    bpd: torch.Tensor
    bpd_stderr: torch.Tensor
    z: torch.Tensor
    nfe: int


def _value_and_products(fn, x, t, probes):
    """fn(x, t), and for each probe e the product e^T (dfn/dx) e, (K, B): one forward pass and one
    backward pass per probe.
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


def get_div_fn(fn):
    """(x (B, ...), t (B,), eps) -> Hutchinson's estimate (B,) of the divergence of fn(x, t) with
    the probe `eps`, shape of x.
    """
    return lambda x, t, eps: _value_and_products(fn, x, t, [eps])[1][0]


def _basis(x):
    """The D unit vectors, each in the shape of x."""
    basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    return [e.reshape(1, *x.shape[1:]).expand_as(x) for e in basis]


def _log_jacobian(inverse_scaler, y):
    """log |det d inverse_scaler / dy|, (B,), of a function that acts on each value alone."""
    with gradients(y) as (y,):
        y = y.detach().requires_grad_()
        slope = torch.autograd.grad(inverse_scaler(y).sum(), y)[0]
    return slope.abs().log().flatten(1).sum(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a likelihood is computed.

    Args:
        hutchinson_type: of the probes, 'Rademacher' or 'Gaussian'; 'exact' computes the divergence
            by D backward passes, for small D.
        probes: how many estimates of the divergence are averaged.
        rtol, atol, method: of the ODE solver, see `ode.solve`.
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


@torch.no_grad()
def log_likelihood(
    model: Score, y, inverse_scaler=lambda y: y, levels: int = 256, options: Options = Options()
) -> Likelihood:
    """Compute log-likelihoods by the probability flow.

    Args:
        model: the score to follow, with its guidance.
        y: data (B, ...) as the network sees them.
        inverse_scaler: maps `y` to the data x, value by value; its slope gives the units of the
            density.
        levels: the number of grey levels of the data, for bits/dim; 1 for data without levels.
        options: of the estimator and the solver.
    """
    exact = options.hutchinson_type == 'exact'
    directions = (
        _basis(y) if exact else [PROBES[options.hutchinson_type](y) for _ in range(options.probes)]
    )
    flow = model.sde.reverse(model.counted()[0], probability_flow=True)

    def drift(x, t):
        return flow.sde(x, t)[0]

    def derivative(t, x, log_ratio):
        value, products = _value_and_products(drift, x, times_like(x, t), directions)
        return value, products.sum(0, keepdim=True) if exact else products

    start = y.new_zeros(1 if exact else options.probes, len(y))
    (z, log_ratio), nfe = ode.solve(
        derivative, (y, start), options.eps, model.sde.T, options.rtol, options.atol, options.method
    )
    nats = model.sde.prior_logp(z) + log_ratio - _log_jacobian(inverse_scaler, y)
    stderr = (
        torch.zeros_like(nats[0])
        if exact
        else nats.std(0) / math.sqrt(options.probes)
        if options.probes > 1
        else nats[0] * math.nan
    )
    per_dim = 1 / (y[0].numel() * math.log(2))
    nats = nats.mean(0)
    return Likelihood(nats, stderr, math.log2(levels) - nats * per_dim, stderr * per_dim, z, nfe)


def get_likelihood_fn(
    sde,
    inverse_scaler,
    hutchinson_type='Rademacher',
    rtol=1e-5,
    atol=1e-5,
    method='RK45',
    eps=1e-5,
    *,
    continuous=True,
):
    """Return `likelihood_fn(model, data) -> (bits/dim (B,), latent codes, nfe)`, as the 2021
    release does; see `log_likelihood`.
    """
    options = Options(hutchinson_type=hutchinson_type, rtol=rtol, atol=atol, method=method, eps=eps)

    def likelihood_fn(model, data):
        result = log_likelihood(
            Score(model, sde, continuous), data, inverse_scaler, options=options
        )
        return result.bpd, result.z, result.nfe

    return likelihood_fn
