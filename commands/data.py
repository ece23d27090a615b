"""Describe a data set: --mode data."""

import math
import os
import pathlib

import numpy as np
from absl import logging
from ml_collections import ConfigDict

import datasets
import reports
from commands import preflight
from data.images import shown_classes
from data.inspection import check_labels, largest_distance, warn_of_range
from data.levels import to_8_bits
from runtime import interruption


@interruption.interruptible('')
def describe_data(config: ConfigDict, workdir: str | os.PathLike = '') -> list[tuple]:
    """Log the content of the config's data set, and the `sigma_max` that suits it.

    A grid of training images is written to `workdir/data.png`.

    Returns:
        The logged rows (quantity, value, remark).
    """
    config = preflight.check(config, workdir, 'data')
    rows = []
    for split in ('train', 'test'):
        images = datasets.get_split(config, split)
        order = np.random.default_rng(config.seed).permutation(len(images))
        some, labels = images.read(order[: min(10000, 2**26 // math.prod(images.shape))])
        if split == 'train':
            warn_of_range(some, images.levels, 'levels' in datasets.get_source(config).keys)
            check_labels(images, config.model.num_classes)
        rows += _rows_of_split(split, images, some, labels)
        if split == 'train':
            rows += _rows_of_training_set(config, images)
            if workdir:
                shown = to_8_bits(some[:100], images.levels)
                reports.save_grid(pathlib.Path(workdir, 'data.png'), shown)
    logging.info('Described %s:\n%s', config.data.dataset, reports.table(rows))
    return rows


def _rows_of_split(split: str, images, some: np.ndarray, labels: np.ndarray) -> list[tuple]:
    """Return the rows for a split, from some of its images (n, H, W, C) and their labels."""
    _, height, width, channels = some.shape
    pixels = some.reshape(-1, channels) / (images.levels - 1)
    return [
        (
            f'{split} set',
            f'{len(images)} images',
            f'{height}x{width} pixels, {channels} channels, {images.levels} grey levels, '
            f'{_count_labels(labels)}',
        ),
        (
            '  channels',
            _decimals(pixels.mean(0)),
            f'mean; std {_decimals(pixels.std(0))}; of {len(some)} images in [0, 1]',
        ),
    ]


def _rows_of_training_set(config, images) -> list[tuple]:
    """Return the rows for the classes, and for the largest distance of images (for sigma_max)."""
    rows = []
    if classes := shown_classes(images):
        rows.append(('  labels', classes, 'named after their folders'))
    distance, n = largest_distance(images, config.seed)
    rows.append(
        (
            '  largest distance',
            f'{distance:.2f}',
            f'between two of {n} images in [0, 1], a lower bound: '
            f'--config.model.sigma_max={float(f"{distance:.2g}")} suits a VE SDE (the '
            f'config has {config.model.sigma_max})',
        )
    )
    return rows


def _decimals(values: np.ndarray) -> str:
    return ' '.join(f'{value:.4f}' for value in values)


def _count_labels(labels: np.ndarray) -> str:
    found = np.unique(labels)
    bounds = f' ({found[0]} to {found[-1]})' if len(found) > 1 else ''
    return f'{len(found)} labels{bounds}'
