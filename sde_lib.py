"""The SDEs of Song et al. 2021: VP, sub-VP and VE, each with its discrete chain.

    VP      dx = -beta(t)/2 x dt + sqrt(beta(t)) dw                      (Eq. 11)
    sub-VP  dx = -beta(t)/2 x dt + sqrt(beta(t) (1 - m(t)^4)) dw         (Eq. 12)
    VE      dx = sigma(t) sqrt(2 log(sigma_max/sigma_min)) dw            (Eq. 9)

x_t given x_0 is N(m(t) x_0, std(t)^2 I) (Appendix B). An SDE defines for networks, losses and
samplers: its marginals and its reversal, the network's time label, the conversion of the network's
output to a score, the ancestral step, and the step size of Langevin correctors. The base class
`SDE`, from which your own SDE derives, is in sdes/base.py.

Shapes: x (B, ...) of any rank, t (B,) in [0, T]; coefficients that do not depend on x have shape
(B,).
"""

import math
from collections.abc import Sequence

import torch
from ml_collections import ConfigDict
from torch import Tensor

from runtime.errors import UserError
from runtime.registry import Registry
from sdes.base import SDE, ReverseSDE, expand, table_dtype
from sdes.chains import geometric_sigmas, linear_betas, log_alphabars

__all__ = [
    'SDE',
    'SDES',
    'ReverseSDE',
    'VESDE',
    'VPSDE',
    'expand',
    'get_sde',
    'register_sde',
    'subVPSDE',
]

SDES = Registry('SDE')
register_sde = SDES.register

CPU = torch.device('cpu')


def _normal_logp(z: Tensor, std: float = 1.0) -> Tensor:
    """Return log N(z; 0, std^2 I) in nats, shape (B,)."""
    flat = z.flatten(1)
    return -flat.square().sum(1) / (2 * std**2) - flat.shape[1] / 2 * math.log(2 * math.pi * std**2)


class _LinearBetaSDE(SDE):
    """An SDE with beta(t) = beta_0 + t (beta_1 - beta_0), t in [0, 1], and its discrete chain.

    The prior is N(0, I), and m(t) = exp(-1/2 int_0^t beta), see Appendix B. VPSDE and subVPSDE
    differ in the noise.
    """

    T = 1
    shown_as = {'beta_0': 'beta_min', 'beta_1': 'beta_max'}

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20, N: int = 1000):
        super().__init__(N)
        self.beta_0, self.beta_1 = beta_min, beta_max

    def _beta(self, t):
        return self.beta_0 + t * (self.beta_1 - self.beta_0)

    def _log_mean_coeff(self, t):
        """Return log m(t) = -t^2 (beta_1 - beta_0) / 4 - t beta_0 / 2."""
        return -0.25 * t**2 * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        m, std = self.mean_and_std(t)
        return expand(m, x) * x, std

    def prior_sampling(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape)

    def prior_logp(self, z: Tensor) -> Tensor:
        return _normal_logp(z)

    def langevin_alpha(self, t: Tensor) -> Tensor:
        """Return 1 - beta_i of the chain, as in the 2021 release (not the running product)."""
        return 1 - self._beta_i(t)

    def _table(self, make, n: int | None = None, dtype=torch.float32, device=CPU):
        """A table of coefficients of the chain with `n` steps (default N)."""
        n = n or self.N
        if self.beta_1 >= n:
            raise UserError(
                f'a VP chain of N={n} steps has beta_N = beta_max/N = {self.beta_1 / n:g}, which '
                f'must be below 1: N must be at least {math.floor(self.beta_1) + 1} for '
                f'beta_max={self.beta_1:g}'
            )
        return make(self.beta_0, self.beta_1, n, dtype, device)

    def _beta_i(self, t):
        """The chain's beta (B,) at the step of time t."""
        return self._table(linear_betas, None, table_dtype(t), t.device)[self.step_index(t)]

    @property
    def discrete_betas(self) -> Tensor:
        """The coefficients beta_i of the chain, (N,)."""
        return self._table(linear_betas).clone()

    @property
    def alphas(self) -> Tensor:
        """The factors alpha_i = 1 - beta_i, (N,)."""
        return 1 - self.discrete_betas

    @property
    def alphas_cumprod(self) -> Tensor:
        """The products alphabar_i of alpha_1 .. alpha_i, (N,)."""
        return self._table(log_alphabars).exp()

    @property
    def sqrt_alphas_cumprod(self) -> Tensor:
        """The factors sqrt(alphabar_i) of the data in x_i, (N,)."""
        return (self._table(log_alphabars) / 2).exp()

    @property
    def sqrt_1m_alphas_cumprod(self) -> Tensor:
        """The standard deviations sqrt(1 - alphabar_i) of the noise in x_i, (N,)."""
        return (-torch.expm1(self._table(log_alphabars))).sqrt()


