"""Folders, zip files, arrays, TFRecords and TFDS: what is read is what was written, damage is
named, and training resumes.

The data sets are made here, in their own formats, of crops of the two photographs that scikit-learn
brings.
"""

import collections
import functools
import io
import json
import logging
import os
import re
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image, features

import datasets
import run_lib
from commands import command_line, preflight
from commands.data import describe_data
from commands.stats import statistics
from conftest import load_config
from data.batches import Batches
from data.folders import digest, has_test_set, read_pictures
from data.images import Damaged, Images, Streamed, shown_classes
from data.inspection import largest_distance
from data.pictures import pictures
from data.tensorflow_sets import celeba_crop, tf_pictures
from reports import results
from runtime.errors import UserError
from runtime.tensorflow import tensorflow


@functools.cache
def photographs():
    from sklearn.datasets import load_sample_images

    return load_sample_images().images  # 427 x 640, RGB


def crops(n, height, width=None, seed=0):
    """n different crops of the photographs, (n, height, width, 3)."""
    rng, width = np.random.default_rng(seed), width or height
    tops, lefts = rng.integers(0, 427 - height, n), rng.integers(0, 640 - width, n)
    return np.stack(
        [
            photographs()[k % 2][tops[k] : tops[k] + height, lefts[k] : lefts[k] + width]
            for k in range(n)
        ]
    )


def config_of(dataset, size, channels=3, **data):
    config = load_config(
        'configs.vp.cifar10_ddpmpp_continuous',
        dict(dataset=dataset, image_size=size, num_channels=channels, **data),
    )
    config.training.batch_size = config.eval.batch_size = 8
    return config


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def folder(path, images, name='{:02d}.png'):
    for k, image in enumerate(images):
        save(path / name.format(k), image)
    return str(path)


def everything(config, split='train'):
    """All images and labels of a split, in its order."""
    source = datasets.get_split(config, split)
    return source.read(np.arange(len(source)))


def in_levels(batches):
    return np.round(np.concatenate([batch['image'] for batch in batches]) * 255).astype(np.uint8)


def contents(images):
    return sorted(image.tobytes() for image in images)


def flip_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


def test_sub_folders_are_labels_and_extensions_come_in_any_case(tmp_path):
    images = crops(4, 16)
    for image, name in zip(images, ('cats/a.PNG', 'dogs/deep/b.WebP', 'dogs/c.png', 'eels/d.Jpeg')):
        save(
            tmp_path / name,
            image,
            **(dict(quality=100, subsampling=0) if 'd.' in name else dict(lossless=True)),
        )
    save(tmp_path / 'dogs' / '.hidden.png', images[0])
    (tmp_path / 'notes.txt').write_text('no picture')
    found, labels = everything(config_of('Folder', 16, path=str(tmp_path), test_fraction=0.0))
    assert sorted(labels) == [0, 1, 1, 2]
    assert contents(found[labels < 2]) == contents(images[:3]) and np.array_equal(
        found[labels == 0][0], images[0]
    )
    assert np.abs(found[labels == 2][0].astype(int) - images[3]).mean() < 2  # JPEG


@pytest.mark.parametrize('names', [('train', 'test'), ('Training', 'VALID')])
def test_train_and_test_folders_are_the_splits(tmp_path, names):
    images, above = crops(6, 8), tmp_path / 'set'
    for k, place in enumerate(
        (f'{names[0]}/a', f'{names[0]}/b', f'{names[0]}/b', f'{names[1]}/a', f'{names[1]}/b')
    ):
        save(above / place / f'{k}.png', images[k])
    save(above / 'preview.png', images[5])  # of neither split, and no class
    config = config_of('FOLDER', 8, path=str(tmp_path))
    for split, expected, theirs in (
        ('train', images[:3], [0, 1, 1]),
        ('test', images[3:5], [0, 1]),
    ):
        found, labels = everything(config, split)
        assert contents(found) == contents(expected) and sorted(labels) == theirs


def test_a_fraction_is_held_out(tmp_path):
    images = crops(20, 8)
    config = config_of('FOLDER', 8, path=folder(tmp_path, images), test_fraction=0.25)
    train, test = (everything(config, split)[0] for split in ('train', 'test'))
    assert (len(train), len(test)) == (15, 5) and contents(
        np.concatenate([train, test])
    ) == contents(images)
    config.data.test_fraction = 0.0
    assert all(
        contents(everything(config, split)[0]) == contents(images) for split in ('train', 'test')
    )


def test_zip_file_is_as_good_as_a_folder_and_its_damage_is_named(tmp_path):
    path, archive = folder(tmp_path / 'set', crops(9, 8), 'c{0}.png'), tmp_path / 'set.zip'
    with zipfile.ZipFile(archive, 'w') as file:
        for picture in (tmp_path / 'set').iterdir():
            file.write(picture, f'set/{picture.name}')
        start = file.getinfo('set/c7.png').header_offset
    config, expected = (
        config_of('FOLDER', 8, path=str(archive)),
        everything(config_of('FOLDER', 8, path=path)),
    )
    assert all(np.array_equal(a, b) for a, b in zip(everything(config), expected))
    flip_byte(archive, start + 100)
    with pytest.raises(UserError, match=r'set.zip: set/c7.png cannot be read: .*CRC'):
        everything(config), everything(config, 'test')
    cut(archive, 1000)
    with pytest.raises(UserError, match='neither a folder nor a zip file'):
        everything(config)


def read_one(path, size, channels=3, **data):
    return everything(
        config_of('FOLDER', size, channels, path=str(path.parent), test_fraction=0.0, **data)
    )[0][0]


