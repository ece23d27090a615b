"""Solvers that draw a good sample with tens of network evaluations.

With x_t = alpha_t x_0 + sigma_t z, lambda = log(alpha / sigma) (see `grids`), and the network's
estimates x0 of the image and eps of the noise in x_t, the probability-flow ODE (Song et al. 2021,
Eq. 13) has the exact solution, from time t to s < t,

    x_s = alpha_s/alpha_t x_t - alpha_s int e^-lambda eps dlambda
        = sigma_s/sigma_t x_t + sigma_s int e^lambda x0 dlambda

(Lu et al. 2022a, Eq. 3.4; 2022b, Eq. 8). The solvers differ in how they approximate eps or x0 under
the integral. Below, h = lambda_s - lambda_t > 0, and z is standard normal.

A new solver is a subclass of `Solver` with the decorator `register_solver`, and is selected by name
in `config.sampling.method`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.utils import times_like
from runtime.errors import UserError
from runtime.randomness import normal_like
from runtime.registry import Registry
from sde_lib import SDE
from solvers.grids import half_log_snr, levels, time_of
from solvers.loop import Loop

SOLVERS = Registry('solver')
register_solver, get_solver = SOLVERS.register, SOLVERS.get

SHORT = 15  # grids of fewer steps end with steps of lower order, which are more stable


class Solver:
    """Steps along `times` (n + 1,): `step(x, i)` carries x (B, ...) from times[i] to times[i + 1].

    A multistep solver keeps the estimates of earlier steps in `last`; `forget` clears them before
    steps are repeated (see `Loop`).

    Args:
        score_fn: the score `(x, t (B,)) -> shape of x`.
        times: from T down for sampling, or up for encoding.
        correct: a function that is applied to every estimate of x_0, such as `threshold`.
    """

    skip_type = 'logSNR'  # the default grid
    settings: tuple[str, ...] = ()  # keys of `config.sampling` that are constructor arguments
    default_steps = 36
    follows_flow = True  # adds no noise unless its settings ask for it

    def __init__(
        self, sde: SDE, score_fn: Callable, times: Tensor, *, correct: Callable | None = None
    ):
        self.sde = sde
        self.score_fn = score_fn
        self.times = times
        self.correct = correct
        self.last: Any = None
        self.alpha, self.sigma = (values.tolist() for values in levels(sde, times))
        self.lam = half_log_snr(sde, times).tolist()

    @classmethod
    def intervals(cls, steps: int, **settings) -> int:
        """The number of steps along the grid if `config.sampling.steps` is `steps`."""
        return steps

    def forget(self) -> None:
        """Clear the estimates of earlier steps."""
        self.last = None

    def at(self, i: int) -> tuple[float, float, float]:
        """Return t, alpha and sigma at the i-th time."""
        return float(self.times[i]), self.alpha[i], self.sigma[i]

    def image(self, x: Tensor, t: float, alpha: float, sigma: float) -> Tensor:
        """Return x0 = (x + sigma^2 score) / alpha, the estimate of x_0 (Tweedie's formula)."""
        x0 = (x + sigma**2 * self.score_fn(x, times_like(x, t))) / alpha
        return self.correct(x0) if self.correct else x0

    def noise(self, x: Tensor, t: float, alpha: float, sigma: float) -> Tensor:
        """Return eps = -sigma score = (x - alpha x0) / sigma, the estimate of the noise."""
        if self.correct:
            return (x - alpha * self.image(x, t, alpha, sigma)) / sigma
        return -sigma * self.score_fn(x, times_like(x, t))

    def step(self, x: Tensor, i: int) -> Tensor:
        """Return x at times[i + 1] from x (B, ...) at times[i]."""
        raise NotImplementedError

    def denoised(self, x: Tensor) -> Tensor:
        """The estimate of x_0 given x at the last time: a step to sigma = 0."""
        return self.image(x, *self.at(-1))

    def draw(self, x: Tensor, loop: Loop, noise_removal: bool) -> Tensor:
        """Carry x (B, ...) from the first time to the data, along the grid."""

        def step(x, i):
            x = self.step(x, i)
            return x, x

        x, _ = loop.walk(step, self.sde, x, self.times.to(x.device, x.dtype), self.forget)
        return self.denoised(x) if noise_removal else x


@register_solver(name='ddim')
class DDIM(Solver):
    """DDIM (Song, Meng & Ermon 2021, Eqs. 12 and 16).

    A step is x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c z, where c is `eta` times the
    standard deviation of x_s given x_t and x_0. eta = 0 is a first-order solver of the ODE;
    eta = 1 is ancestral sampling.
    """

    settings = ('eta',)

    def __init__(
        self,
        sde: SDE,
        score_fn: Callable,
        times: Tensor,
        *,
        correct: Callable | None = None,
        eta: float = 0.0,
    ):
        super().__init__(sde, score_fn, times, correct=correct)
        self.eta = eta

    def step(self, x: Tensor, i: int) -> Tensor:
        t, alpha, sigma = self.at(i)
        _, alpha_s, sigma_s = self.at(i + 1)
        x0 = self.image(x, t, alpha, sigma)
        eps = (x - alpha * x0) / sigma
        std = math.sqrt(max(sigma**2 - (alpha / alpha_s * sigma_s) ** 2, 0.0))  # of x_t given x_s
        c = self.eta * sigma_s / sigma * std
        x = alpha_s * x0 + math.sqrt(max(sigma_s**2 - c**2, 0.0)) * eps
        return x + c * normal_like(x) if c else x


@register_solver(name='heun')
class Heun(Solver):
    """Heun's method (Karras et al. 2022, Algorithms 1 and 2), of order 2.

    With y = x / alpha and v = sigma / alpha the ODE is dy/dv = d = (y - x0) / v. A step is
    y_s = y + (v_s - v) (d + d_s) / 2, where d_s is the slope at the end of an Euler step. Each
    step takes two evaluations, but the last one, to v = 0, takes one: 2 `steps` - 1 in total.

    Args:
        churn: S_churn in Algorithm 2. Before each step, added noise multiplies v by
            1 + min(churn / steps, sqrt(2) - 1), up to its value at T.
        steps: the number of steps, including the step to v = 0.
    """

    skip_type, default_steps = 'karras', 18
    settings = ('churn', 'steps')

    def __init__(
        self,
        sde: SDE,
        score_fn: Callable,
        times: Tensor,
        *,
        correct: Callable | None = None,
        churn: float = 0.0,
        steps: int | None = None,
    ):
        super().__init__(sde, score_fn, times, correct=correct)
        gamma = min(churn / (steps or len(times)), math.sqrt(2) - 1)
        self.v = [sigma / alpha for sigma, alpha in zip(self.sigma, self.alpha)]
        self.v_hat = [min(v * (1 + gamma), max(self.v)) for v in self.v]
        self.t_hat = time_of(sde, [-math.log(v) for v in self.v_hat]).tolist()

    @classmethod
    def intervals(cls, steps: int, denoise: bool = True, **settings) -> int:
        return steps - 1 if denoise else steps

    def slope(self, y: Tensor, t: float, v: float) -> Tensor:
        """Return the slope d = (y - x0) / v at time t."""
        alpha = float(levels(self.sde, t)[0])
        return (y - self.image(alpha * y, t, alpha, alpha * v)) / v

    def step(self, x: Tensor, i: int) -> Tensor:
        t, t_s = float(self.times[i]), float(self.times[i + 1])
        v, v_s = self.v[i], self.v[i + 1]
        y = x / self.alpha[i]
        if self.v_hat[i] > v:
            y = y + math.sqrt(self.v_hat[i] ** 2 - v**2) * normal_like(y)
            t, v = self.t_hat[i], self.v_hat[i]
        d = self.slope(y, t, v)
        d_s = self.slope(y + (v_s - v) * d, t_s, v_s)
        return self.alpha[i + 1] * (y + (v_s - v) * (d + d_s) / 2)


@register_solver(name='dpm_solver')
class DPMSolver(Solver):
    """DPM-Solver (Lu et al. 2022a, Eq. 3.6, Algorithms 1 and 2).

    A step is x_s = alpha_s/alpha_t x - sigma_s sum_n h^(n+1) phi_(n+1)(h) eps^(n). It approximates
    eps by a Taylor polynomial in lambda. The derivatives eps^(n) are differences of estimates
    within the step, at lambda_t + r h with r = 1/2 for order 2, and r = 1/3 and 2/3 for order 3.
    Order 1 is DDIM.

    Args:
        dpm_solver_order: the highest order of a step, 1, 2 or 3.
        steps: the number of evaluations. To reach exactly this number, the last steps may have a
            lower order (Appendix D.1 of the paper).
    """

    settings = ('dpm_solver_order', 'steps')
    nodes = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}  # r of the estimates within a step, by order

    def __init__(
        self,
        sde: SDE,
        score_fn: Callable,
        times: Tensor,
        *,
        correct: Callable | None = None,
        dpm_solver_order: int = 2,
        steps: int | None = None,
    ):
        super().__init__(sde, score_fn, times, correct=correct)
        n, order = len(times) - 1, dpm_solver_order
        self.step_orders = self.orders(steps, order) if steps else [order] * n
        places = [(i, r) for i, order in enumerate(self.step_orders) for r in self.nodes[order]]
        lam = [self.lam[i] + r * (self.lam[i + 1] - self.lam[i]) for i, r in places]
        t = time_of(sde, lam)
        self.within = dict(zip(places, torch.stack([t, *levels(sde, t)], 1).tolist()))

    @staticmethod
    def orders(steps: int, order: int) -> list[int]:
        """The order of each step, for a total of `steps` evaluations."""
        if order not in (1, 2, 3):
            raise UserError(f'dpm_solver_order must be 1, 2 or 3 for dpm_solver, got {order}')
        full, rest = divmod(steps, order)
        if order == 3 and rest == 0:
            return [3] * (full - 1) + [2, 1]
        return [order] * full + ([rest] if rest else [])

    @classmethod
    def intervals(cls, steps: int, dpm_solver_order: int = 2, **settings) -> int:
        return len(cls.orders(steps, dpm_solver_order))

    def step(self, x: Tensor, i: int) -> Tensor:
        t, alpha, sigma = self.at(i)
        _, alpha_s, sigma_s = self.at(i + 1)
        h, order = self.lam[i + 1] - self.lam[i], self.step_orders[i]
        eps = self.noise(x, t, alpha, sigma)

        def first_order(alpha_s, sigma_s, h):
            return alpha_s / alpha * x - sigma_s * math.expm1(h) * eps

        if order == 1:
            return first_order(alpha_s, sigma_s, h)
        r1 = 1 / order
        t1, alpha_1, sigma_1 = self.within[i, r1]
        change = self.noise(first_order(alpha_1, sigma_1, r1 * h), t1, alpha_1, sigma_1) - eps
        if order == 2:
            return first_order(alpha_s, sigma_s, h) - sigma_s * math.expm1(h) / (2 * r1) * change
        r2 = 2 / 3
        t2, alpha_2, sigma_2 = self.within[i, r2]
        phi = math.expm1(r2 * h) / (r2 * h) - 1
        u2 = first_order(alpha_2, sigma_2, r2 * h) - sigma_2 * r2 / r1 * phi * change
        change = self.noise(u2, t2, alpha_2, sigma_2) - eps
        return first_order(alpha_s, sigma_s, h) - sigma_s / r2 * (math.expm1(h) / h - 1) * change


