"""Data sets of TensorFlow Datasets (TFDS)."""

import sys
import types

import numpy as np
import pytest
from PIL import Image

import datasets
from configs.vp import cifar10_ddpmpp_continuous
from data import tensorflow_sets
from data.images import UnreadableImage
from data.tensorflow_sets import celeba_crop, tensorflow_decoder
from image_files import config_of, crops, everything
from runtime.errors import UserError
from runtime.tensorflow import tensorflow


def tfds(path, name, version, images, config=None, labels=None, file_format=None):
    """Prepare a TFDS data set from `images`, a dict by split, with lossless compression."""
    tf, tfds = tensorflow(), pytest.importorskip('tensorflow_datasets')
    features = {'image': tfds.features.Image(shape=(None, None, 3), encoding_format='png')}
    columns = {split: {'image': array} for split, array in images.items()}
    if labels:
        features['label'] = tfds.features.ClassLabel(num_classes=10)
        columns = {split: column | {'label': labels[split]} for split, column in columns.items()}
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        config=config,
        version=version,
        data_dir=str(path),
        features=tfds.features.FeaturesDict(features),
        file_format=file_format,
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices(column) for split, column in columns.items()
        },
    )


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_svhn_in_both_formats_that_are_read_by_index(tmp_path, file_format):
    images = {'train': crops(12, 32), 'test': crops(8, 32, seed=1)}
    labels = {split: np.arange(len(array)) % 10 for split, array in images.items()}
    tfds(tmp_path, 'svhn_cropped', '3.1.0', images, labels=labels, file_format=file_format)
    for split in images:
        found = [
            (image.tobytes(), label)
            for image, label in zip(
                *everything(config_of('svhn', 32, tfds_dir=str(tmp_path)), split)
            )
        ]
        assert sorted(found) == sorted(
            (image.tobytes(), label) for image, label in zip(images[split], labels[split])
        )


def halved(images):
    """Reduce images by two with an antialiased linear filter: 1, 3, 3, 1 over 8 on both sides.

    The outermost pixels are left out.
    """
    for axis in (1, 2):
        x = np.moveaxis(images.astype(float), axis, 0)
        images = np.moveaxis((x[1:-4:2] + 3 * x[2:-3:2] + 3 * x[3:-2:2] + x[4:-1:2]) / 8, 0, axis)
    return images


def matches(found, expected, tolerance):
    """Return whether every found image is near a different expected image."""
    far = np.abs(found[:, None].astype(float) - expected[None]).max((2, 3, 4))
    return sorted(far.argmin(1)) == list(range(len(expected))) and far.min(1).max() <= tolerance


def test_celeba_is_the_middle_140_pixels_reduced(tmp_path):
    images = {'train': crops(4, 218, 178), 'validation': crops(2, 218, 178, seed=1)}
    tfds(tmp_path, 'celeb_a', '2.1.0', images)
    middle = images['validation'][:, 39:179, 19:159]
    assert matches(
        everything(config_of('CelebA', 140, tfds_dir=str(tmp_path)), 'test')[0], middle, 0
    )
    train = everything(config_of('CELEBA', 70, tfds_dir=str(tmp_path)))[0]
    # the tolerance is one rounding
    assert matches(train[:, 1:-1, 1:-1], halved(images['train'][:, 39:179, 19:159]), 0.51)


def test_lsun_is_reduced_then_cropped_at_128_pixels_and_cropped_then_resized_otherwise(tmp_path):
    images = crops(3, 256, 320)
    tfds(
        tmp_path,
        'lsun',
        '3.1.0',
        {'train': images, 'validation': images[:1]},
        config='church_outdoor',
    )
    config = config_of('LSUN', 128, tfds_dir=str(tmp_path), category='church_outdoor')
    assert matches(everything(config)[0][:, 1:-1], halved(images)[:, :, 15:143], 0.51)
    config.data.image_size = 256
    assert matches(everything(config)[0], images[:, :, 32:288], 0)
    config.data.image_size = 64
    channels = images[:, :, 32:288].transpose(0, 3, 1, 2).reshape(9, 256, 256).astype(np.float32)
    # the tolerance of float32
    pillow = np.stack(
        [
            np.asarray(Image.fromarray(channel).resize((64, 64), Image.BICUBIC))
            for channel in channels
        ]
    )
    pillow = pillow.reshape(3, 3, 64, 64).transpose(0, 2, 3, 1).clip(0, 255)
    assert matches(everything(config)[0], pillow - 0.5, 0.51)  # truncated as in the 2021 release
    config.data.category = ''
    with pytest.raises(UserError, match='config.data.category is empty'):
        everything(config)


