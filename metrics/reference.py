"""Reference statistics: features of real images, computed once for a data set and an extractor.

They are kept in `eval.stats_dir` as npz files ('pool_3': (n, D)) with a protocol that says what
they are of, and a JSON file of the protocol beside each for readers.
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
PUBLISHED = ('CIFAR10', 'CELEBA', 'LSUN')  # the 2021 release has statistics of these


class Reference(NamedTuple):
    """Features (n, D) of real images, their protocol, and their mean and covariance."""

    features: np.ndarray
    protocol: dict
    statistics: Statistics


def statistics_protocol(config: ConfigDict, extractor: Extractor, split: str) -> dict:
    """What the features of a split depend on."""
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

    For TF-GAN and the training set it is named as in the 2021 release, 'cifar10_stats.npz'.
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

    All processes share the work. One batch of images is in memory at a time and, in process 0, the
    features of all.

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
        if not len(batch):  # all corrupt, and left out
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
    """Read the features of a split from `eval.stats_dir`; all processes compute missing ones.

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
            f"{path} has no features 'pool_3' that can be read. Move it away to have them computed"
        )
    features, protocol = file['pool_3'].reshape(len(file['pool_3']), -1), file['protocol']
    if protocol:
        faults = _differences(protocol, statistics_protocol(config, extractor, split))
    else:
        logging.warning('%s has no protocol.', path)
        is_published = _is_published(config, extractor, split, features)
        faults = [] if is_published else ['it has none']
        protocol = dict(origin=f'{path.name}, of the 2021 release')
    if faults:
        raise UserError(
            f'{path} has statistics of another protocol: {"; ".join(faults)}. Move it away to have '
            'them computed, or name another folder with --config.eval.stats_dir'
        )
    _check(features, path)
    described = protocol | dict(file=path.name, n=len(features))
    return Reference(features, described, statistics(features))


def _differences(protocol: dict, expected: dict) -> list[str]:
    """What differs between protocols, other than limits on n that are both above n."""
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
            'not serve for this layer'
        )
