"""A target whose density, score and samples are exact at every time of every SDE: a Gaussian mixture.

If x_0 ~ sum_k w_k N(mu_k, C_k) and x_t | x_0 ~ N(m x_0, std^2 I), then x_t ~ sum_k w_k N(m mu_k, m^2 C_k + std^2 I). With
C_k = U_k diag(v_k) U_k^T the covariance at any level (m, std) is U_k diag(m^2 v_k + std^2) U_k^T: one eigendecomposition serves all.
Everything is computed in float64, whatever comes in.
"""
import math

import torch
from torch import nn

from sde_lib import VESDE, expand


def level(sde, t):
    """The mean coefficient m(t) and std(t) of x_t given x_0, each (B,) in float64."""
    t = t.double()
    m, std = sde.marginal_prob(torch.ones_like(t)[:, None], t)
    return m[:, 0], std


class GaussianMixture(nn.Module):
    """sum_k w_k N(mu_k, C_k) of weights (K,), means (K, D) and covariances (K, D, D), over points of `shape` ((D,) unless given).

    `log_prob` and `score` answer at a level (m, std), by default that of the data themselves. A module, so that it moves to a device.
    """

    def __init__(self, weights, means, covariances, shape=None):
        super().__init__()
        weights, means, covariances = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, covariances))
        variances, axes = torch.linalg.eigh(covariances)
        for name, value in dict(weights=weights / weights.sum(), means=means, covariances=covariances, variances=variances,
                                axes=axes).items():
            self.register_buffer(name, value)
        self.shape = tuple(shape or means.shape[1:])

    @property
    def mean(self):
        return self.weights @ self.means

    @property
    def covariance(self):
        offsets = self.means - self.mean
        return torch.einsum('k,kde->de', self.weights, self.covariances + offsets[:, :, None] * offsets[:, None])

    def component(self, k):
        """The k-th Gaussian alone."""
        return GaussianMixture([1.0], self.means[k:k + 1], self.covariances[k:k + 1], self.shape)

    def sample(self, n: int, seed: int = 0):
        """n exact draws, (n, *shape), that share nothing with those of torch.manual_seed(seed)."""
        generator = torch.Generator(self.means.device).manual_seed(2 ** 32 - 1 - seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], dtype=torch.float64, device=self.means.device, generator=generator)
        return (self.means[k] + torch.einsum('nde,ne->nd', self.axes[k], self.variances[k].sqrt() * z)).reshape(n, *self.shape)

    def _components(self, x, m, std):
        """In the eigenbasis of each component: x - m mu and the variances, (B, K, D); and log(w_k N_k(x)), (B, K)."""
        m, std = (torch.as_tensor(v, dtype=torch.float64, device=x.device).reshape(-1, 1, 1) for v in (m, std))
        offset = torch.einsum('kde,bkd->bke', self.axes, x.double().flatten(1)[:, None] - m * self.means)
        variance = m ** 2 * self.variances + std ** 2
        log_density = -0.5 * (offset ** 2 / variance + variance.log() + math.log(2 * math.pi)).sum(-1)
        return offset, variance, self.weights.log() + log_density

    def log_prob(self, x, m=1.0, std=0.0):
        """log p(x) in nats, (B,)."""
        return self._components(x, m, std)[2].logsumexp(1)

    def score(self, x, m=1.0, std=0.0):
        """grad_x log p(x), shape of x."""
        offset, variance, log_joint = self._components(x, m, std)
        return torch.einsum('bk,kde,bke->bd', log_joint.softmax(1), self.axes, -offset / variance).reshape(x.shape)


