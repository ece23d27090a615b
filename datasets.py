"""Data sets by name, as batches of images in [0, 1].

    train, test, _ = get_dataset(config)
    x = get_data_scaler(config)(torch.from_numpy(next(iter(train))['image']))

A batch is a dict of arrays: 'image' (B, H, W, C) float32 and 'label' (B,) int64. With L grey
levels, level v becomes v / (L - 1), or (v + u) / L with uniform dequantization, where u is uniform
in [0, 1). The order of an epoch depends on (seed, epoch), the flips and noise of a batch on (seed,
batch number), so training resumes with exactly the batch at which it stopped. (If corrupt images
are skipped, this holds only for the same `data.memory_gib`.) The package `data` reads the images.
Data sets that fit in memory are decoded once; others are prefetched by all CPU cores.
"""

import functools
import hashlib
import math
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from configs import defaults
from data import (
    arrays,
    digits,
    folders,
    inspection,
    settings,
    tensorflow_sets,
    tfrecords,
    torchvision_sets,
)
from data import record as data_record
from data.batches import Batches
from data.images import Images, Streamed, class_names, image_shape, into_memory, shown_classes
from data.tensorflow_sets import central_crop, crop_resize, resize_small  # noqa: F401 (published)
from runtime import distributed
from runtime.errors import UserError


def get_data_scaler(config: ConfigDict) -> Callable:
    """Return the function that maps [0, 1] to the network's range: [-1, 1] if `data.centered`."""
    return (lambda x: 2 * x - 1) if config.data.centered else (lambda x: x)


def get_data_inverse_scaler(config: ConfigDict) -> Callable:
    """Return the function that maps the network's range back to [0, 1]."""
    return (lambda x: (x + 1) / 2) if config.data.centered else (lambda x: x)


class Source(NamedTuple):
    """A data set.

    Attributes:
        load: `load(config, split)` returns the 'train' or 'test' images.
        levels: Number of grey levels, or a function of the config that returns it.
        shape: (H, W, C) of the images, None if the config chooses it.
        preparation: How the images are cropped and resized, in words.
        keys: The keys of `config.data` that only some data sets use, including this one.
        builder: A function of the config that returns the TFDS builder; None if there is none.
        has_test_set: A function of `data.path` that returns whether the files have a test set. If
            not, `data.test_fraction` of the images is held out. None for other data sets.
        registered: Whether it was added by `register_dataset`.
    """

    load: Callable
    levels: int | Callable = 256
    shape: tuple[int, int, int] | None = None
    preparation: str = 'none'
    keys: tuple[str, ...] = ()
    builder: Callable | None = None
    has_test_set: Callable | None = None
    registered: bool = False


def _tfds_source(name: str, shape=None, preparation: str = 'none', keys=(), **settings) -> Source:
    """Return a data set of TFDS; `{category}` in its name is replaced by `data.category`."""

    def full_name(config):
        return name.format(category=config.data.category)

    def load(config, split):
        return tensorflow_sets.load(config, split, full_name(config), **settings)

    def builder(config):
        return tensorflow_sets.get_builder(config, full_name(config))

    return Source(load, 256, shape, preparation, keys, builder)


def _torchvision_source(name: str, shape=None, preparation: str = 'none') -> Source:
    return Source(functools.partial(torchvision_sets.load, name=name), 256, shape, preparation)


CROPPED = 'the middle square, resized (bicubic, antialiased), or exact'
TFDS = {  # for `data.source` 'tfds'
    'CIFAR10': _tfds_source('cifar10', (32, 32, 3)),
    'SVHN': _tfds_source('svhn_cropped', (32, 32, 3)),
    'MNIST': _tfds_source('mnist', (28, 28, 1)),
    'FASHIONMNIST': _tfds_source('fashion_mnist', (28, 28, 1)),
    'CELEBA': _tfds_source(
        'celeb_a',
        preparation='middle 140 pixels, reduced (bilinear, antialiased)',
        prepare=tensorflow_sets.celeba_crop,
        splits=('train', 'validation'),
    ),
    'LSUN': _tfds_source(
        'lsun/{category}',
        preparation='128 pixels: reduced (bilinear, antialiased), cropped; else the middle square, '
        'resized (bicubic, antialiased)',
        keys=('category',),
        prepare=tensorflow_sets.lsun_crop,
        splits=('train', 'validation'),
    ),
}
TORCHVISION = {  # for `data.source` 'torchvision'
    'CIFAR10': _torchvision_source('CIFAR10', (32, 32, 3)),
    'SVHN': _torchvision_source('SVHN', (32, 32, 3)),
    'MNIST': _torchvision_source('MNIST', (28, 28, 1)),
    'FASHIONMNIST': _torchvision_source('FASHIONMNIST', (28, 28, 1)),
    'CELEBA': _torchvision_source(
        'CELEBA', preparation='middle 140 pixels, reduced (bilinear, antialiased) with Pillow'
    ),
}
SOURCES = {  # for `data.source` '', the default
    **TFDS,
    'MNIST': TORCHVISION['MNIST'],
    'FASHIONMNIST': TORCHVISION['FASHIONMNIST'],
    'FFHQ': Source(tfrecords.load, keys=('tfrecords_path',)),
    'CELEBAHQ': Source(tfrecords.load, keys=('tfrecords_path',)),
    'FOLDER': Source(
        folders.load,
        folders.get_levels,
        preparation=CROPPED,
        keys=('path', 'fit', 'test_fraction', 'levels'),
        has_test_set=folders.has_test_set,
    ),
    'NPZ': Source(
        arrays.load,
        arrays.get_levels,
        keys=('path', 'test_fraction', 'levels', 'layout'),
        has_test_set=arrays.has_test_set,
    ),
    'DIGITS': Source(digits.load, 17, (8, 8, 1)),
}


