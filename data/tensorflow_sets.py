"""TensorFlow Datasets."""

import os
import pathlib
import socket
import urllib.request

import numpy as np

from data.images import Damaged, Streamed, image_shape
from data.pictures import pictures
from data.tfrecords import Records, example_parser
from runtime.errors import UserError
from runtime.tensorflow import tensorflow


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
        example_parser(),
        tf_pictures(prepare, data.image_size) if prepare else pictures(data),
    )

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


def tf_pictures(prepare, size: int):
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
