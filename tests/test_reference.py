"""Reference statistics: computed once, and used only for their own protocol."""

import json
import pathlib

import numpy as np
import pytest

import datasets
import evaluation
from commands.stats import statistics
from configs.vp import cifar10_ddpmpp_continuous, digits_ddpmpp_continuous
from data.levels import to_8_bits
from metrics import reference
from metrics.extractors import Extractor
from reports import results
from runtime.errors import UserError


@pytest.fixture
def config(tmp_path):
    config = digits_ddpmpp_continuous.get_config()
    config.device = 'cpu'
    config.eval.stats_dir = str(tmp_path / 'stats')
    return config


def test_weights_that_do_not_reach_the_layer_are_detected(config):
    extractor = evaluation.get_extractor(config)
    dead = extractor._replace(run=lambda images: {'pool_3': np.zeros((len(images), 5), np.float32)})
    with pytest.raises(UserError, match='all the same: the weights do not fit'):
        reference.get_reference(config, dead, 'train')
    assert not reference.statistics_path(config, dead, 'train').exists()


def test_statistics_are_computed_once_and_stored_with_their_protocol(config, monkeypatch):
    extractor = evaluation.get_extractor(config)
    first = reference.get_reference(config, extractor, 'train')
    path = reference.statistics_path(config, extractor, 'train')
    assert path.name == 'digits_pixels_stats.npz' and np.load(path)['pool_3'].shape == (1438, 64)
    train = to_8_bits(datasets.get_split(config, 'train').images, 17).reshape(-1, 64) / 255
    assert np.allclose(first.statistics.mean, train.mean(0)) and np.allclose(
        first.statistics.covariance, np.cov(train, rowvar=False)
    )
    sidecar = json.loads(path.with_suffix('.json').read_text())
    assert (
        sidecar['n'] == 1438
        and sidecar['data']['dataset'] == 'DIGITS'
        and sidecar['extractor']['backend'] == 'pixels'
    )
    monkeypatch.setattr(reference, 'compute_statistics', None)  # a second call would fail
    assert np.array_equal(
        reference.get_reference(config, extractor, 'train').features, first.features
    )
    config.eval.stats_samples = 60000  # both limits exceed the number of images
    reference.get_reference(config, extractor, 'train')


def test_statistics_of_another_protocol_raise_an_error(config):
    extractor = evaluation.get_extractor(config)
    reference.get_reference(config, extractor, 'train')
    config.eval.stats_samples = 100
    with pytest.raises(UserError, match='expected protocol: most_images is 50000, expected 100'):
        reference.get_reference(config, extractor, 'train')
    config.eval.stats_samples = 50000
    path = reference.statistics_path(config, extractor, 'train')
    file = results.load(path)
    file['protocol']['extractor']['input'] = 'pixels'
    results.save(path, **file)
    with pytest.raises(
        UserError, match="extractor.input is 'pixels', expected 'pixels divided by 255'"
    ):
        reference.get_reference(config, extractor, 'train')
    for arrays, words in (
        (dict(pool_3=file['pool_3']), 'the file has no protocol'),
        (dict(mu=np.zeros(3)), "no features 'pool_3'"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=words):
            reference.get_reference(config, extractor, 'train')
    path.write_bytes(b'PK not an npz file')
    with pytest.raises(UserError, match='can be read'):
        reference.get_reference(config, extractor, 'train')


def test_a_file_of_the_2021_release_needs_no_protocol(config, saved_model):
    config.data.update(dataset='CIFAR10', image_size=32, num_channels=3)
    config.eval.update(metrics_backend='tfgan', inception_path=saved_model[0])
    extractor, published = (
        evaluation.get_extractor(config),
        np.random.default_rng(0).random((6, 1, 1, 2048), np.float32),
    )
    path = pathlib.Path(config.eval.stats_dir, 'cifar10_stats.npz')
    path.parent.mkdir()
    np.savez_compressed(path, pool_3=published)
    assert np.array_equal(
        reference.get_reference(config, extractor, 'train').features, published.reshape(6, 2048)
    )
    np.savez_compressed(path, pool_3=published[..., :99])
    with pytest.raises(UserError, match='the file has no protocol'):
        reference.get_reference(config, extractor, 'train')


@pytest.mark.parametrize(
    'dataset, data, name',
    [
        ('CIFAR10', {}, 'cifar10_stats.npz'),
        ('CELEBA', dict(image_size=64), 'celeba_stats.npz'),
        ('LSUN', dict(image_size=256, category='bedroom'), 'lsun_bedroom_256_stats.npz'),
        ('CELEBA', dict(image_size=128), 'celeba_128_stats.npz'),
    ],
)
def test_names_of_statistics(dataset, data, name):
    config = cifar10_ddpmpp_continuous.get_config()
    with config.unlocked():
        config.data.update(dataset=dataset, **data)
    assert (
        reference.statistics_path(config, Extractor(dict(backend='tfgan'), None), 'train').name
        == name
    )
    assert reference.statistics_path(
        config,
        Extractor(dict(backend='torch_fidelity', extractor='vgg16', feature='fc2'), None),
        'test',
    ).name == name.replace('_stats', '_torch_fidelity_vgg16_fc2_test_stats')


def test_missing_statistics_raise_an_error_with_a_remedy(config):
    with pytest.raises(UserError, match='digits_stats.npz.*--mode stats'):
        evaluation.load_dataset_stats(config)


def test_statistics_mode_computes_once(config, monkeypatch):
    path = statistics(config)
    monkeypatch.setattr(reference, 'compute_statistics', lambda *_: pytest.fail('computed again'))
    assert statistics(config) == path