def register_dataset(
    load: Callable | None = None,
    *,
    name: str | None = None,
    levels: int = 256,
    keys: tuple[str, ...] = (),
) -> Callable:
    """Register the function `load` as a data set that `config.data.dataset` can name.

    It can also be used as a decorator.

    Args:
        load: `load(config, split)` with split 'train' or 'test' returns images (n, H, W, C) of
            integers 0 to levels - 1, H = W = `config.data.image_size` and C =
            `config.data.num_channels`, and their labels (n,).
        name: The name in configs, where case is ignored. Default: the name of the function.
        levels: Number of grey levels.
        keys: Keys of `config.data` that only this data set uses.

    Raises:
        UserError: if another data set has the name.
    """
    if load is None:
        return functools.partial(register_dataset, name=name, levels=levels, keys=keys)
    key = (name or load.__name__).upper()
    taken = SOURCES.get(key)
    if taken and not (taken.registered and _place(taken.load) == _place(load)):
        raise UserError(
            f'the data set name {key!r} is taken by {".".join(_place(taken.load))}: choose another'
        )

    @functools.wraps(load)
    def checked(config, split):
        images, labels = map(np.asarray, load(config, split))
        inspection.check_arrays(key, images, (len(labels), *image_shape(config.data)), levels)
        dtype = np.uint8 if levels <= 256 else np.uint16
        return Images(images.astype(dtype), labels.astype(np.int64), levels)

    SOURCES[key] = Source(checked, levels, keys=tuple(keys), registered=True)
    return load


def _place(fn: Callable) -> tuple[str, str]:
    return fn.__module__, fn.__qualname__


def get_source(config: ConfigDict) -> Source:
    """Return the data set that `data.dataset` and `data.source` name.

    Raises:
        UserError: if there is no such data set, or if a key of `config.data` does not suit it.
    """
    data = defaults.complete(config).data
    source = _named(data)
    settings.check_shape(data, source.shape)
    settings.check_values(data, source.keys)
    return source


def _named(data) -> Source:
    """The data set that `data.dataset` and `data.source` name."""
    kind, _, name = data.dataset.partition(':')
    if kind.lower() == 'tfds' and name:
        if data.source not in ('', 'tfds'):
            raise UserError(
                f"config.data.source is {data.source!r}: expected '' or 'tfds' for "
                f'config.data.dataset={data.dataset!r}'
            )
        return _tfds_source(name, preparation=CROPPED, keys=('fit',))
    if data.dataset.upper() not in SOURCES:
        raise UserError(
            f"config.data.dataset must be one of {', '.join(SOURCES)} or 'tfds:NAME' "
            f'(any TFDS data set), got {data.dataset!r}'
        )
    known = {'': SOURCES, 'tfds': TFDS, 'torchvision': TORCHVISION}[data.source]
    if data.dataset.upper() not in known:
        raise UserError(
            f'config.data.source={data.source!r} has no {data.dataset}, only {", ".join(known)}: '
            "set config.data.source='', the default"
        )
    return known[data.dataset.upper()]


def get_levels(config: ConfigDict) -> int:
    """Return the number of grey levels of the config's data set; 256 if that is unknown."""
    source = SOURCES.get(config.data.dataset.upper())
    levels = source.levels if source else 256
    return levels(defaults.complete(config)) if callable(levels) else levels


def get_name(config: ConfigDict) -> str:
    """Return the name of the data set for file names.

    Examples are 'cifar10', 'celeba' and 'lsun_bedroom_256', as in the 2021 release, and
    'folder_cats_64_1b2c3d'.
    """
    data, name = config.data, config.data.dataset.lower()
    if name == 'lsun':
        return f'lsun_{data.category}_{data.image_size}'
    if name in ('folder', 'npz'):
        place = pathlib.Path(data.path).expanduser().resolve()
        stem = place.name if place.is_dir() else place.stem
        return f'{name}_{stem}_{data.image_size}_{folders.digest(data.path)[:6]}'
    if name.startswith('tfds:'):
        return re.sub(r'\W', '_', f'{name}_{data.image_size}')
    sized = name in ('ffhq', 'celebahq') or name == 'celeba' and data.image_size != 64
    return f'{name}_{data.image_size}' if sized or _is_registered(name) else name


def _is_registered(name: str) -> bool:
    source = SOURCES.get(name.upper())
    return source is not None and source.registered


