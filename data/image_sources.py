"""Images from where they lie: arrays, folders, zip files, TFRecords, TensorFlow Datasets. Each is a
sequence that is read by index.

A source has a length, the `shape` (H, W, C) of its images, a number of grey `levels` (values 0 ..
levels - 1), and `read(indices)`, which returns images (k, H, W, C) of type uint8 and labels (k,) of
type int64. Reading by index is what makes the order of training a function of (seed, epoch) for
data of any size; it is also how a batch is decoded by all processor cores at once.
"""

import collections
import contextlib
import functools
import glob
import hashlib
import importlib.util
import io
import lzma
import math
import os
import pathlib
import socket
import struct
import sys
import threading
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from configs import defaults
from reports import results
from runtime import interruption
from runtime.errors import UserError

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.webp', '.avif', '.bmp', '.tif', '.tiff', '.gif')
SYSTEM_NAMES = {
    '.ds_store',
    'thumbs.db',
    'desktop.ini',
    '__macosx',
    '@eadir',
    '@recycle',
    '#recycle',
    '$recycle.bin',
    '.thumbnails',
    # what operating systems and network drives leave behind
    '.@__thumb',
    'lost+found',
    'system volume information',
}
SPLITS = {'train': ('train', 'training'), 'test': ('test', 'val', 'valid', 'validation', 'eval')}


class Damaged(UserError):
    """One image or record that cannot be read."""


class Images:
    """Images (N, H, W, C) in memory, as grey levels 0 .. levels - 1, and their labels (N,); the
    names of the `classes`, where known.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        levels: int = 256,
        classes: tuple[str, ...] = (),
    ):
        self.images, self.labels, self.levels, self.classes, self.shape = (
            images,
            labels,
            levels,
            classes,
            images.shape[1:],
        )

    def __len__(self):
        return len(self.images)

    def read(self, indices):
        return np.take(self.images, indices, axis=0), self.labels[indices]


class Streamed:
    """Images that are decoded when they are asked for, by all processor cores: decode(i) returns
    image `shape` and label, or raises Damaged; name(i) says where it lies. With on_error='skip'
    damaged images are left out of what `read` returns, told once each, and collected in `damaged`.
    Tiny ones are better not decoded in `parallel`: Python's lock would be the bottleneck.
    """

    def __init__(
        self,
        decode: Callable[[int], tuple],
        n: int,
        shape: tuple[int, int, int],
        name: Callable[[int], str],
        on_error: str = 'raise',
        levels: int = 256,
        parallel: bool = True,
        classes: tuple[str, ...] = (),
    ):
        self.decode, self.n, self.shape, self.name, self.on_error, self.levels = (
            decode,
            n,
            shape,
            name,
            on_error,
            levels,
        )
        self.classes = classes
        self.run = _pool().map if parallel else map
        self.damaged, self._lock = set(), threading.Lock()

    def __len__(self):
        return self.n

    def _decode(self, i):
        interruption.look()
        try:
            return self.decode(i)
        except Damaged as fault:
            if self.on_error == 'raise':
                raise Damaged(
                    f'{self.name(i)} {fault}; --config.data.on_error=skip leaves such images out'
                ) from fault
            with self._lock:
                if i not in self.damaged:
                    self.damaged.add(i)
                    logging.warning(
                        '%s %s; skipped, %d of %d images so far',
                        self.name(i),
                        fault,
                        len(self.damaged),
                        self.n,
                    )
        except UserError as fault:
            raise UserError(f'{self.name(i)} {fault}') from fault

    def read(self, indices):
        tasks = np.array_split(indices, max(1, min(len(indices), 4 * cores())))
        found = self.run(lambda task: [self._decode(int(i)) for i in task], tasks)
        found = [item for items in found for item in items if item is not None]
        images = (
            np.stack([image for image, _ in found])
            if found
            else np.empty((0, *self.shape), np.uint8)
        )
        return images, np.array([label for _, label in found], np.int64)


def in_memory(source, gib: float) -> Images | Streamed:
    """The source, decoded once where its images take `gib` GiB or less."""
    if isinstance(source, Images) or len(source) * math.prod(source.shape) > gib * 2**30:
        return source
    started, n = time.monotonic(), 0
    images, labels = (
        np.empty((len(source), *source.shape), np.uint8),
        np.empty(len(source), np.int64),
    )
    for start in range(0, len(source), 4096):
        some, their_labels = source.read(np.arange(start, min(start + 4096, len(source))))
        images[n : n + len(some)], labels[n : n + len(some)] = some, their_labels
        n += len(some)
    logging.info(
        'Decoded %d images into memory (%.1f s, %d damaged ones left out).',
        n,
        time.monotonic() - started,
        len(source.damaged),
    )
    return Images(images[:n], labels[:n], source.levels, source.classes)


def _held_out(n: int, data, split: str) -> np.ndarray:
    """The indices of a split of n images, in random order, where `data.test_fraction` of them,
    rounded up, are the test set.
    """
    order, held_out = np.random.default_rng(0).permutation(n), math.ceil(data.test_fraction * n)
    return order if held_out == 0 else order[:held_out] if split == 'test' else order[held_out:]


def _shape(data) -> tuple[int, int, int]:
    return data.image_size, data.image_size, data.num_channels


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


@functools.cache
def _pool():
    """Threads for decoding: the decoders release the interpreter's lock."""
    return ThreadPoolExecutor(cores(), 'decode')


