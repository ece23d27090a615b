"""Solvers of the reverse-time SDE and its ODE that make a good sample in tens of network
evaluations.

Any linear SDE has x_t = alpha_t x_0 + sigma_t z, so that all that a solver needs to know of it are
alpha, sigma and half the logarithm of the signal-to-noise ratio, lambda_t = log(alpha_t / sigma_t),
which falls with t. Between times t > s, with h = lambda_s - lambda_t and the network's estimates x0
and eps of image and noise, the probability-flow ODE (Song et al. 2021, Eq. 13) has the exact
solution

    x_s = alpha_s/alpha_t x_t - alpha_s int e^-lambda eps dlambda
        = sigma_s/sigma_t x_t + sigma_s int e^lambda x0 dlambda

(Lu et al. 2022a, Eq. 3.4; 2022b, Eq. 8). The solvers differ in what they put under the integral.
Each takes steps from one time of a grid to the next; `settings` are those of a config's `sampling`
section. A new one is a subclass of `Solver` under `register_solver`.
"""

import math

import torch

from models.utils import times_like
from runtime.errors import UserError
from runtime.randomness import normal_like
from runtime.registry import Registry
from sde_lib import expand
from solvers.grids import half_log_snr, levels, time_of

SOLVERS = Registry('solver')
register_solver, get_solver = SOLVERS.register, SOLVERS.get


def threshold(x0, centered: bool = True, share: float = 0.995):
    """Estimates of images (B, ...), each brought back to where images lie if its largest values
    leave it: clipped to [-s, s] and divided by s, where s >= 1 is the quantile `share` of its
    absolute values (Saharia et al. 2022, "dynamic thresholding"). `centered`: images lie in [-1, 1]
    rather than in [0, 1].
    """
    x0 = x0 if centered else 2 * x0 - 1
    # of all at once it has a largest size
    s = torch.stack([image.abs().float().quantile(share) for image in x0.flatten(1)])
    s = expand(s.clamp(min=1).to(x0), x0)
    x0 = x0.clamp(-s, s) / s
    return x0 if centered else (x0 + 1) / 2


class Solver:
    """Steps along `times` (n + 1,), from each to the next: `step(x, i)` carries x (B, ...) from
    times[i] to times[i + 1].

    `score_fn(x, t (B,))` is the score; `correct`, where given, is put on every estimate of x_0. A
    solver keeps what it remembers of its last step in `last`, which a step from another place must
    not see: `forget`.
    """

    skip_type = 'logSNR'  # the grid that suits it
    settings = ()  # those of `sampling` that it takes
    default_steps = 36
    follows_flow = True  # without noise of its own, unless settings ask for it

    def __init__(self, sde, score_fn, times, *, correct=None):
        self.sde, self.score_fn, self.times, self.correct, self.last = (
            sde,
            score_fn,
            times,
            correct,
            None,
        )
        self.alpha, self.sigma = (values.tolist() for values in levels(sde, times))
        self.lam = half_log_snr(sde, times).tolist()

    @classmethod
    def intervals(cls, steps: int, **settings) -> int:
        """The steps of the grid that a budget of `steps` allows."""
        return steps

    def forget(self):
        self.last = None

    def image(self, x, t, alpha, sigma):
        """The estimate of x_0 (Tweedie's formula), given x at time t, where alpha and sigma have
        these values.
        """
        x0 = (x + sigma**2 * self.score_fn(x, times_like(x, t))) / alpha
        return self.correct(x0) if self.correct else x0

    def noise(self, x, t, alpha, sigma):
        """The estimate of the noise in x at time t."""
        if self.correct:
            return (x - alpha * self.image(x, t, alpha, sigma)) / sigma
        return -sigma * self.score_fn(x, times_like(x, t))

    def at(self, i):
        """t, alpha, sigma at the i-th time."""
        return float(self.times[i]), self.alpha[i], self.sigma[i]

    def step(self, x, i):
        raise NotImplementedError

    def denoised(self, x):
        """The estimate of x_0 given x at the last time: a step to sigma = 0."""
        return self.image(x, *self.at(-1))


