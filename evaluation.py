"""Inception features, reference statistics and the metrics of samples: the interface to `metrics`.

    extractor = get_extractor(config)             # maps 8-bit images to features
    real = metrics.reference.get_reference(config, extractor, 'train')
    numbers = measure(extractor.run(images), real)

Extractors: 'tfgan' is the Inception network used in the paper, run by TensorFlow on the CPU;
'torch_fidelity' runs the same weights in PyTorch on the config's device, up to any layer, or runs
another network; 'pixels' uses the pixels themselves as features. Each result is stored with its
protocol: the settings with which it was computed.
"""

import contextlib
import importlib.util
import os
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

import metrics
from configs.defaults import complete
from metrics.extractors import Extractor, in_batches, pixels, torch_fidelity
from metrics.reference import Reference, statistics_path
from reports import results
from runtime.errors import UserError, reason_of
from runtime.tensorflow import stub, tensorflow

INCEPTION_V3 = 'https://tfhub.dev/google/imagenet/inception_v3/feature_vector/4'

# The network of TF-GAN ----------------------------------------------------------------------------


def _tfgan_module():
    """Import TensorFlow GAN 2.1, which was written for TensorFlow 2.15.

    Modules that it imports but never uses, and that no longer exist, are replaced by stubs.
    """
    tf = tensorflow()
    with contextlib.ExitStack() as stubs:
        stubs.enter_context(stub('tensorflow_gan.python.estimator'))
        if not importlib.util.find_spec('pkg_resources'):  # tensorflow_hub needs one function of it
            import packaging.version

            stubs.enter_context(stub('pkg_resources', parse_version=packaging.version.parse))
        if not hasattr(tf, 'estimator'):
            tf.estimator = types.SimpleNamespace(SessionRunHook=object)
            stubs.callback(delattr, tf, 'estimator')
        import tensorflow_gan

    return tensorflow_gan


def get_inception_model(inceptionv3: bool = False, path: str = '') -> Any:
    """Load TF-GAN's Inception network, or Inception V3 (for 256 pixels and more), from TF-Hub.

    Args:
        inceptionv3: Whether to load Inception V3.
        path: Folder of a SavedModel to load instead.

    Raises:
        UserError: if the network cannot be downloaded or loaded.
    """
    tfgan = _tfgan_module()
    import tensorflow_hub

    handle = path or (INCEPTION_V3 if inceptionv3 else tfgan.eval.INCEPTION_TFHUB)
    try:
        return tensorflow_hub.load(os.path.expanduser(handle))
    # the hub raises URLError, OSError, tf.errors.* or ValueError: it has no error class
    except Exception as error:
        reason = reason_of(error)
        if path:
            message = f'path={path!r} cannot be loaded as a SavedModel: {reason}'
        else:
            message = (
                f'the SavedModel {handle} cannot be downloaded ({reason}): download the .tar.gz on '
                'another machine, unpack it and pass its folder as path'
            )
        raise UserError(message) from error


