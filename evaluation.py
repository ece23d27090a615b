"""Features of images, the statistics of data sets, and the metrics of samples. Every number comes
with its protocol.

An extractor turns 8-bit images into features: 'tfgan' is the Inception network of the paper's
numbers, run by TensorFlow on the CPU; 'torch_fidelity' the same weights in PyTorch on the config's
device, at any of its layers, or another network; 'pixels' takes the pixels themselves. Metrics
compare features of samples with those of real images (metrics.py), which are computed once and kept
in `eval.stats_dir` as npz files ('pool_3': (n, D)) that tell what they are of, as does a JSON file
beside each for readers.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import pickle
import types
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from absl import logging

import datasets
import metrics
from configs.defaults import complete
from data.images import get_classes
from data.levels import to_8_bits
from reports import results
from runtime import distributed
from runtime.errors import UserError
from runtime.progress import progress
from runtime.tensorflow import stand_in, tensorflow

TORCH_FIDELITY_WEIGHTS = (
    'https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/'
    'weights-inception-2015-12-05-6726825d.pth'
)
INCEPTION_V3 = 'https://tfhub.dev/google/imagenet/inception_v3/feature_vector/4'


class Extractor(NamedTuple):
    """run(images (B, H, W, C) uint8) gives {'pool_3': (B, D) float32}, with 'logits' (B, classes)
    of a classifier; `protocol` says how.
    """

    protocol: dict
    run: Callable


def get_extractor(config) -> Extractor:
    """The extractor that `eval.metrics_backend` names, with its weights loaded; UserError where
    they cannot be had.
    """
    return EXTRACTORS[config.eval.metrics_backend](complete(config))


def check_size(config, samples: int, reference: int | None = None):
    """Raise UserError if the metrics of `pixels` would not end or not fit into memory; the features
    of networks are small.

    The Frechet distance takes time and memory by the least of three numbers: samples, reference
    images (`eval.stats_samples` at most) and values of an image. See `metrics.frechet_distance`.

    Args:
        samples: Number of samples.
        reference: Number of reference images, or None if only the most that there can be is known.
    """
    if config.eval.metrics_backend != 'pixels':
        return
    reference = reference or complete(config).eval.stats_samples
    values = config.data.image_size**2 * config.data.num_channels
    counted = (
        f'{samples} samples against up to {reference} reference images of {values} values each'
    )
    if min(samples, reference, values) > metrics.LARGEST:
        raise UserError(
            f"config.eval.metrics_backend='pixels': the Frechet distance of {counted} "
            'would take a matrix of size '
            f'{min(samples, reference, values)}, expected at most {metrics.LARGEST} '
            '(about 3 minutes and 5 GiB on two cores). '
            'Use fewer images, for example '
            f'--config.eval.stats_samples={metrics.LARGEST}, or another backend'
        )
    needed, memory = (
        8 * values * (samples + reference),
        os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'),
    )
    if needed > memory:  # float32, and a copy while batches are put together
        raise UserError(
            f"config.eval.metrics_backend='pixels': the features of {counted} need "
            f'{needed / 2**30:.1f} GiB, expected at most '
            f'the {memory / 2**30:.1f} GiB of this machine. Use fewer images, for '
            'example --config.eval.stats_samples=1000, '
            'or another backend'
        )


def _pixels(config) -> Extractor:
    return Extractor(
        dict(backend='pixels', extractor='none', feature='pixels', input='pixels divided by 255'),
        lambda images: {'pool_3': images.reshape(len(images), -1) / np.float32(255)},
    )


def _colour(images: np.ndarray) -> np.ndarray:
    return images if images.shape[-1] == 3 else np.repeat(images, 3, axis=-1)


# TF-GAN -------------------------------------------------------------------------------------------


def _tfgan_module():
    """Import TensorFlow GAN 2.1, which was written for TensorFlow 2.15.

    What it imports but never uses, and no longer exists, is replaced during the import.
    """
    tf = tensorflow()
    with contextlib.ExitStack() as stand_ins:
        stand_ins.enter_context(stand_in('tensorflow_gan.python.estimator'))
        if not importlib.util.find_spec('pkg_resources'):  # tensorflow_hub needs one function of it
            import packaging.version

            stand_ins.enter_context(
                stand_in('pkg_resources', parse_version=packaging.version.parse)
            )
        if not hasattr(tf, 'estimator'):
            tf.estimator = types.SimpleNamespace(SessionRunHook=object)
            stand_ins.callback(delattr, tf, 'estimator')
        import tensorflow_gan

    return tensorflow_gan


def get_inception_model(inceptionv3=False, path=''):
    """TF-GAN's Inception network, or that of TF-Hub's Inception V3 (for 256 pixels and more), or
    the SavedModel in the folder `path`.
    """
    tfgan = _tfgan_module()
    import tensorflow_hub

    handle = path or (INCEPTION_V3 if inceptionv3 else tfgan.eval.INCEPTION_TFHUB)
    try:
        return tensorflow_hub.load(os.path.expanduser(handle))
    # URLError, OSError, tf.errors.*, ValueError: the hub has no error of its own
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f'path={path!r} cannot be loaded as a SavedModel: {reason}'
            if path
            else f'the SavedModel {handle} cannot be fetched ({reason}): download it elsewhere (as '
            '.tar.gz, unpacked) and give its folder as '
            'path'
        ) from error


def run_inception_distributed(input_tensor, inception_model, num_batches=1, inceptionv3=False):
    """{'pool_3': (B, 2048), 'logits': (B, 1008)} of 8-bit images (B, H, W, 3), as TensorFlow
    tensors; Inception V3 has no logits (None).

    `num_batches`: the parts in which the network sees them; it must divide B.
    """
    tf, tfgan = tensorflow(), _tfgan_module()
    images = tf.cast(input_tensor, tf.float32)
    images = images / 255 if inceptionv3 else images / 127.5 - 1  # what either network expects

    def outputs(batch):
        found = inception_model(batch)
        found = (
            {'pool_3': found} if inceptionv3 else {key: found[key] for key in ('pool_3', 'logits')}
        )
        return {key: tf.reshape(value, (tf.shape(value)[0], -1)) for key, value in found.items()}

    found = tfgan.eval.run_classifier_fn(
        images,
        classifier_fn=outputs,
        num_batches=num_batches,
        dtypes={'pool_3': tf.float32}
        if inceptionv3
        else {'pool_3': tf.float32, 'logits': tf.float32},
    )
    return {'logits': None} | found


def _tfgan(config) -> Extractor:
    path, inceptionv3 = config.eval.inception_path, config.data.image_size >= 256
    try:
        model = get_inception_model(inceptionv3, path)
    except UserError as error:
        raise UserError(
            f"config.eval.metrics_backend='tfgan': {error} (--config.eval.inception_path=FOLDER)"
        ) from error
    handle = INCEPTION_V3 if inceptionv3 else _tfgan_module().eval.INCEPTION_TFHUB

    def run(images):
        parts = [
            run_inception_distributed(_colour(images[start : start + 64]), model, 1, inceptionv3)
            for start in range(0, len(images), 64)
        ]
        return {
            key: np.concatenate([part[key].numpy() for part in parts])
            for key in ('pool_3', 'logits')
            if parts[0][key] is not None
        }

    return Extractor(
        dict(
            backend='tfgan',
            extractor='Inception V3' if inceptionv3 else 'Inception (2015)',
            feature='pool_3',
            input='[0, 1]' if inceptionv3 else '[-1, 1], resized to 299 pixels within the network',
            weights=results.digest(path) if path else handle,
        ),
        run,
    )


# torch-fidelity -----------------------------------------------------------------------------------


def _torch_fidelity(config) -> Extractor:
    try:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as known
        from torch_fidelity.utils import create_feature_extractor
    except ModuleNotFoundError as error:
        raise UserError(
            'torch-fidelity is not installed: pip install -e ".[metrics]", or use '
            'config.eval.metrics_backend=pixels'
        ) from error
    name, path = config.eval.extractor, os.path.expanduser(config.eval.inception_path)
    if name not in known:
        raise UserError(
            f'config.eval.extractor must be one of {", ".join(map(repr, known))}, got {name!r}'
        )
    feature = config.eval.features or known[name].get_default_feature_layer_for_metric('fid')
    provided = known[name].get_provided_features_list()
    if feature not in provided:
        raise UserError(
            f'config.eval.features must be one of {", ".join(map(repr, provided))} for '
            f'{name}, got {feature!r}'
        )
    classifies = name == 'inception-v3-compat' and feature == '2048'
    try:
        # (TorchScript) torch-fidelity unpickles the file: only one without code gets there
        if path and not name.startswith('clip'):
            torch.load(path, map_location='cpu', weights_only=True)
        network = create_feature_extractor(
            name,
            [feature, 'logits_unbiased'] if classifies else [feature],
            cuda=False,
            verbose=False,
            **(dict(feature_extractor_weights_path=path) if path else {}),
        ).to(config.device)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        source = (
            TORCH_FIDELITY_WEIGHTS
            if name == 'inception-v3-compat'
            else 'the weights that torch-fidelity names for it'
        )
        raise UserError(
            f'config.eval.inception_path={path!r} cannot be loaded into {name}: {reason}'
            if path
            else f"config.eval.metrics_backend='torch_fidelity' needs {source}, which cannot be "
            'fetched '
            f'({reason}): download it elsewhere and '
            'give it as --config.eval.inception_path=FILE'
        ) from error

    def run(images):
        parts = []
        for start in range(0, len(images), 64):
            x = (
                torch.from_numpy(_colour(images[start : start + 64]))
                .permute(0, 3, 1, 2)
                .contiguous()
                .to(config.device)
            )
            with torch.no_grad():
                parts.append(network.convert_features_tuple_to_dict(network(x)))
        found = {
            key: torch.cat([part[key] for part in parts]).float().cpu().numpy() for key in parts[0]
        }
        return {
            'logits' if key == 'logits_unbiased' else 'pool_3': value
            for key, value in found.items()
        }

    return Extractor(
        dict(
            backend='torch_fidelity',
            extractor=name,
            feature=feature,
            input='8-bit RGB, resized within the network',
            weights=results.digest(path) if path else 'as torch-fidelity fetches them',
        ),
        run,
    )


EXTRACTORS = {'tfgan': _tfgan, 'torch_fidelity': _torch_fidelity, 'pixels': _pixels}
METRICS_BACKENDS = ('none', *EXTRACTORS)


# Statistics of data sets --------------------------------------------------------------------------


class Reference(NamedTuple):
    """Features (n, D) of real images, what they are of, and their mean and covariance."""

    features: np.ndarray
    protocol: dict
    statistics: metrics.Statistics


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
    folder = complete(config).eval.stats_dir or pathlib.Path(__file__).parent / 'assets' / 'stats'
    return pathlib.Path(folder).expanduser() / ('_'.join([*parts, 'stats']) + '.npz')


def load_dataset_stats(config):
    """The published statistics of the config's data set, as np.load gives them (key 'pool_3');
    UserError where there is no such file.
    """
    path = statistics_path(config, Extractor(dict(backend='tfgan'), None), 'train')
    if not path.is_file():
        raise UserError(f'there are no statistics {path}: python main.py --mode stats makes them')
    return np.load(path)


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


def reference(config, extractor: Extractor, split: str) -> Reference | None:
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
        features, protocol | dict(file=path.name, n=len(features)), metrics.statistics(features)
    )


# Metrics of samples -------------------------------------------------------------------------------


def measure(
    features: dict,
    real: Reference,
    is_splits: int = 1,
    device='cpu',
    other: Reference | None = None,
) -> dict:
    """Return the metrics of samples by name, and the numbers of images that they rest on.

    Args:
        features: {'pool_3': (n, D)}, with 'logits' (n, classes) for the Inception score.
        real: The images to compare with.
        is_splits: Parts of the samples for the Inception score.
        device: Where nearest neighbours are computed.
        other: More real images, of which the first n are compared with `real` as well, under names
            that begin with 'floor_'.
    """
    samples = features['pool_3']
    if not np.isfinite(samples).all():
        raise UserError('the features of the samples are not all finite')
    if (samples == samples[0]).all():
        logging.warning(
            'All samples have the same features: the model has collapsed, or the '
            'weights do not serve for this layer.'
        )
    kernel = metrics.kernel_distance(real.features, samples)
    precision, recall = metrics.precision_recall(real.features, samples, device=device)
    found = dict(
        fid=metrics.frechet_distance(real.statistics, metrics.statistics(samples)),
        kid=kernel.mean,
        kid_error=kernel.error,
        kid_blocks=kernel.blocks,
        kid_error_blocks=kernel.error_blocks,
        precision=precision,
        recall=recall,
        n_samples=len(samples),
        n_reference=len(real.features),
    )
    if 'logits' in features:
        score, spread = metrics.inception_score(features['logits'], is_splits)
        found.update(IS=score, IS_std=spread, IS_splits=is_splits)
    if other:
        floor = measure({'pool_3': other.features[: len(samples)]}, real, device=device)
        found |= {f'floor_{key}': value for key, value in floor.items()}
    return found
