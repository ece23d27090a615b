"""How far sets of images are apart, from the features that some network has of them. Every function here is pure.

Features are arrays (n, D). The Frechet distance (FID, Heusel et al. 2017) compares means and covariances, the kernel distance (KID,
Binkowski et al. 2018) all moments up to the third, without bias; precision and recall (Kynkaanniemi et al. 2019) tell whether samples
lie where the data are and the data where samples are; the Inception score (Salimans et al. 2016) needs class logits and no data.
"""
from typing import NamedTuple

import numpy as np
import torch

from errors import UserError


class Statistics(NamedTuple):
    """Mean (D,), covariance (D, D) and number of a set of feature vectors."""
    mean: np.ndarray
    covariance: np.ndarray
    n: int


def statistics(features: np.ndarray) -> Statistics:
    """Of features (n, D), in float64, a block of rows at a time."""
    n, dim = features.shape
    if n < 2:
        raise UserError(f'a covariance needs two feature vectors or more, got {n}')
    mean, scatter = features.mean(0, dtype=np.float64), np.zeros((dim, dim))
    for start in range(0, n, 4096):
        block = features[start:start + 4096] - mean
        scatter += block.T @ block
    return Statistics(mean, scatter / (n - 1), n)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the squared Wasserstein distance of two Gaussians (Dowson & Landau 1982).

    With C = F F^T, the trace of the root is the sum of the singular values of F_a^T F_b. Nothing is squared and rooted again on the
    way, so that covariances without full rank, from fewer samples than dimensions, are as exact as others; they are also faster.
    """
    cross = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    distance = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return float(max(distance, 0.0))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F (D, rank) with F F^T = covariance (D, D)."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(float).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


class KernelDistance(NamedTuple):
    """The mean over `blocks` blocks, and its standard error, from `error_blocks`."""
    mean: float
    error: float
    blocks: int
    error_blocks: int


def kernel_distance(a: np.ndarray, b: np.ndarray, block_size: int = 1024) -> KernelDistance:
    """The unbiased squared maximum mean discrepancy of features a (n, D) and b (m, D), for the kernel k(x, y) = (x^T y / D + 1)^3.

    Both sets are cut, in their order, which should be random, into the same number of blocks with at most `block_size` rows (Zaremba
    et al. 2013); the mean over blocks is TF-GAN's. Where one set is so small that its blocks would have less than 16 rows there are fewer
    blocks, and rows of the other set are left out. The standard error comes from ten blocks or more, as far as there are two rows for
    each, and is never of one. UserError below four rows.
    """
    n = min(len(a), len(b))
    if n < 4:
        raise UserError(f'a kernel distance needs four feature vectors or more of either set, got {len(a)} and {len(b)}')
    blocks = min(-(-max(len(a), len(b)) // block_size), max(1, n // 16))
    a, b = a[:blocks * block_size], b[:blocks * block_size]
    error_blocks = max(blocks, min(10, n // 2))
    values = _blocks(a, b, blocks)
    spread = values if error_blocks == blocks else _blocks(a, b, error_blocks)
    return KernelDistance(float(values.mean()), float(spread.std(ddof=1) / error_blocks**0.5), blocks, error_blocks)


def _blocks(a, b, count: int) -> np.ndarray:
    """The kernel distance in each of `count` blocks."""
    return np.array([_discrepancy(*(part.astype(np.float64) for part in parts)) for parts in zip(_cut(a, count), _cut(b, count))])


def _cut(x, count: int):
    """x in `count` parts, the larger ones last."""
    ends = np.cumsum([len(x) // count + (i >= count - len(x) % count) for i in range(count)])
    return np.split(x, ends[:-1])


def _discrepancy(x, y) -> float:
    def kernel(p, q):
        return (p @ q.T / p.shape[1] + 1) ** 3

    def mean_of_pairs(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    return mean_of_pairs(kernel(x, x)) + mean_of_pairs(kernel(y, y)) - 2 * kernel(x, y).mean()


def inception_score(logits: np.ndarray, splits: int = 1) -> tuple[float, float]:
    """exp E KL(p(y|x) | p(y)) of logits (n, classes): mean and standard deviation over `splits` equal parts of the samples, in order."""
    if not 0 < splits <= len(logits):
        raise UserError(f'an Inception score of {len(logits)} samples cannot have {splits} splits')
    scores = []
    for part in np.array_split(logits.astype(np.float64), splits):
        log_p = part - np.logaddexp.reduce(part, axis=1, keepdims=True)
        log_marginal = np.logaddexp.reduce(log_p, axis=0) - np.log(len(part))
        scores.append(np.exp((np.exp(log_p) * (log_p - log_marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(real: np.ndarray, samples: np.ndarray, neighbours: int = 3, device='cpu') -> tuple[float, float]:
    """The fraction of samples (n, D) that lie within the balls around real features (m, D), and of real ones within the samples' balls.

    The ball around a point reaches to the `neighbours`-th nearest other point of its own set.
    """
    if min(len(real), len(samples)) <= neighbours:
        raise UserError(f'precision and recall need more than {neighbours} feature vectors of either set, got {len(real)}, {len(samples)}')
    real, samples = (torch.as_tensor(x, dtype=torch.float32, device=device) for x in (real, samples))
    return _covered(samples, real, neighbours), _covered(real, samples, neighbours)


def _covered(points, centres, neighbours: int, rows: int = 1000) -> float:
    """The fraction of `points` within some ball around the `centres`."""
    radii = torch.cat([torch.cdist(part, centres).kthvalue(neighbours + 1).values for part in centres.split(rows)])  # the first is itself
    return torch.cat([(torch.cdist(part, centres) <= radii).any(1) for part in points.split(rows)]).double().mean().item()
