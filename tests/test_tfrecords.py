"""Reading of TFRecord files."""

import numpy as np
import pytest

from image_files import config_of, crops, cut, everything, flip_byte
from runtime.errors import UserError
from runtime.tensorflow import tensorflow


def tfrecord(path, images):
    """Write a file in the format of StyleGAN; return the position of each record."""
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
        match=r'record 0, at byte 0, has an image of shape \[3, 32, 32\]; '
        r'expected \[3, 64, 64\] from config.data',
    ):
        everything(config)
    (tmp_path / 'a.txt').write_bytes(bytes(range(256)) * 8)
    for path, message in (
        ('a.txt', 'a.txt: expected a record at byte 0;'),
        ('b.txt', 'b.txt.*no such file'),
    ):
        config.data.update(tfrecords_path=str(tmp_path / path), on_error='skip')
        with pytest.raises(UserError, match=message):
            everything(config)


@pytest.mark.parametrize(
    'corrupt, message, lost',
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
        (lambda path, at: cut(path, at[8] + 700), 'record 8, at byte {8}, is truncated', [8]),
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
def test_corrupt_records_are_named_by_file_and_byte(tmp_path, corrupt, message, lost):
    images, path = crops(9, 16), tmp_path / 'r04.tfrecords'
    starts = tfrecord(path, images)
    corrupt(path, starts)
    config = config_of('FFHQ', 16, tfrecords_path=str(path), memory_gib=0.0)
    with pytest.raises(UserError, match='r04.tfrecords: ' + message.format(*starts)):
        everything(config)
    config.data.on_error = 'skip'
    assert np.array_equal(everything(config)[0], np.delete(images, lost, 0))
