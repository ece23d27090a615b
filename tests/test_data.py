"""Data sets: contents of batches, dependence on seed and step, conversion from and to 8 bits."""

import numpy as np
import pytest
import torch

import datasets
from configs.vp import digits_ddpmpp_continuous
from data.batches import Batches
from data.images import Images
from data.levels import to_uint8
from runtime.errors import UserError


@pytest.fixture
def config():
    config = digits_ddpmpp_continuous.get_config()
    config.device = 'cpu'
    return config


def numbered(n, levels=256):
    """Return n images; image k is constant k, so that it can be identified in a batch."""
    return Images(
        np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8),
        np.arange(n),
        levels,
    )


def test_digits_are_the_real_ones_split_without_overlap(config):
    train, test = (datasets.get_split(config, split) for split in ('train', 'test'))
    assert (len(train.images), len(test.images)) == (1438, 359)
    assert train.images.shape[1:] == (8, 8, 1) and train.images.max() == 16
    from sklearn.datasets import load_digits

    theirs = {tuple(row) for row in load_digits().images.reshape(1797, -1).astype(int)}
    ours = [
        tuple(row)
        for row in np.concatenate([train.images, test.images]).reshape(1797, -1).astype(int)
    ]
    assert set(ours) == theirs and len(ours) == 1797
    assert set(test.labels) == set(range(10))


def test_an_epoch_has_every_image_once_in_a_new_order():
    batches = Batches(numbered(20), 8, seed=3, start=0, shuffle=True)
    labels = np.concatenate([batches.batch(i)['label'] for i in range(5)])
    first, second = labels[:20], labels[20:]
    assert sorted(first) == sorted(second) == list(range(20))
    assert list(first) != list(second)


def test_batches_depend_only_on_seed_and_step():
    def make(seed, start):
        return Batches(
            numbered(20), 8, seed=seed, shuffle=True, random_flip=True, dequantize=True, start=start
        )

    whole = [batch['image'] for _, batch in zip(range(6), make(1, 0))]
    resumed = [batch['image'] for _, batch in zip(range(3), make(1, 3))]
    assert all(np.array_equal(a, b) for a, b in zip(whole[3:], resumed))
    assert not np.array_equal(whole[0], make(2, 0).batch(0)['image'])


def test_evaluation_is_one_pass_in_order_with_the_tail():
    batches = list(Batches(numbered(20), 8))
    assert [len(batch['image']) for batch in batches] == [8, 8, 4]
    assert list(np.concatenate([batch['label'] for batch in batches])) == list(range(20))


def test_evaluation_data_are_never_flipped_and_training_data_are(config):
    config.data.dataset, config.data.random_flip = 'digits', True  # names are case-insensitive
    train_ds, eval_ds, _ = datasets.get_dataset(config)
    test = datasets.get_split(config, 'test')
    batch = next(iter(eval_ds))
    assert np.array_equal(
        batch['image'], test.images[: len(batch['image'])].astype(np.float32) / 16
    )
    original = {tuple(image.ravel()) for image in datasets.get_split(config, 'train').images}
    images = np.round(next(iter(train_ds))['image'] * 16).astype(np.uint8)
    unflipped = sum(tuple(image.ravel()) in original for image in images)
    assert 0.3 < unflipped / len(images) < 0.7  # 128 fair coins: 0.5 +- 0.044


def test_values_and_dequantisation():
    images = numbered(17, levels=17)
    plain = next(iter(Batches(images, 17)))['image']
    assert plain.dtype == np.float32 and plain.min() == 0 and plain.max() == 1
    noisy_batches = Batches(images, 17, dequantize=True)
    noisy, again = next(iter(noisy_batches))['image'], next(iter(noisy_batches))['image']
    assert np.array_equal(np.floor(noisy * 17), images.images) and not np.array_equal(noisy, again)
    assert np.array_equal(to_uint8(noisy, 17, dequantized=True), to_uint8(plain + 1e-6, 17))


def test_eight_bits_are_truncated_as_in_the_2021_release():
    x = np.array([-0.1, 0.0, 0.999 / 255, 1 / 255 + 1e-6, 0.5, 1.0, 1.2])
    assert list(to_uint8(x)) == [0, 0, 0, 1, 127, 255, 255]


def test_batch_has_the_interface_of_a_tensorflow_tensor(config):
    image = next(
        iter(datasets.get_dataset(config, uniform_dequantization=True, evaluation=True)[1])
    )['image']
    assert type(image._numpy()) is np.ndarray and torch.from_numpy(image._numpy()).shape == (
        359,
        8,
        8,
        1,
    )


@pytest.mark.parametrize('centered', [True, False])
def test_scalers_are_inverse(config, centered):
    config.data.centered = centered
    x = torch.rand(5)
    y = datasets.get_data_scaler(config)(x)
    assert torch.allclose(datasets.get_data_inverse_scaler(config)(y), x, atol=1e-7)
    assert torch.allclose(y, 2 * x - 1 if centered else x)


def test_errors_name_the_key(config):
    config.data.dataset = 'IMAGENET'
    with pytest.raises(
        UserError, match="config.data.dataset must be one of CIFAR10, .*DIGITS.*, got 'IMAGENET'"
    ):
        datasets.get_source(config)
    config.data.dataset, config.data.image_size = 'DIGITS', 32
    with pytest.raises(UserError, match='config.data.image_size=32.*8x8'):
        datasets.get_source(config)
    config.data.image_size, config.training.batch_size = 8, 2000
    with pytest.raises(UserError, match='batch_size must be at most 1438, .*got 2000'):
        datasets.get_dataset(config)
