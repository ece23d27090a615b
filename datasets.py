"""Images by name: read once into memory as integers, served as batches of numbers in [0, 1].

A batch is a dict of arrays: 'image' (B, H, W, C) float32 and 'label' (B,) int64. With L grey levels, level v becomes v / (L - 1), or
with uniform dequantisation (v + u) / L, u uniform in [0, 1): a density where there were levels. Order, flips and noise follow from
(seed, epoch, position) alone, so that training goes on with the very batch at which it stopped. TensorFlow, which reads the TFDS
data sets, is imported only when one of them is asked for, and never takes a GPU.
"""
import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from errors import UserError


def get_data_scaler(config):
    """From [0, 1] to what networks see: [-1, 1] where `data.centered`, else unchanged."""
    return (lambda x: 2 * x - 1) if config.data.centered else (lambda x: x)


def get_data_inverse_scaler(config):
    """From what networks see back to [0, 1]."""
    return (lambda x: (x + 1) / 2) if config.data.centered else (lambda x: x)


class Images(NamedTuple):
    """Images (N, H, W, C) as grey levels 0 .. levels - 1, and their labels (N,)."""
    images: np.ndarray
    labels: np.ndarray
    levels: int = 256


class ImageArray(np.ndarray):
    """An array that also answers `_numpy()`, as the eager tensors of TensorFlow do, for notebooks that ask for it."""

    def _numpy(self):
        return np.asarray(self)


class Batches:
    """Batches of `images`: one pass that holds every image, or without end (`endless`), one epoch behind the other.

    `shuffle`: each epoch in a new order; `random_flip`: half of the images mirrored; `dequantize`: uniform noise, new in each pass;
    `start`: the first batch, where there is no end.
    """

    def __init__(self, images: Images, batch_size: int, seed: int = 0, endless: bool = False, shuffle: bool = False,
                 random_flip: bool = False, dequantize: bool = False, start: int = 0):
        self.data, self.batch_size, self.seed, self.endless = images, batch_size, seed, endless
        self.shuffle, self.random_flip, self.dequantize, self.start = shuffle, random_flip, dequantize, start
        self.passes = 0
        self._order = functools.lru_cache(maxsize=2)(self._order_of)

    def __len__(self):
        """The number of batches in one pass over the images."""
        return math.ceil(len(self.data.images) / self.batch_size)

    def _rng(self, *position):
        return np.random.default_rng((self.seed, int(self.shuffle), *position))

    def _order_of(self, epoch):
        n = len(self.data.images)
        return self._rng(0, epoch).permutation(n) if self.shuffle else np.arange(n)

    def _collect(self, indices, rng):
        images, labels, levels = self.data
        x = images[indices]
        if self.random_flip:
            x = np.where(rng.random(len(x))[:, None, None, None] < 0.5, x[:, :, ::-1], x)
        x = x.astype(np.float32)
        x = (x + rng.random(x.shape, np.float32)) / levels if self.dequantize else x / (levels - 1)
        return {'image': x.view(ImageArray), 'label': labels[indices]}

    def batch(self, i: int):
        """The i-th batch, from 0, of the sequence without end."""
        epochs, places = np.divmod(np.arange(i * self.batch_size, (i + 1) * self.batch_size), len(self.data.images))
        return self._collect(np.array([self._order(epoch)[place] for epoch, place in zip(epochs, places)]), self._rng(1, i))

    def __iter__(self):
        if self.endless:
            yield from map(self.batch, itertools.count(self.start))
        self.passes += 1
        for i in range(len(self)):
            indices = np.arange(i * self.batch_size, min((i + 1) * self.batch_size, len(self.data.images)))
            yield self._collect(indices, self._rng(2, self.passes, i))


def _digits(config):
    """Scikit-learn's handwritten digits: 1,797 images of 8x8 pixels and 17 grey levels, a fifth of them held out."""
    from sklearn.datasets import load_digits
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.images[order].astype(np.uint8)[..., None], digits.target[order].astype(np.int64)
    held_out = len(order) // 5
    return Images(images[held_out:], labels[held_out:], 17), Images(images[:held_out], labels[:held_out], 17), None


def _tensorflow():
    import tensorflow as tf
    tf.config.set_visible_devices([], 'GPU')
    return tf


