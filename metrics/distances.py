"""Distances between sets of images, from features of the images that a network computes.

All functions are pure, and features are arrays (n, D). The Frechet distance (FID, Heusel et al.
2017) compares means and covariances, the kernel distance (KID, Binkowski et al. 2018) all moments
up to the third, without bias. Precision is the fraction of samples that lie near data, and recall
the fraction of data that lie near samples (Kynkaanniemi et al. 2019). The Inception score (Salimans
et al. 2016) needs class logits and no data.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch

from runtime.errors import UserError

# size of the largest matrix that `frechet_distance` handles in about 3 minutes and 5 GiB on two
# cores
LARGEST = 8192
BLOCK_VALUES = 2**23  # values of the larger set of features in memory as float64 at a time


class Statistics:
    """Mean, covariance and number of a set of feature vectors, and the vectors if known.

    Args:
        mean: (D,).
        covariance: (D, D), or None to compute it from `features` when it is first read.
        n: Number of feature vectors.
        features: (n, D), or None.
    """

    def __init__(
        self,
        mean: np.ndarray,
        covariance: np.ndarray | None,
        n: int,
        features: np.ndarray | None = None,
    ):
        self.mean, self.n, self.features = mean, n, features
        if covariance is not None:
            self.covariance = covariance

    @functools.cached_property
    def covariance(self) -> np.ndarray:
        assert self.features is not None, 'features are required without a covariance'
        scatter = np.zeros((len(self.mean), len(self.mean)))
        for start in range(0, self.n, 4096):
            block = self.features[start : start + 4096] - self.mean
            scatter += block.T @ block
        return scatter / (self.n - 1)


def statistics(features: np.ndarray) -> Statistics:
    """Return the statistics of features (n, D), in float64.

    The covariance is computed only if it is needed.
    """
    if len(features) < 2:
        raise UserError(f'features must have at least 2 rows for a covariance, got {len(features)}')
    return Statistics(features.mean(0, dtype=np.float64), None, len(features), features)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Return the squared Wasserstein distance of two Gaussians, known as the Frechet distance.

    d^2 = |mu_a - mu_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^(1/2).

    For any factors with C = F^T F, the trace of the root is the nuclear norm (the sum of the
    singular values) of F_a F_b^T. Two factors are known: the centred features, F = (X - mu) /
    sqrt(n - 1), and the scaled eigenvectors of C. If either set has fewer vectors than dimensions,
    the features are cheaper: O(n_a n_b (D + min(n_a, n_b))) operations, and no D x D matrix is
    formed. Otherwise the eigenvectors are used: O((n_a + n_b) D^2 + D^3). Neither method squares a
    factor and takes the root again, so singular covariances lose no accuracy.

    References:
        Dowson & Landau 1982, The Frechet distance between multivariate normal distributions.
    """
    few = min(a.n, b.n) < len(a.mean) and a.features is not None and b.features is not None
    cross, traces = (_cross_of_features if few else _cross_of_covariances)(a, b)
    distance = np.square(a.mean - b.mean).sum() + traces[0] + traces[1] - 2 * cross
    return float(max(distance, 0.0))


