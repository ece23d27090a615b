"""Features of real images: computed once for each data set and extractor, and stored."""

import json
import pathlib
from typing import NamedTuple

import numpy as np
from absl import logging

import datasets
from configs.defaults import complete
from data.images import get_classes
from data.levels import to_8_bits
from metrics.distances import Statistics, statistics
from metrics.extractors import Extractor
from reports import results
from runtime import distributed
from runtime.errors import UserError
from runtime.progress import progress


class Reference(NamedTuple):
    """Features (n, D) of real images, what they are of, and their mean and covariance."""

    features: np.ndarray
    protocol: dict
    statistics: Statistics


def statistics_protocol(config, extractor: Extractor, split: str) -> dict:
    """What the features of a split depend on."""
    config = complete(config)
    return results.normal(
        dict(
            data=datasets.describe(config, split),
            extractor=extractor.protocol,
            most_images=config.eval.stats_samples,
        )
    )


def statistics_path(config, extractor: Extractor, split: str) -> pathlib.Path:
    """Their file in `eval.stats_dir` (assets/stats): 'cifar10_stats.npz' and the like, as
    published, for TF-GAN and the training set.
    """
    parts = [datasets.get_name(config)]
    if extractor.protocol['backend'] != 'tfgan':
        parts += dict.fromkeys(
            extractor.protocol[key]
            for key in ('backend', 'extractor', 'feature')
            if extractor.protocol[key] != 'none'
        )
    parts += ['test'] if split == 'test' else []
    folder = (
        complete(config).eval.stats_dir or pathlib.Path(__file__).parents[1] / 'assets' / 'stats'
    )
    return pathlib.Path(folder).expanduser() / ('_'.join([*parts, 'stats']) + '.npz')


def compute_statistics(config, extractor: Extractor, split: str) -> pathlib.Path:
    """Writes the features of a split, a random order of at most `eval.stats_samples` images, and
    what they are of. Returns the npz file.

    A batch of images is in memory at a time, and, of process 0, the features of all.
    """
    config = complete(config)
    path = statistics_path(config, extractor, split)
    with distributed.main_first():
        images = datasets.get_split(config, split, in_memory=False)
    order = np.random.default_rng(0).permutation(len(images))[: config.eval.stats_samples]
    batches, features = [order[start : start + 256] for start in range(0, len(order), 256)], []

    def work(indices):
        batch = images.read(indices)[0]
        return (
            extractor.run(to_8_bits(batch, images.levels))['pool_3'].astype(np.float32)
            if len(batch)
            else None
        )

    for _, found in progress(
        distributed.in_turns(batches, work),
        f'the features of the {split} set',
        len(batches),
        'batch',
    ):
        features += [] if found is None else [found]
    if not distributed.is_main():
        return path
    if sum(map(len, features)) < 4:
        raise UserError(
            f'statistics need the features of 4 images or more: the {split} set gave '
            f'{sum(map(len, features))}'
        )
    features = np.concatenate(features)
    _refuse_dead(features, path)
    protocol = statistics_protocol(config, extractor, split) | dict(
        n=len(features), dimensions=features.shape[1]
    )
    protocol |= dict(classes=classes) if (classes := get_classes(images)) else {}
    results.save(path, protocol, pool_3=features)
    path.with_suffix('.json').write_text(json.dumps(protocol, indent=1) + '\n')
    logging.info('Wrote %s: %d features of %d images.', path, features.shape[1], len(features))
    return path


def _refuse_dead(features: np.ndarray, path):
    """UserError where features tell nothing."""
    if not np.isfinite(features).all() or (features == features[0]).all():
        raise UserError(
            f'the features for {path} are not finite, or all the same: the weights do '
            'not serve for this layer'
        )


def get_reference(config, extractor: Extractor, split: str) -> Reference | None:
    """The features of a split, for process 0: those in `eval.stats_dir`, which all processes
    compute now if they are not there.

    UserError where the file there is of another protocol. One that tells none is taken for TF-GAN's
    features of the 2021 release, where that has published a file of its name.
    """
    path = statistics_path(config, extractor, split)
    if not distributed.broadcast(path.is_file()):
        logging.info('Found no statistics %s: computing and storing them.', path)
        compute_statistics(config, extractor, split)
    if not distributed.is_main():
        return None
    file, expected = results.load(path), statistics_protocol(config, extractor, split)
    if file is None or 'pool_3' not in file:
        raise UserError(
            f"{path} holds no features 'pool_3' that can be read: move it away to have "
            'them computed'
        )
    features, protocol = file['pool_3'].reshape(len(file['pool_3']), -1), file['protocol']
    if protocol:
        # all there were, then and now
        if protocol['n'] < min(protocol['most_images'], expected['most_images']):
            expected['most_images'] = protocol['most_images']
        faults = results.differences({key: protocol.get(key) for key in expected}, expected)
    else:
        published = (
            extractor.protocol['backend'] == 'tfgan'
            and split == 'train'
            and features.shape[1] == 2048
        )
        faults = (
            []
            if published and config.data.dataset.upper() in ('CIFAR10', 'CELEBA', 'LSUN')
            else ['it tells none']
        )
        protocol = dict(origin=f'{path.name}, as published')
        logging.warning('%s says nothing of its protocol', path)
    if faults:
        raise UserError(
            f'{path} has statistics of another protocol: {"; ".join(faults)}. Move it '
            'away to have them computed, or name '
            'another folder with --config.eval.stats_dir'
        )
    _refuse_dead(features, path)
    return Reference(
        features, protocol | dict(file=path.name, n=len(features)), statistics(features)
    )
