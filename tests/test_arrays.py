"""Data sets of arrays in npz files."""

import re

import numpy as np
import pytest

import datasets
from image_files import config_of, contents, crops, everything, flip_byte
from runtime.errors import UserError


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
    """Arrays are found under all supported names, with or without a test set.

    Image k is constant k, of 40 grey levels.
    """
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
            'values up to 17, expected 0 to 16',
        ),
        (dict(images=np.array([{}])), 'cannot be read as an npz file'),
        (dict(images=np.zeros((0, 8, 8, 3), np.uint8)), 'the train set of NPZ has no images'),
    ],
)
def test_npz_errors(tmp_path, arrays, message):
    np.savez(tmp_path / 'a.npz', **arrays)
    with pytest.raises(UserError, match=message):
        datasets.get_dataset(config_of('NPZ', 8, path=str(tmp_path / 'a.npz')))


def test_files_that_are_not_npz_files_raise_an_error(tmp_path):
    np.savez(tmp_path / 'a.npz', images=crops(9, 8))
    flip_byte(tmp_path / 'a.npz', 400)
    np.save(tmp_path / 'b.npy', crops(9, 8))
    for name, message in (
        ('a.npz', 'cannot be read as an npz file: .*CRC'),
        ('b.npy', 'without a name: .*np.savez'),
        ('c.npz', 'No such'),
    ):
        with pytest.raises(UserError, match=message):
            everything(config_of('NPZ', 8, path=str(tmp_path / name)))


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
            r'.*shape \(20,\): .*np.argmax\(y, 1\)',
        ),
        (np.eye(10)[np.arange(20) % 10], 0, "'y' .* is one-hot"),
        (
            np.zeros((20, 2, 2), int),
            0,
            r"'y' is int64 of shape \(20, 2, 2\); expected one integer "
            r'class label',
        ),
    ],
)
def test_unusable_labels_raise_an_error(tmp_path, labels, classes, words):
    np.savez(tmp_path / 'a.npz', images=crops(20, 8), **({} if labels is None else dict(y=labels)))
    config = config_of('NPZ', 8, path=str(tmp_path / 'a.npz'), test_fraction=0.0)
    config.model.num_classes = classes
    with pytest.raises(UserError, match=words) as caught:
        datasets.get_dataset(config)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('channels, layout', [(1, 'NCHW'), (3, 'nchw')])
def test_channels_first_arrays_are_read_with_layout_nchw(tmp_path, channels, layout):
    images = crops(9, 8)[..., :channels]
    np.savez(tmp_path / 'a.npz', images=images.transpose(0, 3, 1, 2))
    config = config_of(
        'NPZ', 8, channels, path=str(tmp_path / 'a.npz'), test_fraction=0.0, layout=layout
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


def test_corrupt_arrays_raise_a_one_line_error(tmp_path):
    """If random bytes of an npz file are changed, any error of NumPy becomes a UserError."""
    np.savez(tmp_path / 'a.npz', images=crops(9, 8), labels=np.arange(9))
    whole, rng, errors = (tmp_path / 'a.npz').read_bytes(), np.random.default_rng(0), 0
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
            errors += 1
    assert errors > 150
