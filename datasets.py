"""Images by name, as batches of numbers in [0, 1].

A batch is a dict of arrays: 'image' (B, H, W, C) float32 and 'label' (B,) int64. With L grey
levels, level v becomes v / (L - 1), or with uniform dequantization (v + u) / L with u uniform in
[0, 1). The order of an epoch depends on (seed, epoch), the flips and noise of a batch on (seed,
batch number), so training resumes with exactly the batch at which it stopped. (If corrupt images
are skipped, this holds only for the same `data.memory_gib`.) `data` reads the images: data sets
that fit in memory are decoded once, others are prefetched by all CPU cores.
"""

import functools
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import logging

from configs import defaults
from data import torchvision_sets
from data.arrays import npz, npz_levels
from data.batches import Batches
from data.digits import digits
from data.folders import digest, folder, folder_levels, has_test_set
from data.images import Images, Streamed, get_classes, into_memory, shown_classes
from data.inspection import check_labels
from data.tensorflow_sets import (  # noqa: F401  (where notebooks look for them)
    celeba_crop,
    central_crop,
    crop_resize,
    lsun_crop,
    resize_small,
    tfds,
    tfds_builder,
)
from data.tfrecords import tfrecords
from runtime import distributed
from runtime.errors import UserError


def get_data_scaler(config):
    """From [0, 1] to what networks see: [-1, 1] where `data.centered`, else unchanged."""
    return (lambda x: 2 * x - 1) if config.data.centered else (lambda x: x)


def get_data_inverse_scaler(config):
    """From what networks see back to [0, 1]."""
    return (lambda x: (x + 1) / 2) if config.data.centered else (lambda x: x)


class Source(NamedTuple):
    """A data set: load(config, split) gives the 'train' or 'test' images; its number of grey
    levels, or a function that tells it of a config; the shape of its images, or None where the
    config says it; what is done to its images; the keys of `config.data` that choose among them;
    and the TFDS builder of a config, if there is one.
    """

    load: Callable
    levels: int | Callable = 256
    shape: tuple[int, int, int] | None = None
    preparation: str = 'none'
    keys: tuple = ()
    builder: Callable | None = None


def _tfds_source(name: str, shape=None, preparation: str = 'none', keys=(), **how) -> Source:
    """`name`: that of the data set in TFDS; {category} in it becomes `data.category`."""

    def full_name(config):
        return name.format(category=config.data.category)

    return Source(
        lambda config, split: tfds(config, split, full_name(config), **how),
        256,
        shape,
        preparation,
        keys,
        lambda config: tfds_builder(config, full_name(config)),
    )


def _torchvision_source(name: str, shape=None, preparation: str = 'none') -> Source:
    return Source(functools.partial(torchvision_sets.load, name=name), 256, shape, preparation)


CROPPED = 'the middle square, resized (bicubic, antialiased), or exact'
TFDS = {  # where `data.source` is 'tfds'
    'CIFAR10': _tfds_source('cifar10', (32, 32, 3)),
    'SVHN': _tfds_source('svhn_cropped', (32, 32, 3)),
    'MNIST': _tfds_source('mnist', (28, 28, 1)),
    'FASHIONMNIST': _tfds_source('fashion_mnist', (28, 28, 1)),
    'CELEBA': _tfds_source(
        'celeb_a',
        preparation='middle 140 pixels, reduced (bilinear, antialiased)',
        prepare=celeba_crop,
        splits=('train', 'validation'),
    ),
    'LSUN': _tfds_source(
        'lsun/{category}',
        preparation='128 pixels: reduced (bilinear, '
        'antialiased), cropped; else the middle '
        'square, '
        'resized (bicubic, antialiased)',
        keys=('category',),
        prepare=lsun_crop,
        splits=('train', 'validation'),
    ),
}
TORCHVISION = {  # where it is 'torchvision'
    'CIFAR10': _torchvision_source('CIFAR10', (32, 32, 3)),
    'SVHN': _torchvision_source('SVHN', (32, 32, 3)),
    'MNIST': _torchvision_source('MNIST', (28, 28, 1)),
    'FASHIONMNIST': _torchvision_source('FASHIONMNIST', (28, 28, 1)),
    'CELEBA': _torchvision_source(
        'CELEBA', preparation='middle 140 pixels, reduced (bilinear, antialiased) with Pillow'
    ),
}
SOURCES = {  # where it is ''
    **TFDS,
    'MNIST': TORCHVISION['MNIST'],
    'FASHIONMNIST': TORCHVISION['FASHIONMNIST'],
    'FFHQ': Source(tfrecords, keys=('tfrecords_path',)),
    'CELEBAHQ': Source(tfrecords, keys=('tfrecords_path',)),
    'FOLDER': Source(
        folder,
        folder_levels,
        preparation=CROPPED,
        keys=('path', 'fit', 'test_fraction', 'levels'),
    ),
    'NPZ': Source(
        npz,
        npz_levels,
        keys=('path', 'test_fraction', 'levels', 'layout'),
    ),
    'DIGITS': Source(digits, 17, (8, 8, 1)),
}
OWN = set()  # the names of those that users have registered


