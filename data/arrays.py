"""Arrays of images and labels in an npz file."""

import contextlib
import lzma
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from data.images import Images, image_shape, reason, split_indices
from data.levels import in_8_bits
from runtime.errors import UserError

ARRAY_NAMES = {
    'train': ('x_train', 'train_images', 'images', 'samples', 'arr_0', 'x'),
    'test': ('x_test', 'test_images'),
}
LABEL_NAMES = {
    'train': ('y_train', 'train_labels', 'labels', 'label', 'y', 'targets', 'target'),
    'test': ('y_test', 'test_labels'),
}
READ_ERRORS = (  # what NumPy and zipfile raise for corrupt files
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
)


class Names(NamedTuple):
    """The names of a split's arrays of images and of labels; None if an array is missing."""

    images: str | None
    labels: str | None


def load(config: ConfigDict, split: str) -> Images:
    """Return a split of the arrays in the file `data.path`.

    Images are (N, H, W, C) or (N, H, W) of type uint8 or uint16, labels (N,). The splits are
    'x_train' and 'x_test', with labels 'y_train' and 'y_test'. If the file has no test arrays but,
    for example, 'images' and 'labels', the fraction `data.test_fraction` of the images is the test
    set. ARRAY_NAMES and LABEL_NAMES list other names; 'arr_1' has the labels of 'arr_0'. The number
    of grey levels is `data.levels` or a scalar 'levels' in the file, by default all levels of the
    type. `data.layout` is 'NHWC' (channels last) or 'NCHW' (channels first).
    """
    data = config.data
    with open_arrays(data.path) as arrays:
        names = _find_names(arrays, data.path)
        if split == 'train':
            _warn_of_unread(arrays, names, data.path)
        kind = split if names['test'].images else 'train'
        found = names[kind]
        images = arrays[found.images]
        labels = arrays[found.labels] if found.labels else None
        levels = _levels(arrays, data)
    if labels is not None:
        labels = _class_numbers(labels, found.labels, data.path)
    elif config.model.num_classes > 1:
        raise UserError(
            f'config.model.num_classes={config.model.num_classes} needs labels, but {data.path} '
            f'has none for {found.images!r}: expected an array called '
            f'{" or ".join(LABEL_NAMES[kind])}'
        )
    else:
        labels = np.zeros(len(images), np.int64)
    images = _grey_levels(_channels_last(images, data, found.images), levels, data, found.images)
    if len(labels) != len(images):
        raise UserError(
            f'{data.path}: {found.labels!r} has {len(labels)} labels, but {found.images!r} '
            f'has {len(images)} images'
        )
    if not names['test'].images:
        chosen = split_indices(len(images), data.test_fraction, split)
        images, labels = images[chosen], labels[chosen]
    return Images(images, labels, min(levels or 256, 256))


def get_levels(config: ConfigDict) -> int:
    """The number of grey levels of images from the file `data.path` after reading, at most 256.

    The file is read only if `data.levels` is 0.
    """
    if config.data.levels:
        return min(config.data.levels, 256)
    with open_arrays(config.data.path) as arrays:
        return min(_levels(arrays, config.data) or 256, 256)


def has_test_set(path: str) -> bool:
    """Whether an npz file has a test set."""
    with open_arrays(path) as arrays:
        return any(name in arrays for name in ARRAY_NAMES['test'])