@functools.cache
def _warn_once(message: str):
    """Log a warning, unless the same one has been logged: the files of a set are listed for each
    split and for its digest.
    """
    logging.warning('%s', message)


# Folders and zip files ----------------------------------------------------------------------------


def folder(config, split: str) -> Streamed:
    """The pictures of the folder or zip file `data.path`, in a random order that is always the
    same.

    Sub-folders are classes. Where there are folders called train and test (or else validation),
    these are the splits; otherwise `data.test_fraction` of the pictures are held out, and with 0
    all of them serve for both.
    """
    data = config.data
    names, read, _ = _listing(data.path)
    kinds, folders, splits = _arrangement(names)
    classes = _in_order({name for name, kind in zip(folders, kinds) if kind or not splits})
    chosen = _held_out(len(names), data, split)
    if splits:
        if None in kinds:
            _warn_once(
                f'Left out {kinds.count(None)} pictures of {data.path} that lie outside '
                f'{" and ".join(splits)}.'
            )
        chosen = [i for i in np.random.default_rng(0).permutation(len(names)) if kinds[i] == split]
    if '' in classes and len(classes) > 1:
        outside = sum(name == '' and (kind or not splits) for name, kind in zip(folders, kinds))
        _warn_once(
            f'Found {outside} pictures of {data.path} '
            'outside its class folders: they have the label 0.'
        )
    label_of, to_picture = (
        {name: label for label, name in enumerate(classes)},
        pictures(data, data.levels),
    )

    def decode(i):
        return to_picture(read(names[chosen[i]])), label_of[folders[chosen[i]]]

    return Streamed(
        decode,
        len(chosen),
        _shape(data),
        lambda i: f'{data.path}: {names[chosen[i]]}',
        data.on_error,
        folder_levels(config),
        classes=tuple(classes),
    )


def folder_levels(config) -> int:
    """The grey levels of pictures once decoded: `data.levels`, at most 256; 256 by default."""
    return min(config.data.levels or 256, 256)


def _in_order(classes) -> list[str]:
    """The names of classes in the order of their labels: sorted, by value where all of them are
    numbers; '' (no folder) first.
    """
    numeric = all(name.isascii() and name.isdigit() for name in classes if name)
    return sorted(classes, key=lambda name: (int(name or -1), name) if numeric else name)


def _arrangement(names: list[str]) -> tuple[list[str | None], list[str], list[str]]:
    """How pictures are arranged, by their names.

    Returns: the split of each ('train', 'test', or None: of neither); the folder that is its class
    ('' without any); and what the folders of the splits are called, in lower case, [] without any.
    Splits lie at any one depth, also within the folders of classes, as in images/train/cats/1.png
    or cats/train/1.png; other folders and pictures beside them belong to neither.
    """
    parts = [tuple(name.split('/')) for name in names]
    below = collections.defaultdict(set)  # {folder: lower-case names of the folders in it}
    for place in {path[:-1] for path in parts}:
        for depth in range(len(place)):
            below[place[:depth]].add(place[depth].lower())
    splits = {place: _split_folders(inner) for place, inner in below.items()}
    depth = min((len(place) for place, words in splits.items() if words), default=None)
    if depth is None:
        parts = [name.split('/') for name in _without_common_folders(names)]
        return [None] * len(names), [path[0] if len(path) > 1 else '' for path in parts], []
    splits = {place: words for place, words in splits.items() if words and len(place) == depth}
    common = len(os.path.commonprefix(list(splits)))
    kinds = [
        splits.get(path[:depth], {}).get(path[depth].lower()) if len(path) > depth + 1 else None
        for path in parts
    ]
    classes = [(path[common:depth] + path[depth + 1 : -1] + ('',))[0] for path in parts]
    return kinds, classes, list(dict.fromkeys(word for words in splits.values() for word in words))


def _split_folders(names: set[str]) -> dict[str, str]:
    """{folder: split} among the lower-case names of folders: {'train': 'train', 'val': 'test'}
    etc.; {} unless both splits are there.
    """
    found = {kind: next(filter(names.__contains__, words), None) for kind, words in SPLITS.items()}
    return {word: kind for kind, word in found.items()} if all(found.values()) else {}


def has_test_set(config) -> bool:
    """Whether the folder, zip file or npz file `data.path` brings a test set of its own."""
    if config.data.dataset.upper() == 'NPZ':
        with _arrays(config.data.path) as arrays:
            return any(name in arrays for name in ARRAY_NAMES['test'])
    return bool(_arrangement(_listing(config.data.path)[0])[2])


