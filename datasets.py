"""Images by name, as batches of numbers in [0, 1].

A batch is a dict of arrays: 'image' (B, H, W, C) float32 and 'label' (B,) int64. With L grey
levels, level v becomes v / (L - 1), or with uniform dequantization (v + u) / L with u uniform in
[0, 1). The order of an epoch depends on (seed, epoch), the flips and noise of a batch on (seed,
batch number), so training resumes with exactly the batch at which it stopped. (If corrupt images
are skipped, this holds only for the same `data.memory_gib`.) `data` reads the images: data sets
that fit in memory are decoded once, others are prefetched by all CPU cores.
"""

import collections
import functools
import hashlib
import itertools
import json
import math
import pathlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from absl import logging

from configs import defaults
from data import image_sources, torchvision_sets
from data.image_sources import (  # noqa: F401  (where notebooks look for them)
    Images,
    Streamed,
    central_crop,
    crop_resize,
    resize_small,
)
from runtime import distributed
from runtime.errors import UserError


def get_data_scaler(config):
    """From [0, 1] to what networks see: [-1, 1] where `data.centered`, else unchanged."""
    return (lambda x: 2 * x - 1) if config.data.centered else (lambda x: x)


def get_data_inverse_scaler(config):
    """From what networks see back to [0, 1]."""
    return (lambda x: (x + 1) / 2) if config.data.centered else (lambda x: x)


class ImageArray(np.ndarray):
    """An array that also answers `_numpy()`, as the eager tensors of TensorFlow do, for notebooks
    that ask for it.
    """

    def _numpy(self):
        return np.asarray(self)


class Batches:
    """Batches of `images`.

    Args:
        images: The images.
        batch_size: Images in a batch.
        seed: Of the order of images, of flips and of noise.
        shuffle: Whether each epoch has a new order.
        random_flip: Whether half of the images are mirrored.
        dequantize: Whether uniform noise is added, new in each pass.
        start: The number of the first batch of a sequence without end, one epoch after another.
            None: one pass over all images.
        rows: The rows of every batch of such a sequence that are wanted.

    Damaged images, if they may be skipped, are missing from the batches of a pass; in a sequence
    without end, others of the same rows take their places.
    """

    def __init__(
        self,
        images: Images | Streamed,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        random_flip: bool = False,
        dequantize: bool = False,
        start: int | None = None,
        rows: slice = slice(None),
    ):
        self.data, self.batch_size, self.seed, self.start = images, batch_size, seed, start
        self.shuffle, self.random_flip, self.dequantize = shuffle, random_flip, dequantize
        self.rows, self.passes = rows, 0
        self._order = functools.lru_cache(maxsize=2)(self._order_of)

    def __len__(self):
        """The number of batches in one pass over the images."""
        return math.ceil(len(self.data) / self.batch_size)

    def _rng(self, *position):
        return np.random.Generator(np.random.SFC64((self.seed, int(self.shuffle), *position)))

    def _order_of(self, epoch):
        return (
            self._rng(0, epoch).permutation(len(self.data))
            if self.shuffle
            else np.arange(len(self.data))
        )

    def _collect(self, indices, rng, rows=slice(None)):
        images, labels = self.data.read(indices[rows])
        # what is random is drawn for the whole batch, whichever rows of it are wanted
        if self.random_flip:
            flipped = (rng.random(len(indices)) < 0.5)[rows][: len(images)]
            images[flipped] = images[flipped, :, ::-1]
        x = images.astype(np.float32)
        if self.dequantize:
            x += rng.random((len(indices), *x.shape[1:]), np.float32)[rows][: len(x)]
            x /= np.float32(self.data.levels)
        else:
            x /= np.float32(self.data.levels - 1)
        return {'image': x.view(ImageArray), 'label': labels}

    def batch(self, i: int):
        """The i-th batch, from 0, of the sequence without end."""
        places = np.arange(i * self.batch_size, (i + 1) * self.batch_size)
        epochs, places = np.divmod(places, len(self.data))
        indices = np.concatenate(
            [self._order(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs)]
        )
        found, size = self._collect(indices, self._rng(1, i), self.rows), len(indices[self.rows])
        if not len(found['label']):
            raise UserError(f'not one of the {size} images of a training batch could be read')
        return (
            found
            if len(found['label']) == size
            else {key: value[np.arange(size) % len(value)] for key, value in found.items()}
        )

    def part(self, i: int, repeat: int = 0):
        """The i-th batch, from 0, of one pass in order; `repeat` numbers the passes, which differ
        by the noise of dequantisation.
        """
        return self._collect(
            np.arange(i * self.batch_size, min((i + 1) * self.batch_size, len(self.data))),
            self._rng(2, repeat, i),
        )

    def __iter__(self):
        if self.start is not None:
            make, numbers = self.batch, itertools.count(self.start)
        else:
            self.passes += 1
            make, numbers = (
                functools.partial(self.part, repeat=self.passes - 1),
                iter(range(len(self))),
            )
        if isinstance(self.data, Images):  # too quick to gain from other threads
            yield from map(make, numbers)
        else:
            yield from (batch for batch in _ahead(make, numbers) if len(batch['label']))