def register_dataset(
    load=None, *, name: str | None = None, levels: int = 256, keys: tuple[str, ...] = ()
):
    """Register the function `load` as a data set that `config.data.dataset` can name; usable as a
    decorator.

    Args:
        load: `load(config, split)` with split 'train' or 'test' returns images (n, H, W, C) of
            integers 0 .. levels - 1, H = W = `config.data.image_size` and C =
            `config.data.num_channels`, and their labels (n,).
        name: the name in configs, in any case; that of the function by default.
        levels: number of grey levels.
        keys: keys of `config.data` that only this data set has.

    Raises:
        UserError: if another data set has the name.
    """
    if load is None:
        return functools.partial(register_dataset, name=name, levels=levels, keys=keys)
    key = (name or load.__name__).upper()
    if key in SOURCES and (key not in OWN or _place(SOURCES[key].load) != _place(load)):
        raise UserError(
            f'the data set name {key!r} is taken by '
            f'{".".join(_place(SOURCES[key].load))}: choose another'
        )

    @functools.wraps(load)
    def checked(config, split):
        data, (images, labels) = config.data, load(config, split)
        images, labels = np.asarray(images), np.asarray(labels)
        expected = (len(labels), data.image_size, data.image_size, data.num_channels)
        if (
            images.shape != expected
            or images.dtype.kind not in 'iu'
            or images.size
            and not 0 <= images.min() <= images.max() < levels
        ):
            raise UserError(
                f'the data set {key} must be images {expected} of integers from 0 to '
                f'{levels - 1} with as many labels, got '
                f'{images.dtype} {images.shape} and {len(labels)} labels'
            )
        return Images(
            images.astype(np.uint8 if levels <= 256 else np.uint16), labels.astype(np.int64), levels
        )

    SOURCES[key] = Source(checked, levels, keys=tuple(keys))
    OWN.add(key)
    return load


def _place(fn) -> tuple[str, str]:
    return fn.__module__, fn.__qualname__


# keys that some data sets take, and the values that change nothing
NEUTRAL = dict(levels=0, layout='NHWC')


def _chosen(data) -> Source:
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
            f'config.data.source={data.source!r} has no {data.dataset}, only '
            f'{", ".join(known)}: '
            "set config.data.source='', the default"
        )
    return known[data.dataset.upper()]


def get_source(config) -> Source:
    """Return the data set that `data.dataset` and `data.source` name.

    Raises:
        UserError: if there is no such data set (with the known names), or the config asks for what
            it does not have.
    """
    config = defaults.complete(config)
    data, source = config.data, _chosen(config.data)
    if source.shape and (data.image_size, data.image_size, data.num_channels) != source.shape:
        height, width, channels = source.shape
        raise UserError(
            f'config.data.image_size={data.image_size} and '
            f'num_channels={data.num_channels}: the images of '
            f'{data.dataset} have {height}x{width} pixels and {channels} '
            f'channel{"s"[: channels - 1]}'
        )
    colours = (3,) if data.dataset.upper() in ('CELEBA', 'LSUN') else (1, 3)
    if data.num_channels not in colours:
        raise UserError(
            f'config.data.num_channels must be {" or ".join(map(str, colours))} for '
            f'{data.dataset}, got {data.num_channels}'
        )
    for key in {'path', 'tfrecords_path', 'category'} & set(source.keys):
        if not data[key]:
            raise UserError(
                f'config.data.{key} is empty: set it to '
                + (
                    f'a category of {data.dataset}, such as bedroom or church_outdoor'
                    if key == 'category'
                    else f'the location of the {data.dataset} images'
                )
            )
    for key, known in (
        ('on_error', ('raise', 'skip')),
        ('fit', ('crop', 'exact')),
        ('layout', ('NHWC', 'NCHW')),
    ):
        if data[key] not in known:
            raise UserError(
                f'config.data.{key} must be {" or ".join(map(repr, known))}, got {data[key]!r}'
            )
    for key, default in NEUTRAL.items():
        if data[key] != default and key not in source.keys:
            raise UserError(
                f'config.data.{key} must be {default!r} for {data.dataset}, which does '
                f'not use it, got {data[key]!r}'
            )
    if not 0 <= data.test_fraction < 1:
        raise UserError(f'config.data.test_fraction must be in [0, 1), got {data.test_fraction}')
    return source