def test_colours_depths_and_orientation_are_understood(tmp_path):
    image = crops(1, 16)[0]
    grey = read_one(save(tmp_path / 'colour' / 'a.png', image), 16, channels=1)
    # ITU-R 601
    assert (
        grey.shape == (16, 16, 1)
        and np.abs(grey[..., 0] - image @ np.array([0.299, 0.587, 0.114])).max() <= 1
    )
    assert np.array_equal(
        read_one(save(tmp_path / 'grey' / 'a.png', image[..., 0]), 16),
        np.repeat(image[..., :1], 3, axis=2),
    )
    palette = Image.fromarray(image).quantize(16)
    (tmp_path / 'palette').mkdir()
    palette.save(tmp_path / 'palette' / 'a.png')
    assert np.array_equal(
        read_one(tmp_path / 'palette' / 'a.png', 16), np.asarray(palette.convert('RGB'))
    )
    deep = image[..., 0].astype(np.uint16) * 256 + 77
    assert np.array_equal(
        read_one(save(tmp_path / 'deep' / 'a.png', deep), 16, channels=1)[..., 0], image[..., 0]
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    for name, options in (
        ('a.png', {}),
        ('a.webp', dict(lossless=True)),
        ('a.jpg', dict(quality=100, subsampling=0)),
    ):
        turned = read_one(save(tmp_path / name[2:] / name, image, exif=exif, **options), 16).astype(
            int
        )
        assert np.abs(turned - np.rot90(image, -1)).mean() < (2 if name == 'a.jpg' else 1e-9)


def test_other_sizes_are_cropped_or_refused(tmp_path):
    image = crops(1, 20, 40)[0]
    path = save(tmp_path / 'wide' / 'a.png', image)
    assert np.array_equal(read_one(path, 20), image[:, 10:30])
    small = read_one(path, 10).astype(float)
    # a bicubic filter is no box
    assert np.abs(small - image[:, 10:30].reshape(10, 2, 10, 2, 3).mean((1, 3))).mean() < 6
    with pytest.raises(
        UserError, match='wide: a.png has 40x20 pixels, config.data.image_size is 20.*fit=crop'
    ):
        read_one(path, 20, fit='exact', on_error='skip')  # a wrong size is no damage
    assert np.array_equal(
        read_one(save(tmp_path / 'square' / 'a.png', image[:, :20]), 20, fit='exact'), image[:, :20]
    )


@pytest.mark.parametrize('memory_gib', [0.0, 4.0])
def test_damaged_pictures_are_fatal_or_skipped_and_counted(tmp_path, memory_gib, caplog):
    images = crops(12, 16)
    config = config_of(
        'FOLDER',
        16,
        path=folder(tmp_path, images),
        test_fraction=0.0,
        memory_gib=memory_gib,
        random_flip=False,
    )
    save(tmp_path / '03.jpg', images[3])
    for name, part in (('03.jpg', 0.8), ('05.png', 0.5), ('07.png', 0)):
        cut(tmp_path / name, int(part * (tmp_path / name).stat().st_size))
    (tmp_path / '09.png').write_text('I am no picture.')
    with pytest.raises(
        UserError,
        match=r'0[3579]\.(jpg|png) (is no picture|cannot be decoded: '
        r'.*); --config.data.on_error=skip',
    ):
        next(iter(datasets.get_dataset(config)[0]))
    config.data.on_error = 'skip'
    with caplog.at_level(logging.WARNING, 'absl'):
        whole_pass = datasets.get_dataset(config, evaluation=True)[0]
        shown = [in_levels(whole_pass) for _ in range(2)][1]
    assert contents(shown) == contents(np.delete(images, [5, 7, 9], 0))
    lines = [record.getMessage() for record in caplog.records if 'skipped' in record.getMessage()]
    for name in ('03.jpg', '05.png', '07.png', '09.png'):
        # once for each split that is decoded
        assert sum(name in line for line in lines) == (1 if memory_gib == 0 else 2)
    assert any('4 of 13 images so far' in line for line in lines)
    # in a streamed batch, others take the places of the damaged ones
    size = config.training.batch_size = 13 if memory_gib == 0 else 9
    batch = in_levels([next(iter(datasets.get_dataset(config)[0]))])
    assert len(batch) == size and set(contents(batch)) == set(contents(shown))


def test_batches_of_nothing_but_damage():
    """A pass leaves them out; in training they are an error."""

    def decode(i):
        if i >= 4:
            raise Damaged('is damaged')
        return np.full((2, 2, 1), i, np.uint8), i

    source = Streamed(decode, 6, (2, 2, 1), 'number {}'.format, 'skip')
    assert [list(batch['label']) for batch in Batches(source, 2)] == [[0, 1], [2, 3]]
    assert source.damaged == {4, 5}
    with pytest.raises(UserError, match='not one of the 2 images'):
        Batches(source, 2, start=0).batch(2)


@pytest.mark.parametrize('dequantize', [False, True])
def test_streamed_batches_are_those_of_memory_and_resume_anywhere(tmp_path, dequantize):
    config = config_of('FOLDER', 8, path=folder(tmp_path, crops(21, 8)), test_fraction=0.0)

    def batches(gib, start, n):
        config.data.memory_gib = gib
        train, test, _ = datasets.get_dataset(config, dequantize, start=start)
        assert isinstance(train.data, Streamed if gib == 0 else Images)
        return [batch['image'] for _, batch in zip(range(n), train)], next(iter(test))['image']

    held, test = batches(4.0, 0, 7)
    streamed, streamed_test = batches(0.0, 0, 7)
    assert np.array_equal(held, streamed) and np.array_equal(test, streamed_test)
    for gib in (0.0, 4.0):
        assert np.array_equal(batches(gib, 4, 3)[0], held[4:])
    config.seed += 1
    assert not np.array_equal(batches(0.0, 0, 1)[0][0], held[0])


def test_streamed_epochs_hold_each_image_once_and_only_training_flips(tmp_path):
    images = crops(16, 8)
    config = config_of(
        'FOLDER',
        8,
        path=folder(tmp_path, images),
        test_fraction=0.0,
        memory_gib=0.0,
        random_flip=False,
    )

    def two_epochs():
        shown = in_levels(batch for _, batch in zip(range(4), datasets.get_dataset(config)[0]))
        return shown[:16], shown[16:]

    first, second = two_epochs()
    assert contents(first) == contents(second) == contents(images) and not np.array_equal(
        first, second
    )
    config.data.random_flip = True
    straight, mirrored = set(contents(images)), set(contents(images[:, :, ::-1]))
    flipped = contents(np.concatenate(two_epochs()))
    # 32 fair coins
    assert (
        set(flipped) <= straight | mirrored
        and 6 <= sum(image in straight for image in flipped) <= 26
    )
    for ds in (datasets.get_dataset(config)[1], *datasets.get_dataset(config, evaluation=True)[:2]):
        assert contents(in_levels(batch for _, batch in zip(range(2), ds))) == contents(images)


@pytest.mark.parametrize(
    'names',
    [
        ('x_train', 'y_train', 'x_test', 'y_test'),
        ('images', 'labels'),
        ('samples', 'labels'),
        ('train_images', 'train_labels', 'test_images', 'test_labels'),
        ('arr_0', 'labels'),
    ],
)
def test_npz_under_all_its_names(tmp_path, names):
    """Image k is constant k, of 40 grey levels; with or without a test set."""
    labels = np.arange(30)
    images = labels.astype(np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    arrays = (
        (images[:20], labels[:20, None], images[20:, :, :, 0], labels[20:])
        if len(names) == 4
        else (images, labels)
    )
    np.savez(tmp_path / 'a.npz', levels=40, **dict(zip(names, arrays)))
    config = config_of('npz', 8, 1, path=str(tmp_path / 'a.npz'))
    train, test = (everything(config, split) for split in ('train', 'test'))
    assert (len(train[1]), len(test[1])) == ((20, 10) if len(names) == 4 else (27, 3)) and train[
        1
    ].dtype == np.int64
    assert sorted((*train[1], *test[1])) == list(range(30)) and (
        len(names) == 2 or test[1].min() == 20
    )
    assert all(np.array_equal(found, images[theirs]) for found, theirs in (train, test))
    batch = next(iter(datasets.get_dataset(config, evaluation=True)[1]))
    assert datasets.get_levels(config) == 40 and np.allclose(batch['image'], test[0][:8] / 39)


@pytest.mark.parametrize(
    'arrays, message',
    [
        (
            dict(pixels=np.zeros((9, 8, 8, 3), np.uint8)),
            'no array called x_train, .*: it has pixels',
        ),
        (dict(images=np.zeros((9, 8, 8, 3), np.float32)), "'images' is float32 .*expected uint8"),
        (
            dict(images=np.zeros((9, 3, 8, 8), np.uint8)),
            r'shape \(9, 3, 8, 8\); expected uint8 or uint16 of shape \(N, 8, 8, 3\).*first: set '
            r'--config.data.layout=NCHW',
        ),
        (
            dict(images=np.zeros((9, 8, 8, 3), np.uint8), labels=np.zeros(8, int)),
            "'labels' has 8 labels, but 'images' has 9 images",
        ),
        (
            dict(images=np.full((9, 8, 8, 3), 17, np.uint8), levels=17),
            'values up to 17, but 17 grey levels',
        ),
        (dict(images=np.array([{}])), 'cannot be read as an npz file'),
        (dict(images=np.zeros((0, 8, 8, 3), np.uint8)), 'the train set of NPZ has no images'),
    ],
)
def test_npz_errors(tmp_path, arrays, message):
    np.savez(tmp_path / 'a.npz', **arrays)
    with pytest.raises(UserError, match=message):
        datasets.get_dataset(config_of('NPZ', 8, path=str(tmp_path / 'a.npz')))


def test_files_that_are_no_npz(tmp_path):
    np.savez(tmp_path / 'a.npz', images=crops(9, 8))
    flip_byte(tmp_path / 'a.npz', 400)
    np.save(tmp_path / 'b.npy', crops(9, 8))
    for name, message in (
        ('a.npz', 'cannot be read as an npz file: .*CRC'),
        ('b.npy', 'without a name: np.savez'),
        ('c.npz', 'No such'),
    ):
        with pytest.raises(UserError, match=message):
            everything(config_of('NPZ', 8, path=str(tmp_path / name)))


def tfrecord(path, images):
    """A file as StyleGAN makes them, and where each record begins."""
    tf = tensorflow()
    starts = [0]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image in images.transpose(0, 3, 1, 2):
            feature = {
                'shape': tf.train.Feature(int64_list=tf.train.Int64List(value=image.shape)),
                'data': tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.tobytes()])),
            }
            record = tf.train.Example(
                features=tf.train.Features(feature=feature)
            ).SerializeToString()
            writer.write(record)
            starts.append(starts[-1] + len(record) + 16)
    return starts


