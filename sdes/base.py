"""The base class of all processes, `SDE`, and their reversal, `ReverseSDE`.

A forward SDE carries data x_0 to a simple prior p_T; its reversal, run backwards from T, and the
probability-flow ODE carry the prior back to the data. With the score s = grad_x log p_t(x),

    dx = f(x, t) dt + g(t) dw                     t in [0, T]      (Song et al. 2021, Eq. 5)
    dx = (f - g^2 s) dt + g dw                    reversal         (Eq. 6)
    dx = (f - g^2 s / 2) dt                       the ODE          (Eq. 13)

Every drift here is linear in x, so that x_t given x_0 is N(m(t) x_0, std(t)^2 I).
"""

import abc
import copy
import inspect
import math
from collections.abc import Callable, Sequence

import torch
from ml_collections import ConfigDict
from torch import Tensor

from runtime.errors import UserError
from runtime.randomness import normal_like


def expand(v: Tensor, x: Tensor) -> Tensor:
    """Return `v` (B,) as (B, 1, ...), to be multiplied with `x` (B, ...)."""
    return v.reshape(v.shape + (1,) * (x.ndim - v.ndim))


def table_dtype(t: Tensor) -> torch.dtype:
    """The dtype in which tables of a chain are looked up at times t: at least float32."""
    return torch.promote_types(t.dtype, torch.float32)


