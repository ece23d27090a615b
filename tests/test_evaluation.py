"""Extractors, statistics of data sets with their protocols, and what `--mode eval` does with them,
killed in the middle or not.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import checkpoints
import datasets
import evaluation
import metrics
import run_lib
from commands.stats import statistics
from configs.vp import cifar10_ddpmpp_continuous, digits_ddpmpp_continuous
from conftest import ROOT
from data.levels import to_8_bits
from metrics import reference
from metrics.extractors import Extractor
from reports import results
from runtime.errors import CheckpointError, UserError
from runtime.tensorflow import tensorflow


@pytest.fixture
def config(tmp_path):
    config = digits_ddpmpp_continuous.get_config()
    config.device = 'cpu'
    config.eval.stats_dir = str(tmp_path / 'stats')
    return config


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)


# TF-GAN -------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def saved_model(tmp_path_factory):
    """A network with the signature of TF-GAN's Inception: images in [-1, 1], of any size, to
    'logits' and 'pool_3'. Here they are fixed random projections of the image at 299 x 299, reduced
    to 4 x 4.
    """
    tf = tensorflow()

    class Network(tf.Module):
        def __init__(self):
            generator = np.random.default_rng(1)
            self.weights = {
                key: tf.Variable(generator.standard_normal((48, n)).astype(np.float32) / 7)
                for key, n in (('pool_3', 2048), ('logits', 1008))
            }

        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])
        def __call__(self, x):
            tf.debugging.assert_less_equal(tf.abs(x), 1.0)
            x = tf.reshape(
                tf.image.resize(tf.image.resize(x, (299, 299)), (4, 4), method='area'), (-1, 48)
            )
            return {key: x @ weight for key, weight in self.weights.items()}

    path, network = tmp_path_factory.mktemp('inception'), Network()
    tf.saved_model.save(network, str(path))
    return str(path), network


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


def test_published_functions_in_parts(saved_model, images):
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


def test_no_way_to_the_weights_is_told_in_one_sentence(config, monkeypatch):
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
    with pytest.raises(UserError, match='inception_v3'):  # as published for large images
        evaluation.get_extractor(config)
    config.eval.inception_path = '/nowhere'
    with pytest.raises(UserError, match='/nowhere.*SavedModel'):
        evaluation.get_extractor(config)


def test_tfgan_end_to_end(config, tmp_path, saved_model):
    """The published names in the report, and their values once more from the files."""
    config.eval.update(
        metrics_backend='tfgan',
        inception_path=saved_model[0],
        num_samples=20,
        batch_size=12,
        enable_loss=False,
        enable_bpd=False,
        is_splits=2,
        stats_samples=100,
        metrics_floor=False,
    )
    trained(config, tmp_path)
    run_lib.evaluate(config, tmp_path)
    report = np.load(tmp_path / 'eval' / 'report_1.npz')
    parts = [np.load(tmp_path / 'eval' / 'ckpt_1' / f'statistics_{i}.npz') for i in range(2)]
    features, logits = (
        np.concatenate([part[key] for part in parts]) for key in ('pool_3', 'logits')
    )
    real = evaluation.load_dataset_stats(config)['pool_3']
    assert real.shape == (100, 2048) and features.shape == (20, 2048)
    assert report['fid'] == pytest.approx(
        metrics.frechet_distance(metrics.statistics(real), metrics.statistics(features)), rel=1e-9
    )
    assert report['kid'] == pytest.approx(metrics.kernel_distance(real, features).mean)
    assert (report['IS'], report['IS_std']) == pytest.approx(metrics.inception_score(logits, 2))
    assert (tmp_path / 'stats' / 'digits_stats.npz').is_file()


# torch-fidelity -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A file such as torch-fidelity fetches, with random weights."""
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


def test_torch_fidelity_gives_the_numbers_of_its_own_command(fidelity_config, images, tmp_path):
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