@pytest.mark.parametrize('name', ['ffhq', 'CelebAHQ'])
def test_tfrecords_hold_the_raw_images(tmp_path, name):
    images = crops(9, 32)
    tfrecord(tmp_path / 'r05.tfrecords', images)
    config = config_of(name, 32, tfrecords_path=str(tmp_path / '*.tfrecords'))
    assert all(np.array_equal(everything(config, split)[0], images) for split in ('train', 'test'))
    config.data.image_size = 64
    with pytest.raises(
        UserError,
        match=r'record 0, at byte 0, has shape \[3, 32, 32\], the config '
        r'asks for \[3, 64, 64\]',
    ):
        everything(config)
    (tmp_path / 'a.txt').write_bytes(bytes(range(256)) * 8)
    for path, message in (
        ('a.txt', 'a.txt: at byte 0 no record begins'),
        ('b.txt', 'b.txt.*there is no such file'),
    ):
        config.data.update(tfrecords_path=str(tmp_path / path), on_error='skip')
        with pytest.raises(UserError, match=message):
            everything(config)


@pytest.mark.parametrize(
    'damage, message, lost',
    [
        (
            lambda path, at: flip_byte(path, at[4] + 500),
            'record 4, at byte {4}, does not match its checksum',
            [4],
        ),
        (
            lambda path, at: flip_byte(path, at[4] + 1),
            'record 4, at byte {4}, has no valid length',
            [4],
        ),
        (lambda path, at: cut(path, at[8] + 700), 'record 8, at byte {8}, is cut short', [8]),
        (lambda path, at: cut(path, at[8] + 7), 'record 8, at byte {8}, has no valid length', [8]),
        (
            lambda path, at: path.write_bytes(
                path.read_bytes()[: at[3] + 9] + path.read_bytes()[at[6] :]
            ),
            'record 3, at byte {3}, has no valid length',
            [3, 4, 5],
        ),
    ],
)
def test_damaged_records_are_named_by_file_and_byte(tmp_path, damage, message, lost):
    images, path = crops(9, 16), tmp_path / 'r04.tfrecords'
    starts = tfrecord(path, images)
    damage(path, starts)
    config = config_of('FFHQ', 16, tfrecords_path=str(path), memory_gib=0.0)
    with pytest.raises(UserError, match='r04.tfrecords: ' + message.format(*starts)):
        everything(config)
    config.data.on_error = 'skip'
    assert np.array_equal(everything(config)[0], np.delete(images, lost, 0))


def tfds(path, name, version, images, config=None, labels=None, file_format=None):
    """Prepares a TFDS data set, losslessly; `images` by split."""
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
    """Reduced by two with an antialiased linear filter: weights 1, 3, 3, 1 over 8 along both sides.
    The outermost pixels are left out.
    """
    for axis in (1, 2):
        x = np.moveaxis(images.astype(float), axis, 0)
        images = np.moveaxis((x[1:-4:2] + 3 * x[2:-3:2] + 3 * x[3:-2:2] + x[4:-1:2]) / 8, 0, axis)
    return images


