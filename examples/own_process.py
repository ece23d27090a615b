"""A new SDE, predictor, network and data set in one config file.

They are trained and evaluated with the same commands as the models of the 2021 release:

    python main.py --config examples/own_process.py --workdir runs/own --mode train
    python main.py --config examples/own_process.py --workdir runs/own --mode eval
    python main.py --config examples/own_process.py --workdir runs/own --mode sample

Training takes half a minute on one CPU core and reaches about 3.2 bits/dim. Copy this file to any
folder and change it. A `register_...` decorator gives a class the name that selects it in
`get_config`. Pass `--config` in every command, because the names are registered when the file runs.
docs/extending.md lists everything that can be added.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from configs import defaults
from datasets import register_dataset
from models.layers import get_timestep_embedding
from models.utils import register_model, times_like
from runtime.randomness import normal_like
from sampling import Predictor, register_predictor
from sde_lib import SDE, expand, register_sde


@register_sde(name='cosinevp')
class CosineVPSDE(SDE):
    """The cosine noise schedule (Nichol & Dhariwal 2021, Eq. 17) in continuous time.

    The SDE is dx = -beta(t)/2 x dt + sqrt(beta(t)) dw, where

        alphabar(t) = cos^2(theta(t)) / cos^2(theta(0)),  theta(t) = (t + s)/(1 + s) pi/2,
        beta(t) = -d/dt log alphabar(t) = pi/(1 + s) tan(theta(t)).

    Given x_0, x_t has the mean sqrt(alphabar) x_0 and the variance 1 - alphabar. Because beta is
    infinite at t = 1, the process ends at T = 0.99, where sqrt(alphabar) is 0.016. The paper clips
    the beta of its discrete steps instead.
    """

    T = 0.99

    # config.model.cosine_s and config.model.num_scales
    def __init__(self, cosine_s: float = 0.008, N: int = 1000):
        super().__init__(N)
        self.cosine_s = cosine_s
        self._speed = math.pi / 2 / (1 + cosine_s)  # theta(t) = _start + _speed t
        self._start = self._speed * cosine_s

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = 2 * self._speed * torch.tan(self._start + self._speed * t)
        return -0.5 * expand(beta, x) * x, beta.sqrt()

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = self._speed * t
        # 1 - alphabar, exact for small t
        variance = (
            torch.sin(angle) * torch.sin(2 * self._start + angle) / math.cos(self._start) ** 2
        )
        return expand(
            torch.cos(self._start + angle) / math.cos(self._start), x
        ) * x, variance.sqrt()

    def prior_sampling(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape)

    def prior_logp(self, z: Tensor) -> Tensor:
        return torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)


@register_predictor(name='posterior')
class PosteriorPredictor(Predictor):
    """Draws from p(x_s | x_t, x_0), s < t, with the denoised estimate instead of x_0.

    References:
        Ho et al. 2020, Eqs. 6 and 7.
    """

    # a step of T/N from times t (B,)
    def update_fn(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._step(x, t, (t - self.sde.T / self.sde.N).clamp(min=0))

    # a step between two times t > s of any time grid (config.sampling.skip_type)
    def step(self, x: Tensor, t: float, s: float) -> tuple[Tensor, Tensor]:
        return self._step(x, times_like(x, t), times_like(x, s))

    def _step(self, x, t, s):
        (m_t, std_t), (m_s, std_s) = self.sde.mean_and_std(t), self.sde.mean_and_std(s)
        ratio, share = m_t / m_s, (std_s / std_t) ** 2
        x0 = self.sde.denoise(x, t, self.score_fn(x, t))
        x_mean = expand(m_s, x) * x0 + expand(share * ratio, x) * (x - expand(m_t, x) * x0)
        std = (share * (std_t**2 - (ratio * std_s) ** 2)).sqrt()
        return x_mean + expand(std, x) * normal_like(x), x_mean


@register_model(name='small_cnn')
class SmallCNN(nn.Module):
    """A network of residual 3x3 convolutions at full resolution.

    It predicts the noise in x (B, C, H, W), given the labels 999 t / T (B,).
    """

    def __init__(self, config: ConfigDict):
        super().__init__()
        channels, self.width = config.data.num_channels, config.model.cnn_width
        self.first = nn.Conv2d(channels, self.width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(4, self.width),
                nn.SiLU(),
                nn.Conv2d(self.width, self.width, 3, padding=1),
            )
            for _ in range(config.model.cnn_blocks)
        )
        self.times = nn.ModuleList(nn.Linear(self.width, self.width) for _ in self.blocks)
        self.last = nn.Conv2d(self.width, channels, 3, padding=1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h, embedding = self.first(x), get_timestep_embedding(labels, self.width)
        for block, time in zip(self.blocks, self.times):
            h = h + block(h + expand(time(embedding), h))
        return self.last(h)


@register_dataset(name='shapes')
def shapes(config: ConfigDict, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Make discs (label 0) and crosses (label 1) with random positions and sizes.

    Returns:
        8-bit images (n, size, size, 1) and labels (n,).
    """
    n, size = {'train': 2000, 'test': 200}[split], config.data.image_size
    random = np.random.default_rng(n)
    labels = random.integers(2, size=n)
    # distances to the centre, in pixels
    x, y = np.abs(np.arange(size) - random.uniform(0.35 * size, 0.55 * size, (2, n, 1)))
    x, y, radius = x[:, None, :], y[:, :, None], random.uniform(0.2 * size, 0.35 * size, (n, 1, 1))
    disc = radius - np.hypot(x, y)
    cross = np.minimum(radius - np.maximum(x, y), 0.5 - np.minimum(x, y))
    inside = np.where(labels[:, None, None] == 0, disc, cross)
    return np.uint8(255 * np.clip(inside + 0.5, 0, 1))[..., None], labels


def get_config() -> ConfigDict:
    config = defaults.base('shapes', image_size=8)
    config.data.update(
        num_channels=1, centered=True, random_flip=False, uniform_dequantization=True
    )
    config.training.update(
        sde='cosinevp',
        continuous=True,
        reduce_mean=True,
        batch_size=64,
        n_iters=2001,
        snapshot_freq=2000,
        snapshot_freq_for_preemption=500,
        log_freq=100,
        eval_freq=500,
    )
    config.optim.update(lr=2e-3, warmup=100)
    config.model.update(
        name='small_cnn', cnn_width=32, cnn_blocks=4, cosine_s=0.008, num_scales=100, ema_rate=0.995
    )
    config.sampling.predictor = 'posterior'
    config.eval.update(
        begin_ckpt=1,
        end_ckpt=1,
        batch_size=200,
        num_samples=200,
        enable_sampling=True,
        enable_bpd=True,
        bpd_repeats=1,
        bpd_rtol=1e-3,
        bpd_atol=1e-3,
        metrics_backend='pixels',
        metrics_floor=True,
    )
    return config