def _ahead(make, numbers, depth: int = 2):
    """make(i) for each of the numbers, computed by other threads `depth` calls before it is asked
    for.
    """
    with ThreadPoolExecutor(depth, 'batches') as threads:
        pending = collections.deque(
            threads.submit(make, i) for i in itertools.islice(numbers, depth)
        )
        while pending:
            ready = pending.popleft().result()
            pending.extend(threads.submit(make, i) for i in itertools.islice(numbers, 1))
            yield ready


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
        lambda config, split: image_sources.tfds(config, split, full_name(config), **how),
        256,
        shape,
        preparation,
        keys,
        lambda config: image_sources.tfds_builder(config, full_name(config)),
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
        prepare=image_sources.celeba_crop,
        splits=('train', 'validation'),
    ),
    'LSUN': _tfds_source(
        'lsun/{category}',
        preparation='128 pixels: reduced (bilinear, '
        'antialiased), cropped; else the middle '
        'square, '
        'resized (bicubic, antialiased)',
        keys=('category',),
        prepare=image_sources.lsun_crop,
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
    'FFHQ': Source(image_sources.tfrecords, keys=('tfrecords_path',)),
    'CELEBAHQ': Source(image_sources.tfrecords, keys=('tfrecords_path',)),
    'FOLDER': Source(
        image_sources.folder,
        image_sources.folder_levels,
        preparation=CROPPED,
        keys=('path', 'fit', 'test_fraction', 'levels'),
    ),
    'NPZ': Source(
        image_sources.npz,
        image_sources.npz_levels,
        keys=('path', 'test_fraction', 'levels', 'layout'),
    ),
    'DIGITS': Source(image_sources.digits, 17, (8, 8, 1)),
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
        return f'{name}_{stem}_{data.image_size}_{image_sources.digest(data.path)[:6]}'
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
        chosen['files'] = image_sources.digest(data[key])
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
        images = image_sources.in_memory(images, data.memory_gib)
    if not len(images):
        raise UserError(
            f'the {split} set of {data.dataset} has no images that can be read '
            '(config.data.test_fraction is '
            f'{data.test_fraction})'
        )
    return images


class Subset:
    """Those of the `images` that are numbered in `indices`, in that order."""

    def __init__(self, images: Images | Streamed, indices: np.ndarray):
        self.images, self.indices, self.levels, self.classes, self.shape = (
            images,
            indices,
            images.levels,
            get_classes(images),
            images.shape,
        )

    def __len__(self):
        return len(self.indices)

    def read(self, indices):
        return self.images.read(self.indices[indices])


def at_most(images: Images | Streamed, most: int, seed: int) -> Images | Streamed | Subset:
    """All images, or `most` of them, drawn at random from the seed and kept in order; 0: all."""
    if not 0 < most < len(images):
        return images
    return Subset(
        images, np.sort(np.random.default_rng(seed).choice(len(images), most, replace=False))
    )


def has_held_out(config) -> bool:
    """Whether the test set is another than the training set: FFHQ and CelebA-HQ have one set for
    both, as have a folder and an array with a `test_fraction` of 0 and no test set of their own.
    """
    config = defaults.complete(config)
    if 'path' in get_source(config).keys:
        return config.data.test_fraction > 0 or image_sources.has_test_set(config)
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


def get_classes(images) -> tuple[str, ...]:
    """The names of a set's classes in the order of their labels; () where they are not known."""
    names = getattr(images, 'classes', ())
    return names if any(names) else ()


def shown_classes(images: Images | Streamed, most: int = 20) -> str:
    """The names of the classes by label, such as '0: cats, 1: dogs'; '' where there are none."""
    names = get_classes(images)
    shown = [f'{label}: {name or "(no folder)"}' for label, name in enumerate(names[:most])]
    return ', '.join(shown + [f'... (of {len(names)})'] * (len(names) > most))


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


def to_8_bits(images: np.ndarray, levels: int) -> np.ndarray:
    """Grey levels 0 .. levels - 1 spread over 0 .. 255."""
    return images if levels == 256 else np.round(images * (255 / (levels - 1))).astype(np.uint8)


def to_uint8(x: np.ndarray, levels: int = 256, dequantized: bool = False) -> np.ndarray:
    """Images in [0, 1] as 8-bit ones of the same shape: each value gets a grey level, level v of L
    becomes 255 v / (L - 1).

    A value x is level (L - 1) x truncated, as published; where the data were dequantised, level L x
    truncated, whose inverse that is.
    """
    x = np.clip(x, 0, 1)
    level = (
        np.minimum(np.floor(levels * x), levels - 1) if dequantized else np.floor((levels - 1) * x)
    )
    return to_8_bits(level.astype(np.uint8), levels)


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