def matches(found, expected, tolerance):
    """Each found image is near a different one of the expected."""
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
    # rounded
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
    # in float32
    pillow = np.stack(
        [
            np.asarray(Image.fromarray(channel).resize((64, 64), Image.BICUBIC))
            for channel in channels
        ]
    )
    pillow = pillow.reshape(3, 3, 64, 64).transpose(0, 2, 3, 1).clip(0, 255)
    assert matches(everything(config)[0], pillow - 0.5, 0.51)  # truncated, as published
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


def test_tensorflow_sees_no_gpu_and_its_decoder_names_damage(monkeypatch):
    tf, calls = tensorflow(), []
    assert tf.config.get_visible_devices('GPU') == []
    monkeypatch.setattr(tf.config, 'set_visible_devices', lambda *given: calls.append(given))
    # also where there is no GPU to hide
    assert tensorflow.__wrapped__() is tf and calls == [([], 'GPU')]
    decode = tf_pictures(celeba_crop, 64)
    whole = tf.io.encode_jpeg(crops(1, 218, 178)[0]).numpy()
    assert decode(whole).shape == (64, 64, 3)
    for content in (whole[:2000], b'', b'no picture'):
        with pytest.raises(Damaged, match='no picture that can be decoded'):
            decode(content)


def test_largest_distance_is_that_of_all_pairs(tmp_path):
    images = crops(40, 8)
    config = config_of(
        'FOLDER', 8, path=folder(tmp_path, images), test_fraction=0.0, memory_gib=0.0
    )
    x = images.reshape(40, -1) / 255
    expected = np.sqrt(np.square(x[:, None] - x).sum(2)).max()
    widest, n = largest_distance(datasets.get_split(config, 'train'), subset=10)
    assert widest == pytest.approx(expected, rel=1e-5) and n == 40


def test_errors_of_folders(tmp_path):
    (tmp_path / 'empty').mkdir()
    for data, message in (
        (dict(path=''), 'config.data.path is empty'),
        (dict(path='/nowhere'), "'/nowhere': not found"),
        (dict(path=str(tmp_path / 'empty')), 'holds no pictures'),
        (
            dict(path=folder(tmp_path / 'few', crops(7, 8)), test_fraction=0.0),
            'batch_size must be at most 7, .*got 8',
        ),
        (dict(path='x', on_error='ignore'), "on_error must be .*got 'ignore'"),
        (dict(path='x', fit='pad'), "fit must be .*got 'pad'"),
        (dict(path='x', test_fraction=1.0), 'test_fraction must be .*got 1.0'),
    ):
        with pytest.raises(UserError, match=message):
            datasets.get_dataset(config_of('FOLDER', 8, **data))


def test_a_validation_set_is_not_mixed_into_the_test_set_and_strays_are_told(tmp_path, caplog):
    images = crops(6, 16)
    for name, part in (
        ('train', images[:3]),
        ('test', images[3:4]),
        ('val', images[4:5]),
        ('other', images[5:]),
    ):
        folder(tmp_path / name, part)
    config = config_of('FOLDER', 16, path=str(tmp_path))
    assert contents(everything(config, 'test')[0]) == contents(images[3:4]) and contents(
        everything(config)[0]
    ) == contents(images[:3])
    assert re.search('Left out 2 pictures of .* that lie outside train and test', caplog.text)


def test_what_is_transparent_becomes_white(tmp_path):
    image = np.zeros((4, 4, 4), np.uint8)
    image[..., 0], image[:2, :, 3] = 200, 255  # red, its lower half transparent
    save(tmp_path / 'a.png', image)
    found = everything(config_of('FOLDER', 4, path=str(tmp_path), test_fraction=0.0))[0][0]
    assert np.array_equal(found[0, 0], (200, 0, 0)) and np.array_equal(found[3, 3], (255, 255, 255))


def test_the_digest_tells_data_sets_apart(tmp_path):
    """Folders by names and sizes of their pictures, wherever links lead, and of nothing else;
    arrays by their content.
    """
    path = folder(tmp_path / 'a', crops(2, 16))
    first = digest(path)
    (tmp_path / 'a' / 'notes.txt').write_text('no picture')
    (tmp_path / 'linked').mkdir()
    assert digest(path) == first
    (tmp_path / 'b').symlink_to(tmp_path / 'a')
    assert digest(str(tmp_path / 'b')) == first
    folder(tmp_path / 'a', crops(1, 16, seed=1), 'more{}.png')
    assert digest(path) != first
    digests = set()
    for seed in range(2):
        np.savez(tmp_path / 'x.npz', images=crops(2, 16, seed=seed))  # of one size
        digests.add(digest(str(tmp_path / 'x.npz')))
    assert len(digests) == 2


@pytest.mark.parametrize(
    'arrays, message',
    [
        (dict(levels=np.array([17, 17])), "'levels'.*2 to 65536"),
        (dict(levels=1), "'levels' is 1"),
        (dict(levels=16.5), "'levels'"),
        (dict(labels=np.array(['cat', 'dog'])), "'labels' is <U3"),
    ],
)
def test_levels_and_labels_of_arrays_are_checked(tmp_path, arrays, message):
    np.savez(tmp_path / 'x.npz', images=np.zeros((2, 8, 8, 1), np.uint8), **arrays)
    with pytest.raises(UserError, match=message):
        datasets.get_split(config_of('NPZ', 8, 1, path=str(tmp_path / 'x.npz')), 'train')


def test_a_set_without_a_readable_picture_is_an_error(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'no picture')
    with pytest.raises(UserError, match='train set of FOLDER has no images that can be read'):
        datasets.get_split(
            config_of('FOLDER', 8, path=str(tmp_path), on_error='skip', test_fraction=0.0), 'train'
        )


def test_numbers_of_one_set_for_both_splits_are_called_those_of_the_training_set(tmp_path):
    images = crops(4, 16)
    one, both = folder(tmp_path / 'one', images), str(tmp_path / 'both')
    for split in ('train', 'val'):
        folder(tmp_path / 'both' / split, images)
    np.savez(tmp_path / 'x.npz', x_train=images, x_test=images)
    for path, fraction, split in ((one, 0.0, 'train'), (one, 0.5, 'test'), (both, 0.0, 'test')):
        assert (
            datasets.describe(config_of('FOLDER', 16, path=path, test_fraction=fraction), 'test')[
                'split'
            ]
            == split
        )
    assert (
        datasets.describe(
            config_of('NPZ', 16, path=str(tmp_path / 'x.npz'), test_fraction=0.0), 'test'
        )['split']
        == 'test'
    )


def test_a_broken_link_is_a_damaged_picture(tmp_path):
    path = folder(tmp_path / 'a', crops(2, 16))
    (tmp_path / 'a' / 'gone.png').symlink_to(tmp_path / 'nowhere.png')
    assert (
        len(everything(config_of('FOLDER', 16, path=path, on_error='skip', test_fraction=0.0))[0])
        == 2
    )
    with pytest.raises(UserError, match='gone.png cannot be read: No such file'):
        everything(config_of('FOLDER', 16, path=path, test_fraction=0.0))


