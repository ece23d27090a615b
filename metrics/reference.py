"""Reference statistics: features of real images, computed once for a data set and an extractor.

They are stored in `eval.stats_dir` as npz files ('pool_3': (n, D)). Each file contains a protocol,
which records the data set and the extractor; a readable JSON file next to it repeats the protocol.
"""

import json
import pathlib
from typing import NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict

import datasets
from configs.defaults import complete
from data.images import class_names
from data.levels import to_8_bits
from metrics.distances import Statistics, statistics
from metrics.extractors import Extractor
from reports import results
from runtime import distributed
from runtime.errors import UserError
from runtime.progress import progress

BATCH = 256  # images in memory at a time
PUBLISHED = ('CIFAR10', 'CELEBA', 'LSUN')  # the 2021 release has statistics of these data sets


class Reference(NamedTuple):
    """Features (n, D) of real images, their protocol, and their mean and covariance."""

    features: np.ndarray
    protocol: dict
    statistics: Statistics


def statistics_protocol(config: ConfigDict, extractor: Extractor, split: str) -> dict:
    """Return the settings that the features of a split depend on."""
    config = complete(config)
    return results.normal(
        dict(
            data=datasets.describe(config, split),
            extractor=extractor.protocol,
            most_images=config.eval.stats_samples,
        )
    )


def statistics_path(config: ConfigDict, extractor: Extractor, split: str) -> pathlib.Path:
    """The file of the features of a split, in `eval.stats_dir` (default: assets/stats).

    For TF-GAN and the training set it has the name of the 2021 release, 'cifar10_stats.npz'.
    """
    parts = [datasets.get_name(config)]
    if extractor.protocol['backend'] != 'tfgan':
        names = (extractor.protocol[key] for key in ('backend', 'extractor', 'feature'))
        parts += dict.fromkeys(name for name in names if name != 'none')
    if split == 'test':
        parts.append('test')
    published = pathlib.Path(__file__).parents[1] / 'assets' / 'stats'
    folder = pathlib.Path(complete(config).eval.stats_dir or published)
    return folder.expanduser() / ('_'.join([*parts, 'stats']) + '.npz')


def compute_statistics(config: ConfigDict, extractor: Extractor, split: str) -> pathlib.Path:
    """Write the features of at most `eval.stats_samples` images of a split, in random order.

    All processes share the work. Memory holds one batch of images at a time, and in process 0 the
    features of all images.

    Returns:
        The npz file.

    Raises:
        UserError: if there are fewer than 4 images, or if the features do not depend on them.
    """
    config = complete(config)
    path = statistics_path(config, extractor, split)
    with distributed.main_first():
        images = datasets.get_split(config, split, in_memory=False)
    order = np.random.default_rng(0).permutation(len(images))[: config.eval.stats_samples]
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]

    def work(indices):
        batch = images.read(indices)[0]
        if not len(batch):  # all images of the batch are corrupt and left out
            return None
        return extractor.run(to_8_bits(batch, images.levels))['pool_3'].astype(np.float32)

    shared = distributed.in_turns(batches, work)
    shown = progress(shared, f'the features of the {split} set', len(batches), 'batch')
    found = [part for _, part in shown if part is not None]
    if not distributed.is_main():
        return path
    n = sum(map(len, found))
    if n < 4:
        raise UserError(f'statistics need at least 4 images, got {n} of the {split} set')
    features = np.concatenate(found)
    _check(features, path)
    protocol = statistics_protocol(config, extractor, split) | dict(
        n=n, dimensions=features.shape[1]
    )
    if classes := class_names(images):
        protocol['classes'] = classes
    results.save(path, protocol, pool_3=features)
    path.with_suffix('.json').write_text(json.dumps(protocol, indent=1) + '\n')
    logging.info('Wrote %s: %d features of %d images.', path, features.shape[1], n)
    return path


def get_reference(config: ConfigDict, extractor: Extractor, split: str) -> Reference | None:
    """Read the features of a split from `eval.stats_dir`; all processes compute a missing file.

    Returns:
        The reference for process 0, None for the others.

    Raises:
        UserError: if the file cannot be read or has another protocol. A file without a protocol is
            accepted if the 2021 release has published one of this name.
    """
    path = statistics_path(config, extractor, split)
    if not distributed.broadcast(path.is_file()):
        logging.info('Found no statistics %s: computing and storing them.', path)
        compute_statistics(config, extractor, split)
    if not distributed.is_main():
        return None
    file = results.load(path)
    if file is None or 'pool_3' not in file:
        raise UserError(
            f"{path} has no features 'pool_3' that can be read. Move it away to compute them again"
        )
    features, protocol = file['pool_3'].reshape(len(file['pool_3']), -1), file['protocol']
    if protocol:
        faults = _differences(protocol, statistics_protocol(config, extractor, split))
    else:
        logging.warning('Found no protocol in %s.', path)
        is_published = _is_published(config, extractor, split, features)
        faults = [] if is_published else ['the file has no protocol']
        protocol = dict(origin=f'{path.name}, of the 2021 release')
    if faults:
        raise UserError(
            f'{path} does not have the expected protocol: {"; ".join(faults)}. Move it away to '
            'compute it again, or set another folder with --config.eval.stats_dir'
        )
    _check(features, path)
    described = protocol | dict(file=path.name, n=len(features))
    return Reference(features, described, statistics(features))


def _differences(protocol: dict, expected: dict) -> list[str]:
    """Return how protocols differ; two limits on n that are both above n are equal."""
    if protocol['n'] < min(protocol['most_images'], expected['most_images']):
        expected = expected | dict(most_images=protocol['most_images'])
    return results.differences({key: protocol.get(key) for key in expected}, expected)


def _is_published(config, extractor: Extractor, split: str, features: np.ndarray) -> bool:
    return (
        extractor.protocol['backend'] == 'tfgan'
        and split == 'train'
        and features.shape[1] == 2048
        and config.data.dataset.upper() in PUBLISHED
    )


def _check(features: np.ndarray, path):
    """Raise UserError if the features do not depend on the images."""
    if not np.isfinite(features).all() or (features == features[0]).all():
        raise UserError(
            f'the features for {path} are not finite, or all the same: the weights do '
            'not fit this layer'
        )