def run_inception_distributed(
    input_tensor: Any, inception_model: Callable, num_batches: int = 1, inceptionv3: bool = False
) -> dict:
    """Return the features and logits of 8-bit images.

    Args:
        input_tensor: (B, H, W, 3), values from 0 to 255.
        inception_model: The network of `get_inception_model`.
        num_batches: Number of batches in which the network processes the images; must divide B.
        inceptionv3: Whether the network is Inception V3.

    Returns:
        TensorFlow tensors {'pool_3': (B, 2048), 'logits': (B, 1008)}; Inception V3 has no logits
        (None).
    """
    tf, tfgan = tensorflow(), _tfgan_module()
    keys = ('pool_3',) if inceptionv3 else ('pool_3', 'logits')
    images = tf.cast(input_tensor, tf.float32)
    images = images / 255 if inceptionv3 else images / 127.5 - 1  # the range of each network

    def outputs(batch):
        found = inception_model(batch)
        found = {'pool_3': found} if inceptionv3 else found
        return {key: tf.reshape(found[key], (tf.shape(found[key])[0], -1)) for key in keys}

    found = tfgan.eval.run_classifier_fn(
        images,
        classifier_fn=outputs,
        num_batches=num_batches,
        dtypes=dict.fromkeys(keys, tf.float32),
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
        found = run_inception_distributed(images, model, 1, inceptionv3)
        return {key: value.numpy() for key, value in found.items() if value is not None}

    protocol = dict(
        backend='tfgan',
        extractor='Inception V3' if inceptionv3 else 'Inception (2015)',
        feature='pool_3',
        input='[0, 1]' if inceptionv3 else '[-1, 1], resized to 299 pixels within the network',
        weights=results.digest(path) if path else handle,
    )
    return Extractor(protocol, lambda images: in_batches(run, images))


# Extractors and statistics of a config ------------------------------------------------------------

EXTRACTORS = {'tfgan': _tfgan, 'torch_fidelity': torch_fidelity, 'pixels': pixels}
METRICS_BACKENDS = ('none', *EXTRACTORS)


def get_extractor(config: ConfigDict) -> Extractor:
    """Return the extractor `eval.metrics_backend` with its weights.

    Raises:
        UserError: if the weights, or the package that runs the network, are not available.
    """
    return EXTRACTORS[config.eval.metrics_backend](complete(config))


def load_dataset_stats(config: ConfigDict) -> Mapping[str, np.ndarray]:
    """Return TF-GAN's statistics of the config's training set from their file (key 'pool_3').

    Raises:
        UserError: if the file does not exist.
    """
    path = statistics_path(config, Extractor(dict(backend='tfgan'), None), 'train')
    if not path.is_file():
        raise UserError(f'{path} does not exist: create it with python main.py --mode stats')
    return np.load(path)


def check_size(config: ConfigDict, samples: int, reference: int | None = None) -> None:
    """Raise UserError if the metrics of `pixels` would take too much time or memory.

    Features of networks are small enough. Time and memory of the Frechet distance grow with the
    smallest of three numbers: samples, reference images (at most `eval.stats_samples`), and values
    of an image. See `metrics.frechet_distance`.

    Args:
        config: A config.
        samples: Number of samples.
        reference: Number of reference images. None: not known yet, at most `eval.stats_samples`.
    """
    if config.eval.metrics_backend != 'pixels':
        return
    reference = reference or complete(config).eval.stats_samples
    values = config.data.image_size**2 * config.data.num_channels
    size = min(samples, reference, values)
    counted = (
        f'{samples} samples against up to {reference} reference images of {values} values each'
    )
    if size > metrics.LARGEST:
        raise UserError(
            f"config.eval.metrics_backend='pixels': the Frechet distance of {counted} would need a "
            f'matrix of size {size}, expected at most {metrics.LARGEST} (about 3 minutes and 5 GiB '
            'on two cores). Use fewer images, for example '
            f'--config.eval.stats_samples={metrics.LARGEST}, or another backend'
        )
    needed = 8 * values * (samples + reference)  # float32, and a copy while batches are joined
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if needed > memory:
        raise UserError(
            f"config.eval.metrics_backend='pixels': the features of {counted} need "
            f'{needed / 2**30:.1f} GiB, expected at most the {memory / 2**30:.1f} GiB of this '
            'machine. Use fewer images, for example --config.eval.stats_samples=1000, or another '
            'backend'
        )


# Metrics of samples -------------------------------------------------------------------------------


def measure(
    features: dict,
    real: Reference,
    is_splits: int = 1,
    device: str = 'cpu',
    other: Reference | None = None,
) -> dict:
    """Return the metrics of samples by name, and the numbers of samples and reference images.

    Args:
        features: {'pool_3': (n, D)}, with 'logits' (n, classes) for the Inception score.
        real: The images to compare with.
        is_splits: Number of parts over which the Inception score is averaged.
        device: Device on which nearest neighbours are computed.
        other: More real images. The first n are compared with `real` too, as a reference value;
            these metrics have names that begin with 'floor_'.

    Raises:
        UserError: if the features are not all finite.
    """
    samples = features['pool_3']
    if not np.isfinite(samples).all():
        raise UserError('the features of the samples are not all finite')
    if (samples == samples[0]).all():
        logging.warning(
            'All samples have the same features: the model has collapsed, or the weights are not '
            'suitable for this layer.'
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
