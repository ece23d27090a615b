"""The predictors and correctors of Song et al. 2021 (Sec. 4, Appendices E to G)."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.utils import times_like
from runtime.randomness import batch_mean, normal_like
from sde_lib import SDE, expand
from solvers.grids import transition
from solvers.predictor_corrector import CORRECTORS, PREDICTORS, Corrector, Predictor

# Predictors ---------------------------------------------------------------------------------------


@PREDICTORS.register(name='euler_maruyama')
class EulerMaruyamaPredictor(Predictor):
    """The Euler-Maruyama step x - f dt + g sqrt(dt) z of the reverse-time SDE, dt = T/N (Eq. 6)."""

    def update_fn(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._step(x, t, self.sde.T / self.sde.N)

    def step(self, x: Tensor, t: float, s: float) -> tuple[Tensor, Tensor]:
        return self._step(x, times_like(x, t), t - s)

    def _step(self, x, t, dt):
        z = normal_like(x)
        f, g = self.rsde.sde(x, t)
        x_mean = x - f * dt
        return x_mean + expand(g, x) * dt**0.5 * z, x_mean


@PREDICTORS.register(name='reverse_diffusion')
class ReverseDiffusionPredictor(Predictor):
    """A step x - f + G z of the reversed chain (Appendix E, Eq. 46).

    f and G are those of `SDE.discretize`, reversed. On a grid (`skip_type`), the chain is the
    process at the times of the grid.
    """

    @classmethod
    def check(cls, sde: SDE) -> None:
        sde.discretize(torch.zeros(1, 1, 1, 1), torch.full((1,), float(sde.T)))

    def update_fn(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._noised(x, *self.rsde.discretize(x, t))

    def step(self, x: Tensor, t: float, s: float) -> tuple[Tensor, Tensor]:
        r, std, _, _ = transition(self.sde, s, t)
        t = times_like(x, t)
        return self._noised(x, *self.rsde.reverse(x, t, (r - 1) * x, torch.full_like(t, std)))

    def _noised(self, x, f, G):
        x_mean = x - f
        return x_mean + expand(G, x) * normal_like(x), x_mean


@PREDICTORS.register(name='ancestral_sampling')
class AncestralSamplingPredictor(Predictor):
    """A reverse step of the Markov chain; for VP (x + beta s)/sqrt(1 - beta) + sqrt(beta) z.

    See Eq. 4 for VP, Appendix F for VE, and their `ancestral_step`. On a grid (`skip_type`), a step
    is a draw from p(x_s | x_t, x_0) with the denoised x_0, for any SDE.
    """

    def __init__(self, sde: SDE, score_fn: Callable, probability_flow: bool = False):
        if probability_flow:
            raise NotImplementedError(
                'probability_flow=True is not defined for ancestral_sampling: '
                'use reverse_diffusion or euler_maruyama'
            )
        super().__init__(sde, score_fn)

    @classmethod
    def check(cls, sde: SDE) -> None:
        sde.ancestral_step(torch.zeros(1), torch.full((1,), float(sde.T)), torch.zeros(1))

    def update_fn(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x_mean, std = self.sde.ancestral_step(x, t, self.score_fn(x, t))
        return x_mean + expand(std, x) * normal_like(x), x_mean

    def step(self, x: Tensor, t: float, s: float) -> tuple[Tensor, Tensor]:
        r, std, std_s, std_t = transition(self.sde, s, t)
        x_mean = (x + std**2 * self.score_fn(x, times_like(x, t))) / r
        return x_mean + std_s * std / std_t * normal_like(x), x_mean


# Correctors ---------------------------------------------------------------------------------------


@CORRECTORS.register(name='langevin')
class LangevinCorrector(Corrector):
    """Langevin steps x + e s + sqrt(2 e) z, e = 2 alpha (snr |z| / |s|)^2 (Algorithms 4 and 5).

    s is the score; |z| and |s| are averaged over the batch. Images with their own random streams
    (runtime/randomness.py) have their own e. On a grid (`skip_type`), alpha is r^2 of `transition`.
    """

    @classmethod
    def check(cls, sde: SDE) -> None:
        sde.langevin_alpha(torch.full((1,), float(sde.T)))

    def update_fn(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._steps(x, t, self.sde.langevin_alpha(t))

    def step(self, x: Tensor, t: float, s: float) -> tuple[Tensor, Tensor]:
        alpha, t = transition(self.sde, s, t).r ** 2, times_like(x, t)
        return self._steps(x, t, torch.full_like(t, alpha))

    def _steps(self, x, t, alpha):
        x_mean = x
        for _ in range(self.n_steps):
            score, z = self.score_fn(x, t), normal_like(x)
            score_norm = batch_mean(score.flatten(1).norm(dim=1))
            z_norm = batch_mean(z.flatten(1).norm(dim=1))
            e = expand((self.snr * z_norm / score_norm) ** 2 * 2 * alpha, x)
            x_mean = x + e * score
            x = x_mean + (2 * e).sqrt() * z
        return x, x_mean


@CORRECTORS.register(name='ald')
class AnnealedLangevinDynamics(LangevinCorrector):
    """Annealed Langevin steps (Song & Ermon 2019, Algorithm 1).

    A step is x + e s + sqrt(2 e) z with e = 2 alpha (snr std(t))^2.
    """

    def _steps(self, x, t, alpha):
        x_mean, std = x, self.sde.mean_and_std(t)[1]
        e = expand((self.snr * std) ** 2 * 2 * alpha, x)
        for _ in range(self.n_steps):
            x_mean = x + e * self.score_fn(x, t)
            x = x_mean + (2 * e).sqrt() * normal_like(x)
        return x, x_mean