def test_weights_are_read_without_executing_anything(fidelity_config, tmp_path):
    payload = Payload()
    payload.place = tmp_path / 'executed'
    torch.save(payload, tmp_path / 'bad.pth')
    fidelity_config.eval.inception_path = str(tmp_path / 'bad.pth')
    with pytest.raises(UserError, match='bad.pth.*cannot be loaded'):
        evaluation.get_extractor(fidelity_config)
    assert not payload.place.exists()


def test_no_way_to_the_weights_of_torch_fidelity(fidelity_config, monkeypatch):
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


def test_weights_that_do_not_reach_the_layer_are_found_out(config):
    extractor = evaluation.get_extractor(config)
    dead = extractor._replace(run=lambda images: {'pool_3': np.zeros((len(images), 5), np.float32)})
    with pytest.raises(UserError, match='all the same: the weights do not serve'):
        reference.get_reference(config, dead, 'train')
    assert not reference.statistics_path(config, dead, 'train').exists()


def test_samples_that_collapsed_are_measured_and_told(caplog):
    x = np.random.default_rng(0).random((10, 5))
    real = reference.Reference(x, {}, metrics.statistics(x))
    found = evaluation.measure({'pool_3': np.zeros((10, 5), np.float32)}, real)
    assert (
        'collapsed' in caplog.text
        and all(np.isfinite(value) for value in found.values())
        and found['precision'] == 0
    )


# Statistics of data sets --------------------------------------------------------------------------


def test_statistics_are_computed_once_and_say_what_they_are_of(config, monkeypatch):
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
    monkeypatch.setattr(reference, 'compute_statistics', None)  # not called again
    assert np.array_equal(
        reference.get_reference(config, extractor, 'train').features, first.features
    )
    config.eval.stats_samples = 60000  # all there are, then as now
    reference.get_reference(config, extractor, 'train')


def test_statistics_of_another_protocol_are_refused(config):
    extractor = evaluation.get_extractor(config)
    reference.get_reference(config, extractor, 'train')
    config.eval.stats_samples = 100
    with pytest.raises(UserError, match='another protocol: most_images is 50000, expected 100'):
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
        (dict(pool_3=file['pool_3']), 'it has none'),
        (dict(mu=np.zeros(3)), "no features 'pool_3'"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=words):
            reference.get_reference(config, extractor, 'train')
    path.write_bytes(b'PK not an npz file')
    with pytest.raises(UserError, match='can be read'):
        reference.get_reference(config, extractor, 'train')


def test_a_published_file_is_taken_without_a_protocol(config, saved_model):
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
    with pytest.raises(UserError, match='it has none'):
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


def test_missing_published_statistics_name_the_remedy(config):
    with pytest.raises(UserError, match='digits_stats.npz.*--mode stats'):
        evaluation.load_dataset_stats(config)


# Whole evaluations --------------------------------------------------------------------------------


def trained(config, workdir, numbers=(1,)):
    """Snapshots of an untrained network."""
    config.model.update(nf=8, num_res_blocks=1, num_scales=25)
    for number in numbers:
        torch.manual_seed(number)
        checkpoints.save(checkpoints.snapshot_path(workdir, number), run_lib.create_state(config))


def content(folder):
    """Every file below a folder: the arrays of npz files, but for the seconds that it took, the
    bytes of others.
    """

    def of(path):
        if path.suffix != '.npz':
            return path.read_bytes()
        with np.load(path) as arrays:
            return {
                key: (value.dtype.str, value.shape, value.tobytes())
                for key, value in arrays.items()
                if key != 'seconds'
            }

    return {
        str(path.relative_to(folder)): of(path)
        for path in sorted(pathlib.Path(folder).rglob('*'))
        if path.is_file()
    }


def short(config):
    config.eval.update(num_samples=130, batch_size=120, bpd_rtol=1.0, bpd_atol=1.0, end_ckpt=2)
    return config


