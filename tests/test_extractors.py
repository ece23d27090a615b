"""Features of images from TF-GAN and torch-fidelity, and errors about their weights."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch

import evaluation
import metrics
from configs.vp import digits_ddpmpp_continuous
from runtime.errors import UserError


@pytest.fixture
def config(tmp_path):
    config = digits_ddpmpp_continuous.get_config()
    config.device = 'cpu'
    config.eval.stats_dir = str(tmp_path / 'stats')
    return config


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)


def test_tfgan_runs_the_network_of_the_folder(config, saved_model, images):
    config.eval.update(metrics_backend='tfgan', inception_path=saved_model[0])
    extractor = evaluation.get_extractor(config)
    found = extractor.run(images)
    expected = saved_model[1](images.astype(np.float32) / 127.5 - 1)
    for key, size in (('pool_3', 2048), ('logits', 1008)):
        assert found[key].shape == (10, size) and np.allclose(found[key], expected[key], atol=1e-5)
    grey = extractor.run(images[..., :1])['pool_3']
    assert np.allclose(grey, extractor.run(np.repeat(images[..., :1], 3, -1))['pool_3'])
    assert extractor.protocol['backend'] == 'tfgan' and len(extractor.protocol['weights']) == 16


def test_functions_of_the_2021_release_in_parts(saved_model, images):
    model = evaluation.get_inception_model(path=saved_model[0])
    whole, parts = (
        evaluation.run_inception_distributed(images, model, num_batches=n) for n in (1, 5)
    )
    assert set(whole) == {'pool_3', 'logits'} and np.allclose(
        whole['pool_3'], parts['pool_3'], atol=1e-5
    )


def test_inception_v3_has_no_logits(images):
    found = evaluation.run_inception_distributed(images, lambda x: x[:, 0, :2, 0], inceptionv3=True)
    assert found['logits'] is None and np.allclose(found['pool_3'], images[:, 0, :2, 0] / 255)


def test_unreachable_weights_raise_a_one_line_error(config, monkeypatch):
    evaluation._tfgan_module()
    import tensorflow_hub

    def unreachable(handle):
        raise OSError('no route to host\nsecond line')

    monkeypatch.setattr(tensorflow_hub, 'load', unreachable)
    config.eval.metrics_backend = 'tfgan'
    with pytest.raises(
        UserError,
        match=r'tfgan/eval/inception/1.*no route to '
        r'host.*--config.eval.inception_path=',
    ) as e:
        evaluation.get_extractor(config)
    assert '\n' not in str(e.value)
    config.data.image_size = 256
    with pytest.raises(UserError, match='inception_v3'):  # as in the 2021 release for large images
        evaluation.get_extractor(config)
    config.eval.inception_path = '/nowhere'
    with pytest.raises(UserError, match='/nowhere.*SavedModel'):
        evaluation.get_extractor(config)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Write a weight file in the format that torch-fidelity downloads, with random weights."""
    import torch_fidelity.feature_extractor_inceptionv3 as inception

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, 'load_state_dict_from_url', lambda *_, **__: {})
        patch.setattr(torch.nn.Module, 'load_state_dict', lambda *_, **__: None)
        network = inception.FeatureExtractorInceptionV3('random', ['64'])
    path = tmp_path_factory.mktemp('weights') / 'inception.pth'
    torch.save(network.state_dict(), path)
    return str(path)


@pytest.fixture
def fidelity_config(config, weights):
    config.eval.update(metrics_backend='torch_fidelity', inception_path=weights, features='64')
    return config


def test_torch_fidelity_gives_the_numbers_of_its_command(fidelity_config, images, tmp_path):
    import reports

    others = images // 2
    extractor = evaluation.get_extractor(fidelity_config)
    a, b = (metrics.statistics(extractor.run(x)['pool_3']) for x in (images, others))
    for name, x in (('a', images), ('b', others)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(x):
            reports.save_image(tmp_path / name / f'{i}.png', image)
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'torch_fidelity.fidelity',
            '--fid',
            '--cpu',
            '--silent',
            '--json',
            '--no-cache',
            '--feature-layer-fid',
            '64',
            '--feature-extractor-weights-path',
            fidelity_config.eval.inception_path,
            '--input1',
            str(tmp_path / 'a'),
            '--input2',
            str(tmp_path / 'b'),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = json.loads(done.stdout)['frechet_inception_distance']
    assert metrics.frechet_distance(a, b) == pytest.approx(theirs, rel=1e-3)


def test_layers_of_torch_fidelity(fidelity_config, images):
    fidelity_config.eval.features = ''
    found = evaluation.get_extractor(fidelity_config).run(images[:2])
    assert found['pool_3'].shape == (2, 2048) and found['logits'].shape == (2, 1008)
    fidelity_config.eval.features = '192'
    assert evaluation.get_extractor(fidelity_config).run(images[:2, ..., :1])['pool_3'].shape == (
        2,
        192,
    )
    fidelity_config.eval.features = '1024'
    with pytest.raises(
        UserError,
        match="config.eval.features must be one of '64', '192', '768', '2048'.*, got '1024'",
    ):
        evaluation.get_extractor(fidelity_config)
    fidelity_config.eval.extractor = 'resnet'
    with pytest.raises(
        UserError, match="config.eval.extractor must be one of .*dinov2.*, got 'resnet'"
    ):
        evaluation.get_extractor(fidelity_config)


class Payload:
    def __reduce__(self):
        return os.mkdir, (str(pathlib.Path(self.place)),)


def test_weights_are_read_without_executing_code(fidelity_config, tmp_path):
    payload = Payload()
    payload.place = tmp_path / 'executed'
    torch.save(payload, tmp_path / 'bad.pth')
    fidelity_config.eval.inception_path = str(tmp_path / 'bad.pth')
    with pytest.raises(UserError, match='bad.pth.*cannot be loaded'):
        evaluation.get_extractor(fidelity_config)
    assert not payload.place.exists()


def test_unreachable_weights_of_torch_fidelity(fidelity_config, monkeypatch):
    import torch_fidelity.feature_extractor_inceptionv3 as inception

    def unreachable(*_, **__):
        raise OSError('no route to host')

    monkeypatch.setattr(inception, 'load_state_dict_from_url', unreachable)
    fidelity_config.eval.inception_path = ''
    with pytest.raises(
        UserError,
        match='weights-inception-2015-12-05-6726825d.pth.*no route to '
        'host.*--config.eval.inception_path=',
    ):
        evaluation.get_extractor(fidelity_config)