def _cross_of_features(a: Statistics, b: Statistics) -> tuple[float, tuple[float, float]]:
    """Return tr (C_a C_b)^(1/2) and both traces.

    The larger set is read in blocks, whose products QR reduces to a triangular matrix.
    """
    few, many = sorted((a, b), key=lambda x: x.n)
    assert few.features is not None and many.features is not None
    rows = few.features - few.mean
    block_size = max(few.n, BLOCK_VALUES // len(few.mean))
    triangle, squares = np.empty((0, few.n)), 0.0
    for start in range(0, many.n, block_size):
        block = many.features[start : start + block_size] - many.mean
        squares += np.square(block).sum()
        triangle = np.linalg.qr(np.concatenate([triangle, block @ rows.T]), mode='r')
    cross = np.linalg.svd(triangle, compute_uv=False).sum() / ((few.n - 1) * (many.n - 1)) ** 0.5
    return cross, (np.square(rows).sum() / (few.n - 1), squares / (many.n - 1))


def _cross_of_covariances(a: Statistics, b: Statistics) -> tuple[float, tuple[float, float]]:
    """Return tr (C_a C_b)^(1/2) and both traces."""
    cross = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    return cross, (np.trace(a.covariance), np.trace(b.covariance))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """Return F (D, rank) with F F^T = covariance (D, D)."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(float).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


class KernelDistance(NamedTuple):
    """The mean over `blocks` blocks, and its standard error from `error_blocks` blocks."""

    mean: float
    error: float
    blocks: int
    error_blocks: int


def kernel_distance(a: np.ndarray, b: np.ndarray, block_size: int = 1024) -> KernelDistance:
    """Return the unbiased squared maximum mean discrepancy of features a (n, D) and b (m, D).

    The kernel is k(x, y) = (x^T y / D + 1)^3. Both sets, which should be in random order, are cut
    into the same number of blocks with at most `block_size` rows (Zaremba et al. 2013). The mean
    over blocks is the value of TF-GAN. If one set is so small that its blocks would have less than
    16 rows, fewer blocks are used, and rows of the other set are left out. The standard error comes
    from at least ten blocks, or from blocks of at least two rows if a set has less than 20 rows.

    Raises:
        UserError: if a set has fewer than four rows.
    """
    n = min(len(a), len(b))
    if n < 4:
        raise UserError(
            'a and b must have at least 4 rows each for a kernel distance, got '
            f'{len(a)} and {len(b)}'
        )
    blocks = min(-(-max(len(a), len(b)) // block_size), max(1, n // 16))
    a, b = a[: blocks * block_size], b[: blocks * block_size]
    error_blocks = max(blocks, min(10, n // 2))
    values = _blocks(a, b, blocks)
    spread = values if error_blocks == blocks else _blocks(a, b, error_blocks)
    return KernelDistance(
        float(values.mean()), float(spread.std(ddof=1) / error_blocks**0.5), blocks, error_blocks
    )


def _blocks(a, b, count: int) -> np.ndarray:
    """The kernel distance in each of `count` blocks."""
    return np.array(
        [
            _discrepancy(*(part.astype(np.float64) for part in parts))
            for parts in zip(_cut(a, count), _cut(b, count))
        ]
    )


def _cut(x, count: int):
    """Split x into `count` parts, the larger ones last."""
    ends = np.cumsum([len(x) // count + (i >= count - len(x) % count) for i in range(count)])
    return np.split(x, ends[:-1])


def _discrepancy(x, y) -> float:
    def kernel(p, q):
        return (p @ q.T / p.shape[1] + 1) ** 3

    def mean_of_pairs(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    return mean_of_pairs(kernel(x, x)) + mean_of_pairs(kernel(y, y)) - 2 * kernel(x, y).mean()


def inception_score(logits: np.ndarray, splits: int = 1) -> tuple[float, float]:
    """Return the Inception score exp E KL(p(y|x) | p(y)) of logits (n, classes).

    Returns:
        Mean and standard deviation over `splits` equal parts of the samples, in order.
    """
    if not 0 < splits <= len(logits):
        raise UserError(
            f'splits must be from 1 to the number of samples, {len(logits)}, got {splits}'
        )
    scores = []
    for part in np.array_split(logits.astype(np.float64), splits):
        log_p = part - np.logaddexp.reduce(part, axis=1, keepdims=True)
        log_marginal = np.logaddexp.reduce(log_p, axis=0) - np.log(len(part))
        scores.append(np.exp((np.exp(log_p) * (log_p - log_marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(
    real: np.ndarray, samples: np.ndarray, neighbours: int = 3, device: torch.device | str = 'cpu'
) -> tuple[float, float]:
    """Return precision and recall (Kynkaanniemi et al. 2019).

    Precision is the fraction of samples (n, D) within the balls around real features (m, D), recall
    the fraction of real features within the balls around samples. The radius of the ball around a
    point is the distance to the `neighbours`-th nearest other point of the same set.
    """
    if min(len(real), len(samples)) <= neighbours:
        raise UserError(
            f'real and samples must have more than neighbours={neighbours} rows each, '
            f'got {len(real)} and {len(samples)}'
        )
    real, samples = (
        torch.as_tensor(x, dtype=torch.float32, device=device) for x in (real, samples)
    )
    return _covered(samples, real, neighbours), _covered(real, samples, neighbours)


def _covered(points, centres, neighbours: int, rows: int = 1000) -> float:
    """The fraction of `points` within some ball around the `centres`."""
    # the nearest point is the point itself
    radii = torch.cat(
        [torch.cdist(part, centres).kthvalue(neighbours + 1).values for part in centres.split(rows)]
    )
    return (
        torch.cat([(torch.cdist(part, centres) <= radii).any(1) for part in points.split(rows)])
        .double()
        .mean()
        .item()
    )