def test_an_evaluation_killed_anywhere_ends_as_one_left_alone(config, tmp_path, monkeypatch):
    """Killed right before each of its files is written, in turn, it goes on to the very same files,
    and computes none of them twice.
    """
    short(config)
    trained(config, tmp_path / 'whole' / 'run', (1, 2))
    trained(config, tmp_path / 'parts' / 'run', (1, 2))
    run_lib.evaluate(config, tmp_path / 'whole' / 'run')
    save, written = results.save, []

    class Killed(BaseException):
        pass

    def killed_after_one(path, protocol, **arrays):
        if len(written) > len(set(written)) or len(written) == killed_after_one.limit:
            raise Killed
        save(path, protocol, **arrays)
        written.append((path, len(arrays.get('all_losses', ()))))

    monkeypatch.setattr(results, 'save', killed_after_one)
    for killed_after_one.limit in range(0, 100, 4):
        try:
            run_lib.evaluate(config, tmp_path / 'parts' / 'run')
            break
        except Killed:
            pass
    assert killed_after_one.limit > 20 and len(set(written)) == len(written)
    whole, parts = (
        content(tmp_path / 'whole' / 'run' / 'eval'),
        content(tmp_path / 'parts' / 'run' / 'eval'),
    )
    assert whole.keys() == parts.keys()
    assert [key for key in whole if whole[key] != parts[key]] == []


def test_kill_9_and_on_to_the_same_report(tmp_path):
    """The same with real processes and real kills."""
    command = [
        sys.executable,
        'main.py',
        '--config',
        'configs/vp/digits_ddpmpp_continuous.py',
        '--mode',
        'eval',
        '--config.device=cpu',
        '--config.model.nf=8',
        '--config.model.num_res_blocks=1',
        '--config.model.num_scales=100',
        '--config.eval.num_samples=30',
        '--config.eval.batch_size=10',
        '--config.eval.enable_bpd=False',
        f'--config.eval.stats_dir={tmp_path / "stats"}',
    ]
    config = digits_ddpmpp_continuous.get_config()
    config.model.update(nf=8, num_res_blocks=1)
    torch.manual_seed(0)
    for name in ('whole', 'killed'):
        torch.manual_seed(0)
        checkpoints.save(
            checkpoints.snapshot_path(tmp_path / name / 'run', 1), run_lib.create_state(config)
        )
    environment = dict(
        cwd=ROOT,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    subprocess.run([*command, '--workdir', tmp_path / 'whole' / 'run'], check=True, **environment)
    process = subprocess.Popen([*command, '--workdir', tmp_path / 'killed' / 'run'], **environment)
    second = tmp_path / 'killed' / 'run' / 'eval' / 'ckpt_1' / 'samples_1.npz'
    while not second.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (second.parents[1] / 'report_1.npz').exists()
    before = second.stat().st_mtime_ns
    subprocess.run([*command, '--workdir', tmp_path / 'killed' / 'run'], check=True, **environment)
    assert second.stat().st_mtime_ns == before
    assert content(tmp_path / 'whole' / 'run' / 'eval') == content(
        tmp_path / 'killed' / 'run' / 'eval'
    )


def test_other_settings_are_computed_anew(config, tmp_path):
    short(config)
    config.eval.update(end_ckpt=1, enable_loss=False, enable_bpd=False)
    trained(config, tmp_path)
    run_lib.evaluate(config, tmp_path)
    first = content(tmp_path / 'eval')
    config.eval.num_samples = 140  # more of the same: the full batch stays
    run_lib.evaluate(config, tmp_path)
    second = content(tmp_path / 'eval')
    same = {key for key in first if first[key] == second.get(key)}
    assert 'ckpt_1/samples_0.npz' in same and not {'ckpt_1/samples_1.npz', 'report_1.npz'} & same
    config.eval.batch_size = 70  # each batch has a seed of its own
    run_lib.evaluate(config, tmp_path)
    assert not [
        key
        for key, value in content(tmp_path / 'eval').items()
        if key.endswith('.npz') and value == second.get(key)
    ]
    second = content(tmp_path / 'eval')
    config.sampling.snr = 0.3
    run_lib.evaluate(config, tmp_path)
    assert not [
        key
        for key, value in content(tmp_path / 'eval').items()
        if key.endswith('.npz') and value == second.get(key)
    ]


def test_only_what_was_asked_for_is_loaded(config, tmp_path, monkeypatch):
    trained(config, tmp_path)
    config.eval.update(enable_bpd=False, metrics_backend='none', num_samples=5, enable_loss=False)
    for module, name in ((datasets, 'get_split'), (evaluation, 'get_extractor')):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail('not asked for'))
    run_lib.evaluate(config, tmp_path)
    assert len(np.load(tmp_path / 'eval' / 'ckpt_1' / 'samples_0.npz')['samples']) == 5