def test_crop_resize_works_inside_a_map_over_images_of_unknown_size():
    tf = tensorflow()
    images = [crops(1, 40, 60)[0], crops(1, 50, 30)[0]]
    ds = tf.data.Dataset.from_generator(
        lambda: iter(images), output_signature=tf.TensorSpec((None, None, 3), tf.uint8)
    )
    for image, mapped in zip(images, ds.map(lambda image: datasets.crop_resize(image, 16))):
        assert (
            np.array_equal(mapped, datasets.crop_resize(tf.constant(image), 16))
            and mapped.dtype == tf.uint8
        )


def test_tensorflow_sees_no_gpu_and_its_decoder_names_corrupt_pictures(monkeypatch):
    tf, calls = tensorflow(), []
    assert tf.config.get_visible_devices('GPU') == []
    monkeypatch.setattr(tf.config, 'set_visible_devices', lambda *given: calls.append(given))
    # the call is also made on machines without a GPU
    assert tensorflow.__wrapped__() is tf and calls == [([], 'GPU')]
    decode = tensorflow_decoder(celeba_crop, 64)
    whole = tf.io.encode_jpeg(crops(1, 218, 178)[0]).numpy()
    assert decode(whole).shape == (64, 64, 3)
    for content in (whole[:2000], b'', b'no picture'):
        with pytest.raises(UnreadableImage, match='no picture that can be decoded'):
            decode(content)


def test_a_tfds_data_set_that_is_not_prepared_raises_an_error(tmp_path, monkeypatch):
    """Any error of TFDS becomes one sentence that names the key and the folder.

    TFDS is replaced by a stub.
    """

    def builder(name, data_dir):
        raise ConnectionError(f'no way to {name}\nsecond line')

    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', types.SimpleNamespace(builder=builder))
    monkeypatch.setattr(tensorflow_sets, 'tensorflow', lambda: None)
    config = cifar10_ddpmpp_continuous.get_config()
    config.data.tfds_dir = str(tmp_path)
    with pytest.raises(UserError) as caught:
        datasets.get_dataset(config)
    assert (
        str(tmp_path) in str(caught.value)
        and 'no way to cifar10' in str(caught.value)
        and '\n' not in str(caught.value)
    )
    assert all(
        word in str(caught.value)
        for word in ('Set data.tfds_dir', 'data.path with data.dataset=NPZ', 'FOLDER')
    )


def test_cifar10_is_read_through_tfds(tmp_path):
    """The data set has 30 and 20 images in the format of TFDS."""
    tf = tensorflow()
    tfds = pytest.importorskip('tensorflow_datasets')
    rng = np.random.default_rng(0)
    images = {
        'train': rng.integers(0, 256, (30, 32, 32, 3), np.uint8),
        'test': rng.integers(0, 256, (20, 32, 32, 3), np.uint8),
    }
    features = tfds.features.FeaturesDict(
        {
            'id': tfds.features.Text(),
            'image': tfds.features.Image(shape=(32, 32, 3)),
            'label': tfds.features.ClassLabel(num_classes=10),
        }
    )
    splits = {
        name: tf.data.Dataset.from_tensor_slices(
            {
                'id': [f'{name}{i}' for i in range(len(x))],
                'image': x,
                'label': np.arange(len(x), dtype=np.int64) % 10,
            }
        )
        for name, x in images.items()
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name='cifar10',
        version='3.0.2',
        data_dir=str(tmp_path),
        features=features,
        split_datasets=splits,
    )
    config = cifar10_ddpmpp_continuous.get_config()
    config.data.tfds_dir, config.eval.batch_size = str(tmp_path), 8
    train_ds, test_ds, builder = datasets.get_dataset(config, evaluation=True)
    assert builder.info.splits['train'].num_examples == 30
    for ds, name in ((train_ds, 'train'), (test_ds, 'test')):
        got = np.round(np.concatenate([batch['image'] for batch in ds]) * 255).astype(np.uint8)
        assert sorted(image.tobytes() for image in got) == sorted(
            image.tobytes() for image in images[name]
        )


def test_crops_and_resizes():
    tf = tensorflow()
    image = tf.constant(np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3))
    assert np.array_equal(datasets.central_crop(image, 4), image.numpy()[1:5, 2:6])
    edge = np.zeros((20, 32, 3), np.uint8)
    edge[:, 16:] = 255
    cropped = datasets.crop_resize(tf.constant(edge), 10).numpy()
    # A bicubic filter overshoots at the edge; without clipping the bright side would overflow to
    # dark values.
    assert cropped.shape == (10, 10, 3) and cropped.dtype == np.uint8
    assert cropped[:, :4].max() < 30 and cropped[:, -4:].min() > 225
    assert datasets.resize_small(tf.constant(edge), 10).shape == (10, 16, 3)