# Files of the field: other formats, damage, links, odd names --------------------------------------


def encoded(image, kind, **options):
    content = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        content, kind, **options
    )
    return content.getvalue()


def test_all_formats_are_read_and_what_is_left_out_is_counted(tmp_path, caplog):
    """The first frame of several, and no count of what operating systems leave behind."""
    images = crops(6, 16)
    for image, ending in zip(images, ('bmp', 'tif', 'TIFF', 'png')):
        save(tmp_path / f'a.{ending}', image)
    frames = [Image.fromarray(image).quantize(64) for image in images[4:]]
    frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
    Image.fromarray(images[5]).save(
        tmp_path / 'b.tif', save_all=True, append_images=[Image.fromarray(images[0])]
    )
    (tmp_path / '__MACOSX').mkdir()
    for name in (
        'a.heic',
        'notes.txt',
        'more.TXT',
        'LICENSE',
        '.hidden.png',
        '.DS_Store',
        'Thumbs.db',
        '._a.png',
        '__MACOSX/a.txt',
    ):
        (tmp_path / name).write_text('no picture')
    found, _ = everything(config_of('FOLDER', 16, path=str(tmp_path), test_fraction=0.0))
    assert contents(found) == contents(
        [*images[:4], np.asarray(frames[0].convert('RGB')), images[5]]
    )
    # once, for both splits
    (line,) = (
        record.getMessage() for record in caplog.records if 'Left out' in record.getMessage()
    )
    assert re.search('Left out 5 files of .* not read as pictures: 2 .txt, ', line)
    assert all(part in line for part in ('1 .heic', '1 without an ending', '1 hidden'))


LAYOUT = (
    'images/train/cats/0.png',
    'images/train/dogs/1.png',
    'images/val/cats/2.png',
    'images/val/dogs/3.png',
)


@pytest.mark.parametrize(
    'names, stray',
    [
        (LAYOUT, False),
        (LAYOUT, True),
        ([name.replace('images/', '') for name in LAYOUT], True),
        ([f'./{name}' for name in LAYOUT], False),
        (
            ('x/cats/train/0.png', 'x/dogs/train/1.png', 'x/cats/val/2.png', 'x/dogs/val/3.png'),
            True,
        ),
    ],
)
@pytest.mark.parametrize('how', ['folder', 'zip', 'zip made on Windows'])
def test_splits_and_classes_are_found_in_every_arrangement(tmp_path, names, stray, how, caplog):
    """At any depth, inside or outside the folders of classes, with a picture beside them or
    without.
    """
    images = crops(5, 8)
    names = [*names, 'preview.png'] if stray else names
    if how == 'folder':
        for name, image in zip(names, images):
            save(tmp_path / 'set' / name, image)
        path = str(tmp_path / 'set')
    else:
        path = str(tmp_path / 'set.zip')
        with zipfile.ZipFile(path, 'w') as file:
            for name, image in zip(names, images):
                file.writestr(
                    name if how == 'zip' else name.replace('/', '\\'), encoded(image, 'PNG')
                )
    config = config_of('FOLDER', 8, path=path)
    for split, expected in (('train', images[:2]), ('test', images[2:4])):
        found, labels = everything(config, split)
        assert contents(found) == contents(expected) and sorted(labels) == [0, 1]
        assert all(np.array_equal(found[labels == k][0], expected[k]) for k in (0, 1))
    assert has_test_set(config) and datasets.get_split(config, 'train').classes == (
        'cats',
        'dogs',
    )
    assert ('Left out 1 pictures' in caplog.text) == stray