@register_solver(name='dpmpp_2m')
class DPMSolverPP2M(Solver):
    """DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2).

    A step is x_s = sigma_s/sigma_t x - alpha_s (e^-h - 1) D. The
    estimate is extrapolated to the middle of the step: D = x0 + h/(2 h') (x0 - x0'), where x0' and
    h' are those of the previous step. In the first step, and in the last one of a short grid,
    D = x0.
    """

    def extrapolated(self, x: Tensor, i: int) -> Tensor:
        """Return D, the estimate of x_0 in the middle of the i-th step."""
        x0, h = self.image(x, *self.at(i)), self.lam[i + 1] - self.lam[i]
        before, self.last = self.last, (x0, h)
        steps = len(self.times) - 1
        if before is None or (i == steps - 1 and steps < SHORT):
            return x0
        x0_before, h_before = before
        return x0 + h / (2 * h_before) * (x0 - x0_before)

    def step(self, x: Tensor, i: int) -> Tensor:
        h = self.lam[i + 1] - self.lam[i]
        _, alpha_s, sigma_s = self.at(i + 1)
        D = self.extrapolated(x, i)
        return sigma_s / self.sigma[i] * x - alpha_s * math.expm1(-h) * D


@register_solver(name='dpmpp_2m_sde')
class SDEDPMSolverPP2M(DPMSolverPP2M):
    """SDE-DPM-Solver++(2M): `DPMSolverPP2M` for the reverse-time SDE (Lu et al. 2022b, Eq. 19).

    A step is x_s = sigma_s/sigma_t e^-h x + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) z.
    """

    follows_flow = False

    def step(self, x: Tensor, i: int) -> Tensor:
        h = self.lam[i + 1] - self.lam[i]
        _, alpha_s, sigma_s = self.at(i + 1)
        D = self.extrapolated(x, i)
        x_mean = sigma_s / self.sigma[i] * math.exp(-h) * x - alpha_s * math.expm1(-2 * h) * D
        return x_mean + sigma_s * math.sqrt(-math.expm1(-2 * h)) * normal_like(x)


