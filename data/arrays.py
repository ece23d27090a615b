"""Arrays in npz files."""

import contextlib
import lzma
import pathlib
import struct
import zipfile
import zlib

import numpy as np

from data.images import Images, held_out, image_shape, warn_once
from data.levels import in_8_bits
from data.listing import reason
from runtime.errors import UserError

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
    with open_arrays(data.path) as arrays:
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
            warn_once(
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
        images = in_8_bits(images, levels or np.iinfo(images.dtype).max + 1)
    except UserError as fault:
        raise UserError(f'{data.path}: {keys[kind]!r} {fault}') from fault
    if not keys['test']:
        chosen = held_out(len(images), data, split)
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
        image_shape(data),
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
    with open_arrays(config.data.path) as arrays:
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
def open_arrays(path):
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
            f'config.data.path={path!r} cannot be read as an npz file: {reason(error)}'
        ) from error