class ExactNetwork(nn.Module):
    """The perfectly trained network: `models.utils.get_score_fn(sde, network, continuous=continuous)` is the score of `target`.

    Its label and output are those of the SDE's networks, written down here a second time. `calls` counts the forward passes.
    """

    def __init__(self, sde, target: GaussianMixture, continuous: bool = True):
        super().__init__()
        self.sde, self.target, self.continuous, self.N, self.calls = sde, target, continuous, sde.N, 0
        if not continuous:
            self.sigmas = torch.zeros(sde.N)  # its length is how a discrete network says how many levels it knows

    def level(self, labels):
        """The (m, std), each (B,), that a label stands for."""
        ve = isinstance(self.sde, VESDE)
        if ve and self.continuous:  # the label is sigma
            return level(self.sde, torch.log(labels / self.sde.sigma_min) / math.log(self.sde.sigma_max / self.sde.sigma_min))
        if ve:  # an index, from the largest sigma down
            return level(self.sde, 1 - labels / (self.N - 1))
        if self.continuous:
            return level(self.sde, labels / 999)
        betas = torch.linspace(self.sde.beta_0, self.sde.beta_1, self.N, dtype=torch.float64, device=labels.device) / self.N
        alphabar = torch.cumprod(1 - betas, 0)[labels.long()]
        return alphabar.sqrt(), (1 - alphabar).sqrt()

    def forward(self, x, labels):
        self.calls += 1
        m, std = self.level(labels.double())
        score = self.target.score(x, m, std)
        return (score if isinstance(self.sde, VESDE) else -score * expand(std, score)).to(x.dtype)


class ExactClassifier(ExactNetwork):
    """The perfectly trained classifier of noisy points, (x, labels) -> logits (B, K) in float64: which component of `target` x is of.

    The logits are log(w_k p_t(x | k)), differentiable in x; labels are those of the networks at continuous times. `shape`: of a point.
    """

    def __init__(self, sde, target: GaussianMixture):
        super().__init__(sde, target)
        self.shape = target.shape

    def forward(self, x, labels):
        self.calls += 1
        return self.target._components(x, *self.level(labels.double()))[2]


class ExactConditionalNetwork(ExactNetwork):
    """The perfectly trained network that knows classes, (x, labels, classes=None): None is the whole mixture, otherwise the i-th point is
    of the component classes[i]."""

    def forward(self, x, labels, classes=None):
        if classes is None:
            return super().forward(x, labels)
        outputs = [ExactNetwork(self.sde, self.target.component(k))(x, labels) for k in range(len(self.target.weights))]
        self.calls += 1
        return torch.stack(outputs)[classes, torch.arange(len(x), device=x.device)]


def planar_mixture():
    """Three correlated Gaussians of unequal weights in the plane: mean and covariance of the whole are of order one."""
    return GaussianMixture([0.5, 0.3, 0.2], [[-1.0, 0.5], [1.2, 1.0], [0.5, -1.5]],
                           [[[0.20, 0.08], [0.08, 0.10]], [[0.10, -0.06], [-0.06, 0.20]], [[0.15, 0.0], [0.0, 0.05]]])


def gaussian(mean, variances, shape=None):
    """N(mean, diag(variances)), of sequences of D numbers."""
    return GaussianMixture([1.0], [list(mean)], torch.diag(torch.as_tensor(list(variances), dtype=torch.float64))[None], shape)