def get_levels(config) -> int:
    """The number of grey levels of the config's data set: 256 unless it says otherwise."""
    source = SOURCES.get(config.data.dataset.upper(), Source(None))
    return source.levels(defaults.complete(config)) if callable(source.levels) else source.levels


def get_name(config) -> str:
    """The data set in the name of a file: 'cifar10', 'celeba', 'lsun_bedroom_256' as published;
    'folder_cats_64_1b2c3d' and the like.
    """
    data, name = config.data, config.data.dataset.lower()
    if name == 'lsun':
        return f'lsun_{data.category}_{data.image_size}'
    if name in ('folder', 'npz'):
        place = pathlib.Path(data.path).expanduser().resolve()
        stem = place.name if place.is_dir() else place.stem
        return f'{name}_{stem}_{data.image_size}_{digest(data.path)[:6]}'
    if name.startswith('tfds:'):
        return re.sub(r'\W', '_', f'{name}_{data.image_size}')
    sized = (
        name in ('ffhq', 'celebahq')
        or name.upper() in OWN
        or name == 'celeba'
        and data.image_size != 64
    )
    return f'{name}_{data.image_size}' if sized else name


def describe(config, split: str) -> dict:
    """What the images of a split are, for the protocol of numbers that depend on them."""
    config = defaults.complete(config)
    data, source = config.data, get_source(config)
    chosen = {key: data.get(key) for key in source.keys if key not in ('path', 'tfrecords_path')}
    chosen = {
        key: value
        for key, value in chosen.items()
        if key not in NEUTRAL or value not in (None, NEUTRAL[key])
    }
    for key in {'path', 'tfrecords_path'} & set(source.keys):
        chosen['files'] = digest(data[key])
    if data.dataset.upper() in OWN:  # its function may return other images than before
        images = source.load(config, split)
        chosen['digest'] = hashlib.sha256(
            images.images.tobytes() + images.labels.tobytes()
        ).hexdigest()[:16]
    split = split if has_held_out(config) else 'train'
    return dict(
        dataset=data.dataset.upper(),
        split=split,
        image_size=data.image_size,
        num_channels=data.num_channels,
        preparation=source.preparation,
        **chosen,
    )


def get_split(config, split: str, in_memory: bool = True) -> Images | Streamed:
    """The images of one split, 'train' or 'test', decoded into memory where they take at most
    `data.memory_gib`.
    """
    config = defaults.complete(config)
    data, images = config.data, get_source(config).load(config, split)
    assert images.levels == get_levels(config), (
        f'{data.dataset} is said to have {get_levels(config)} grey levels'
    )
    if in_memory:
        images = into_memory(images, data.memory_gib)
    if not len(images):
        raise UserError(
            f'the {split} set of {data.dataset} has no images that can be read '
            '(config.data.test_fraction is '
            f'{data.test_fraction})'
        )
    return images


def has_held_out(config) -> bool:
    """Whether the test set is another than the training set: FFHQ and CelebA-HQ have one set for
    both, as have a folder and an array with a `test_fraction` of 0 and no test set of their own.
    """
    config = defaults.complete(config)
    if 'path' in get_source(config).keys:
        return config.data.test_fraction > 0 or has_test_set(config)
    return config.data.dataset.upper() not in ('FFHQ', 'CELEBAHQ')