def _tfds(name, config):
    """Both splits of a TFDS data set, decoded into memory, and its builder."""
    _tensorflow()
    import tensorflow_datasets as tfds
    directory = config.data.get('tfds_dir') or None
    try:
        builder = tfds.builder(name, data_dir=directory)
        builder.download_and_prepare()
    except Exception as error:  # whatever TFDS or the network raises, the remedy is the same
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f'config.data.dataset={config.data.dataset!r} is not prepared in config.data.tfds_dir='
                        f'{directory or "the default directory of TFDS"!r} and could not be downloaded: {reason[0]}') from error

    def split(key):
        arrays = tfds.as_numpy(builder.as_dataset(split=key, batch_size=-1, shuffle_files=False))
        return Images(arrays['image'], arrays['label'].astype(np.int64))
    return split('train'), split('test'), builder


def central_crop(image, size: int):
    """The middle `size` x `size` pixels of a TensorFlow image (H, W, C)."""
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top:top + size, left:left + size]


def crop_resize(image, resolution: int):
    """The middle square of a TensorFlow image (H, W, C), resized to `resolution` by antialiased bicubic filtering, as uint8."""
    tf = _tensorflow()
    square = central_crop(image, min(image.shape[:2]))
    resized = tf.image.resize(square, (resolution, resolution), antialias=True, method=tf.image.ResizeMethod.BICUBIC)
    return tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8)  # bicubic filters overshoot


def resize_small(image, resolution: int):
    """A TensorFlow image (H, W, C), resized so that its shorter side is `resolution`; float32."""
    tf = _tensorflow()
    scale = resolution / min(image.shape[:2])
    return tf.image.resize(image, [round(side * scale) for side in image.shape[:2]], antialias=True)


class Source(NamedTuple):
    """How to load a data set: config -> (training images, test images, TFDS builder or None); its number of grey levels and its shape."""
    load: callable
    levels: int
    shape: tuple[int, int, int]


SOURCES = {'CIFAR10': Source(functools.partial(_tfds, 'cifar10'), 256, (32, 32, 3)),
           'DIGITS': Source(_digits, 17, (8, 8, 1))}


def get_source(config) -> Source:
    """The data set that `data.dataset` names, in any case; UserError with the known names, or where its shape is not the config's."""
    data = config.data
    if data.dataset.upper() not in SOURCES:
        raise UserError(f'config.data.dataset is {data.dataset!r}: known are {", ".join(SOURCES)}')
    source = SOURCES[data.dataset.upper()]
    height, width, channels = source.shape
    if (data.image_size, data.image_size, data.num_channels) != source.shape:
        raise UserError(f'config.data.image_size={data.image_size} and num_channels={data.num_channels}: the images of '
                        f'{data.dataset} have {height}x{width} pixels and {channels} channel{"s"[:channels - 1]}')
    return source


def get_levels(config) -> int:
    """The number of grey levels of the config's data set: 256 unless it says otherwise."""
    source = SOURCES.get(config.data.dataset.upper())
    return source.levels if source else 256


def get_dataset(config, uniform_dequantization=False, evaluation=False, start=0):
    """(training batches, evaluation batches, TFDS builder or None).

    For training, both go on without end, from training step `start` on: the first shuffled, and flipped where `data.random_flip`; the
    second in order, a batch every `training.eval_freq` steps. For `evaluation`, both are one pass in order and hold every image, the
    last batch being what is left.
    """
    source = get_source(config)
    train, test, builder = source.load(config)
    assert train.levels == test.levels == source.levels, f'{config.data.dataset} is said to have {source.levels} grey levels'
    if evaluation:
        make = functools.partial(Batches, batch_size=config.eval.batch_size, seed=config.seed, dequantize=uniform_dequantization)
        return make(train), make(test), builder
    size = config.training.batch_size
    if len(train.images) < size:
        raise UserError(f'config.training.batch_size is {size}: the training set of {config.data.dataset} has {len(train.images)} images')
    make = functools.partial(Batches, batch_size=size, seed=config.seed, dequantize=uniform_dequantization, endless=True)
    return (make(train, shuffle=True, random_flip=config.data.random_flip, start=start),
            make(test, start=math.ceil(start / config.training.eval_freq)), builder)


def to_uint8(x: np.ndarray, levels: int = 256, dequantized: bool = False) -> np.ndarray:
    """Images in [0, 1] as 8-bit ones of the same shape: each value gets a grey level, level v of L becomes 255 v / (L - 1).

    A value x is level (L - 1) x truncated, as published; where the data were dequantised, level L x truncated, whose inverse that is.
    """
    x = np.clip(x, 0, 1)
    level = np.minimum(np.floor(levels * x), levels - 1) if dequantized else np.floor((levels - 1) * x)
    return np.round(level * (255 / (levels - 1))).astype(np.uint8)
