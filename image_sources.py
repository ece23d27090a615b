"""Images from where they lie: arrays, folders, zip files, TFRecords, TensorFlow Datasets. Each is a sequence that is read by index.

A source has a length, the `shape` (H, W, C) of its images, a number of grey `levels` (values 0 .. levels - 1), and `read(indices)`,
which returns images (k, H, W, C) of type uint8 and labels (k,) of type int64. Reading by index is what makes the order of training a
function of (seed, epoch) for data of any size; it is also how a batch is decoded by all processor cores at once.
"""
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

import interruption
import results
from errors import UserError

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.webp')
SPLITS = {'train': ('train', 'training'), 'test': ('test', 'val', 'valid', 'validation', 'eval')}


class Damaged(UserError):
    """One image or record that cannot be read."""


class Images:
    """Images (N, H, W, C) in memory, as grey levels 0 .. levels - 1, and their labels (N,)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, levels: int = 256):
        self.images, self.labels, self.levels, self.shape = images, labels, levels, images.shape[1:]

    def __len__(self):
        return len(self.images)

    def read(self, indices):
        return np.take(self.images, indices, axis=0), self.labels[indices]


class Streamed:
    """Images that are decoded when they are asked for, by all processor cores: decode(i) returns image `shape` and label, or raises
    Damaged; name(i) says where it lies. With on_error='skip' damaged images are left out of what `read` returns, told once each, and
    collected in `damaged`. Tiny ones are better not decoded in `parallel`: Python's lock would be the bottleneck."""

    def __init__(self, decode: Callable[[int], tuple], n: int, shape: tuple[int, int, int], name: Callable[[int], str],
                 on_error: str = 'raise', levels: int = 256, parallel: bool = True):
        self.decode, self.n, self.shape, self.name, self.on_error, self.levels = decode, n, shape, name, on_error, levels
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
                raise Damaged(f'{self.name(i)} {fault}; --config.data.on_error=skip leaves such images out') from fault
            with self._lock:
                if i not in self.damaged:
                    self.damaged.add(i)
                    logging.warning('%s %s; skipped, %d of %d images so far', self.name(i), fault, len(self.damaged), self.n)
        except UserError as fault:
            raise UserError(f'{self.name(i)} {fault}') from fault

    def read(self, indices):
        tasks = np.array_split(indices, max(1, min(len(indices), 4 * cores())))
        found = self.run(lambda task: [self._decode(int(i)) for i in task], tasks)
        found = [item for items in found for item in items if item is not None]
        images = np.stack([image for image, _ in found]) if found else np.empty((0, *self.shape), np.uint8)
        return images, np.array([label for _, label in found], np.int64)


def in_memory(source, gib: float) -> Images | Streamed:
    """The source, decoded once where its images take `gib` GiB or less."""
    if isinstance(source, Images) or len(source) * math.prod(source.shape) > gib * 2**30:
        return source
    started, n = time.monotonic(), 0
    images, labels = np.empty((len(source), *source.shape), np.uint8), np.empty(len(source), np.int64)
    for start in range(0, len(source), 4096):
        some, their_labels = source.read(np.arange(start, min(start + 4096, len(source))))
        images[n:n + len(some)], labels[n:n + len(some)] = some, their_labels
        n += len(some)
    logging.info('Decoded %d images into memory (%.1f s, %d damaged ones left out).', n, time.monotonic() - started, len(source.damaged))
    return Images(images[:n], labels[:n], source.levels)


def _held_out(n: int, data, split: str) -> np.ndarray:
    """The indices of a split of n images, in random order, where `data.test_fraction` of them, rounded up, are the test set."""
    order, held_out = np.random.default_rng(0).permutation(n), math.ceil(data.get('test_fraction', 0.1) * n)
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


# Folders and zip files ---------------------------------------------------------------------------------------------------------------