def test_links_do_not_multiply_pictures(tmp_path):
    """To the folder itself, to one above it, to a class, to a picture; links that lead elsewhere
    are followed.
    """
    images = crops(24, 8)
    for place, some in (
        ('set/a', images[:10]),
        ('set/b', images[10:20]),
        ('elsewhere', images[20:22]),
    ):
        folder(tmp_path / place, some)
    (tmp_path / 'set' / 'a' / 'up').symlink_to(tmp_path / 'set')
    (tmp_path / 'set' / 'above').symlink_to(tmp_path)
    (tmp_path / 'set' / 'a_again').symlink_to(tmp_path / 'set' / 'b')
    (tmp_path / 'set' / 'a' / 'again.png').symlink_to(tmp_path / 'set' / 'b' / '00.png')
    (tmp_path / 'set' / 'linked').symlink_to(tmp_path / 'elsewhere')
    config = config_of('FOLDER', 8, path=str(tmp_path / 'set'), test_fraction=0.25)
    train, test = (everything(config, split) for split in ('train', 'test'))
    assert contents([*train[0], *test[0]]) == contents(images[:22])
    assert datasets.get_split(config, 'train').classes == ('a', 'b', 'linked')
    assert {
        image.tobytes(): label
        for found, labels in (train, test)
        for image, label in zip(found, labels)
    } == {image.tobytes(): k // 10 for k, image in enumerate(images[:22])}


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    folder(tmp_path / 'a', crops(3, 8))

    def scandir(place):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(os, 'scandir', scandir)
    with pytest.raises(UserError, match='cannot be read: Permission denied'):
        everything(config_of('FOLDER', 8, path=str(tmp_path)))


def test_class_folders_that_are_numbers_come_in_their_order_and_thumbnails_are_none(
    tmp_path, caplog
):
    images = crops(13, 8)
    for k in range(12):
        save(tmp_path / str(k) / 'a.png', images[k])
        save(tmp_path / str(k) / '@eaDir' / 'a.png' / 'thumb.png', images[12])
    save(tmp_path / '@eaDir' / 'a.png', images[12])
    config = config_of('FOLDER', 8, path=str(tmp_path), test_fraction=0.0)
    found, labels = everything(config)
    assert len(found) == 12 and all(
        np.array_equal(found[labels == k][0], images[k]) for k in range(12)
    )
    assert datasets.get_split(config, 'train').classes == tuple(map(str, range(12)))
    with caplog.at_level(logging.INFO, 'absl'):
        datasets.get_dataset(config)
    assert 'Found the classes 0: 0, 1: 1, 2: 2, ' in caplog.text
    save(tmp_path / 'other' / 'a.png', images[12])
    assert datasets.get_split(config, 'train').classes == tuple(
        sorted([*map(str, range(12)), 'other'])
    )


def test_pictures_outside_the_class_folders_are_told(tmp_path, caplog):
    for name, image in zip(('a.png', 'cats/b.png', 'dogs/c.png'), crops(3, 8)):
        save(tmp_path / name, image)
    config = config_of('FOLDER', 8, path=str(tmp_path), test_fraction=0.0)
    assert sorted(everything(config)[1]) == [0, 1, 2] and shown_classes(
        datasets.get_split(config, 'train')
    ) == ('0: (no folder), 1: cats, 2: dogs')
    assert re.search(
        'Found 1 pictures of .* outside its class folders: they have the label 0', caplog.text
    )


def test_names_need_not_be_utf8(tmp_path, caplog):
    """In data sets, their digests and the log."""
    images, odd = crops(9, 16), os.fsdecode(b'caf\xe9')
    path = folder(tmp_path / odd, images[:4])
    for k, image in enumerate(images):
        save(tmp_path / 'set' / odd / f'{odd}{k}.png', image)
    (tmp_path / 'set' / odd / 'gone.png').symlink_to(tmp_path / odd)
    (tmp_path / 'set' / odd / f'{odd}.png').write_text('no picture')
    config = config_of('FOLDER', 16, path=str(tmp_path / 'set'), test_fraction=0.0, on_error='skip')
    assert (
        contents(everything(config)[0]) == contents([*images, *images[:4]])
        and len(digest(config.data.path)) == 16
    )
    assert len(results.digest(tmp_path / 'set')) == len(results.digest(path)) == 16
    log = tmp_path / 'log.txt'
    handlers = logging.getLogger().handlers[:]
    try:
        command_line.log_to(log)
        everything(
            config_of(
                'FOLDER',
                16,
                path=str(tmp_path / 'set'),
                test_fraction=0.0,
                on_error='skip',
                memory_gib=4.0,
            )
        )
    finally:
        logging.getLogger().handlers[:] = handlers
    assert 'caf\\udce9.png is no picture; skipped' in log.read_text()


def test_the_path_of_a_data_set_need_not_be_utf8(tmp_path):
    """From training to a report."""
    odd = os.fsdecode(b'caf\xe9')
    path, workdir = folder(tmp_path / odd / odd, crops(20, 8)[..., 0]), tmp_path / 'run'
    config = load_config('configs.vp.digits_ddpmpp_continuous', dict(dataset='FOLDER', path=path))
    config.device = 'cpu'
    config.model.update(nf=8, num_res_blocks=1, num_scales=25)
    config.training.update(batch_size=8, n_iters=1, snapshot_sampling=False)
    config.optim.warmup = 0
    config.eval.update(
        num_samples=4, enable_bpd=False, metrics_floor=False, stats_dir=str(tmp_path / 'stats')
    )
    run_lib.train(config, workdir)
    run_lib.evaluate(config, workdir)
    assert 'caf\\udce9' in (workdir / 'eval' / 'report.md').read_text()


WITH_EXIF = ('PNG', 'JPEG', 'WEBP', 'AVIF', 'TIFF')


def decoder(size=8, channels=3, levels=0):
    return pictures(config_of('FOLDER', size, channels).data, levels)


def exif_data():
    exif = Image.Exif()
    exif[0x010E], exif.get_ifd(0x8769)[0x9286] = 'described', b'a comment'
    return exif


def exif_block(kind):
    """A picture's file, and the places in it that its EXIF data take."""
    content = encoded(crops(1, 8)[0], kind, exif=exif_data().tobytes())
    if kind == 'TIFF':  # the directory that the main one points to, and its pointer
        pointer = content.index(b'\x69\x87')
        start = int.from_bytes(content[pointer + 8 : pointer + 12], 'little')
        return content, [*range(pointer + 4, pointer + 12), *range(start, start + 18)]
    start = content.rindex(b'MM\0*', 0, content.index(b'described'))
    return content, range(start, content.index(b'a comment', start) + len(b'a comment'))


@pytest.mark.filterwarnings('ignore')  # Pillow's own, of damaged EXIF data
@pytest.mark.parametrize('kind', WITH_EXIF)
def test_a_picture_whose_exif_data_alone_are_damaged_is_a_good_picture(kind):
    """Whichever byte of them is changed, the pixels are the same, perhaps turned."""
    if kind in ('WEBP', 'AVIF') and not features.check(kind.lower()):
        pytest.skip(f'this Pillow has no {kind}')
    content, places = exif_block(kind)
    decode = decoder()
    whole = decode(content)
    turned = {np.rot90(image, k).tobytes() for image in (whole, whole[:, ::-1]) for k in range(4)}
    for place in places:
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[place] ^= change
            assert decode(bytes(damaged)).tobytes() in turned, (place, change)


def test_exif_pointers_of_tiff_files_are_not_followed():
    """Here one to a negative position: the type of its entry has become that of signed numbers."""
    content, places = exif_block('TIFF')
    damaged, pointer = bytearray(content), places[4]
    damaged[pointer - 6 : pointer + 4] = struct.pack('<hii', 9, 1, -38)
    assert np.array_equal(decoder()(bytes(damaged)), decoder()(content))


@pytest.mark.filterwarnings('ignore')
def test_whatever_a_decoder_raises_is_a_damaged_picture():
    """2,000 files, of every format that this Pillow writes, with bytes changed at random or their
    end missing.
    """
    Image.init()
    rng, files, decode = np.random.default_rng(0), {}, decoder()
    exif = exif_data()
    exif[0x0112] = 6
    exif, picture = exif.tobytes(), Image.fromarray(crops(1, 8)[0])
    # which it does not read by itself
    for kind in sorted(set(Image.SAVE) - {'PDF', 'PALM', 'EPS', 'WMF', 'BUFR', 'GRIB', 'HDF5'}):
        for mode in ('RGB', 'L', 'P', '1'):
            try:
                files[kind] = encoded(picture.convert(mode), kind, exif=exif)
                break
            except (OSError, ValueError):  # the format has no such pictures
                continue
    assert {'PNG', 'JPEG', 'TIFF', 'GIF', 'BMP'} <= files.keys()
    names, outcomes = (
        sorted(files) + [kind for kind in WITH_EXIF if kind in files] * 4,
        collections.Counter(),
    )
    for k in range(2000):
        name = names[k % len(names)]
        content = bytearray(files[name])
        for place in rng.integers(len(content), size=rng.integers(1, 5)):
            content[place] = rng.integers(256)
        if rng.random() < 0.1:
            del content[rng.integers(len(content)) :]
        try:
            image = decode(bytes(content))
            assert image.shape == (8, 8, 3) and image.dtype == np.uint8
            outcomes[name, 'read'] += 1
        except Damaged as fault:
            assert str(fault).startswith(
                ('is no picture', 'cannot be decoded: ', 'holds floating-point values')
            )
            outcomes[name, 'damaged'] += 1
    assert (
        all(outcomes['JPEG', outcome] > 20 for outcome in ('read', 'damaged'))
        and sum(outcomes.values()) == 2000
    )


def test_other_numbers_than_8_and_16_bits_are_told():
    for values, words in (
        (np.full((8, 8), 0.5, np.float32), 'holds floating-point values'),
        (np.full((8, 8), 70000, np.int32), 'has values up to 70000, but 65536 grey levels'),
        (np.full((8, 8), -1, np.int32), 'has values down to -1'),
    ):
        with pytest.raises(Damaged, match=words):
            decoder()(encoded(values, 'TIFF'))


# What white is ------------------------------------------------------------------------------------


def deep_pictures(tmp_path, bits=12):
    """12-bit photographs in 16-bit files, and what they should be read as."""
    images = crops(9, 16)[..., 0]
    for k, image in enumerate(images):
        save(
            tmp_path / 'deep' / f'{k}.{("png", "tif")[k % 2]}',
            image.astype(np.uint16) << bits - 8 | 5,
        )
    return str(tmp_path / 'deep'), images


def test_levels_say_what_white_is(tmp_path, caplog):
    path, images = deep_pictures(tmp_path)
    config = config_of('FOLDER', 16, 1, path=path, test_fraction=0.0)
    dark = everything(config)[0]
    assert contents(dark[..., 0]) == contents(images >> 4) and dark.mean() < 9
    datasets.get_dataset(config)
    assert re.search(
        r'Found only grey levels 0 to 15 of 0 to 255 in 9 training images: .*levels '
        r'.* \(4096 for 12-bit',
        caplog.text,
    )
    caplog.clear()
    config.data.levels = 4096
    assert (
        contents(everything(config)[0][..., 0]) == contents(images)
        and datasets.get_levels(config) == 256
    )
    datasets.get_dataset(config)
    assert 'Found only' not in caplog.text
    config.data.levels = 256
    with pytest.raises(
        UserError,
        match=r'deep: .* has values up to \d+, but 256 grey levels: '
        r'expected 0 to 255.*data.levels',
    ):
        everything(config)


def test_few_levels_of_pictures_stay_as_they_are(tmp_path):
    """Levels 0 .. 16: values and what is transparent; resizing does not leave their range."""
    values = np.random.default_rng(0).integers(0, 2, (16, 16), np.uint8) * 16
    rgba = np.stack([values] * 3 + [np.full_like(values, 255)], -1)
    rgba[0, 0] = 0
    save(tmp_path / 'a' / 'a.png', rgba)
    config = config_of('FOLDER', 16, 1, path=str(tmp_path / 'a'), test_fraction=0.0, levels=17)
    found = everything(config)[0][0, ..., 0]
    assert (
        found[0, 0] == 16
        and np.array_equal(found[1:], values[1:])
        and datasets.get_levels(config) == 17
    )
    config.data.image_size = 13
    assert everything(config)[0].max() == 16
    batch = next(iter(datasets.get_dataset(config, evaluation=True)[0]))
    assert batch['image'].max() == 1
    config.data.image_size = 16
    # inputs of 8 bits
    assert read_pictures(str(tmp_path / 'a' / 'a.png'), config.data)[1][0, 0, 0] == 255


def test_several_channels_of_16_bits_are_not_cut_down_in_silence(tmp_path):
    """Pillow keeps the upper 8 bits of each: of 12-bit values hardly any."""
    tf = tensorflow()
    content = tf.io.encode_png(crops(1, 8)[0].astype(np.uint16) << 4).numpy()
    assert decoder()(content).max() <= 15
    with pytest.raises(Damaged, match='several channels of 16 bits.*config.data.levels=4096'):
        decoder(levels=4096)(content)


@pytest.mark.parametrize(
    'dataset, data, words',
    [
        ('NPZ', dict(levels=1), 'config.data.levels must be an integer from 2 to 65536'),
        ('NPZ', dict(layout='CHWN'), "config.data.layout must be 'nhwc' or 'nchw', got 'CHWN'"),
        ('DIGITS', dict(levels=17), 'config.data.levels'),
        ('FOLDER', dict(layout='NCHW'), "config.data.layout must be 'NHWC' for FOLDER"),
    ],
)
def test_levels_and_layout_have_rules(tmp_path, dataset, data, words):
    config = config_of(dataset, 8, 1, path=str(tmp_path), **data)
    with pytest.raises(UserError, match=words):
        preflight.check(config, '', 'data')


def test_new_keys_leave_the_protocol_of_earlier_statistics_as_it_was(tmp_path):
    path, _ = deep_pictures(tmp_path)
    config = config_of('FOLDER', 16, 1, path=path)
    assert set(datasets.describe(config, 'train')) == {
        'dataset',
        'split',
        'image_size',
        'num_channels',
        'preparation',
        'files',
        'fit',
        'test_fraction',
    }
    config.data.levels = 4096
    assert datasets.describe(config, 'train')['levels'] == 4096


# Arrays of the field ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'names',
    [
        ('images', 'y'),
        ('images', 'targets'),
        ('x', 'label'),
        ('arr_0', 'arr_1'),
        ('x_train', 'target'),
    ],
)
def test_labels_under_all_their_names(tmp_path, names, caplog):
    images = crops(20, 8)
    np.savez(
        tmp_path / 'a.npz', **dict(zip(names, (images, np.arange(20) % 10))), extra=np.zeros(3)
    )
    found, labels = everything(config_of('NPZ', 8, path=str(tmp_path / 'a.npz'), test_fraction=0.0))
    order = [contents(images[k : k + 1])[0] for k in range(20)]
    assert all(order.index(image.tobytes()) % 10 == label for image, label in zip(found, labels))
    assert re.search(
        f"Left out the arrays extra of .*: images are read from '{names[0]}', labels "
        f"from '{names[1]}'",
        caplog.text,
    )