def describe(config: ConfigDict, split: str) -> dict:
    """Describe the images of a split, for the protocol of results computed from them."""
    config = defaults.complete(config)
    data, source = config.data, get_source(config)
    files = [key for key in source.keys if key in ('path', 'tfrecords_path')]
    chosen = {}
    for key in source.keys:
        unchanged = key in settings.NEUTRAL and data.get(key) in (None, settings.NEUTRAL[key])
        if key not in files and not unchanged:
            chosen[key] = data.get(key)
    for key in files:
        chosen['files'] = folders.digest(data[key])
    if source.registered:  # its function may return other images than before
        images = source.load(config, split)
        content = images.images.tobytes() + images.labels.tobytes()
        chosen['digest'] = hashlib.sha256(content).hexdigest()[:16]
    return dict(
        dataset=data.dataset.upper(),
        split=split if has_held_out(config) else 'train',
        image_size=data.image_size,
        num_channels=data.num_channels,
        preparation=source.preparation,
        **chosen,
    )


def get_split(config: ConfigDict, split: str, in_memory: bool = True) -> Images | Streamed:
    """Return the images of a split.

    Args:
        config: The config.
        split: 'train' or 'test'.
        in_memory: Whether to decode the images now if they need at most `data.memory_gib`.
    """
    config = defaults.complete(config)
    data, images = config.data, get_source(config).load(config, split)
    assert images.levels == get_levels(config), (
        f'{data.dataset} must have {get_levels(config)} grey levels'
    )
    if in_memory:
        images = into_memory(images, data.memory_gib)
    if not len(images):
        raise UserError(
            f'the {split} set of {data.dataset} has no images that can be read '
            f'(config.data.test_fraction is {data.test_fraction})'
        )
    return images


def has_held_out(config: ConfigDict) -> bool:
    """Whether the test set differs from the training set.

    FFHQ and CelebA-HQ have one set for both splits. So do a folder and an array without a test set
    if `data.test_fraction` is 0.
    """
    config = defaults.complete(config)
    data, source = config.data, get_source(config)
    if source.has_test_set:
        return data.test_fraction > 0 or source.has_test_set(data.path)
    return data.dataset.upper() not in ('FFHQ', 'CELEBAHQ')


def get_dataset(
    config: ConfigDict,
    uniform_dequantization: bool = False,
    evaluation: bool = False,
    start: int = 0,
) -> tuple[Batches, Batches, Any]:
    """Return the training batches, the evaluation batches, and the TFDS builder or None.

    Args:
        config: The config.
        uniform_dequantization: Whether uniform noise is added to the grey levels.
        evaluation: If True, both pass once over all images in order; the last batch may be smaller.
            If False, both are endless, and each process gets its own rows of every batch. Training
            batches are shuffled, and flipped if `data.random_flip`. Evaluation batches are in
            order; one is used every `training.eval_freq` steps.
        start: The training step to begin with.
    """
    config = defaults.complete(config)
    train, test = get_split(config, 'train'), get_split(config, 'test')
    source = get_source(config)
    builder = source.builder(config) if source.builder else None
    make = functools.partial(Batches, seed=config.seed, dequantize=uniform_dequantization)
    if evaluation:
        size = config.eval.batch_size
        return make(train, size), make(test, size), builder
    inspection.check_labels(train, config.model.num_classes)
    some = train.read(np.random.default_rng(0).permutation(len(train))[:64])[0]
    inspection.warn_of_range(some, train.levels, 'levels' in source.keys)
    if text := shown_classes(train):
        logging.info('Found the classes %s.', text)
    size = config.training.batch_size
    if len(train) < size:
        raise UserError(
            f'config.training.batch_size must be at most {len(train)}, the size of the '
            f'training set of {config.data.dataset}, got {size}'
        )
    rows = distributed.rows(size)
    return (
        make(
            train, size, shuffle=True, random_flip=config.data.random_flip, start=start, rows=rows
        ),
        make(test, size, start=math.ceil(start / config.training.eval_freq), rows=rows),
        builder,
    )


def record(config: ConfigDict, images: Images | Streamed, workdir: str | os.PathLike) -> None:
    """Write a description of the training data to `workdir/data.json`.

    Raises:
        UserError: if a class-conditional network was trained in `workdir` with other classes.
    """
    conditional = bool(defaults.complete(config).model.num_classes)
    data_record.write(workdir, _identity(config), class_names(images), conditional)


def check_record(config: ConfigDict, checkpoint: str | os.PathLike) -> None:
    """Log a warning if a checkpoint was trained on another data set than the config's."""
    workdir = pathlib.Path(checkpoint).absolute().parent.parent
    if others := data_record.differences(workdir, _identity(config)):
        logging.warning(
            'Found that %s was trained on another data set: %s.', checkpoint, ', '.join(others)
        )


def _identity(config) -> dict:
    """Return the values that identify the config's data set, but not the location of its files."""
    source = SOURCES.get(config.data.dataset.upper())
    # for torchvision, `data.path` is only the download folder
    return data_record.identity(defaults.complete(config).data, source.keys if source else ())