@register_solver(name='unipc')
class UniPC(Solver):
    """UniPC of order p in x_0, with B(h) = e^-h - 1 (Zhao et al. 2023, Algorithms 5 and 6).

    A step is x_s = sigma_s/sigma_t x - alpha_s (e^-h - 1) (x0 + sum_k rho_k/r_k (x0_k - x0)). The
    x0_k are the estimates of the previous p - 1 steps, at lambda_t + r_k h. The predictor uses
    these; the corrector adds the estimate at s (r = 1), which the next step needs anyway.

    Args:
        dpm_solver_order: p, from 1 to 6. The first steps have lower orders, because few estimates
            exist; the last p steps of a short grid have orders p .. 1.
    """

    settings = ('dpm_solver_order',)

    def __init__(
        self,
        sde: SDE,
        score_fn: Callable,
        times: Tensor,
        *,
        correct: Callable | None = None,
        dpm_solver_order: int = 2,
    ):
        super().__init__(sde, score_fn, times, correct=correct)
        if not 1 <= dpm_solver_order <= 6:
            raise UserError(
                f'dpm_solver_order must be between 1 and 6 for unipc, got {dpm_solver_order}'
            )
        self.order = dpm_solver_order

    @staticmethod
    def weights(h: float, ratios: list[float]) -> list[float]:
        """Return rho with sum_k rho_k r_k^(n-1) = n! psi_n / (e^-h - 1) for n = 1, 2, ... (Eq. 10).

        psi_0 = e^-h - 1, psi_n = psi_(n-1) / -h - 1/n!. For a single r, rho is 1/2 (Appendix F).
        """
        if len(ratios) == 1:
            return [0.5]
        psi, wanted = math.expm1(-h) / -h - 1, []
        for n in range(1, len(ratios) + 1):
            wanted.append(psi * math.factorial(n) / math.expm1(-h))
            psi = psi / -h - 1 / math.factorial(n + 1)
        r = torch.tensor(ratios, dtype=torch.float64)
        powers = r ** torch.arange(len(ratios), dtype=torch.float64)[:, None]
        return torch.linalg.solve(powers, torch.tensor(wanted, dtype=torch.float64)).tolist()

    def moved(self, x: Tensor, i: int, known: list, new: Tensor | None = None) -> Tensor:
        """Return x carried from the i-th time to the next.

        Args:
            known: the estimates at the times up to the i-th, the latest last.
            new: the estimate at the next time, for the corrector.
        """
        h, x0 = self.lam[i + 1] - self.lam[i], known[-1]
        _, alpha_s, sigma_s = self.at(i + 1)
        ratios = [(self.lam[i - k] - self.lam[i]) / h for k in range(1, len(known))]
        others = known[-2::-1]
        if new is not None:
            ratios, others = [*ratios, 1.0], [*others, new]
        x = sigma_s / self.sigma[i] * x - alpha_s * math.expm1(-h) * x0
        if not others:
            return x
        for rho, r, other in zip(self.weights(h, ratios), ratios, others):
            x = x - alpha_s * math.expm1(-h) * rho / r * (other - x0)
        return x

    def step(self, x: Tensor, i: int) -> Tensor:
        x0 = self.image(x, *self.at(i))
        known = [x0]
        if self.last is not None:
            x_before, known_before = self.last
            x = self.moved(x_before, i - 1, known_before, x0)
            known = [*known_before, x0]
        steps = len(self.times) - 1
        order = min(self.order, steps - i) if steps < SHORT else self.order
        known = known[-order:]
        self.last = x, known
        return self.moved(x, i, known)