@register_sde(name='vpsde')
class VPSDE(_LinearBetaSDE):
    """The variance-preserving SDE dx = -beta(t)/2 x dt + sqrt(beta(t)) dw (Eq. 11).

    std^2 = 1 - m^2. Its chain is that of DDPM (Ho et al. 2020), which needs N > beta_max.

    Args:
        beta_min, beta_max: beta at t = 0 and at t = 1.

    Raises:
        UserError: if beta_max >= N.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20, N: int = 1000):
        super().__init__(beta_min, beta_max, N)
        self._table(linear_betas)  # raises the error now

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = self._beta(t)
        return -0.5 * expand(beta, x) * x, beta.sqrt()

    def mean_and_std(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_m = self._log_mean_coeff(t)
        return log_m.exp(), (-torch.expm1(2 * log_m)).sqrt()

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The DDPM chain x_{i+1} = sqrt(1 - beta_i) x_i + sqrt(beta_i) z (Eq. 10)."""
        beta = self._beta_i(t)
        return expand((1 - beta).sqrt(), x) * x - x, beta.sqrt()

    def ancestral_step(self, x: Tensor, t: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (x_i + beta_i s)/sqrt(1 - beta_i) and std sqrt(beta_i) of x_{i-1} (Eq. 4)."""
        beta = self._beta_i(t)
        return (x + expand(beta, x) * score) / expand((1 - beta).sqrt(), x), beta.sqrt()

    def network_label(
        self, t: Tensor, continuous: bool = True, scales: int | None = None
    ) -> Tensor:
        """Return 999 t, or (N - 1) t for a discrete network."""
        return 999 * t if continuous else ((scales or self.N) - 1) * t

    def score_from_output(
        self, output: Tensor, t: Tensor, continuous: bool = True, scales: int | None = None
    ) -> Tensor:
        """Return -output / std(t), or -output / sqrt(1 - alphabar_i) for a discrete network."""
        if continuous:
            return super().score_from_output(output, t)
        label = self.network_label(t, continuous, scales).long()
        std = (-torch.expm1(self._log_alphabar(label, scales))).sqrt()
        return -output / expand(std, output)

    def _log_alphabar(self, label, scales=None):
        return self._table(log_alphabars, scales, device=label.device)[label]

    def discrete_level(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return m = sqrt(alphabar_i) and std = sqrt(1 - alphabar_i) (B,) for labels i (B,)."""
        log_alphabar = self._log_alphabar(label)
        return (log_alphabar / 2).exp(), (-torch.expm1(log_alphabar)).sqrt()


@register_sde(name='subvpsde')
class subVPSDE(_LinearBetaSDE):
    """The sub-VP SDE dx = -beta(t)/2 x dt + sqrt(beta(t) (1 - m(t)^4)) dw (Eq. 12).

    std = 1 - m^2, below that of VPSDE at all times.
    """

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = self._beta(t)
        return -0.5 * expand(beta, x) * x, (beta * -torch.expm1(4 * self._log_mean_coeff(t))).sqrt()

    def mean_and_std(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_m = self._log_mean_coeff(t)
        return log_m.exp(), -torch.expm1(2 * log_m)


@register_sde(name='vesde')
class VESDE(SDE):
    """The variance-exploding SDE dx = sigma(t) sqrt(2 log(sigma_max/sigma_min)) dw.

    See Eq. 9 and Appendix C. m = 1 and std = sigma(t) = sigma_min (sigma_max/sigma_min)^t: at t = 0
    the data already have noise of standard deviation sigma_min. Its chain is that of SMLD. The
    label of a discrete network is the index of the noise level; index 0 is the largest sigma.

    Args:
        sigma_max: near the largest distance between two data points (Song & Ermon 2020, Technique
            1).
    """

    T = 1
    sampling_eps = 1e-5
    labels_are_sigmas = True

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50, N: int = 1000):
        super().__init__(N)
        if not 0 < sigma_min < sigma_max:
            raise UserError(
                f'VESDE needs 0 < sigma_min < sigma_max, got sigma_min={sigma_min:g} '
                f'and sigma_max={sigma_max:g}'
            )
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def _sigma(self, t):
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        rate = math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))
        return torch.zeros_like(x), self._sigma(t) * rate

    def mean_and_std(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self._sigma(t)

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x, self._sigma(t)

    def prior_sampling(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape) * self.sigma_max

    def prior_logp(self, z: Tensor) -> Tensor:
        return _normal_logp(z, self.sigma_max)

    def _sigmas(self, dtype=torch.float32, device=CPU):
        """Return the noise levels sigma_i of the chain, (N,)."""
        if self.N < 2:
            raise UserError(f'a VE chain needs two noise levels or more, got N={self.N}')
        return geometric_sigmas(self.sigma_min, self.sigma_max, self.N, dtype, device)

    def _neighbours(self, t):
        """Return sigma_i and sigma_{i-1} at the step of time t, where sigma_{-1} = 0."""
        sigmas, index = self._sigmas(table_dtype(t), t.device), self.step_index(t)
        return sigmas[index], torch.where(index == 0, 0, sigmas[index - 1])

    @property
    def discrete_sigmas(self) -> Tensor:
        """The noise levels sigma_i of the chain, (N,)."""
        return self._sigmas().clone()

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The SMLD chain x_{i+1} = x_i + sqrt(sigma_i^2 - sigma_{i-1}^2) z (Eq. 8)."""
        sigma, below = self._neighbours(t)
        return torch.zeros_like(x), (sigma**2 - below**2).sqrt()

    def ancestral_step(self, x: Tensor, t: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean x_i + d s and std sqrt(d) sigma_{i-1} / sigma_i of x_{i-1} (Appendix F).

        Here d = sigma_i^2 - sigma_{i-1}^2.
        """
        sigma, below = self._neighbours(t)
        d = sigma**2 - below**2
        return x + expand(d, x) * score, (below**2 * d / sigma**2).sqrt()

    def network_label(
        self, t: Tensor, continuous: bool = True, scales: int | None = None
    ) -> Tensor:
        """Return sigma(t); for a discrete network the index of the noise level (0: largest)."""
        if continuous:
            return self._sigma(t)
        return ((self.T - t) * ((scales or self.N) - 1)).round().long()

    def score_from_output(
        self, output: Tensor, t: Tensor, continuous: bool = True, scales: int | None = None
    ) -> Tensor:
        return output

    def discrete_level(self, label: Tensor) -> tuple[Tensor, Tensor]:
        sigmas = self._sigmas(device=label.device)
        return torch.ones_like(label, dtype=torch.float32), sigmas[self.N - 1 - label]

    def discrete_residual(self, output: Tensor, noise: Tensor, std: Tensor) -> Tensor:
        return expand(std, output) * output + noise


def get_sde(config: ConfigDict) -> SDE:
    """Build the SDE that `config.training.sde` names.

    Raises:
        UserError: if no such SDE is registered.
    """
    found = SDES.find(config.training.sde)
    if found is None:
        raise UserError(
            f'config.training.sde must be one of {", ".join(map(repr, SDES.names()))}, '
            f'got {config.training.sde!r}'
        )
    return found.from_config(config)