@pytest.mark.parametrize(
    'labels, classes, words',
    [
        (
            None,
            10,
            "config.model.num_classes=10 needs labels, but .* has none for 'images': expected "
            'an array called y_train or ',
        ),
        (
            np.full(20, 3),
            10,
            'all images of the data set have the label 3, but config.model.num_classes=10',
        ),
        (
            np.arange(20) % 10 + 1,
            10,
            'has the label 10, but config.model.num_classes=10: labels start '
            'at 0, so expected 0 to 9, got 1 to 10',
        ),
        (np.arange(20) % 10 - 1, 10, 'has the label -1, .*expected 0 to 9, got -1 to 8'),
        (
            np.eye(10, dtype=int)[np.arange(20) % 10],
            10,
            r"'y' of shape \(20, 10\) is one-hot; expected "
            r'.*shape \(20,\). np.argmax\(y, 1\)',
        ),
        (np.eye(10)[np.arange(20) % 10], 0, "'y' .* is one-hot"),
        (
            np.zeros((20, 2, 2), int),
            0,
            r"'y' is int64 of shape \(20, 2, 2\); expected the number of a "
            r'class',
        ),
    ],
)
def test_labels_that_do_not_serve_are_told(tmp_path, labels, classes, words):
    np.savez(tmp_path / 'a.npz', images=crops(20, 8), **({} if labels is None else dict(y=labels)))
    config = config_of('NPZ', 8, path=str(tmp_path / 'a.npz'), test_fraction=0.0)
    config.model.num_classes = classes
    with pytest.raises(UserError, match=words) as caught:
        datasets.get_dataset(config)
    assert '\n' not in str(caught.value)


