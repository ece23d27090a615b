"""Distances between sets of images; `extractors` and `reference` compute features of images."""

from metrics.distances import (
    BLOCK_VALUES,
    LARGEST,
    KernelDistance,
    Statistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    statistics,
)

__all__ = [
    'BLOCK_VALUES',
    'LARGEST',
    'KernelDistance',
    'Statistics',
    'frechet_distance',
    'inception_score',
    'kernel_distance',
    'precision_recall',
    'statistics',
]