def folder(config, split: str) -> Streamed:
    """The pictures of the folder or zip file `data.path`, in an order that is random and always the same.

    Sub-folders are classes. Where there are folders called train and test (or else validation), these are the splits; otherwise
    `data.test_fraction` of the pictures are held out, and with 0 all of them serve for both.
    """
    data = config.data
    names, read, _ = _listing(data.path)
    parts = [name.split('/') for name in _without_common_folders(names)]
    split_of = _split_folders(parts)
    kinds = [split_of.get(path[0].lower()) if len(path) > 1 else None for path in parts]
    given = bool(split_of)
    labelled = [path[1:] if given else path for path in parts]
    classes = sorted({path[0] if len(path) > 1 else '' for path, kind in zip(labelled, kinds) if kind or not given})
    chosen = _held_out(len(names), data, split)
    if given:
        if None in kinds:
            logging.warning('%s: %d pictures lie outside %s and do not count.', data.path, kinds.count(None), ' and '.join(split_of))
        chosen = [i for i in np.random.default_rng(0).permutation(len(names)) if kinds[i] == split]
    label_of, to_picture = {name: label for label, name in enumerate(classes)}, pictures(data)

    def decode(i):
        path = labelled[chosen[i]]
        return to_picture(read(names[chosen[i]])), label_of[path[0] if len(path) > 1 else '']
    return Streamed(decode, len(chosen), _shape(data), lambda i: f'{data.path}: {names[chosen[i]]}', data.get('on_error', 'raise'))


def _split_folders(parts) -> dict[str, str]:
    """{folder: split} of names that are split at '/': {'train': 'train', 'val': 'test'} and the like; {} unless there are both splits."""
    tops = {path[0].lower() for path in parts if len(path) > 1}
    found = {kind: next(filter(tops.__contains__, words), None) for kind, words in SPLITS.items()}
    return {word: kind for kind, word in found.items()} if all(found.values()) else {}


def has_test_set(config) -> bool:
    """Whether the folder, zip file or npz file `data.path` brings a test set of its own."""
    if config.data.dataset.upper() == 'NPZ':
        with _arrays(config.data.path) as arrays:
            return any(name in arrays for name in ARRAY_NAMES['test'])
    return bool(_split_folders([name.split('/') for name in _without_common_folders(_listing(config.data.path)[0])]))


def read_pictures(path: str, data) -> tuple[list[str], np.ndarray]:
    """The names of the pictures at `path`, a file, a folder or a zip file, sorted, and the pictures (n, H, W, C), uint8, with the size and
    channels of `data`, see `pictures`. UserError naming the one that cannot be read."""
    file, to_picture = pathlib.Path(path).expanduser(), pictures(data)
    one = file.is_file() and not zipfile.is_zipfile(file)
    names, read = ([file.name], lambda _: file.read_bytes()) if one else _listing(path, path)[:2]

    def decode(name):
        try:
            return to_picture(read(name))
        except (UserError, OSError) as fault:
            raise UserError(f'{path}: {name} {getattr(fault, "strerror", None) or fault}') from fault
    return names, np.stack([decode(name) for name in names])


