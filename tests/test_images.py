"""Streamed data sets: images are decoded when a batch needs them."""

import logging

import numpy as np
import pytest

import datasets
from data.batches import Batches
from data.images import Images, Streamed, UnreadableImage
from data.inspection import largest_distance
from image_files import config_of, contents, crops, cut, folder, in_levels, save
from runtime.errors import UserError


@pytest.mark.parametrize('memory_gib', [0.0, 4.0])
def test_corrupt_pictures_are_fatal_or_skipped_and_counted(tmp_path, memory_gib, caplog):
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
        match=r'0[3579]\.(jpg|png) (is not a picture|cannot be decoded: '
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
        # one warning for each split that is decoded
        assert sum(name in line for line in lines) == (1 if memory_gib == 0 else 2)
    assert any('4 of 13 images so far' in line for line in lines)
    # in a streamed batch, other images replace the unreadable ones
    size = config.training.batch_size = 13 if memory_gib == 0 else 9
    batch = in_levels([next(iter(datasets.get_dataset(config)[0]))])
    assert len(batch) == size and set(contents(batch)) == set(contents(shown))


def test_batches_with_only_unreadable_images():
    """A pass in evaluation skips such batches; in training they raise an error."""

    def decode(i):
        if i >= 4:
            raise UnreadableImage('is corrupt')
        return np.full((2, 2, 1), i, np.uint8), i

    source = Streamed(decode, 6, (2, 2, 1), 'number {}'.format, 'skip')
    assert [list(batch['label']) for batch in Batches(source, 2)] == [[0, 1], [2, 3]]
    assert source.skipped == {4, 5}
    with pytest.raises(UserError, match='none of the 2 images'):
        Batches(source, 2, start=0).batch(2)


@pytest.mark.parametrize('dequantize', [False, True])
def test_streamed_batches_equal_those_from_memory_and_can_be_resumed(tmp_path, dequantize):
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


def test_streamed_epochs_have_each_image_once_and_only_training_flips(tmp_path):
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
    # each of 32 images is flipped with probability 1/2
    assert (
        set(flipped) <= straight | mirrored
        and 6 <= sum(image in straight for image in flipped) <= 26
    )
    for ds in (datasets.get_dataset(config)[1], *datasets.get_dataset(config, evaluation=True)[:2]):
        assert contents(in_levels(batch for _, batch in zip(range(2), ds))) == contents(images)


def test_largest_distance_is_that_of_all_pairs(tmp_path):
    images = crops(40, 8)
    config = config_of(
        'FOLDER', 8, path=folder(tmp_path, images), test_fraction=0.0, memory_gib=0.0
    )
    x = images.reshape(40, -1) / 255
    expected = np.sqrt(np.square(x[:, None] - x).sum(2)).max()
    widest, n = largest_distance(datasets.get_split(config, 'train'), subset=10)
    assert widest == pytest.approx(expected, rel=1e-5) and n == 40