@register_solver(name='ddim')
class DDIM(Solver):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c z, with c = eta times the standard deviation
    of x_s given x_t and x_0 (Song, Meng & Ermon 2021, Eqs. 12 and 16): eta = 0 is a method of order
    1 for the ODE, eta = 1 ancestral sampling.
    """

    settings = ('eta',)

    def __init__(self, sde, score_fn, times, *, correct=None, eta=0.0):
        super().__init__(sde, score_fn, times, correct=correct)
        self.eta = eta

    def step(self, x, i):
        t, alpha, sigma = self.at(i)
        _, alpha_s, sigma_s = self.at(i + 1)
        x0 = self.image(x, t, alpha, sigma)
        eps = (x - alpha * x0) / sigma
        c = (
            self.eta
            * sigma_s
            / sigma
            * math.sqrt(max(sigma**2 - (alpha / alpha_s * sigma_s) ** 2, 0.0))
        )
        x = alpha_s * x0 + math.sqrt(max(sigma_s**2 - c**2, 0.0)) * eps
        return x + c * normal_like(x) if c else x


@register_solver(name='heun')
class Heun(Solver):
    """Heun's method, of order 2, for y = x / alpha and v = sigma / alpha: dy/dv = (y - x0) / v
    (Karras et al. 2022, Algorithms 1 and 2).

    `churn` > 0 adds noise before every step at which v lies in `churn_range`: v grows by the factor
    1 + min(churn / steps, sqrt(2) - 1), but not beyond its value at T, with noise of `churn_noise`
    times the size. Two evaluations a step, and one for the step to v = 0: `steps` such steps, the
    last included, take 2 steps - 1 evaluations.
    """

    skip_type, default_steps = 'karras', 18
    settings = ('churn', 'steps')

    def __init__(
        self,
        sde,
        score_fn,
        times,
        *,
        correct=None,
        churn=0.0,
        steps=None,
        churn_range=(0.0, math.inf),
        churn_noise=1.0,
    ):
        super().__init__(sde, score_fn, times, correct=correct)
        self.v = [sigma / alpha for sigma, alpha in zip(self.sigma, self.alpha)]
        gamma = min(churn / (steps or len(times)), math.sqrt(2) - 1)
        self.churn_noise = churn_noise
        self.raised = [
            min(v * (1 + gamma), max(self.v)) if churn_range[0] <= v <= churn_range[1] else v
            for v in self.v
        ]
        self.raised_times = time_of(sde, [-math.log(v) for v in self.raised]).tolist()

    @classmethod
    def intervals(cls, steps, denoise=True, **settings):
        return steps - 1 if denoise else steps

    def slope(self, y, t, v):
        alpha = float(levels(self.sde, t)[0]) if self.alpha[0] != 1 else 1.0
        return (y - self.image(alpha * y, t, alpha, alpha * v)) / v

    def step(self, x, i):
        y, v, v_next, t, t_next = (
            x / self.alpha[i],
            self.v[i],
            self.v[i + 1],
            float(self.times[i]),
            float(self.times[i + 1]),
        )
        if self.raised[i] > v:
            y = y + self.churn_noise * math.sqrt(self.raised[i] ** 2 - v**2) * normal_like(y)
            v, t = self.raised[i], self.raised_times[i]
        slope = self.slope(y, t, v)
        ahead = y + (v_next - v) * slope
        return self.alpha[i + 1] * (
            y + (v_next - v) * (slope + self.slope(ahead, t_next, v_next)) / 2
        )


@register_solver(name='dpm_solver')
class DPMSolver(Solver):
    """DPM-Solver of order 1, 2 or 3, in single steps: estimates of the noise at 1, 2 or 3 points of
    a step, from which a Taylor polynomial in lambda is integrated (Lu et al. 2022a, Sec. 3.2, with
    r1 = 1/2, and r1 = 1/3, r2 = 2/3; order 1 is DDIM).

    `steps` counts evaluations: steps of the highest order, and the last ones lower where it is no
    multiple (Appendix D.1 there).
    """

    settings = ('dpm_solver_order', 'steps')

    def __init__(self, sde, score_fn, times, *, correct=None, dpm_solver_order=2, steps=None):
        super().__init__(sde, score_fn, times, correct=correct)
        self.orders_here = (
            self.orders(steps, dpm_solver_order) if steps else [dpm_solver_order] * (len(times) - 1)
        )
        shares = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}
        wanted = [(i, r) for i, order in enumerate(self.orders_here) for r in shares[order]]
        times_between = time_of(
            sde, [self.lam[i] + r * (self.lam[i + 1] - self.lam[i]) for i, r in wanted]
        )
        alphas, sigmas = levels(sde, times_between)
        self.between = {
            key: values
            for key, *values in zip(
                wanted, times_between.tolist(), alphas.tolist(), sigmas.tolist()
            )
        }

    @staticmethod
    def orders(steps: int, order: int) -> list[int]:
        """The order of each step, for so many evaluations."""
        if order not in (1, 2, 3):
            raise UserError(f'dpm_solver_order must be 1, 2 or 3 for dpm_solver, got {order}')
        if order == 3 and steps % 3 == 0:
            return [3] * (steps // 3 - 1) + [2, 1]
        return [order] * (steps // order) + [steps % order] * (steps % order > 0)

    @classmethod
    def intervals(cls, steps, dpm_solver_order=2, **settings):
        return len(cls.orders(steps, dpm_solver_order))

    def step(self, x, i):
        t, alpha, sigma = self.at(i)
        _, alpha_s, sigma_s = self.at(i + 1)
        h, order = self.lam[i + 1] - self.lam[i], self.orders_here[i]
        eps = self.noise(x, t, alpha, sigma)

        def moved(alpha_s, sigma_s, h):
            return alpha_s / alpha * x - sigma_s * math.expm1(h) * eps

        if order == 1:
            return moved(alpha_s, sigma_s, h)
        r1 = 1 / order
        t1, alpha_1, sigma_1 = self.between[i, r1]
        change = self.noise(moved(alpha_1, sigma_1, r1 * h), t1, alpha_1, sigma_1) - eps
        if order == 2:
            return moved(alpha_s, sigma_s, h) - sigma_s * math.expm1(h) / (2 * r1) * change
        r2 = 2 / 3
        t2, alpha_2, sigma_2 = self.between[i, r2]
        u2 = (
            moved(alpha_2, sigma_2, r2 * h)
            - sigma_2 * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * change
        )
        change = self.noise(u2, t2, alpha_2, sigma_2) - eps
        return moved(alpha_s, sigma_s, h) - sigma_s / r2 * (math.expm1(h) / h - 1) * change


@register_solver(name='dpmpp_2m')
class DPMSolverPP2M(Solver):
    """DPM-Solver++(2M): x0 extrapolated along a line in lambda through this step and the one before
    (Lu et al. 2022b, Algorithm 2).

    The first step, and the last of fewer than 15, are of order 1.
    """

    def extrapolated(self, x, i):
        """The estimate of x_0 in the middle of the step."""
        x0, h = self.image(x, *self.at(i)), self.lam[i + 1] - self.lam[i]
        before, self.last = self.last, (x0, h)
        is_last = i == len(self.times) - 2 and len(self.times) - 1 < 15
        if before is None or is_last:
            return x0
        return x0 + h / (2 * before[1]) * (x0 - before[0])

    def step(self, x, i):
        h, (_, alpha_s, sigma_s) = self.lam[i + 1] - self.lam[i], self.at(i + 1)
        return sigma_s / self.sigma[i] * x - alpha_s * math.expm1(-h) * self.extrapolated(x, i)


@register_solver(name='dpmpp_2m_sde')
class SDEDPMSolverPP2M(DPMSolverPP2M):
    """SDE-DPM-Solver++(2M): the same for the reverse-time SDE, with noise in every step (Lu et al.
    2022b, Eq. 19).
    """

    follows_flow = False

    def step(self, x, i):
        h, (_, alpha_s, sigma_s) = self.lam[i + 1] - self.lam[i], self.at(i + 1)
        x_mean = sigma_s / self.sigma[i] * math.exp(-h) * x - alpha_s * math.expm1(
            -2 * h
        ) * self.extrapolated(x, i)
        return x_mean + sigma_s * math.sqrt(-math.expm1(-2 * h)) * normal_like(x)


@register_solver(name='unipc')
class UniPC(Solver):
    """UniPC of order p in x_0 with B(h) = e^h - 1 (Zhao et al. 2023, Algorithms 5 and 6): a
    predictor from the estimates at the last p times, and a corrector that adds the one at the new
    time; it costs nothing, as the next step needs that estimate too.

    The first steps have as many estimates behind them as there are; of fewer than 15 the last p
    have orders p .. 1.
    """

    settings = ('dpm_solver_order',)

    def __init__(self, sde, score_fn, times, *, correct=None, dpm_solver_order=2):
        super().__init__(sde, score_fn, times, correct=correct)
        if not 1 <= dpm_solver_order <= 6:
            raise UserError(
                f'dpm_solver_order must be between 1 and 6 for unipc, got {dpm_solver_order}'
            )
        self.order = dpm_solver_order

    @staticmethod
    def weights(h: float, ratios: list[float]) -> list[float]:
        """rho with sum_k rho_k r_k^(n-1) = n! psi_n / (e^-h - 1) for n = 1, 2, ..., where psi_0 =
        e^-h - 1, psi_n = psi_(n-1) / -h - 1/n! (Eq. 10); for a single r it is 1/2 (Appendix F).
        """
        if len(ratios) == 1:
            return [0.5]
        phi, wanted = math.expm1(-h) / -h - 1, []
        for n in range(1, len(ratios) + 1):
            wanted.append(phi * math.factorial(n) / math.expm1(-h))
            phi = phi / -h - 1 / math.factorial(n + 1)
        powers = (
            torch.tensor(ratios, dtype=torch.float64)
            ** torch.arange(len(ratios), dtype=torch.float64)[:, None]
        )
        return torch.linalg.solve(powers, torch.tensor(wanted, dtype=torch.float64)).tolist()

    def moved(self, x, i, known, new=None):
        """x carried from the i-th time to the next, given the estimates `known` at the times up to
        the i-th, and `new` at the next.
        """
        h, (_, alpha_s, sigma_s), x0 = self.lam[i + 1] - self.lam[i], self.at(i + 1), known[-1]
        ratios = [(self.lam[i - k] - self.lam[i]) / h for k in range(1, len(known))] + [1.0] * (
            new is not None
        )
        others = [*known[-2::-1], *[new] * (new is not None)]
        x = sigma_s / self.sigma[i] * x - alpha_s * math.expm1(-h) * x0
        for rho, r, other in zip(self.weights(h, ratios) if ratios else [], ratios, others):
            x = x - alpha_s * math.expm1(-h) * rho / r * (other - x0)
        return x

    def step(self, x, i):
        x0 = self.image(x, *self.at(i))
        known = []
        if self.last is not None:
            x_before, known = self.last
            x = self.moved(x_before, i - 1, known, x0)
        steps = len(self.times) - 1
        known = [*known, x0][-(min(self.order, steps - i) if steps < 15 else self.order) :]
        self.last = x, known
        return self.moved(x, i, known)
