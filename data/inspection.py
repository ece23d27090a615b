"""What is checked and measured of a data set."""

import math

import numpy as np

from configs import defaults
from data.images import Images, Streamed
from runtime.errors import UserError


def check_labels(config, images: Images | Streamed):
    """Raise UserError where the labels of a set are known and do not suit `model.num_classes`."""
    number = defaults.complete(config).model.num_classes
    labels = (
        images.labels
        if isinstance(images, Images)
        else np.arange(len(getattr(images, 'classes', ())))
    )
    if not number or not len(labels):
        return
    lowest, highest = labels.min(), labels.max()
    if lowest < 0 or highest >= number:
        raise UserError(
            f'the data set has the label {lowest if lowest < 0 else highest}, but '
            f'config.model.num_classes={number}: labels '
            f'start at 0, so expected 0 to {number - 1}, got {lowest} to {highest}'
        )
    if lowest == highest and number > 1:
        raise UserError(
            f'all images of the data set have the label {lowest}, but '
            f'config.model.num_classes={number}: give it labels '
            '(FOLDER: sub-folders; NPZ: an array such as y_train), or set '
            'config.model.num_classes=0'
        )


def largest_distance(
    images: Images | Streamed, seed: int = 0, subset: int = 2000, most: int = 50000
) -> tuple[float, int]:
    """An estimate, from below, of the largest Euclidean distance between two images in [0, 1], and
    the number of images it rests on: what `model.sigma_max` of a VE SDE should be near (Song &
    Ermon 2020, Technique 1).

    All pairs of `subset` random images, then from the ends of the widest pair to the image farthest
    from each, among up to `most`, until no pair is wider. Large images, of which `subset` would
    take more than 1 GiB, are fewer at a time.
    """
    order, size = (
        np.random.default_rng(seed).permutation(len(images))[:most],
        math.prod(images.shape),
    )
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
                farthest[k] = max(
                    farthest[k], (float(away.max()), x[away.argmax()]), key=lambda pair: pair[0]
                )
        distance, end = max(farthest, key=lambda pair: pair[0])
        if distance <= widest * (1 + 1e-6):
            return float(widest), len(order)
        widest, ends = distance, [end for _, end in farthest]
