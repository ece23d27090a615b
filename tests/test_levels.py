"""Grey levels of data sets: `data.levels` sets which value is white."""

import re

import numpy as np
import pytest

import datasets
from commands import preflight
from data.folders import read_pictures
from image_files import config_of, contents, crops, everything, save
from runtime.errors import UserError


def deep_pictures(tmp_path, bits=12):
    """Write 12-bit photographs to 16-bit files; return the folder and the expected 8-bit images."""
    images = crops(9, 16)[..., 0]
    for k, image in enumerate(images):
        save(
            tmp_path / 'deep' / f'{k}.{("png", "tif")[k % 2]}',
            image.astype(np.uint16) << bits - 8 | 5,
        )
    return str(tmp_path / 'deep'), images


def test_levels_define_the_value_of_white(tmp_path, caplog):
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
        match=r'deep: .* has values up to \d+, expected 0 to 255 .*256 grey levels.*data.levels',
    ):
        everything(config)


def test_pictures_with_few_grey_levels_do_not_change(tmp_path):
    """Grey levels 0 .. 16 are kept, transparent pixels become 16, and resizing keeps the range."""
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
    # `read_pictures` returns 8-bit values
    assert read_pictures(str(tmp_path / 'a' / 'a.png'), config.data)[1][0, 0, 0] == 255


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


def test_new_keys_do_not_change_the_protocol_of_existing_statistics(tmp_path):
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