def read_pictures(path: str, data) -> tuple[list[str], np.ndarray]:
    """The names of the pictures at `path`, a file, a folder or a zip file, sorted, and the pictures
    (n, H, W, C), uint8, with the size and channels of `data`, see `pictures`, and 256 grey levels.
    UserError naming the one that cannot be read.
    """
    data = defaults.complete(ConfigDict(dict(data=data.to_dict()))).data
    levels = data.levels
    file, to_picture = (
        pathlib.Path(path).expanduser(),
        pictures(data, levels if levels > 256 else 0),
    )
    one = file.is_file() and not zipfile.is_zipfile(file)
    names, read = ([file.name], lambda _: file.read_bytes()) if one else _listing(path, path)[:2]

    def decode(name):
        try:
            return to_picture(read(name))
        except (UserError, OSError) as fault:
            raise UserError(
                f'{path}: {name} {getattr(fault, "strerror", None) or fault}'
            ) from fault

    return names, np.stack([decode(name) for name in names])


def _listing(path: str, called: str = ''):
    """The names of the pictures in a folder or zip file, sorted; a function from a name to the
    file's bytes; the size (in a zip file the checksum) of each. `called`: how errors refer to it.
    """
    root, called = pathlib.Path(path).expanduser(), called or f'config.data.path={path!r}'
    if root.is_dir():
        files = _files(root)
        names = _pictures_among(files, called)
        marks = [
            os.stat(files[name]).st_size if os.path.exists(files[name]) else 'a broken link'
            for name in names
        ]

        def read(name):
            try:
                return pathlib.Path(files[name]).read_bytes()
            except OSError as error:
                raise Damaged(f'cannot be read: {error.strerror}') from error
    elif zipfile.is_zipfile(root):
        try:
            archive = zipfile.ZipFile(root)
        except Exception as error:  # a damaged directory makes zipfile raise errors of many kinds
            raise UserError(f'{called} cannot be read as a zip file: {_reason(error)}') from error
        entries = {
            _with_slashes(info.filename): info
            for info in archive.infolist()
            if not info.filename.endswith(('/', '\\'))
        }
        names = _pictures_among(entries, called)
        marks = [entries[name].CRC for name in names]

        def read(name):
            try:
                return archive.read(entries[name])
            except (
                Exception
            ) as error:  # damaged, encrypted, or packed in a way that Python does not know
                raise Damaged(f'cannot be read: {_reason(error)}') from error
    else:
        raise UserError(
            f'{called}: neither a folder nor a zip file'
            if root.exists()
            else f'{called}: not found'
        )
    if not names:
        raise UserError(f'{called} holds no pictures ({", ".join(EXTENSIONS)})')
    return names, read, marks


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _with_slashes(name: str) -> str:
    """The name of a file in a zip file as a path of our own: some are made with backslashes, or
    begin with './'.
    """
    return '/'.join(part for part in name.replace('\\', '/').split('/') if part not in ('', '.'))


def _files(root) -> dict[str, str]:
    """{name: real path} of the files below a folder, links followed, every real file once.

    A file that is reached in several ways has the name without links, if there is one, else the
    first that is found. A link to a folder that it lies in leads nowhere.
    """
    found, links, seen = {}, [], set()
    top = os.path.realpath(root)
    folders = collections.deque([('', top)])
    while folders or links:
        if not folders:  # links come last
            name, place = links.pop(0)
            if not os.path.isdir(place):
                found.setdefault(place, name)
                continue
            if os.path.commonpath([top, place]) == place:
                continue
            folders.append((name + '/', place))
        prefix, place = folders.popleft()
        if place in seen:
            continue
        seen.add(place)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f'{place} cannot be read: {error.strerror}') from error
        for entry in entries:
            if entry.is_symlink():
                links.append((prefix + entry.name, os.path.realpath(entry.path)))
            elif entry.is_dir():
                folders.append((f'{prefix}{entry.name}/', entry.path))
            else:
                found.setdefault(entry.path, prefix + entry.name)
    return {name: place for place, name in found.items()}


def _pictures_among(names, called: str) -> list[str]:
    """Those of the names that end as pictures do, sorted. How many others there are is logged once,
    by their endings, without the files that operating systems leave behind.
    """
    found, others = [], collections.Counter()
    for name in sorted(names):
        parts = name.lower().split('/')
        if SYSTEM_NAMES.intersection(parts) or parts[-1].startswith('._'):
            continue
        if any(part.startswith('.') for part in parts):
            others['hidden'] += 1
        elif parts[-1].endswith(EXTENSIONS):
            found.append(name)
        else:
            others[pathlib.PurePosixPath(parts[-1]).suffix or 'without an ending'] += 1
    if others and found:
        _warn_once(
            f'Left out {others.total()} files of {called} that are not read as pictures: '
            f'{", ".join(f"{count} {ending}" for ending, count in others.most_common(20))}.'
        )
    return found


