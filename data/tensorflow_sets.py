"""Data sets of TensorFlow Datasets (TFDS), and the crops of the 2021 release.

The files that TFDS has prepared are read by index, without its pipelines. Images are decoded with
Pillow; those of CelebA and LSUN with TensorFlow's decoder and filters, which the published
statistics were made with.
"""

import os
import pathlib
import socket
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data.images import Streamed, UnreadableImage, image_shape, reason
from data.pictures import PictureDecoder
from data.tfrecords import Records, example_parser
from runtime.errors import UserError
from runtime.tensorflow import tensorflow


def require_network(host: str = 'storage.googleapis.com') -> None:
    """Raise OSError if `host` cannot be resolved and there is no proxy.

    Without this check a download would be tried for minutes. The default host is the first one that
    TFDS contacts for any data set.
    """
    if not urllib.request.getproxies():
        socket.getaddrinfo(host, 443)


def get_builder(config: ConfigDict, name: str) -> Any:
    """Return the builder of a TFDS data set, downloaded and prepared.

    Raises:
        UserError: if the data set is not prepared and cannot be downloaded.
    """
    tensorflow()
    import tensorflow_datasets as tfds

    directory = config.data.tfds_dir or None
    try:
        builder = tfds.builder(name, data_dir=directory)
        if not pathlib.Path(builder.data_dir).is_dir():
            require_network()
        builder.download_and_prepare()
    except Exception as error:  # all errors of TFDS or of the network have the same remedy
        raise UserError(
            f'config.data.dataset={config.data.dataset!r} is not prepared in '
            f'config.data.tfds_dir={directory or "the default directory of TFDS"!r} and could not '
            f'be downloaded: {reason(error)}. Set data.tfds_dir to a folder where TFDS has '
            'prepared it, or give your own copy as data.path with data.dataset=NPZ (arrays) or '
            'FOLDER (pictures)'
        ) from error
    return builder


def load(
    config: ConfigDict,
    split: str,
    name: str,
    prepare: Callable | None = None,
    splits: tuple[str, str] = ('train', 'test'),
) -> Streamed:
    """Return a split of a TFDS data set.

    Images are the feature 'image', labels the feature 'label'. If it is not an integer, all labels
    are 0.

    Args:
        config: The completed config.
        split: 'train' or 'test'.
        name: The name of the data set in TFDS.
        prepare: `prepare(image, size)` brings TensorFlow images to their size. Default: see
            `PictureDecoder`.
        splits: The names of 'train' and 'test' in TFDS.

    Raises:
        UserError: if the data set is not prepared and cannot be downloaded, or has no such split,
            or no images.
    """
    data, builder = config.data, get_builder(config, name)
    split = dict(zip(('train', 'test'), splits))[split]
    features = builder.info.features
    _check(data, builder.info, split)
    labelled = (
        'label' in features
        and features['label'].shape == ()
        and np.issubdtype(features['label'].np_dtype, np.integer)
    )
    records, name_of = _records(builder.info, split)
    parse = example_parser()
    to_picture = tensorflow_decoder(prepare, data.image_size) if prepare else PictureDecoder(data)

    def decode(i):
        example = parse(records[i])
        label = sum(example['label'].int64_list.value) if labelled else 0
        return to_picture(b''.join(example['image'].bytes_list.value)), label

    return Streamed(
        decode,
        len(records),
        image_shape(data),
        name_of,
        data.on_error,
        parallel=(features['image'].shape[0] or 64) >= 64,
    )


def _check(data, info, split: str):
    """Raise UserError if a data set has no such split or no images."""
    remedy = (
        'Save its images as an NPZ file or in folders, and set config.data.dataset=NPZ or FOLDER'
    )
    if split not in info.splits:
        raise UserError(
            f'config.data.dataset={data.dataset!r} needs a split {split!r}: its splits are '
            f'{", ".join(info.splits)}. {remedy}'
        )
    if 'image' not in info.features or len(info.features['image'].shape or ()) != 3:
        raise UserError(
            f"config.data.dataset={data.dataset!r} needs a feature 'image' of shape (H, W, C): "
            f'its features are '
            f'{", ".join(f"{name} {part.shape}" for name, part in info.features.items())}. {remedy}'
        )


def _records(info, split: str) -> tuple:
    """The records of a split by index, and a function that returns the place of a record."""
    paths = info.splits[split].filepaths
    if info.file_format.value == 'tfrecord':
        records = Records(paths)
        return records, records.name
    # array_record is the other format that is read by index
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    records = ArrayRecordDataSource([os.fspath(path) for path in paths])
    return records, lambda i: f'{paths[0].parent}: record {i}'


def tensorflow_decoder(prepare: Callable, size: int) -> Callable[[bytes], np.ndarray]:
    """Return a function from the bytes of a picture to (H, W, 3), uint8, with TensorFlow."""
    tf = tensorflow()

    def decode(content):
        try:
            image = tf.io.decode_image(content, channels=3, expand_animations=False)
        except Exception as error:  # TensorFlow's decoders raise errors of several kinds
            raise UnreadableImage('contains no picture that can be decoded') from error
        return np.clip(np.round(prepare(image, size).numpy()), 0, 255).astype(np.uint8)

    return decode


def central_crop(image: Any, size: int) -> Any:
    """Return the middle `size` x `size` pixels of an image (H, W, C) of TensorFlow or NumPy."""
    height, width = _sides(image)
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def crop_resize(image: Any, resolution: int) -> Any:
    """Return the middle square of a TensorFlow image (H, W, C), resized to `resolution`, as uint8.

    The filter is bicubic and antialiased.
    """
    tf = tensorflow()
    height, width = _sides(image)
    side = min(height, width) if isinstance(height, int) else tf.minimum(height, width)
    resized = tf.image.resize(
        central_crop(image, side),
        (resolution, resolution),
        antialias=True,
        method=tf.image.ResizeMethod.BICUBIC,
    )
    return tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8)  # bicubic filters overshoot


def resize_small(image: Any, resolution: int) -> Any:
    """Resize a TensorFlow image (H, W, C) so that its shorter side is `resolution`; float32."""
    tf = tensorflow()
    sides = tf.cast(tf.stack(_sides(image)), tf.float32)
    new = tf.cast(tf.round(sides * (resolution / tf.reduce_min(sides))), tf.int32)
    return tf.image.resize(image, new, antialias=True)


def _sides(image) -> tuple:
    """Height and width as numbers, or as tensors if they are unknown, as inside a graph."""
    height, width = image.shape[:2]
    if height and width:
        return height, width
    sides = tensorflow().shape(image)
    return sides[0], sides[1]


def celeba_crop(image: Any, size: int) -> Any:
    """Crop the middle 140 x 140 pixels of a CelebA image and resize them, as in the paper."""
    return resize_small(central_crop(image, 140), size)


def lsun_crop(image: Any, size: int) -> Any:
    """Crop and resize an LSUN image as in the paper.

    For a size of 128 pixels the image is resized, then cropped; otherwise the middle square is
    resized by a bicubic filter.
    """
    if size == 128:
        return central_crop(resize_small(image, size), size)
    return crop_resize(image, size)
