"""Targets with exact density, score and samples at every time of every SDE; shared helpers.

If x_0 ~ sum_k w_k N(mu_k, C_k) and x_t | x_0 ~ N(m x_0, std^2 I), then x_t ~ sum_k w_k N(m mu_k,
m^2 C_k + std^2 I). With C_k = U_k diag(v_k) U_k^T the covariance at any noise level (m, std) is U_k
diag(m^2 v_k + std^2) U_k^T, so one eigendecomposition is enough for all noise levels. Everything is
computed in float64, for inputs of any precision.
"""

import math

import torch
from torch import nn

from sampling import get_corrector, get_pc_sampler, get_predictor
from sde_lib import SDE, VESDE, VPSDE, expand, subVPSDE
from solvers import get_solver

# SDEs by name, as functions of N; SDEs whose noise is small enough for few steps
SDES = {
    've': lambda N: VESDE(0.01, 30, N=N),
    'vp': lambda N: VPSDE(N=N),
    'subvp': lambda N: subVPSDE(N=N),
}
FEW_STEP_SDES = {'ve': lambda: VESDE(0.01, 10), 'vp': VPSDE, 'subvp': subVPSDE}


class OrnsteinUhlenbeck(SDE):
    """dx = -x dt + sqrt(2) dw on [0, 2]: an SDE of a user with only the abstract methods."""

    @property
    def T(self):
        return 2.0

    def sde(self, x, t):
        return -x, torch.full_like(t, math.sqrt(2))

    def marginal_prob(self, x, t):
        return expand((-t).exp(), x) * x, (1 - (-2 * t).exp()).sqrt()

    def prior_sampling(self, shape):
        return torch.randn(*shape)

    def prior_logp(self, z):
        return torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)


def identity(x):
    return x


def affine(step, t):
    """Return a and b of the function step(x, t) = a x + b, for times t."""
    zero = step(torch.zeros_like(t), t)
    return step(torch.ones_like(t), t) - zero, zero


def pc_sampler(sde, predictor, corrector, shape=(2000, 2), snr=0.15, **settings):
    """Return the predictor-corrector sampler for the names of a predictor and a corrector."""
    return get_pc_sampler(
        sde,
        shape,
        predictor and get_predictor(predictor),
        corrector and get_corrector(corrector),
        identity,
        snr,
        **({'continuous': True, 'eps': sde.sampling_eps} | settings),
    )


def walked(solver, sde, score_fn, x, times, **settings):
    """Return x after the steps of a few-step solver along `times`."""
    solver = get_solver(solver)(sde, score_fn, times, **settings)
    for i in range(len(times) - 1):
        x = solver.step(x, i)
    return x


def distance_from(target, x):
    """Return the errors of mean and covariance, in units of the target's standard deviation."""
    x = x.double().flatten(1)
    scale = target.covariance.diagonal().mean()
    return max(
        (x.mean(0) - target.mean).abs().max() / scale.sqrt(),
        (x.T.cov() - target.covariance).abs().max() / scale,
    )


def level(sde, t):
    """Return the mean coefficient m(t) and std(t) of x_t given x_0, each (B,) in float64."""
    t = t.double()
    m, std = sde.marginal_prob(torch.ones_like(t)[:, None], t)
    return m[:, 0], std