def test_waiting_has_a_limit(config, tmp_path):
    path = tmp_path / 'checkpoint_1.pth'
    started = time.monotonic()
    with pytest.raises(CheckpointError, match='checkpoint_1.pth after 0.01 minutes'):
        checkpoints.wait_for(path, 0.01, poll_seconds=0.1)
    assert 0.6 <= time.monotonic() - started < 5
    path.touch()
    assert checkpoints.wait_for(path, 0) == path
    with pytest.raises(UserError, match='wait_minutes'):
        run_lib.evaluate(config, tmp_path)


def test_fewer_repeats_than_before_are_complete(config, tmp_path):
    import reports

    short(config)
    config.eval.update(end_ckpt=1, enable_loss=False, enable_sampling=False, bpd_repeats=2)
    trained(config, tmp_path)
    run_lib.evaluate(config, tmp_path)
    config.eval.bpd_repeats = 1
    run_lib.evaluate(config, tmp_path)
    (quantity, value, _), *_ = reports.evaluation_rows(tmp_path / 'eval', 1)
    assert (
        quantity == 'bits/dim'
        and 'so far' not in value
        and len(list((tmp_path / 'eval').glob('test_ckpt_1_bpd_*.npz'))) == 3
    )


def test_statistics_mode_computes_once(config, monkeypatch):
    path = statistics(config)
    monkeypatch.setattr(reference, 'compute_statistics', lambda *_: pytest.fail('computed again'))
    assert statistics(config) == path


@pytest.mark.parametrize(
    'changes, words',
    [
        (
            {
                'data.dataset': 'FOLDER',
                'data.path': 'x',
                'data.image_size': 64,
                'data.num_channels': 3,
                'eval.num_samples': 50000,
            },
            'Frechet distance of 50000 samples against up to 50000 reference images of 12288 .* '
            'size '
            '12288, expected at most 8192',
        ),
        (
            {
                'data.dataset': 'FOLDER',
                'data.path': 'x',
                'data.image_size': 8192,
                'eval.num_samples': 10,
            },
            'GiB, expected at most the .* machine',
        ),
        (
            {'eval.metrics_floor': True, 'data.dataset': 'FFHQ', 'data.tfrecords_path': 'x'},
            'metrics_floor=True needs a test set',
        ),
        ({'eval.is_splits': 600}, 'is_splits=600 is greater than config.eval.num_samples=500'),
        ({'eval.num_samples': 3}, 'config.eval.num_samples must be >= 4 for metrics, got 3'),
        (
            {'eval.stats_split': 'val'},
            "config.eval.stats_split must be 'train' or 'test', got 'val'",
        ),
        ({'seed': -1}, 'config.seed must be an integer >= 0, got -1'),
        ({'data.image_size': 0}, 'data.image_size'),
        (
            {'eval.enable_loss': False, 'eval.enable_bpd': False, 'eval.enable_sampling': False},
            'nothing to evaluate',
        ),
    ],
)
def test_what_cannot_be_evaluated_is_told_first(config, tmp_path, changes, words):
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        run_lib.evaluate(config, tmp_path)