def test_folders_without_classes_are_refused_where_a_network_needs_them(tmp_path):
    config = config_of(
        'FOLDER', 8, path=folder(tmp_path, crops(9, 8)), test_fraction=0.0, memory_gib=0.0
    )
    config.model.num_classes = 3
    with pytest.raises(
        UserError,
        match=r'all images .* the label 0, but '
        r'config.model.num_classes=3: give it labels \(FOLDER: '
        r'sub-folders',
    ):
        datasets.get_dataset(config)
    config.model.num_classes = 0
    datasets.get_dataset(config)


@pytest.mark.parametrize('channels', [1, 3])
def test_channels_first_are_read_where_the_config_says_so(tmp_path, channels):
    images = crops(9, 8)[..., :channels]
    np.savez(tmp_path / 'a.npz', images=images.transpose(0, 3, 1, 2))
    config = config_of(
        'NPZ', 8, channels, path=str(tmp_path / 'a.npz'), test_fraction=0.0, layout='NCHW'
    )
    assert contents(everything(config)[0]) == contents(images)
    np.savez(tmp_path / 'a.npz', images=images)
    with pytest.raises(
        UserError,
        match=rf'expected uint8 or uint16 of shape \(N, {channels}, 8, '
        r'8\).*last: set --config.data.layout=NHWC',
    ):
        everything(config)


def test_arrays_of_16_bits(tmp_path, caplog):
    images = crops(9, 8)
    np.savez(tmp_path / 'a.npz', images=images.astype(np.uint16) << 4 | 9)
    config = config_of('NPZ', 8, path=str(tmp_path / 'a.npz'), test_fraction=0.0)
    assert contents(everything(config)[0]) == contents(images >> 4)
    datasets.get_dataset(config)
    assert 'Found only grey levels' in caplog.text
    config.data.levels = 4096
    assert contents(everything(config)[0]) == contents(images)
    np.savez(tmp_path / 'a.npz', images=images.astype(np.uint16) << 4, levels=4096)
    config.data.levels = 0
    assert (
        contents(everything(config)[0]) == contents(images) and datasets.get_levels(config) == 256
    )
    config.data.levels = 1024
    with pytest.raises(UserError, match="config.data.levels is 1024, but .* has 'levels' = 4096"):
        everything(config)
    np.savez(tmp_path / 'a.npz', images=images)
    with pytest.raises(
        UserError, match='is uint8, but the number of grey levels is 1024; expected uint16'
    ):
        everything(config)


def test_damaged_arrays_are_told_in_one_sentence(tmp_path):
    """Bytes of an npz file changed at random: whatever NumPy raises is a UserError."""
    np.savez(tmp_path / 'a.npz', images=crops(9, 8), labels=np.arange(9))
    whole, rng, told = (tmp_path / 'a.npz').read_bytes(), np.random.default_rng(0), 0
    config = config_of('NPZ', 8, path=str(tmp_path / 'a.npz'), test_fraction=0.0)
    headers = [k for k in range(len(whole)) if k < 200 or k > len(whole) - 400]
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.choice(headers, 2):
            content[place] = rng.integers(256)
        (tmp_path / 'a.npz').write_bytes(content)
        try:
            everything(config)
        except UserError:
            told += 1
    assert told > 150


# What a network was trained on --------------------------------------------------------------------


def test_the_names_of_classes_are_kept_with_the_statistics_and_the_model(tmp_path, caplog):
    for k, image in enumerate(crops(12, 8)):
        save(tmp_path / 'set' / ('dogs', 'cats')[k % 2] / f'{k}.png', image)
    config = config_of('FOLDER', 8, path=str(tmp_path / 'set'), test_fraction=0.0)
    config.eval.update(metrics_backend='pixels', stats_dir=str(tmp_path / 'stats'))
    path = statistics(config)
    assert json.loads(path.with_suffix('.json').read_text())['classes'] == ['cats', 'dogs']
    assert statistics(config) == path  # which are used again
    config.model.num_classes = 2
    train = datasets.get_dataset(config)[0].data
    datasets.record(config, train, tmp_path)
    assert json.loads((tmp_path / 'data.json').read_text())['classes'] == ['cats', 'dogs']
    for k, image in enumerate(crops(12, 8)):
        save(tmp_path / 'set' / 'ants' / f'{k}.png', image)
    config.model.num_classes = 3
    with pytest.raises(
        UserError,
        match='data.json has the classes cats, dogs, but the data set '
        'has ants, cats, dogs: labels would change',
    ):
        datasets.record(config, datasets.get_dataset(config)[0].data, tmp_path)
    rows = dict(row[:2] for row in describe_data(config))
    assert rows['  labels'] == '0: ants, 1: cats, 2: dogs'


def test_a_checkpoint_of_another_data_set_is_told(tmp_path, caplog):
    digits = load_config('configs.vp.digits_ddpmpp_continuous')
    datasets.record(digits, datasets.get_split(digits, 'train'), tmp_path)
    checkpoint = tmp_path / 'checkpoints' / 'checkpoint_1.pth'
    datasets.check_record(digits, checkpoint)
    datasets.check_record(digits, tmp_path / 'elsewhere.pth')
    assert not caplog.text
    datasets.check_record(config_of('CIFAR10', 32), checkpoint)
    assert re.search(
        "checkpoint_1.pth was trained on another data set: dataset is 'DIGITS' there "
        "and 'CIFAR10' in the config",
        caplog.text,
    )
    (tmp_path / 'data.json').write_text('[')
    datasets.check_record(digits, checkpoint)