class SDE(abc.ABC):
    """A forward SDE dx = f(x, t) dt + g(t) dw with `N` discretization steps (Eq. 5).

    A new process implements `T`, `sde`, `marginal_prob`, `prior_sampling` and `prior_logp`.
    Everything else follows from these, for a network that predicts noise from the label 999 t / T.
    """

    sampling_eps = 1e-3  # sampling stops at this time: below it the score is too steep
    labels_are_sigmas = False  # whether a network's label in continuous time is std(t)
    shown_as: dict[str, str] = {}  # names of attributes in `repr`, if they differ

    def __init__(self, N: int):
        if N < 1:
            raise UserError(f'the number of discretization steps must be at least 1, got N={N}')
        self.N = N

    @classmethod
    def config_keys(cls) -> list[str]:
        """The keys of `config.model` that belong to this SDE: the constructor's arguments but N."""
        return [
            p.name
            for p in inspect.signature(cls).parameters.values()
            if p.name != 'N' and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]

    @classmethod
    def from_config(cls, config: ConfigDict) -> 'SDE':
        """Build the SDE with N = `model.num_scales` and the `config_keys` in `config.model`."""
        model = config.model
        return cls(**{k: model[k] for k in cls.config_keys() if k in model}, N=model.num_scales)

    def __repr__(self):
        shown = {
            self.shown_as.get(name, name): value
            for name, value in vars(self).items()
            if isinstance(value, (int, float, str)) and name[0] != '_' and name != 'N'
        }
        settings = [f'{name}={value!r}' for name, value in (shown | {'N': self.N}).items()]
        return f'{type(self).__name__}({", ".join(settings)})'

    # The methods that a process must define

    @property
    @abc.abstractmethod
    def T(self) -> float:
        """The end time of the process."""

    @abc.abstractmethod
    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The drift f(x, t), shape of x, and the diffusion g(t), shape (B,)."""

    @abc.abstractmethod
    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The mean m(t) x (shape of x) and standard deviation std(t) (B,) of p(x_t | x_0 = x)."""

    @abc.abstractmethod
    def prior_sampling(self, shape: Sequence[int]) -> Tensor:
        """Draws from p_T, of the given shape, on the CPU."""

    @abc.abstractmethod
    def prior_logp(self, z: Tensor) -> Tensor:
        """Return log p_T(z) in nats, shape (B,)."""

    # Marginals and transitions

    def mean_and_std(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return m(t) and std(t), both (B,), of p(x_t | x_0) = N(m(t) x_0, std(t)^2 I)."""
        # a `marginal_prob` may be written for images only, or for vectors only
        for shape in ((-1, 1, 1, 1), (-1, 1)):
            ones = torch.ones_like(t).reshape(shape)
            mean, std = self.marginal_prob(ones, t)
            if mean.shape == ones.shape:
                return mean.flatten(), std
        raise ValueError(
            f'{type(self).__name__}.marginal_prob must return a mean of the shape of x, '
            f'got {tuple(mean.shape)} for {tuple(ones.shape)}'
        )

    def perturb(self, x: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Draw x_t = m x + std z given x_0 = x; z is standard normal unless `noise` is given."""
        mean, std = self.marginal_prob(x, t)
        return mean + expand(std, x) * (normal_like(x) if noise is None else noise)

    def denoise(self, x: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """Return E[x_0 | x_t = x] = (x + std^2 score) / m (Tweedie), shape of x; t > 0."""
        m, std = self.mean_and_std(t)
        return (x + expand(std, x) ** 2 * score) / expand(m, x)

    def noise(self, x: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """Return E[z | x_t = x] = -std score for x_t = m x_0 + std z, shape of x."""
        return -expand(self.mean_and_std(t)[1], x) * score

    def transition_prob(self, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean r x (shape of x) and std (B,) of p(x_t | x_s = x) for times s <= t (B,).

        r = m(t) / m(s), and the variance is std(t)^2 - r^2 std(s)^2.
        """
        (m_s, std_s), (m_t, std_t) = self.mean_and_std(s), self.mean_and_std(t)
        r = m_t / m_s
        return expand(r, x) * x, (std_t**2 - (r * std_s) ** 2).clamp(min=0).sqrt()

    def reverse(self, score_fn: Callable, probability_flow: bool = False) -> 'ReverseSDE':
        """The reversal, or the probability-flow ODE, for a score function (x, t) -> shape of x."""
        return ReverseSDE(self, score_fn, probability_flow)

    # The chain of N steps

    def timesteps(
        self,
        eps: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """The N times, from T down to `eps`, at which the steps of samplers begin."""
        return torch.linspace(self.T, eps, self.N, device=device, dtype=dtype)

    def with_steps(self, N: int) -> 'SDE':
        """Return the same process with `N` discretization steps."""
        other = copy.copy(self)
        other.N = N
        return other

    def step_index(self, t: Tensor, scales: int | None = None) -> Tensor:
        """The index t (N - 1) / T, truncated, of time t in tables of N (or `scales`) steps."""
        return (t.to(table_dtype(t)) * ((scales or self.N) - 1) / self.T).long()

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return f dt (shape of x) and g sqrt(dt) (B,) of a step of the chain, with dt = T/N."""
        drift, diffusion = self.sde(x, t)
        dt = self.T / self.N
        return drift * dt, diffusion * math.sqrt(dt)

    def ancestral_step(self, x: Tensor, t: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean (shape of x) and std (B,) of x_{i-1} given x_i = x at time t."""
        raise NotImplementedError(
            f'ancestral sampling is not defined for {type(self).__name__}: it needs the Markov '
            'chain of VPSDE or VESDE; use reverse_diffusion or euler_maruyama'
        )

    def langevin_alpha(self, t: Tensor) -> Tensor:
        """The factor alpha (B,) in the step size of Langevin correctors (Algorithms 4 and 5)."""
        return torch.ones_like(t)

    # Inputs and outputs of networks; `scales` is the number of noise levels of a discrete network

    def network_label(
        self, t: Tensor, continuous: bool = True, scales: int | None = None
    ) -> Tensor:
        """The network's label (B,) for time t."""
        return 999 * t / self.T

    def score_from_output(
        self, output: Tensor, t: Tensor, continuous: bool = True, scales: int | None = None
    ) -> Tensor:
        """The score from the network's output for x_t and `network_label(t)`: -output / std."""
        return -output / expand(self.mean_and_std(t)[1], output)

    def discrete_level(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return m and std (B,) of x_t = m x_0 + std z for integer labels (B,) in 0 .. N - 1."""
        raise NotImplementedError(
            f'{type(self).__name__} has no discrete-time training objective: '
            'set training.continuous=True'
        )

    def discrete_residual(self, output: Tensor, noise: Tensor, std: Tensor) -> Tensor:
        """The error of a discrete network in units of the noise; training minimizes it."""
        return output - noise


class ReverseSDE:
    """The reverse-time SDE (Eq. 6), or with `probability_flow` the probability-flow ODE (Eq. 13).

    Time runs from T down to 0. One step is x - f + G z with f and G of `discretize`.
    """

    def __init__(self, forward: SDE, score_fn: Callable, probability_flow: bool = False):
        self.forward, self.score_fn, self.probability_flow = forward, score_fn, probability_flow

    def __repr__(self):
        return f'ReverseSDE({self.forward!r}, probability_flow={self.probability_flow})'

    N = property(lambda self: self.forward.N)
    T = property(lambda self: self.forward.T)

    def reverse(
        self, x: Tensor, t: Tensor, drift: Tensor, diffusion: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Drift (shape of x) and diffusion (B,) of the reversal, from those of a forward step."""
        weight = 0.5 if self.probability_flow else 1.0
        drift = drift - weight * expand(diffusion, x) ** 2 * self.score_fn(x, t)
        return drift, torch.zeros_like(diffusion) if self.probability_flow else diffusion

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift (shape of x) and diffusion (B,) of the reversal."""
        return self.reverse(x, t, *self.forward.sde(x, t))

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return f (like x) and G (B,) of the reversed chain x_{i-1} = x_i - f + G z (Eq. 46)."""
        return self.reverse(x, t, *self.forward.discretize(x, t))
