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
import os
import types

import numpy as np
from absl import logging

import metrics
from configs.defaults import complete
from metrics.extractors import Extractor, in_colour, pixels, torch_fidelity
from metrics.reference import Reference, statistics_path
from reports import results
from runtime.errors import UserError
from runtime.tensorflow import stand_in, tensorflow

INCEPTION_V3 = 'https://tfhub.dev/google/imagenet/inception_v3/feature_vector/4'


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
            run_inception_distributed(in_colour(images[start : start + 64]), model, 1, inceptionv3)
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


EXTRACTORS = {'tfgan': _tfgan, 'torch_fidelity': torch_fidelity, 'pixels': pixels}
METRICS_BACKENDS = ('none', *EXTRACTORS)


def load_dataset_stats(config):
    """The published statistics of the config's data set, as np.load gives them (key 'pool_3');
    UserError where there is no such file.
    """
    path = statistics_path(config, Extractor(dict(backend='tfgan'), None), 'train')
    if not path.is_file():
        raise UserError(f'there are no statistics {path}: python main.py --mode stats makes them')
    return np.load(path)


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
