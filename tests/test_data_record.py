"""The record of the data set that a network was trained on."""

import json
import re

import numpy as np
import pytest

import datasets
from commands.data import describe_data
from commands.stats import statistics
from conftest import load_config
from image_files import config_of, crops, folder, save
from runtime.errors import UserError


def test_the_split_is_train_if_both_splits_have_the_same_images(tmp_path):
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


def test_the_names_of_classes_are_kept_with_the_statistics_and_the_model(tmp_path, caplog):
    for k, image in enumerate(crops(12, 8)):
        save(tmp_path / 'set' / ('dogs', 'cats')[k % 2] / f'{k}.png', image)
    config = config_of('FOLDER', 8, path=str(tmp_path / 'set'), test_fraction=0.0)
    config.eval.update(metrics_backend='pixels', stats_dir=str(tmp_path / 'stats'))
    path = statistics(config)
    assert json.loads(path.with_suffix('.json').read_text())['classes'] == ['cats', 'dogs']
    assert statistics(config) == path  # the same file is used again
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


def test_a_checkpoint_of_another_data_set_is_reported(tmp_path, caplog):
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
