"""What a data set holds: --mode data."""

import math
import pathlib

import numpy as np
from absl import logging

import datasets
import reports
from commands import preflight
from data.images import shown_classes
from data.inspection import check_labels, largest_distance
from data.levels import to_8_bits
from runtime import interruption


@interruption.interruptible('')
def describe_data(config, workdir=''):
    """Logs what the config's data set holds and the `sigma_max` that it suggests; a grid of
    training images goes to `workdir/data.png`.
    """
    config = preflight.check(config, workdir, 'data')
    rows = []
    for split in ('train', 'test'):
        images = datasets.get_split(config, split)
        chosen = np.random.default_rng(config.seed).permutation(len(images))[
            : min(10000, 2**26 // math.prod(images.shape))
        ]
        some, labels = images.read(chosen)
        if split == 'train':
            datasets.warn_of_range(config, some, images.levels)
            check_labels(config, images)
        pixels = some.reshape(-1, some.shape[-1]) / (images.levels - 1)
        rows.append(
            (
                f'{split} set',
                f'{len(images)} images',
                f'{some.shape[1]}x{some.shape[2]} '
                f'pixels, {some.shape[3]} channels, '
                f'{images.levels} grey levels, {_count_labels(labels)}',
            )
        )
        rows.append(
            (
                '  channels',
                ' '.join(f'{value:.4f}' for value in pixels.mean(0)),
                f'mean; std {" ".join(f"{value:.4f}" for value in pixels.std(0))}; of '
                f'{len(some)} images in [0, 1]',
            )
        )
        if split == 'train':
            if classes := shown_classes(images):
                rows.append(('  labels', classes, 'by the names of their folders'))
            distance, n = largest_distance(images, config.seed)
            rows.append(
                (
                    '  largest distance',
                    f'{distance:.2f}',
                    f'between two of {n} images in '
                    '[0, 1], estimated from below: '
                    f'--config.model.sigma_max={float(f"{distance:.2g}")} suits a VE SDE (it '
                    f'is {config.model.sigma_max})',
                )
            )
            if workdir:
                reports.save_grid(
                    pathlib.Path(workdir, 'data.png'), to_8_bits(some[:100], images.levels)
                )
    logging.info('%s:\n%s', config.data.dataset, reports.table(rows))
    return rows


def _count_labels(labels: np.ndarray) -> str:
    found = np.unique(labels)
    return f'{len(found)} labels' + (f' ({found[0]} to {found[-1]})' if len(found) > 1 else '')