def digest(path: str) -> str:
    """The first 16 digits of the SHA-256 of what tells the images at `path` from others: names and
    sizes of the pictures in a folder, names and checksums of those in a zip file, the content of an
    array's file, names, sizes and first MiB of the files of a pattern.
    """
    root = pathlib.Path(path).expanduser()
    if root.suffix.lower() in ('.npz', '.npy') and root.is_file():
        return results.digest(root)
    if root.is_dir() or zipfile.is_zipfile(root):
        marks = [f'{name} {mark}' for name, mark in zip(*_listing(path)[::2])]
    else:
        marks = [
            f'{file.name} {file.stat().st_size} {_beginning(file)}'
            for file in sorted(map(pathlib.Path, glob.glob(str(root))))
        ]
    if not marks:
        raise UserError(f'{path!r}: there is no such file')
    # names need not be UTF-8
    return hashlib.sha256('\n'.join(marks).encode(errors='surrogateescape')).hexdigest()[:16]


def _beginning(file, size: int = 2**20) -> str:
    with open(file, 'rb') as content:
        return hashlib.sha256(content.read(size)).hexdigest()


def _without_common_folders(names):
    """Each name without the folders that all of them are in."""
    folders = [name.split('/')[:-1] for name in names]
    common = 0
    for level in zip(*folders):
        if len(set(level)) > 1:
            break
        common += 1
    return ['/'.join(name.split('/')[common:]) for name in names]


def pictures(data, levels: int = 0) -> Callable[[bytes], np.ndarray]:
    """Return a function from the bytes of a picture's file to (H, W, C) of type uint8, with the
    size and channels of `config.data`.

    fit='crop': the middle square, resized by an antialiased bicubic filter. fit='exact': as it is,
    or UserError. What is transparent becomes white. Of several frames the first is taken. `levels`:
    white is the value levels - 1; 0: the largest of the file's type. Up to 256 values stay as they
    are; of 16 bits, `levels` values become 256. The function raises Damaged for whatever the
    decoder cannot read.
    """
    from PIL import Image, UnidentifiedImageError

    size, channels, exact = data.image_size, data.num_channels, data.fit == 'exact'
    mode, white = {1: 'L', 3: 'RGB'}[channels], min(levels or 256, 256) - 1

    def convert(image):
        if image.mode.startswith('I'):  # 16 bits
            image = Image.fromarray(_in_8_bits(np.asarray(image), levels))
        if 'A' in image.mode or 'transparency' in image.info:
            image = image.convert('RGBA')
            image = Image.alpha_composite(
                Image.new('RGBA', image.size, (white, white, white, 255)), image
            )
        if image.mode != mode:
            image = image.convert(mode)
        if white < 255:
            _check_values(np.asarray(image), white + 1)
        if image.size != (size, size):
            if exact:
                raise UserError(
                    f'has {image.width}x{image.height} pixels, config.data.image_size '
                    f'is {size}: '
                    '--config.data.fit=crop takes the middle square of each picture '
                    'and resizes it'
                )
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.resize(
                (size, size), Image.BICUBIC, box=(left, top, left + side, top + side)
            )
        # bicubic filters overshoot
        return np.minimum(np.asarray(image), white).reshape(size, size, channels)

    def decode(content):
        try:
            return convert(_opened(content, levels))
        except UserError:
            raise
        except UnidentifiedImageError as error:
            raise Damaged('is no picture') from error
        except Exception as error:  # Pillow's decoders raise errors of many kinds
            raise Damaged(f'cannot be decoded: {_reason(error)}') from error

    return decode


def _opened(content: bytes, levels: int):
    """The Pillow image in a file, turned as its EXIF data say. Where these alone are damaged, it is
    read without them.
    """
    from PIL import Image

    turns = {
        2: Image.FLIP_LEFT_RIGHT,
        3: Image.ROTATE_180,
        4: Image.FLIP_TOP_BOTTOM,
        5: Image.TRANSPOSE,
        6: Image.ROTATE_270,
        7: Image.TRANSVERSE,
        8: Image.ROTATE_90,
    }

    def load(content):
        image = Image.open(io.BytesIO(content))
        if image.mode == 'F':
            raise Damaged(
                'holds floating-point values; expected whole numbers of 8 or 16 bits: convert it'
            )
        if levels > 256 and ';16' in str(image.tile) and not image.mode.startswith('I'):
            raise Damaged(
                'has several channels of 16 bits, of which only the upper 8 can be '
                f'read: config.data.levels={levels} needs '
                'pictures with one channel of 16 bits, or a 16-bit array '
                '(data.dataset=NPZ)'
            )
        if image.format == 'TIFF':
            # load() would follow its pointers, which may lead anywhere
            image.getexif().get_ifd = lambda tag: {}
        image.load()
        turn = turns.get(image.getexif().get(0x0112))
        return image if turn is None else image.transpose(turn)

    try:
        return load(content)
    except Damaged:
        raise
    except Exception:
        without = _without_exif(content)
        if without == content:
            raise
        return load(without)