class GaussianMixture(nn.Module):
    """A Gaussian mixture sum_k w_k N(mu_k, C_k) over points of `shape`.

    The weights have shape (K,), the means (K, D), the covariances (K, D, D). `shape` is (D,) by
    default. `log_prob` and `score` are for a noise level (m, std), by default that of the data. The
    class is a module, so that it can be moved to a device.
    """

    def __init__(self, weights, means, covariances, shape=None):
        super().__init__()
        weights, means, covariances = (
            torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, covariances)
        )
        variances, axes = torch.linalg.eigh(covariances)
        for name, value in dict(
            weights=weights / weights.sum(),
            means=means,
            covariances=covariances,
            variances=variances,
            axes=axes,
        ).items():
            self.register_buffer(name, value)
        self.shape = tuple(shape or means.shape[1:])

    @property
    def mean(self):
        return self.weights @ self.means

    @property
    def covariance(self):
        offsets = self.means - self.mean
        return torch.einsum(
            'k,kde->de', self.weights, self.covariances + offsets[:, :, None] * offsets[:, None]
        )

    def component(self, k):
        """Return the k-th Gaussian of the mixture."""
        return GaussianMixture(
            [1.0], self.means[k : k + 1], self.covariances[k : k + 1], self.shape
        )

    def sample(self, n: int, seed: int = 0):
        """Draw n exact samples, (n, *shape), independent of those after torch.manual_seed(seed)."""
        generator = torch.Generator(self.means.device).manual_seed(2**32 - 1 - seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(
            n,
            self.means.shape[1],
            dtype=torch.float64,
            device=self.means.device,
            generator=generator,
        )
        return (
            self.means[k] + torch.einsum('nde,ne->nd', self.axes[k], self.variances[k].sqrt() * z)
        ).reshape(n, *self.shape)

    def _components(self, x, m, std):
        """Compute offsets and variances in the eigenbasis of each component, and its log-density.

        Returns:
            x - m mu (B, K, D), the variances (B, K, D), and log(w_k N_k(x)) (B, K).
        """
        m, std = (
            torch.as_tensor(v, dtype=torch.float64, device=x.device).reshape(-1, 1, 1)
            for v in (m, std)
        )
        offset = torch.einsum(
            'kde,bkd->bke', self.axes, x.double().flatten(1)[:, None] - m * self.means
        )
        variance = m**2 * self.variances + std**2
        log_density = -0.5 * (offset**2 / variance + variance.log() + math.log(2 * math.pi)).sum(-1)
        return offset, variance, self.weights.log() + log_density

    def log_prob(self, x, m=1.0, std=0.0):
        """Return log p(x) in nats, (B,)."""
        return self._components(x, m, std)[2].logsumexp(1)

    def score(self, x, m=1.0, std=0.0):
        """Return grad_x log p(x), with the shape of x."""
        offset, variance, log_joint = self._components(x, m, std)
        return torch.einsum(
            'bk,kde,bke->bd', log_joint.softmax(1), self.axes, -offset / variance
        ).reshape(x.shape)


class ExactNetwork(nn.Module):
    """A perfectly trained network with the score of `target`.

    `models.utils.get_score_fn(sde, network, continuous=continuous)` returns this score. Labels and
    outputs follow the conventions of the SDE, which are implemented here independently of the
    library. `calls` counts the forward passes.
    """

    def __init__(self, sde, target: GaussianMixture, continuous: bool = True):
        super().__init__()
        self.sde = sde
        self.target = target
        self.continuous = continuous
        self.N = sde.N
        self.calls = 0
        if not continuous:
            # the length of `sigmas` is the number of noise levels of a discrete network
            self.sigmas = torch.zeros(sde.N)

    def level(self, labels):
        """Return the noise level (m, std) of labels, each (B,)."""
        ve = isinstance(self.sde, VESDE)
        if ve and self.continuous:  # the label is sigma
            return level(
                self.sde,
                torch.log(labels / self.sde.sigma_min)
                / math.log(self.sde.sigma_max / self.sde.sigma_min),
            )
        if ve:  # an index, from the largest sigma down
            return level(self.sde, 1 - labels / (self.N - 1))
        if self.continuous:
            return level(self.sde, labels / 999)
        betas = (
            torch.linspace(
                self.sde.beta_0, self.sde.beta_1, self.N, dtype=torch.float64, device=labels.device
            )
            / self.N
        )
        alphabar = torch.cumprod(1 - betas, 0)[labels.long()]
        return alphabar.sqrt(), (1 - alphabar).sqrt()

    def forward(self, x, labels):
        self.calls += 1
        m, std = self.level(labels.double())
        score = self.target.score(x, m, std)
        return (score if isinstance(self.sde, VESDE) else -score * expand(std, score)).to(x.dtype)


class ExactClassifier(ExactNetwork):
    """A perfectly trained classifier of noisy points into the components of `target`.

    It maps (x, labels) to logits (B, K) in float64. The logits are log(w_k p_t(x | k)) and are
    differentiable in x. Labels are those of networks in continuous time. `shape` is the shape of a
    point.
    """

    def __init__(self, sde, target: GaussianMixture):
        super().__init__(sde, target)
        self.shape = target.shape

    def forward(self, x, labels):
        self.calls += 1
        return self.target._components(x, *self.level(labels.double()))[2]


class ExactConditionalNetwork(ExactNetwork):
    """A perfectly trained class-conditional network, called with (x, labels, classes=None).

    With classes=None the target is the whole mixture, otherwise component classes[i] for point i.
    """

    def __init__(self, sde, target: GaussianMixture, continuous: bool = True):
        super().__init__(sde, target, continuous)
        self.num_classes = len(target.weights)

    def forward(self, x, labels, classes=None):
        if classes is None:
            return super().forward(x, labels)
        outputs = [
            ExactNetwork(self.sde, self.target.component(k))(x, labels)
            for k in range(self.num_classes)
        ]
        self.calls += 1
        return torch.stack(outputs)[classes, torch.arange(len(x), device=x.device)]


def planar_mixture():
    """Return a mixture of three correlated Gaussians with unequal weights in the plane.

    The mean and covariance of the mixture are of order one.
    """
    return GaussianMixture(
        [0.5, 0.3, 0.2],
        [[-1.0, 0.5], [1.2, 1.0], [0.5, -1.5]],
        [[[0.20, 0.08], [0.08, 0.10]], [[0.10, -0.06], [-0.06, 0.20]], [[0.15, 0.0], [0.0, 0.05]]],
    )


def gaussian(mean, variances, shape=None):
    """Return N(mean, diag(variances)); both arguments are sequences of D numbers."""
    return GaussianMixture(
        [1.0],
        [list(mean)],
        torch.diag(torch.as_tensor(list(variances), dtype=torch.float64))[None],
        shape,
    )


class SubspaceMixture(nn.Module):
    """A mixture in R^D that is Gaussian noise except in a few dimensions.

    The score is cheap even in thousands of dimensions. x = (u, v), where u (M of the D numbers) is
    from a GaussianMixture, and v is independent of u with variance `rest`. A mixture whose means
    and principal axes span M dimensions, with the variance `rest` in all others, has this form in
    rotated coordinates (see `fit`). A solver gives the same results in rotated coordinates, unless
    it treats numbers separately. `log_prob` and `score` are as in GaussianMixture.
    """

    def __init__(self, inside: GaussianMixture, rest: float, shape):
        super().__init__()
        self.inside = inside
        self.rest = float(rest)
        self.shape = tuple(shape)
        self.size = len(inside.mean)

    @classmethod
    def fit(cls, images, labels, rank: int):
        """Fit a mixture to images (n, ...) with labels (n,), one component for each label.

        A component has the mean and the first `rank` principal components of the images with its
        label (Tipping & Bishop 1999). All components have the same variance in the other
        directions. `constant` (M,) is the image of ones in the new coordinates.
        """
        x, parts, left = images.double().flatten(1), [], 0.0
        for label in labels.unique():
            part = x[labels == label]
            mean = part.mean(0)
            _, scale, axes = torch.linalg.svd(part - mean, full_matrices=False)
            variances = scale**2 / len(part)
            left += len(part) / len(x) * variances[rank:].sum().item() / (x.shape[1] - rank)
            parts.append((len(part), mean, axes[:rank].T, variances[:rank]))
        weights, means, axes, variances = zip(*parts)
        constant = torch.ones(x.shape[1], 1, dtype=torch.float64)
        span = torch.linalg.qr(torch.cat([constant, torch.stack(means, 1), *axes], 1))[0]
        axes = [span.T @ each for each in axes]
        covariances = [
            each @ torch.diag(v - left) @ each.T + left * torch.eye(span.shape[1])
            for each, v in zip(axes, variances)
        ]
        inside = GaussianMixture(
            torch.tensor(weights), torch.stack(means) @ span, torch.stack(covariances)
        )
        found = cls(inside, left, images.shape[1:])
        found.constant = (span.T @ constant)[:, 0]
        return found

    def sample(self, n: int, seed: int = 0):
        """Draw n exact samples, (n, *shape)."""
        generator = torch.Generator().manual_seed(2**31 - 1 - seed)
        others = torch.randn(
            n, math.prod(self.shape) - self.size, dtype=torch.float64, generator=generator
        )
        return torch.cat([self.inside.sample(n, seed), self.rest**0.5 * others], 1).reshape(
            n, *self.shape
        )

    def _others(self, x, m, std):
        m, std = (
            torch.as_tensor(v, dtype=torch.float64, device=x.device).reshape(-1, 1)
            for v in (m, std)
        )
        return x.flatten(1)[:, self.size :], (m**2 * self.rest + std**2).to(x)

    def log_prob(self, x, m=1.0, std=0.0):
        """Return log p(x) in nats, (B,)."""
        others, variance = self._others(x, m, std)
        noise = -0.5 * (others.double() ** 2 / variance + (2 * math.pi * variance).log()).sum(1)
        return self.inside.log_prob(x.flatten(1)[:, : self.size], m, std) + noise

    def score(self, x, m=1.0, std=0.0):
        """Return grad_x log p(x), with the shape of x."""
        others, variance = self._others(x, m, std)
        return torch.cat(
            [self.inside.score(x.flatten(1)[:, : self.size], m, std).to(x), -others / variance], 1
        ).reshape(x.shape)


# Any SDE ------------------------------------------------------------------------------------------

MEAN, STD = 0.3, 0.5  # of Gaussian data, with exact scores, samples and likelihoods


def marginal(sde, t):
    """Return the mean and standard deviation of the Gaussian data diffused to time t."""
    m, std = sde.marginal_prob(
        torch.ones(1, 1, dtype=torch.float64), torch.tensor([float(t)], dtype=torch.float64)
    )
    return float(m) * MEAN, math.hypot(float(m) * STD, float(std))


class ExactNoise(torch.nn.Module):
    """A network that predicts minus std times the exact score, given the label 999 t / T."""

    def __init__(self, sde):
        super().__init__()
        self.sde, self.offset = sde, torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, labels):
        m, std = self.sde.marginal_prob(torch.ones_like(x), labels * self.sde.T / 999)
        std = expand(std, x)
        return std * (x - m * MEAN) / ((m * STD) ** 2 + std**2) + self.offset