def _listing(path: str, called: str = ''):
    """The names of the pictures in a folder or zip file, sorted; a function from a name to the file's bytes; the size (in a zip file the
    checksum) of each."""
    def is_picture(name):
        return name.lower().endswith(EXTENSIONS) and not any(part.startswith(('.', '__MACOSX')) for part in name.split('/'))

    root, called = pathlib.Path(path).expanduser(), called or f'config.data.path={path!r}'
    if root.is_dir():
        files = (pathlib.Path(place, file) for place, _, files in os.walk(root, followlinks=True) for file in files)
        marks = {name: file.stat().st_size if file.exists() else 'a broken link' for file in files
                 for name in [file.relative_to(root).as_posix()] if is_picture(name)}

        def read(name):
            try:
                return (root / name).read_bytes()
            except OSError as error:
                raise Damaged(f'cannot be read: {error.strerror}') from error
    elif zipfile.is_zipfile(root):
        try:
            archive = zipfile.ZipFile(root)
        except zipfile.BadZipFile as error:
            raise UserError(f'{called} cannot be read as a zip file: {error}') from error
        marks = {info.filename: info.CRC for info in archive.infolist() if is_picture(info.filename)}

        def read(name):
            try:
                return archive.read(name)
            except (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
                raise Damaged(f'cannot be read: {error}') from error
    else:
        raise UserError(f'{called} is neither a folder nor a zip file')
    if not marks:
        raise UserError(f'{called} holds no pictures ({", ".join(EXTENSIONS)})')
    names = sorted(marks)
    return names, read, [marks[name] for name in names]


def digest(path: str) -> str:
    """The first 16 digits of the SHA-256 of what tells the images at `path` from others: names and sizes of the pictures in a folder,
    names and checksums of those in a zip file, the content of an array's file, names, sizes and first MiB of the files of a pattern."""
    root = pathlib.Path(path).expanduser()
    if root.suffix.lower() in ('.npz', '.npy') and root.is_file():
        return results.digest(root)
    if root.is_dir() or zipfile.is_zipfile(root):
        marks = [f'{name} {mark}' for name, mark in zip(*_listing(path)[::2])]
    else:
        marks = [f'{file.name} {file.stat().st_size} {_beginning(file)}' for file in sorted(map(pathlib.Path, glob.glob(str(root))))]
    if not marks:
        raise UserError(f'{path!r}: there is no such file')
    return hashlib.sha256('\n'.join(marks).encode()).hexdigest()[:16]


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


def pictures(data) -> Callable[[bytes], np.ndarray]:
    """A function from the bytes of a png, jpg or webp file to (H, W, C) of type uint8, with the size and channels of `config.data`.

    fit='crop': the middle square, resized by an antialiased bicubic filter. fit='exact': as it is, or UserError. What is transparent
    becomes white.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError
    size, channels, exact = data.image_size, data.num_channels, data.get('fit', 'crop') == 'exact'
    mode = {1: 'L', 3: 'RGB'}[channels]

    def decode(content):
        try:
            image = Image.open(io.BytesIO(content))
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
        except UnidentifiedImageError as error:
            raise Damaged('is no picture') from error
        except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
            raise Damaged(f'cannot be decoded: {error}') from error
        if image.mode.startswith('I'):  # 16 bits
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if 'A' in image.mode or 'transparency' in image.info:
            image = image.convert('RGBA')
            image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
        if image.mode != mode:
            image = image.convert(mode)
        if image.size != (size, size):
            if exact:
                raise UserError(f'has {image.width}x{image.height} pixels, config.data.image_size is {size}: '
                                '--config.data.fit=crop takes the middle square of each picture and resizes it')
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.resize((size, size), Image.BICUBIC, box=(left, top, left + side, top + side))
        return np.asarray(image).reshape(size, size, channels)
    return decode


# Arrays ------------------------------------------------------------------------------------------------------------------------------

ARRAY_NAMES = {'train': ('x_train', 'train_images', 'images', 'samples', 'arr_0'), 'test': ('x_test', 'test_images')}
LABEL_NAMES = {'train': ('y_train', 'train_labels', 'labels'), 'test': ('y_test', 'test_labels')}


def npz(config, split: str) -> Images:
    """The arrays of the file `data.path`: images (N, H, W, C) or (N, H, W) of type uint8, labels (N,).

    'x_train' and 'x_test' (with 'y_train', 'y_test') are the splits; of a single array 'images' (with 'labels'), `data.test_fraction` is
    held out. A scalar 'levels' tells the number of grey levels, if it is not 256.
    """
    data = config.data
    with _arrays(data.path) as arrays:
        keys = {kind: next((name for name in names if name in arrays), None) for kind, names in ARRAY_NAMES.items()}
        if keys['train'] is None:
            raise UserError(f'config.data.path={data.path!r} has no array called {", ".join(ARRAY_NAMES["train"])}: '
                            f'it has {", ".join(arrays) or "none"}')
        kind = split if keys['test'] else 'train'
        images = arrays[keys[kind]]
        label_key = next((name for name in LABEL_NAMES[kind] if name in arrays), None)
        labels = arrays[label_key].reshape(-1) if label_key else np.zeros(len(images), np.int64)
    images = images[..., None] if images.ndim == 3 else images
    expected = _shape(data)
    if images.dtype != np.uint8 or images.shape[1:] != expected or len(labels) != len(images):
        raise UserError(f'{data.path}: {keys[kind]!r} is {images.dtype} of shape {images.shape} with {len(labels)} labels; expected uint8 '
                        f'of shape (N, {", ".join(map(str, expected))}), as config.data says, with a label each or none')
    levels = npz_levels(config)
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f'{data.path}: {label_key!r} is {labels.dtype}; expected the number of a class for each image')
    if images.max(initial=0) >= levels:
        raise UserError(f'{data.path}: {keys[kind]!r} has values up to {images.max()}, but {levels} grey levels')
    if not keys['test']:
        chosen = _held_out(len(images), data, split)
        images, labels = images[chosen], labels[chosen]
    return Images(images, labels.astype(np.int64), levels)


def npz_levels(config) -> int:
    """The number of grey levels that the file `data.path` tells, or 256."""
    with _arrays(config.data.path) as arrays:
        levels = arrays['levels'] if 'levels' in arrays else np.array(256)
        if levels.ndim or not np.issubdtype(levels.dtype, np.integer) or not 2 <= levels <= 256:
            raise UserError(f"{config.data.path}: 'levels' is {levels.tolist()!r}; expected a whole number from 2 to 256")
        return int(levels)


@contextlib.contextmanager
def _arrays(path):
    """The arrays of an npz file by name, while the block lasts; what goes wrong in reading them is a UserError."""
    try:
        arrays = np.load(pathlib.Path(path).expanduser(), allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise UserError(f'config.data.path={path!r} holds an array without a name: np.savez(path, images=array) gives it one')
        with arrays:
            yield arrays
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'config.data.path={path!r} cannot be read as an npz file: {error}') from error


# Records -----------------------------------------------------------------------------------------------------------------------------


class Records:
    """The records of TFRecord files, by index: each is length (8 bytes), its checksum (4), the bytes, their checksum (4).

    Where a length is damaged, the next record is looked for within SEARCH bytes, and what lies between counts as one damaged record.
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
                    position = self._next(file, position, end) if length is None else position + 16 + length
        self.places = np.array(places, np.int64).reshape(-1, 3)

    def _next(self, file, damaged: int, end: int) -> int:
        """Where the record behind a damaged one begins, or the end of the file."""
        content = os.pread(file.fileno(), self.SEARCH, damaged)
        found = next((damaged + k for k in range(1, len(content) - 11) if _length(content[k:k + 12]) is not None), None)
        if found is None and (damaged == 0 or damaged + len(content) < end):
            raise UserError(f'{file.name}: at byte {damaged} no record begins; the file is damaged there or no TFRecord file')
        return found or end

    def __len__(self):
        return len(self.places)

    def name(self, i: int) -> str:
        k, position, _ = self.places[i]
        return f'{self.paths[k]}: record {i - np.searchsorted(self.places[:, 0], k)}, at byte {position},'

    def __getitem__(self, i: int) -> bytes:
        k, position, length = map(int, self.places[i])
        if length < 0:
            raise Damaged('has no valid length')
        with open(self.paths[k], 'rb', buffering=0) as file:  # opened anew: sets of hundreds of files would exhaust the descriptors
            content = os.pread(file.fileno(), length + 4, position + 12)
        if len(content) < length + 4:
            raise Damaged('is cut short')
        if _checksum(content[:-4]) != content[-4:]:
            raise Damaged('does not match its checksum')
        return content[:-4]


def _length(header: bytes) -> int | None:
    """The length of the record that a header of 12 bytes begins, or None where it begins none."""
    return int.from_bytes(header[:8], 'little') if len(header) == 12 and _checksum(header[:8]) == header[8:] else None


def _checksum(content: bytes) -> bytes:
    """CRC-32C, rotated and offset, as TFRecord files have it."""
    import google_crc32c
    crc = google_crc32c.value(content)
    return (((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff).to_bytes(4, 'little')


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
    """FFHQ and CelebA-HQ as the TFRecord files of StyleGAN: 'shape' int64[3] and 'data', raw bytes (C, H, W). One set for both splits."""
    data = config.data
    paths = sorted(glob.glob(os.path.expanduser(data.tfrecords_path)))
    if not paths:
        raise UserError(f'config.data.tfrecords_path={data.tfrecords_path!r}: there is no such file')
    records, parse, expected = Records(paths), _examples(), [data.num_channels, data.image_size, data.image_size]

    def decode(i):
        features = parse(records[i])
        shape, content = list(features['shape'].int64_list.value), b''.join(features['data'].bytes_list.value)
        if len(shape) != 3 or np.prod(shape) != len(content):
            raise Damaged(f"holds {len(content)} bytes of 'data' for a 'shape' of {shape}")
        if shape != expected:
            raise UserError(f'has shape {shape}, the config asks for {expected}: take the file of that resolution')
        return np.frombuffer(content, np.uint8).reshape(shape).transpose(1, 2, 0), 0
    return Streamed(decode, len(records), _shape(data), records.name, data.get('on_error', 'raise'))


# TensorFlow Datasets -----------------------------------------------------------------------------------------------------------------


@functools.cache
def tensorflow():
    """TensorFlow, which never takes a GPU, with the Keras that its other packages were written for."""
    os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
    if 'tensorflow' not in sys.modules and importlib.util.find_spec('triton'):  # behind TensorFlow, where PyTorch imports it, it crashes
        importlib.import_module('triton')
    import tensorflow as tf
    tf.config.set_visible_devices([], 'GPU')
    return tf


def _require_network():
    """OSError where no name can be resolved and there is no proxy: TFDS would try for minutes."""
    if not urllib.request.getproxies():
        socket.getaddrinfo('storage.googleapis.com', 443)  # where TFDS looks first, for any data set


def tfds_builder(config, name: str):
    """The builder of a TFDS data set, downloaded and prepared; UserError where that cannot be."""
    tensorflow()
    import tensorflow_datasets as tfds
    directory = config.data.get('tfds_dir') or None
    try:
        builder = tfds.builder(name, data_dir=directory)
        if not pathlib.Path(builder.data_dir).is_dir():
            _require_network()
        builder.download_and_prepare()
    except Exception as error:  # whatever TFDS or the network raises, the remedy is the same
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f'config.data.dataset={config.data.dataset!r} is not prepared in config.data.tfds_dir='
                        f'{directory or "the default directory of TFDS"!r} and could not be downloaded: {reason[0]}') from error
    return builder


def tfds(config, split: str, name: str, prepare=None, splits=('train', 'test')) -> Streamed:
    """A split of a TFDS data set. `prepare(image, size)`, of TensorFlow images, brings it to its size; without, it has it."""
    data, builder = config.data, tfds_builder(config, name)
    info = builder.info.splits[dict(zip(('train', 'test'), splits))[split]]
    if builder.info.file_format.value == 'tfrecord':
        records = Records(info.filepaths)
        name_of = records.name
    else:  # array_record is the other format that is read by index
        from array_record.python.array_record_data_source import ArrayRecordDataSource
        records = ArrayRecordDataSource([os.fspath(path) for path in info.filepaths])

        def name_of(i):
            return f'{info.filepaths[0].parent}: record {i}'
    parse, to_picture = _examples(), _tf_pictures(prepare, data.image_size) if prepare else pictures(data)

    def decode(i):
        features = parse(records[i])
        return to_picture(b''.join(features['image'].bytes_list.value)), sum(features['label'].int64_list.value)
    return Streamed(decode, len(records), _shape(data), name_of, data.get('on_error', 'raise'), parallel=data.image_size >= 64)


def _tf_pictures(prepare, size: int):
    """The same with TensorFlow's decoder and filters, which the statistics of the published data sets were made with."""
    tf = tensorflow()

    def decode(content):
        try:
            image = tf.io.decode_image(content, channels=3, expand_animations=False)
        except tf.errors.InvalidArgumentError as error:
            raise Damaged('holds no picture that can be decoded') from error
        return np.clip(np.round(prepare(image, size).numpy()), 0, 255).astype(np.uint8)
    return decode


def central_crop(image, size: int):
    """The middle `size` x `size` pixels of a TensorFlow image (H, W, C)."""
    height, width = _sides(image)
    top, left = (height - size) // 2, (width - size) // 2
    return image[top:top + size, left:left + size]


def crop_resize(image, resolution: int):
    """The middle square of a TensorFlow image (H, W, C), resized to `resolution` by antialiased bicubic filtering, as uint8."""
    tf = tensorflow()
    height, width = _sides(image)
    square = central_crop(image, min(height, width) if isinstance(height, int) else tf.minimum(height, width))
    resized = tf.image.resize(square, (resolution, resolution), antialias=True, method=tf.image.ResizeMethod.BICUBIC)
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
    return (height, width) if height and width else tuple(tensorflow().shape(image)[:2][k] for k in range(2))


def celeba_crop(image, size: int):
    """CelebA as in the paper's configs: the middle 140 x 140 pixels, reduced."""
    return resize_small(central_crop(image, 140), size)


def lsun_crop(image, size: int):
    """LSUN: at 128 pixels reduced, then cropped; otherwise the middle square, resized by a bicubic filter."""
    return central_crop(resize_small(image, size), size) if size == 128 else crop_resize(image, size)


# Scikit-learn's digits -------------------------------------------------------------------------------------------------------------


def digits(config, split: str) -> Images:
    """Scikit-learn's handwritten digits: 1,797 images of 8x8 pixels and 17 grey levels, a fifth of them held out."""
    from sklearn.datasets import load_digits
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    held_out = len(order) // 5
    chosen = order[:held_out] if split == 'test' else order[held_out:]
    return Images(data.images[chosen].astype(np.uint8)[..., None], data.target[chosen].astype(np.int64), 17)
