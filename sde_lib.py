"""Diffusion processes and their time reversals.

A forward SDE  dx = f(x, t) dt + g(t) dw  on t in [0, T] carries data to a simple prior p_T. Its
reversal dx = (f - g^2 s) dt + g dw, run backwards, and the probability-flow ODE  dx/dt = f - g^2 s
/ 2  carry the prior back to the data, where s = grad_x log p_t(x) is the score (Song et al. 2021,
Eqs. 5, 6 and 13; table of the three SDEs: Appendix B).

An SDE class has all methods that networks, losses and samplers need: the network's time label, the
conversion of its output to a score, the ancestral step, the step size of Langevin correctors.
Shapes: x (B, ...) of any rank, t (B,) in [0, T]; coefficients that do not depend on x have shape
(B,).
"""

import abc
import copy
import functools
import inspect
import math

import torch

from runtime.errors import UserError
from runtime.randomness import normal_like
from runtime.registry import Registry

SDES = Registry('SDE')
register_sde = SDES.register


def expand(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`v` of shape (B,) as (B, 1, ...), to be multiplied with `x` of shape (B, ...)."""
    return v.reshape(v.shape + (1,) * (x.ndim - v.ndim))


def _table_dtype(t: torch.Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def _standard_normal_logp(z: torch.Tensor, std: float = 1.0) -> torch.Tensor:
    """log N(z; 0, std^2 I) in nats, shape (B,)."""
    flat = z.flatten(1)
    return -flat.square().sum(1) / (2 * std**2) - flat.shape[1] / 2 * math.log(2 * math.pi * std**2)


class SDE(abc.ABC):
    """A forward SDE with `N` discretization steps.

    A new process implements `T`, `sde`, `marginal_prob`, `prior_sampling` and `prior_logp`;
    everything else follows from these, for a network that predicts noise from the label 999 t / T.
    `marginal_prob` must be linear in x, as for every SDE with a linear drift.
    """

    sampling_eps = 1e-3  # where sampling stops: below it the score is too steep for the solver
    # whether a network's label in continuous time is the standard deviation of the noise
    labels_are_sigmas = False

    def __init__(self, N: int):
        if N < 1:
            raise UserError(f'an SDE needs at least one discretization step, got N={N}')
        self.N = N

    @classmethod
    def config_keys(cls) -> list[str]:
        """Return the keys of `config.model` that belong to this SDE: the parameters of its
        constructor other than N.
        """
        parameters = inspect.signature(cls).parameters.values()
        return [
            p.name
            for p in parameters
            if p.name != 'N' and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]

    @classmethod
    def from_config(cls, config) -> 'SDE':
        """Build the SDE with N = `model.num_scales` and those of its `config_keys` that
        `config.model` has.
        """
        model = config.model
        return cls(
            **{key: model[key] for key in cls.config_keys() if key in model}, N=model.num_scales
        )

    @property
    @abc.abstractmethod
    def T(self) -> float:
        """The end time of the process."""

    @abc.abstractmethod
    def sde(self, x, t):
        """The drift f(x, t), shape of x, and the diffusion g(t), shape (B,)."""

    @abc.abstractmethod
    def marginal_prob(self, x, t):
        """The mean (shape of x) and the standard deviation (B,) of p(x_t | x_0 = x), a Gaussian."""

    def mean_and_std(self, t):
        """m(t) and std(t), both (B,), of p(x_t | x_0) = N(m(t) x_0, std(t)^2 I)."""
        # a `marginal_prob` may be written for images only, or for vectors only
        for shape in ((-1, 1, 1, 1), (-1, 1)):
            ones = torch.ones_like(t).reshape(shape)
            mean, std = self.marginal_prob(ones, t)
            if mean.shape == ones.shape:
                return mean.flatten(), std
        raise ValueError(
            f'{type(self).__name__}.marginal_prob must return a mean of the shape of '
            f'x, got {tuple(mean.shape)} for '
            f'{tuple(ones.shape)}'
        )

    @abc.abstractmethod
    def prior_sampling(self, shape):
        """Draws from p_T, of the given shape, on the CPU."""

    @abc.abstractmethod
    def prior_logp(self, z):
        """log p_T(z) in nats, shape (B,)."""

    def __repr__(self):
        parameters = (f'{name}={value!r}' for name, value in self._parameters().items())
        return f'{type(self).__name__}({", ".join(parameters)})'

    def _parameters(self) -> dict:
        """What `repr` shows: numbers and words by name, N last."""
        shown = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, (int, float, str)) and name[0] != '_'
        }
        return {name: value for name, value in shown.items() if name != 'N'} | dict(N=self.N)

    def discretize(self, x, t):
        """One step x + f + G z of the chain that stands for the SDE: f of the shape of x and G
        (B,); here Euler-Maruyama, dt = T/N.
        """
        drift, diffusion = self.sde(x, t)
        dt = self.T / self.N
        return drift * dt, diffusion * math.sqrt(dt)

    def reverse(self, score_fn, probability_flow: bool = False) -> 'ReverseSDE':
        """The reverse-time SDE, or the probability-flow ODE, for a score function (x, t) -> shape
        of x.
        """
        return ReverseSDE(self, score_fn, probability_flow)

    def perturb(self, x, t, noise=None):
        """A draw of x_t given x_0 = x: mean + std z, with z standard normal unless `noise` (shape
        of x) is given.
        """
        mean, std = self.marginal_prob(x, t)
        return mean + expand(std, x) * (normal_like(x) if noise is None else noise)

    def denoise(self, x, t, score):
        """E[x_0 | x_t = x] from the score there (Tweedie's formula): (x + std^2 score) / m, where m
        x_0 is the mean of x_t; t > 0.
        """
        m, std = self.mean_and_std(t)
        return (x + expand(std, x) ** 2 * score) / expand(m, x)

    def noise(self, x, t, score):
        """E[z | x_t = x] for x_t = m x_0 + std z, from the score there: -std score."""
        return -expand(self.mean_and_std(t)[1], x) * score

    def transition_prob(self, x, s, t):
        """The mean (shape of x) and the standard deviation (B,) of p(x_t | x_s = x) for times s <=
        t, both (B,): a Gaussian, whose moments follow from those at s and at t given x_0.
        """
        (m_s, std_s), (m_t, std_t) = self.mean_and_std(s), self.mean_and_std(t)
        ratio = m_t / m_s
        return expand(ratio, x) * x, (std_t**2 - (ratio * std_s) ** 2).clamp(min=0).sqrt()

    def timesteps(self, eps, device=None, dtype=torch.float32):
        """The N times, from T down to `eps`, from which samplers take their steps."""
        return torch.linspace(self.T, eps, self.N, device=device, dtype=dtype)

    def with_steps(self, N: int) -> 'SDE':
        """The same process with `N` discretization steps."""
        other = copy.copy(self)
        other.N = N
        return other

    def step_index(self, t, scales: int | None = None):
        """The index, 0 to N - 1, of time t in tables of N (or `scales`) steps: t (N - 1) / T,
        truncated.
        """
        return (t.to(_table_dtype(t)) * ((scales or self.N) - 1) / self.T).long()

    def network_label(self, t, continuous: bool = True, scales: int | None = None):
        """Return the network's label (B,) for time t. `scales`: number of noise levels of a
        discrete network (default N).
        """
        return 999 * t / self.T

    def score_from_output(self, output, t, continuous: bool = True, scales: int | None = None):
        """The score, given what the network answers to x_t and `network_label(t)`."""
        return -output / expand(self.mean_and_std(t)[1], output)

    def discrete_level(self, label):
        """Mean coefficient and standard deviation, both (B,), of x_t at a discrete network's
        integer label in 0 .. N - 1.
        """
        raise NotImplementedError(
            f'{type(self).__name__} has no discrete-time training objective: '
            'set training.continuous=True'
        )

    def discrete_residual(self, output, noise, std):
        """What discrete training brings to zero: a discrete network's error, in units of the
        noise.
        """
        return output - noise

    def ancestral_step(self, x, t, score):
        """Mean (shape of x) and standard deviation (B,) of x_{i-1} given x_i = x, by ancestral
        sampling.
        """
        raise NotImplementedError(
            f'ancestral sampling is not defined for {type(self).__name__}: '
            'it needs the Markov chain of VPSDE or VESDE; use '
            'reverse_diffusion or euler_maruyama'
        )

    def langevin_alpha(self, t):
        """The factor alpha in the step size of Langevin correctors (Algorithms 4 and 5), shape
        (B,).
        """
        return torch.ones_like(t)


class ReverseSDE:
    """The time reversal of `forward` (Eq. 6), or with `probability_flow` the ODE that shares its
    marginals (Eq. 13).

    `sde` and `discretize` answer as those of a forward SDE do, and are to be run from T down to 0:
    x - f + G z is one step.
    """

    def __init__(self, forward: SDE, score_fn, probability_flow: bool = False):
        self.forward, self.score_fn, self.probability_flow = forward, score_fn, probability_flow

    def __repr__(self):
        return f'ReverseSDE({self.forward!r}, probability_flow={self.probability_flow})'

    @property
    def N(self):
        return self.forward.N

    @property
    def T(self):
        return self.forward.T

    def reverse(self, x, t, drift, diffusion):
        """Drift (shape of x) and diffusion (B,) of the reversal of a forward step, or SDE, that has
        these at x and t.
        """
        weight = 0.5 if self.probability_flow else 1.0
        drift = drift - weight * expand(diffusion, x) ** 2 * self.score_fn(x, t)
        return drift, torch.zeros_like(diffusion) if self.probability_flow else diffusion

    def sde(self, x, t):
        """Drift (shape of x) and diffusion (B,) of the reversal."""
        return self.reverse(x, t, *self.forward.sde(x, t))

    def discretize(self, x, t):
        """f (shape of x) and G (B,) of the reversed discretization (Appendix E): x_{i-1} = x_i - f
        + G z.
        """
        return self.reverse(x, t, *self.forward.discretize(x, t))


def _cached_table(make):
    """A function of numbers that returns a table, whose results are kept; none of them an inference
    tensor, which autograd refuses.
    """
    return functools.lru_cache(maxsize=64)(torch.inference_mode(False)(make))


@_cached_table
def _linear_betas(beta_min, beta_max, n, dtype, device):
    """The chain's beta_i: n values from beta_min/n to beta_max/n (Appendix C)."""
    if beta_max >= n:
        raise UserError(
            f'a VP chain of N={n} steps has beta_N = beta_max/N = {beta_max / n:g}, '
            'which must be below 1: '
            f'N must be at least {math.floor(beta_max) + 1} for beta_max={beta_max:g}'
        )
    return torch.linspace(beta_min / n, beta_max / n, n, dtype=dtype, device='cpu').to(device)


@_cached_table
def _log_alphabars(beta_min, beta_max, n, dtype, device):
    """log of the running product of 1 - beta_i, to full precision."""
    betas = _linear_betas(beta_min, beta_max, n, torch.float64, torch.device('cpu'))
    return torch.log1p(-betas).cumsum(0).to(dtype).to(device)


@_cached_table
def _geometric_sigmas(sigma_min, sigma_max, n, dtype, device):
    """The chain's sigma_i: n values from sigma_min to sigma_max, evenly spaced in the logarithm."""
    if n < 2:
        raise UserError(f'a VE chain needs two noise levels or more, got N={n}')
    return (
        torch.linspace(math.log(sigma_min), math.log(sigma_max), n, dtype=dtype, device='cpu')
        .exp()
        .to(device)
    )


class _LinearBetaSDE(SDE):
    """What VPSDE and subVPSDE share: beta(t) = beta_0 + t (beta_1 - beta_0) on [0, 1], its
    integral, its chain, and the prior N(0, I).
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20, N: int = 1000):
        super().__init__(N)
        self.beta_0, self.beta_1 = beta_min, beta_max

    def _parameters(self):
        own = super()._parameters()
        return dict(beta_min=own.pop('beta_0'), beta_max=own.pop('beta_1')) | own

    @property
    def T(self):
        return 1

    def _beta(self, t):
        return self.beta_0 + t * (self.beta_1 - self.beta_0)

    def _log_mean_coeff(self, t):
        """log m(t) = -1/2 times the integral of beta over [0, t]."""
        return -0.25 * t**2 * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0

    def marginal_prob(self, x, t):
        m, std = self.mean_and_std(t)
        return expand(m, x) * x, std

    def prior_sampling(self, shape):
        return torch.randn(*shape)

    def prior_logp(self, z):
        return _standard_normal_logp(z)

    def langevin_alpha(self, t):
        """1 - beta_i of the chain, as published (not the running product)."""
        return 1 - self._betas_at(t)[self.step_index(t)]

    def _betas_at(self, t):
        return _linear_betas(self.beta_0, self.beta_1, self.N, _table_dtype(t), t.device)

    def _table(self, make):
        return make(self.beta_0, self.beta_1, self.N, torch.float32, torch.device('cpu'))

    @property
    def discrete_betas(self):
        return self._table(_linear_betas).clone()

    @property
    def alphas(self):
        return 1 - self.discrete_betas

    @property
    def alphas_cumprod(self):
        return self._table(_log_alphabars).exp()

    @property
    def sqrt_alphas_cumprod(self):
        return (self._table(_log_alphabars) / 2).exp()

    @property
    def sqrt_1m_alphas_cumprod(self):
        return (-torch.expm1(self._table(_log_alphabars))).sqrt()


@register_sde(name='vpsde')
class VPSDE(_LinearBetaSDE):
    """dx = -beta(t)/2 x dt + sqrt(beta(t)) dw, variance preserving, whose chain is that of DDPM
    (Eq. 11; Ho et al. 2020).

    `beta_min`, `beta_max`: beta at t = 0 and t = 1. The chain needs N > beta_max; UserError
    otherwise.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20, N: int = 1000):
        super().__init__(beta_min, beta_max, N)
        # refuses here an N that is too small
        _linear_betas(beta_min, beta_max, N, torch.float32, torch.device('cpu'))

    def sde(self, x, t):
        beta = self._beta(t)
        return -0.5 * expand(beta, x) * x, beta.sqrt()

    def mean_and_std(self, t):
        log_mean_coeff = self._log_mean_coeff(t)
        return log_mean_coeff.exp(), (-torch.expm1(2 * log_mean_coeff)).sqrt()

    def discretize(self, x, t):
        """One step of the DDPM chain: x_{i+1} = sqrt(1 - beta_i) x_i + sqrt(beta_i) z (Eq. 10)."""
        beta = self._betas_at(t)[self.step_index(t)]
        return expand((1 - beta).sqrt(), x) * x - x, beta.sqrt()

    def network_label(self, t, continuous=True, scales=None):
        return 999 * t if continuous else ((scales or self.N) - 1) * t

    def score_from_output(self, output, t, continuous=True, scales=None):
        if continuous:
            return super().score_from_output(output, t)
        label = self.network_label(t, continuous, scales)
        return -output / expand(self._discrete_std(label.long(), scales), output)

    def _discrete_log_alphabar(self, label, scales=None):
        return _log_alphabars(
            self.beta_0, self.beta_1, scales or self.N, torch.float32, label.device
        )[label]

    def _discrete_std(self, label, scales=None):
        return (-torch.expm1(self._discrete_log_alphabar(label, scales))).sqrt()

    def discrete_level(self, label):
        return (self._discrete_log_alphabar(label) / 2).exp(), self._discrete_std(label)

    def ancestral_step(self, x, t, score):
        """x_{i-1} ~ N((x_i + beta_i s) / sqrt(1 - beta_i), beta_i I) (Eq. 4)."""
        beta = self._betas_at(t)[self.step_index(t)]
        return (x + expand(beta, x) * score) / expand((1 - beta).sqrt(), x), beta.sqrt()


@register_sde(name='subvpsde')
class subVPSDE(_LinearBetaSDE):
    """dx = -beta(t)/2 x dt + g(t) dw with g^2 = beta (1 - m^4), whose variance stays below VPSDE's
    (Eq. 12; Appendix B).
    """

    def sde(self, x, t):
        beta = self._beta(t)
        return -0.5 * expand(beta, x) * x, (beta * -torch.expm1(4 * self._log_mean_coeff(t))).sqrt()

    def mean_and_std(self, t):
        log_mean_coeff = self._log_mean_coeff(t)
        return log_mean_coeff.exp(), -torch.expm1(2 * log_mean_coeff)


@register_sde(name='vesde')
class VESDE(SDE):
    """dx = sigma(t) sqrt(2 log(sigma_max/sigma_min)) dw with sigma(t) = sigma_min
    (sigma_max/sigma_min)^t (Eq. 9; Appendix C).

    x_0 stands for data that already carry noise of standard deviation sigma_min: the noise of x_t
    has sigma(t). `sigma_max` should be near the largest distance between two data points (Song &
    Ermon 2020, Technique 1). Its chain is that of SMLD; a discrete network counts its labels from
    the largest sigma down.
    """

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

    @property
    def T(self):
        return 1

    def _sigma(self, t):
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def sde(self, x, t):
        return torch.zeros_like(x), self._sigma(t) * math.sqrt(
            2 * math.log(self.sigma_max / self.sigma_min)
        )

    def mean_and_std(self, t):
        return torch.ones_like(t), self._sigma(t)

    def marginal_prob(self, x, t):
        return x, self._sigma(t)

    def prior_sampling(self, shape):
        return torch.randn(*shape) * self.sigma_max

    def prior_logp(self, z):
        return _standard_normal_logp(z, self.sigma_max)

    def discretize(self, x, t):
        """One step of the SMLD chain: x_{i+1} = x_i + sqrt(sigma_i^2 - sigma_{i-1}^2) z, with
        sigma_{-1} = 0 (Eq. 8).
        """
        sigma, below = self._neighbours(t)
        return torch.zeros_like(x), (sigma**2 - below**2).sqrt()

    def _sigmas(self, dtype, device):
        return _geometric_sigmas(self.sigma_min, self.sigma_max, self.N, dtype, device)

    def _neighbours(self, t):
        """sigma_i and sigma_{i-1} at the step of time t."""
        sigmas, index = self._sigmas(_table_dtype(t), t.device), self.step_index(t)
        return sigmas[index], torch.where(index == 0, 0, sigmas[index - 1])

    @property
    def discrete_sigmas(self):
        return self._sigmas(torch.float32, torch.device('cpu')).clone()

    def network_label(self, t, continuous=True, scales=None):
        return (
            self._sigma(t)
            if continuous
            else ((self.T - t) * ((scales or self.N) - 1)).round().long()
        )

    def score_from_output(self, output, t, continuous=True, scales=None):
        return output

    def discrete_level(self, label):
        return torch.ones_like(label, dtype=torch.float32), self._sigmas(
            torch.float32, label.device
        )[self.N - 1 - label]

    def discrete_residual(self, output, noise, std):
        return expand(std, output) * output + noise

    def ancestral_step(self, x, t, score):
        """x_{i-1} ~ N(x_i + (sigma_i^2 - sigma_{i-1}^2) s, sigma_{i-1}^2 (sigma_i^2 -
        sigma_{i-1}^2) / sigma_i^2 I) (Appendix F).
        """
        sigma, below = self._neighbours(t)
        removed = sigma**2 - below**2
        return x + expand(removed, x) * score, (below**2 * removed / sigma**2).sqrt()


def get_sde(config) -> SDE:
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
