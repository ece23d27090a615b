"""Checks and measurements of a data set before a network is trained on it."""

import math

import numpy as np
from absl import logging

from data.images import Images, Streamed
from runtime.errors import UserError


def check_arrays(name: str, images: np.ndarray, shape: tuple[int, ...], levels: int) -> None:
    """Raise UserError unless images of a registered data set have this shape and range."""
    fits = images.shape == shape and images.dtype.kind in 'iu'
    if not fits or images.size and not 0 <= images.min() <= images.max() < levels:
        raise UserError(
            f'the data set {name} must be integer images of shape {shape} with values from 0 to '
            f'{levels - 1} and one label each, got {images.dtype} {images.shape} and {shape[0]} '
            'labels'
        )


def check_labels(images: Images | Streamed, num_classes: int) -> None:
    """Raise UserError if the labels are known and do not fit `config.model.num_classes`."""
    labels = images.labels if isinstance(images, Images) else np.arange(len(images.classes))
    if not num_classes or not len(labels):
        return
    lowest, highest = labels.min(), labels.max()
    if lowest < 0 or highest >= num_classes:
        raise UserError(
            f'the data set has the label {lowest if lowest < 0 else highest}, but '
            f'config.model.num_classes={num_classes}: labels '
            f'start at 0, so expected 0 to {num_classes - 1}, got {lowest} to {highest}'
        )
    if lowest == highest and num_classes > 1:
        raise UserError(
            f'all images of the data set have the label {lowest}, but '
            f'config.model.num_classes={num_classes}: give it labels '
            '(FOLDER: sub-folders; NPZ: an array such as y_train), or set '
            'config.model.num_classes=0'
        )


def warn_of_range(images: np.ndarray, levels: int, adjustable: bool) -> None:
    """Log a warning if images use less than half of their grey levels, as 12-bit images do.

    Args:
        images: (n, H, W, C), values 0 to levels - 1.
        levels: Number of grey levels.
        adjustable: Whether `config.data.levels` can set the value of white.
    """
    lowest, highest = (int(images.min()), int(images.max())) if images.size else (0, levels - 1)
    if 2 * (highest - lowest) < levels - 1:
        remedy = ': set config.data.levels to their number (4096 for 12-bit images in 16-bit files)'
        logging.warning(
            'Found only grey levels %d to %d of 0 to %d in %d training images%s.',
            lowest,
            highest,
            levels - 1,
            len(images),
            remedy if adjustable else '',
        )


def largest_distance(
    images: Images | Streamed, seed: int = 0, subset: int = 2000, most: int = 50000
) -> tuple[float, int]:
    """Return a lower estimate of the largest Euclidean distance between two images in [0, 1].

    `model.sigma_max` of a VE SDE should be near it. The search begins with the most distant pair
    among `subset` random images. It then moves from both ends to the images farthest from them,
    until the distance no longer grows.

    Args:
        images: The images.
        seed: The seed of the random subset.
        subset: How many images are compared at a time; fewer if they would take more than 1 GiB.
        most: How many images are used at most.

    Returns:
        The distance, and the number of images that it is based on.

    References:
        Song & Ermon 2020, Technique 1.
    """
    order = np.random.default_rng(seed).permutation(len(images))[:most]
    size = math.prod(images.shape)
    subset = max(2, min(subset, 2**28 // size))

    def rows(indices):
        return images.read(indices)[0].reshape(-1, size).astype(np.float32) / (images.levels - 1)

    x = rows(order[:subset])
    squares = np.square(x).sum(1)
    distances = squares[:, None] + squares - 2 * x @ x.T
    ends = [x[k] for k in np.unravel_index(distances.argmax(), distances.shape)]
    widest = np.linalg.norm(ends[0] - ends[1])
    while True:
        farthest = [(0.0, None)] * len(ends)
        for start in range(0, len(order), subset):
            x = rows(order[start : start + subset])
            for k, end in enumerate(ends if len(x) else ()):
                away = np.linalg.norm(x - end, axis=1)
                if away.max() > farthest[k][0]:
                    farthest[k] = float(away.max()), x[away.argmax()]
        distance, end = max(farthest, key=lambda pair: pair[0])
        if distance <= widest * (1 + 1e-6):
            return float(widest), len(order)
        widest, ends = distance, [end for _, end in farthest]