def get_dataset(config, uniform_dequantization=False, evaluation=False, start=0):
    """(training batches, evaluation batches, TFDS builder or None).

    For training, both go on without end, from training step `start` on: the first shuffled, and
    flipped where `data.random_flip`; the second in order, a batch every `training.eval_freq` steps;
    of several processes each gets its own rows of every batch. For `evaluation`, both are one pass
    in order and hold every image, the last batch being what is left.
    """
    config = defaults.complete(config)
    train, test = get_split(config, 'train'), get_split(config, 'test')
    builder = get_source(config).builder
    builder = builder(config) if builder else None
    if evaluation:
        make = functools.partial(
            Batches,
            batch_size=config.eval.batch_size,
            seed=config.seed,
            dequantize=uniform_dequantization,
        )
        return make(train), make(test), builder
    check_labels(config, train)
    warn_of_range(
        config, train.read(np.random.default_rng(0).permutation(len(train))[:64])[0], train.levels
    )
    if text := shown_classes(train):
        logging.info('Found the classes %s.', text)
    size = config.training.batch_size
    if len(train) < size:
        raise UserError(
            f'config.training.batch_size must be at most {len(train)}, the size of the '
            f'training set of {config.data.dataset}, '
            f'got {size}'
        )
    make = functools.partial(
        Batches,
        batch_size=size,
        seed=config.seed,
        dequantize=uniform_dequantization,
        rows=distributed.rows(size),
    )
    return (
        make(train, shuffle=True, random_flip=config.data.random_flip, start=start),
        make(test, start=math.ceil(start / config.training.eval_freq)),
        builder,
    )


def warn_of_range(config, images: np.ndarray, levels: int):
    """Log a warning where images (n, H, W, C) of 0 .. levels - 1 use less than half of that range,
    as 12 of 16 bits do.
    """
    lowest, highest = (int(images.min()), int(images.max())) if images.size else (0, levels - 1)
    if 2 * (highest - lowest) < levels - 1:
        remedy = ': config.data.levels says what white is (4096 for 12-bit images in 16-bit files)'
        logging.warning(
            'Found only grey levels %d to %d of 0 to %d in %d training images%s.',
            lowest,
            highest,
            levels - 1,
            len(images),
            remedy if 'levels' in get_source(config).keys else '',
        )


RECORD = 'data.json'


def record(config, images: Images | Streamed, workdir):
    """Write what a network is trained on to `workdir/data.json`: the data set, and the names of its
    classes in the order of their labels.

    Raises:
        UserError: a network that knows classes was trained here with other classes.
    """
    path, classes, before = (
        pathlib.Path(workdir, RECORD),
        list(get_classes(images)),
        _recorded(workdir).get('classes'),
    )
    if defaults.complete(config).model.num_classes and classes and before and before != classes:
        raise UserError(
            f'{path} has the classes {", ".join(before)}, but the data set has '
            f'{", ".join(classes)}: labels would change '
            'meaning. Restore the original classes, or train in another work directory'
        )
    if distributed.is_main():
        partial = path.with_name(path.name + '.partial')
        partial.write_text(json.dumps(_identity(config) | dict(classes=classes), indent=1) + '\n')
        partial.replace(path)


def check_record(config, checkpoint):
    """Log a warning where the work directory of a checkpoint says that it was trained on another
    data set than the config's.
    """
    found = _recorded(pathlib.Path(checkpoint).absolute().parent.parent)
    others = [
        f'{key} is {found[key]!r} there and {value!r} in the config'
        for key, value in _identity(config).items()
        if found.get(key, value) != value
    ]
    if others:
        logging.warning(
            'Found that %s was trained on another data set: %s.', checkpoint, ', '.join(others)
        )


def _recorded(workdir) -> dict:
    """The content of data.json in a work directory; {} where there is none that can be read."""
    try:
        found = json.loads(pathlib.Path(workdir, RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _identity(config) -> dict:
    """The values that identify a data set, wherever its files lie."""
    data = defaults.complete(config).data
    # `path` of torchvision's files identifies nothing
    source = SOURCES.get(data.dataset.upper(), Source(None))
    names = {
        key: pathlib.Path(data[key]).name
        for key in ('path', 'tfrecords_path', 'category')
        if key in source.keys and data[key]
    }
    return (
        dict(
            dataset=data.dataset.upper(), image_size=data.image_size, num_channels=data.num_channels
        )
        | names
    )