@contextlib.contextmanager
def open_arrays(path: str) -> Iterator[Mapping[str, np.ndarray]]:
    """Open the arrays of an npz file by name.

    Raises:
        UserError: if the file is missing, corrupt or not an npz file, or an array cannot be read.
    """
    try:
        arrays = np.load(pathlib.Path(path).expanduser(), allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise UserError(
                f'config.data.path={path!r} contains a single array without a name: '
                'save it with np.savez(path, images=array)'
            )
        with arrays:
            yield arrays
    except UserError:
        raise
    except READ_ERRORS as error:
        raise UserError(
            f'config.data.path={path!r} cannot be read as an npz file: {reason(error)}'
        ) from error


def _find_names(arrays: Mapping[str, np.ndarray], path: str) -> dict[str, Names]:
    """The names of the arrays of both splits."""

    def first(names):
        return next((name for name in names if name in arrays), None)

    found = {}
    for split in ('train', 'test'):
        images, label_names = first(ARRAY_NAMES[split]), LABEL_NAMES[split]
        if images == 'arr_0':
            label_names += ('arr_1',)
        found[split] = Names(images, first(label_names))
    if found['train'].images is None:
        raise UserError(
            f'config.data.path={path!r} has no array called {", ".join(ARRAY_NAMES["train"])}: '
            f'it has {", ".join(arrays) or "none"}'
        )
    return found


def _warn_of_unread(arrays: Mapping[str, np.ndarray], names: dict[str, Names], path: str):
    """Log which arrays are not read."""
    unread = set(arrays) - {*names['train'], *names['test'], 'levels', 'protocol'}
    if not unread:
        return
    images, labels = names['train']
    logging.warning(
        'Left out the arrays %s of %s: images are read from %r, %s.',
        ', '.join(sorted(unread)),
        path,
        images,
        f'labels from {labels!r}' if labels else 'and no array contains labels',
    )


def _class_numbers(labels: np.ndarray, name: str, path: str) -> np.ndarray:
    """Return labels as int64 (N,), from labels of shape (N,) or (N, 1)."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and ((labels != 0).sum(1) == 1).all():
        raise UserError(
            f'{path}: {name!r} of shape {labels.shape} is one-hot; expected one integer '
            f'class label per image, shape ({len(labels)},): convert it with np.argmax({name}, 1)'
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f'{path}: {name!r} is {labels.dtype} of shape {labels.shape}; expected one '
            'integer class label per image, shape (N,)'
        )
    return labels.astype(np.int64)


def _channels_last(images: np.ndarray, data, name: str) -> np.ndarray:
    """Return images (N, H, W, C) from the layout `data.layout`; check their type and shape."""
    shape, expected = images.shape, image_shape(data)
    channels_first = data.layout.upper() == 'NCHW' and images.ndim == 4
    if images.ndim == 3:
        images = images[..., None]
    transposed = images.transpose(0, 2, 3, 1) if images.ndim == 4 else images
    found, other = (transposed, images) if channels_first else (images, transposed)
    if found.dtype in (np.uint8, np.uint16) and found.shape[1:] == expected:
        return found
    wanted = (expected[2], *expected[:2]) if channels_first else expected
    remedy = ''
    if other.shape[1:] == expected:
        place, layout = ('last', 'NHWC') if channels_first else ('first', 'NCHW')
        remedy = f'. Its channels come {place}: set --config.data.layout={layout}'
    raise UserError(
        f'{data.path}: {name!r} is {images.dtype} of shape {shape}; expected uint8 or uint16 of '
        f'shape (N, {", ".join(map(str, wanted))}), as set in config.data{remedy}'
    )


def _grey_levels(images: np.ndarray, levels: int, data, name: str) -> np.ndarray:
    """Return images as uint8; `levels` is 0 for all levels of their type."""
    if images.dtype == np.uint8 and levels > 256:
        raise UserError(
            f'{data.path}: {name!r} is uint8, but the number of grey levels is '
            f'{levels}; expected uint16'
        )
    try:
        return in_8_bits(images, levels or np.iinfo(images.dtype).max + 1)
    except UserError as fault:
        raise UserError(f'{data.path}: {name!r} {fault}') from fault


def _levels(arrays: Mapping[str, np.ndarray], data) -> int:
    """The number of grey levels from the config or the file; 0 if neither has it."""
    if 'levels' not in arrays:
        return data.levels
    levels = arrays['levels']
    if levels.ndim or not np.issubdtype(levels.dtype, np.integer) or not 2 <= levels <= 2**16:
        raise UserError(
            f"{data.path}: 'levels' is {levels.tolist()!r}; expected a whole number from 2 to 65536"
        )
    if data.levels and data.levels != levels:
        raise UserError(
            f"config.data.levels is {data.levels}, but {data.path} has 'levels' = {levels}: "
            'leave config.data.levels at 0'
        )
    return int(levels)