class LowRankMixture(nn.Module):
    """sum_k w_k N(mu_k, U_k diag(v_k) U_k^T + rest_k (I - U_k U_k^T)): a mixture whose score costs a few matrix products in thousands of
    dimensions, of weights (K,), means (K, D), orthonormal axes (K, D, R), variances along them (K, R) and of all other directions (K,).

    `log_prob` and `score` as of GaussianMixture.
    """

    def __init__(self, weights, means, axes, variances, rest, shape=None):
        super().__init__()
        tensors = dict(weights=weights, means=means, axes=axes, variances=variances, rest=rest)
        for name, value in tensors.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float64))
        self.weights /= self.weights.sum()
        self.shape = tuple(shape or self.means.shape[1:])
        self.register_buffer('all_axes', self.axes.movedim(0, 1).flatten(1))  # (D, K R)
        self.register_buffer('offsets', torch.einsum('kd,kdr->kr', self.means, self.axes))  # of the means along their own axes

    @classmethod
    def fit(cls, images, labels, rank: int, floor: float = 1e-6):
        """To images (n, ...) with labels (n,): a component for each label, by principal components (Tipping & Bishop 1999)."""
        x, parts = images.double().flatten(1), []
        for label in labels.unique():
            part = x[labels == label]
            mean = part.mean(0)
            _, scale, axes = torch.linalg.svd(part - mean, full_matrices=False)
            spread = scale ** 2 / len(part)
            rest = spread[rank:].sum() / (x.shape[1] - rank)
            parts.append((len(part) / len(x), mean, axes[:rank].T, spread[:rank].clamp(min=floor), rest.clamp(min=floor)))
        weights, means, axes, variances, rest = zip(*parts)
        return cls(torch.tensor(weights), *map(torch.stack, (means, axes, variances, rest)), images.shape[1:])

    def moved(self, scale: float, shift: float):
        """The distribution of scale x + shift."""
        return LowRankMixture(self.weights, scale * self.means + shift, self.axes, scale ** 2 * self.variances, scale ** 2 * self.rest,
                              self.shape)

    def in_float32(self):
        """The same with its large matrices in float32, in which products take half the time; sums of squares stay float64."""
        self.means, self.axes, self.all_axes = self.means.float(), self.axes.float(), self.all_axes.float()
        return self

    @property
    def mean(self):
        return self.weights @ self.means

    @property
    def covariance(self):
        factors = (self.axes * (self.weights[:, None] * (self.variances - self.rest[:, None])).sqrt()[:, None]).movedim(0, 1).flatten(1)
        offsets = (self.means - self.mean) * self.weights.sqrt()[:, None]
        return factors @ factors.T + offsets.T @ offsets + (self.weights @ self.rest) * torch.eye(len(self.mean), dtype=self.means.dtype)

    def sample(self, n: int, seed: int = 0):
        """n exact draws, (n, *shape)."""
        generator = torch.Generator(self.means.device).manual_seed(2 ** 32 - 1 - seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        x = torch.randn(n, self.means.shape[1], dtype=self.means.dtype, device=self.means.device, generator=generator)
        for i, axes in enumerate(self.axes):
            z, rest = x[k == i], self.rest[i].sqrt()
            x[k == i] = self.means[i] + rest * z + ((z @ axes) * (self.variances[i].sqrt() - rest).to(z)) @ axes.T
        return x.reshape(n, *self.shape)

    def _components(self, x, m, std):
        """Along the axes: x - m mu (B, K, R) and its variances; the other variances (B, K, 1); and log(w_k N_k(x)), (B, K)."""
        m, std = (torch.as_tensor(v, dtype=torch.float64, device=x.device).reshape(-1, 1) for v in (m, std))
        along = (x.to(self.all_axes) @ self.all_axes).unflatten(1, self.offsets.shape).double() - m[..., None] * self.offsets
        variance = (m ** 2)[..., None] * self.variances + (std ** 2)[..., None]
        rest = m ** 2 * self.rest + std ** 2
        x, means = x.double(), self.means.double()
        distance = (x ** 2).sum(1, keepdim=True) - 2 * m * (x @ means.T) + m ** 2 * (means ** 2).sum(1)
        others = x.shape[1] - along.shape[2]
        log_density = -0.5 * ((distance - (along ** 2).sum(2)) / rest + others * rest.log() + x.shape[1] * math.log(2 * math.pi)
                              + (along ** 2 / variance + variance.log()).sum(2))
        return along, variance, rest[..., None], self.weights.log() + log_density

    def log_prob(self, x, m=1.0, std=0.0):
        """log p(x) in nats, (B,)."""
        return self._components(x.flatten(1), m, std)[3].logsumexp(1)

    def score(self, x, m=1.0, std=0.0):
        """grad_x log p(x), shape of x."""
        flat = x.flatten(1).to(self.means)
        along, variance, rest, log_joint = self._components(flat, m, std)
        share = log_joint.softmax(1)[..., None]
        m = torch.as_tensor(m, dtype=torch.float64, device=x.device).reshape(-1, 1)
        isotropic = (share / rest)[..., 0]
        back = (share * along * (1 / rest - 1 / variance)).flatten(1).to(flat)
        return (back @ self.all_axes.T - isotropic.sum(1, keepdim=True).to(flat) * flat
                + (m * isotropic).to(flat) @ self.means).reshape(x.shape)