def _without_exif(content: bytes) -> bytes:
    """The same file with the EXIF data cut out (PNG), or under a name that decoders pass over."""
    if content.startswith(b'\x89PNG') and b'eXIf' in content:
        start = content.index(b'eXIf') - 4  # length (4 bytes), name (4), data, checksum (4)
        return (
            content[:start]
            + content[start + 12 + int.from_bytes(content[start : start + 4], 'big') :]
        )
    return content.replace(b'Exif', b'none').replace(b'EXIF', b'none')


def _in_8_bits(values: np.ndarray, levels: int) -> np.ndarray:
    """Values 0 .. levels - 1 of 16 bits (levels=0: 65536) as uint8: `levels` of them become 256; up
    to 256 stay as they are.
    """
    levels = levels or 2**16
    _check_values(values, levels)
    if levels <= 256:
        return values.astype(np.uint8, copy=False)
    return (np.arange(levels) * 256 // levels).astype(np.uint8)[values]


def _check_values(values: np.ndarray, levels: int):
    lowest, highest = values.min(initial=0), values.max(initial=0)
    if lowest < 0 or highest >= levels:
        raise Damaged(
            f'has values {f"down to {lowest}" if lowest < 0 else f"up to {highest}"}, '
            f'but {levels} grey levels: expected 0 to '
            f'{levels - 1}, of which the last is white (config.data.levels)'
        )


# Arrays -------------------------------------------------------------------------------------------

ARRAY_NAMES = {
    'train': ('x_train', 'train_images', 'images', 'samples', 'arr_0', 'x'),
    'test': ('x_test', 'test_images'),
}
LABEL_NAMES = {
    'train': ('y_train', 'train_labels', 'labels', 'label', 'y', 'targets', 'target'),
    'test': ('y_test', 'test_labels'),
}


def npz(config, split: str) -> Images:
    """The arrays of the file `data.path`: images (N, H, W, C) or (N, H, W) of type uint8 or uint16,
    labels (N,).

    'x_train' and 'x_test' (with 'y_train', 'y_test') are the splits; of a single array 'images'
    (with 'labels'), `data.test_fraction` is held out. For other names see ARRAY_NAMES and
    LABEL_NAMES; 'arr_1' are the labels of 'arr_0'. The number of grey levels is `data.levels`, or a
    scalar 'levels' in the file; by default all of the type. `data.layout` is 'NHWC', or 'NCHW':
    channels first.
    """
    data = config.data
    with _arrays(data.path) as arrays:
        keys = {kind: _first(names, arrays) for kind, names in ARRAY_NAMES.items()}
        label_keys = {
            kind: _first(names + ('arr_1',) * (keys[kind] == 'arr_0'), arrays)
            for kind, names in LABEL_NAMES.items()
        }
        if keys['train'] is None:
            raise UserError(
                f'config.data.path={data.path!r} has no array called '
                f'{", ".join(ARRAY_NAMES["train"])}: '
                f'it has {", ".join(arrays) or "none"}'
            )
        if unread := set(arrays) - {*keys.values(), *label_keys.values(), 'levels', 'protocol'}:
            _warn_once(
                f'Left out the arrays {", ".join(sorted(unread))} of {data.path}: images '
                f'are read from {keys["train"]!r}, '
                + (
                    f'labels from {label_keys["train"]!r}.'
                    if label_keys['train']
                    else 'and no array holds labels.'
                )
            )
        kind = split if keys['test'] else 'train'
        images, label_key = arrays[keys[kind]], label_keys[kind]
        if label_key is None and config.model.num_classes > 1:
            raise UserError(
                f'config.model.num_classes={config.model.num_classes} needs labels, '
                f'but {data.path} has none for '
                f'{keys[kind]!r}: expected an array called '
                f'{" or ".join(LABEL_NAMES[kind])}'
            )
        labels = (
            _labels(arrays[label_key], label_key, data.path)
            if label_key
            else np.zeros(len(images), np.int64)
        )
        levels = _npz_levels(arrays, data)
    images = _channels_last(images, data, keys[kind])
    if len(labels) != len(images):
        raise UserError(
            f'{data.path}: {label_key!r} has {len(labels)} labels, but {keys[kind]!r} '
            f'has {len(images)} images'
        )
    if images.dtype == np.uint8 and levels > 256:
        raise UserError(
            f'{data.path}: {keys[kind]!r} is uint8, but the number of grey levels is '
            f'{levels}; expected uint16'
        )
    try:
        images = _in_8_bits(images, levels or np.iinfo(images.dtype).max + 1)
    except UserError as fault:
        raise UserError(f'{data.path}: {keys[kind]!r} {fault}') from fault
    if not keys['test']:
        chosen = _held_out(len(images), data, split)
        images, labels = images[chosen], labels[chosen]
    return Images(images, labels, min(levels or 256, 256))


def _first(names, arrays) -> str | None:
    return next((name for name in names if name in arrays), None)


def _channels_last(images: np.ndarray, data, key: str) -> np.ndarray:
    """The images (N, H, W, C) of an array in the layout `data.layout`; UserError where type or
    shape are not those of the config.
    """
    images, shape, expected = (
        images[..., None] if images.ndim == 3 else images,
        images.shape,
        _shape(data),
    )
    first = data.layout.upper() == 'NCHW' and len(shape) == 4
    found = images.transpose(0, 2, 3, 1) if first else images
    if found.dtype in (np.uint8, np.uint16) and found.shape[1:] == expected:
        return found
    wanted = (expected[2], *expected[:2]) if first else expected
    swapped = (
        images.ndim == 4
        and (images.shape[1:] if first else tuple(np.roll(images.shape[1:], -1))) == expected
    )
    remedy = (
        f'. Its channels come {"last" if first else "first"}: set '
        f'--config.data.layout={"NHWC" if first else "NCHW"}' * swapped
    )
    raise UserError(
        f'{data.path}: {key!r} is {images.dtype} of shape {shape}; expected uint8 or '
        'uint16 of shape '
        f'(N, {", ".join(map(str, wanted))}), as config.data says' + remedy
    )


def _labels(labels: np.ndarray, key: str, path: str) -> np.ndarray:
    """Labels (N,) as int64, from shapes (N,) and (N, 1)."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and ((labels != 0).sum(1) == 1).all():
        raise UserError(
            f'{path}: {key!r} of shape {labels.shape} is one-hot; expected the number '
            'of a class for each image, shape '
            f'({len(labels)},). np.argmax({key}, 1) gives it'
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f'{path}: {key!r} is {labels.dtype} of shape {labels.shape}; expected the '
            'number of a class for each image, whole '
            'numbers of shape (N,)'
        )
    return labels.astype(np.int64)


def npz_levels(config) -> int:
    """The grey levels of the images in the file `data.path` once read, at most 256. The file is
    read only if `data.levels` is 0.
    """
    if config.data.levels:
        return min(config.data.levels, 256)
    with _arrays(config.data.path) as arrays:
        return min(_npz_levels(arrays, config.data) or 256, 256)


def _npz_levels(arrays, data) -> int:
    """The number of grey levels that the config or the file says; 0 where neither does."""
    levels, wanted = arrays['levels'] if 'levels' in arrays else np.array(0), data.levels
    if 'levels' in arrays and (
        levels.ndim or not np.issubdtype(levels.dtype, np.integer) or not 2 <= levels <= 2**16
    ):
        raise UserError(
            f"{data.path}: 'levels' is {levels.tolist()!r}; expected a whole number from 2 to 65536"
        )
    if wanted and levels and wanted != levels:
        raise UserError(
            f"config.data.levels is {wanted}, but {data.path} has 'levels' = {levels}: "
            'leave config.data.levels at 0'
        )
    return wanted or int(levels)


@contextlib.contextmanager
def _arrays(path):
    """The arrays of an npz file by name, while the block lasts; what goes wrong in reading them is
    a UserError.
    """
    try:
        arrays = np.load(pathlib.Path(path).expanduser(), allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise UserError(
                f'config.data.path={path!r} holds an array without a name: '
                'np.savez(path, images=array) gives it one'
            )
        with arrays:
            yield arrays
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
        EOFError,
        MemoryError,
        SyntaxError,
        struct.error,
        lzma.LZMAError,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:  # what NumPy and zipfile raise of damaged files
        raise UserError(
            f'config.data.path={path!r} cannot be read as an npz file: {_reason(error)}'
        ) from error


# Records ------------------------------------------------------------------------------------------


class Records:
    """The records of TFRecord files, by index: each is length (8 bytes), its checksum (4), the
    bytes, their checksum (4).

    Where a length is damaged, the next record is looked for within SEARCH bytes, and what lies
    between counts as one damaged record.
    """

    SEARCH = 2**24

    def __init__(self, paths):
        self.paths, places = [os.fspath(path) for path in paths], []
        for k, path in enumerate(self.paths):
            with open(path, 'rb', buffering=0) as file:
                position, end = 0, os.fstat(file.fileno()).st_size
                while position < end:
                    length = _length(os.pread(file.fileno(), 12, position))
                    places.append((k, position, -1 if length is None else length))
                    position = (
                        self._next(file, position, end)
                        if length is None
                        else position + 16 + length
                    )
        self.places = np.array(places, np.int64).reshape(-1, 3)

    def _next(self, file, damaged: int, end: int) -> int:
        """Where the record behind a damaged one begins, or the end of the file."""
        content = os.pread(file.fileno(), self.SEARCH, damaged)
        found = next(
            (
                damaged + k
                for k in range(1, len(content) - 11)
                if _length(content[k : k + 12]) is not None
            ),
            None,
        )
        if found is None and (damaged == 0 or damaged + len(content) < end):
            raise UserError(
                f'{file.name}: at byte {damaged} no record begins; the file is damaged '
                'there or no TFRecord file'
            )
        return found or end

    def __len__(self):
        return len(self.places)

    def name(self, i: int) -> str:
        k, position, _ = self.places[i]
        record = i - np.searchsorted(self.places[:, 0], k)
        return f'{self.paths[k]}: record {record}, at byte {position},'

    def __getitem__(self, i: int) -> bytes:
        k, position, length = map(int, self.places[i])
        if length < 0:
            raise Damaged('has no valid length')
        # opened anew: sets of hundreds of files would exhaust the descriptors
        with open(self.paths[k], 'rb', buffering=0) as file:
            content = os.pread(file.fileno(), length + 4, position + 12)
        if len(content) < length + 4:
            raise Damaged('is cut short')
        if _checksum(content[:-4]) != content[-4:]:
            raise Damaged('does not match its checksum')
        return content[:-4]


def _length(header: bytes) -> int | None:
    """The length of the record that a header of 12 bytes begins, or None where it begins none."""
    return (
        int.from_bytes(header[:8], 'little')
        if len(header) == 12 and _checksum(header[:8]) == header[8:]
        else None
    )


def _checksum(content: bytes) -> bytes:
    """CRC-32C, rotated and offset, as TFRecord files have it."""
    import google_crc32c

    crc = google_crc32c.value(content)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, 'little')


def _examples():
    """A function from the bytes of a tf.train.Example to its features."""
    tensorflow()
    from google.protobuf.message import DecodeError
    from tensorflow.core.example.example_pb2 import Example

    def parse(record):
        try:
            return Example.FromString(record).features.feature
        except DecodeError as error:
            raise Damaged('is no tf.train.Example') from error

    return parse


def tfrecords(config, split: str) -> Streamed:
    """FFHQ and CelebA-HQ as the TFRecord files of StyleGAN: 'shape' int64[3] and 'data', raw bytes
    (C, H, W). One set for both splits.
    """
    data = config.data
    paths = sorted(glob.glob(os.path.expanduser(data.tfrecords_path)))
    if not paths:
        raise UserError(
            f'config.data.tfrecords_path={data.tfrecords_path!r}: there is no such file'
        )
    records, parse, expected = (
        Records(paths),
        _examples(),
        [data.num_channels, data.image_size, data.image_size],
    )

    def decode(i):
        features = parse(records[i])
        shape, content = (
            list(features['shape'].int64_list.value),
            b''.join(features['data'].bytes_list.value),
        )
        if len(shape) != 3 or np.prod(shape) != len(content):
            raise Damaged(f"holds {len(content)} bytes of 'data' for a 'shape' of {shape}")
        if shape != expected:
            raise UserError(
                f'has shape {shape}, the config asks for {expected}: take the file of '
                'that resolution'
            )
        return np.frombuffer(content, np.uint8).reshape(shape).transpose(1, 2, 0), 0

    return Streamed(decode, len(records), _shape(data), records.name, data.on_error)


# TensorFlow Datasets ------------------------------------------------------------------------------


@functools.cache
def tensorflow():
    """TensorFlow, which never takes a GPU, with the Keras that its other packages were written
    for.
    """
    os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
    # behind TensorFlow, where PyTorch imports it, it crashes
    if 'tensorflow' not in sys.modules and importlib.util.find_spec('triton'):
        importlib.import_module('triton')
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise UserError(
            'TensorFlow is not installed: pip install -e ".[tensorflow]". To do '
            'without it use config.data.source=torchvision '
            'or data of your own, and config.eval.metrics_backend=torch_fidelity or '
            'pixels'
        ) from error
    tf.config.set_visible_devices([], 'GPU')
    return tf


def require_network(host: str = 'storage.googleapis.com'):
    """Raise OSError if `host` cannot be resolved and there is no proxy: a download would try for
    minutes.

    The default is where TFDS looks first, for any data set.
    """
    if not urllib.request.getproxies():
        socket.getaddrinfo(host, 443)


def tfds_builder(config, name: str):
    """The builder of a TFDS data set, downloaded and prepared; UserError where that cannot be."""
    tensorflow()
    import tensorflow_datasets as tfds

    directory = config.data.tfds_dir or None
    try:
        builder = tfds.builder(name, data_dir=directory)
        if not pathlib.Path(builder.data_dir).is_dir():
            require_network()
        builder.download_and_prepare()
    except Exception as error:  # whatever TFDS or the network raises, the remedy is the same
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f'config.data.dataset={config.data.dataset!r} is not prepared in '
            'config.data.tfds_dir='
            f'{directory or "the default directory of TFDS"!r} and could not be '
            f'downloaded: {reason[0]}. Set data.tfds_dir '
            'to a folder where TFDS has prepared it, or give your own copy as '
            'data.path with data.dataset=NPZ (arrays) or '
            'FOLDER (pictures)'
        ) from error
    return builder


def tfds(config, split: str, name: str, prepare=None, splits=('train', 'test')) -> Streamed:
    """Return a split of a TFDS data set: its feature 'image', and its feature 'label' if that is a
    whole number, else label 0.

    Args:
        config: The completed config.
        split: 'train' or 'test'.
        name: The name of the data set in TFDS.
        prepare: `prepare(image, size)` brings TensorFlow images to their size. Default: see
            `pictures`.
        splits: The names of 'train' and 'test' in TFDS.

    Raises:
        UserError: if the data set is not there and cannot be downloaded, or has no such split, or
            no images.
    """
    data, builder = config.data, tfds_builder(config, name)
    split, features = dict(zip(('train', 'test'), splits))[split], builder.info.features
    if split not in builder.info.splits:
        raise UserError(
            f'config.data.dataset={data.dataset!r} needs a split {split!r}: TFDS has '
            f'{", ".join(builder.info.splits)}. '
            'Save its images as an NPZ file or in folders, and set '
            'config.data.dataset=NPZ or FOLDER'
        )
    if 'image' not in features or len(features['image'].shape or ()) != 3:
        raise UserError(
            f"config.data.dataset={data.dataset!r} needs a feature 'image' of shape "
            f'(H, W, C): TFDS has {", ".join(features)}. '
            'Save its images as an NPZ file or in folders, and set '
            'config.data.dataset=NPZ or FOLDER'
        )
    labelled = (
        'label' in features
        and features['label'].shape == ()
        and np.issubdtype(features['label'].np_dtype, np.integer)
    )
    info = builder.info.splits[split]
    if builder.info.file_format.value == 'tfrecord':
        records = Records(info.filepaths)
        name_of = records.name
    else:  # array_record is the other format that is read by index
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        records = ArrayRecordDataSource([os.fspath(path) for path in info.filepaths])

        def name_of(i):
            return f'{info.filepaths[0].parent}: record {i}'

    parse, to_picture = (
        _examples(),
        _tf_pictures(prepare, data.image_size) if prepare else pictures(data),
    )

    def decode(i):
        example = parse(records[i])
        label = sum(example['label'].int64_list.value) if labelled else 0
        return to_picture(b''.join(example['image'].bytes_list.value)), label

    return Streamed(
        decode,
        len(records),
        _shape(data),
        name_of,
        data.on_error,
        parallel=(features['image'].shape[0] or 64) >= 64,
    )


def _tf_pictures(prepare, size: int):
    """The same with TensorFlow's decoder and filters, which the statistics of the published data
    sets were made with.
    """
    tf = tensorflow()

    def decode(content):
        try:
            image = tf.io.decode_image(content, channels=3, expand_animations=False)
        except Exception as error:  # TensorFlow's decoders raise errors of several kinds
            raise Damaged('holds no picture that can be decoded') from error
        return np.clip(np.round(prepare(image, size).numpy()), 0, 255).astype(np.uint8)

    return decode


def central_crop(image, size: int):
    """The middle `size` x `size` pixels of a TensorFlow image (H, W, C)."""
    height, width = _sides(image)
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def crop_resize(image, resolution: int):
    """The middle square of a TensorFlow image (H, W, C), resized to `resolution` by antialiased
    bicubic filtering, as uint8.
    """
    tf = tensorflow()
    height, width = _sides(image)
    square = central_crop(
        image, min(height, width) if isinstance(height, int) else tf.minimum(height, width)
    )
    resized = tf.image.resize(
        square, (resolution, resolution), antialias=True, method=tf.image.ResizeMethod.BICUBIC
    )
    return tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8)  # bicubic filters overshoot


def resize_small(image, resolution: int):
    """A TensorFlow image (H, W, C), resized so that its shorter side is `resolution`; float32."""
    tf = tensorflow()
    sides = tf.cast(tf.stack(_sides(image)), tf.float32)
    new = tf.cast(tf.round(sides * (resolution / tf.reduce_min(sides))), tf.int32)
    return tf.image.resize(image, new, antialias=True)


def _sides(image):
    """Height and width: numbers where they are known, tensors inside a graph where they are not."""
    height, width = image.shape[:2]
    return (
        (height, width)
        if height and width
        else tuple(tensorflow().shape(image)[:2][k] for k in range(2))
    )


def celeba_crop(image, size: int):
    """CelebA as in the paper's configs: the middle 140 x 140 pixels, reduced."""
    return resize_small(central_crop(image, 140), size)


def lsun_crop(image, size: int):
    """LSUN: at 128 pixels reduced, then cropped; otherwise the middle square, resized by a bicubic
    filter.
    """
    return (
        central_crop(resize_small(image, size), size) if size == 128 else crop_resize(image, size)
    )


# Scikit-learn's digits ----------------------------------------------------------------------------


def digits(config, split: str) -> Images:
    """Scikit-learn's handwritten digits: 1,797 images of 8x8 pixels and 17 grey levels, a fifth of
    them held out.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    held_out = len(order) // 5
    chosen = order[:held_out] if split == 'test' else order[held_out:]
    return Images(
        data.images[chosen].astype(np.uint8)[..., None], data.target[chosen].astype(np.int64), 17
    )
