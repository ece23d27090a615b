"""Distances between sets of images, from statistics of their features."""
from typing import NamedTuple

import numpy as np

from errors import UserError


class Statistics(NamedTuple):
    """Mean (D,), covariance (D, D) and number of a set of feature vectors."""
    mean: np.ndarray
    covariance: np.ndarray
    n: int


def statistics(features: np.ndarray) -> Statistics:
    """Of features (n, D), in float64."""
    if len(features) < 2:
        raise UserError(f'a covariance needs two feature vectors or more, got {len(features)}')
    features = features.astype(np.float64)
    return Statistics(features.mean(0), np.cov(features, rowvar=False), len(features))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the squared Wasserstein distance of two Gaussians (Dowson & Landau 1982).

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric matrix C_a^(1/2) C_b C_a^(1/2).
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(0)).sum()
    return float(np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def pixel_statistics(images: np.ndarray) -> Statistics:
    """Of the pixels themselves, for small images (n, H, W, C) of 8 bits, scaled to [0, 1]."""
    return statistics(images.reshape(len(images), -1) / 255)


def pixel_metrics(samples: np.ndarray, held_out: np.ndarray, real: np.ndarray, seed: int) -> dict:
    """Frechet distances in pixel space, of 8-bit images (n, H, W, C): of `samples` to `held_out` real ones, and, as a measure of what
    is left between two sets of the very same kind, between two random halves of all `real` ones."""
    order = np.random.default_rng(seed).permutation(len(real))
    halves = real[order[::2]], real[order[1::2]]
    return dict(pixel_frechet=frechet_distance(pixel_statistics(samples), pixel_statistics(held_out)),
                n_samples=len(samples), n_held_out=len(held_out),
                pixel_frechet_halves=frechet_distance(*map(pixel_statistics, halves)), n_halves=[len(half) for half in halves])


METRICS_BACKENDS = ('none', 'pixels')
