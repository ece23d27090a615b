"""Results of `--mode eval`, also after interruptions."""

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
from configs.vp import digits_ddpmpp_continuous
from conftest import ROOT, trained
from metrics import reference
from reports import results
from runtime.errors import CheckpointError, UserError


@pytest.fixture
def config(tmp_path):
    config = digits_ddpmpp_continuous.get_config()
    config.device = 'cpu'
    config.eval.stats_dir = str(tmp_path / 'stats')
    return config


def test_tfgan_end_to_end(config, tmp_path, saved_model):
    """The report has the names of the 2021 release, and values that follow from the files."""
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


def test_collapsed_samples_are_measured_with_a_warning(caplog):
    x = np.random.default_rng(0).random((10, 5))
    real = reference.Reference(x, {}, metrics.statistics(x))
    found = evaluation.measure({'pool_3': np.zeros((10, 5), np.float32)}, real)
    assert (
        'collapsed' in caplog.text
        and all(np.isfinite(value) for value in found.values())
        and found['precision'] == 0
    )


def content(folder):
    """Return the content of every file in a folder: arrays of npz files, bytes of others.

    The array `seconds` is left out.
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


def test_a_resumed_evaluation_writes_the_same_files(config, tmp_path, monkeypatch):
    """An evaluation that is killed and resumed several times writes the same files.

    No file is computed twice.
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


def test_after_kill_9_the_report_is_the_same(tmp_path):
    """An evaluation in a process that is killed and resumed writes the same report."""
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


def test_changed_settings_are_recomputed(config, tmp_path):
    short(config)
    config.eval.update(end_ckpt=1, enable_loss=False, enable_bpd=False)
    trained(config, tmp_path)
    run_lib.evaluate(config, tmp_path)
    first = content(tmp_path / 'eval')
    config.eval.num_samples = 140  # more samples of the same kind, so the full batch is kept
    run_lib.evaluate(config, tmp_path)
    second = content(tmp_path / 'eval')
    same = {key for key in first if first[key] == second.get(key)}
    assert 'ckpt_1/samples_0.npz' in same and not {'ckpt_1/samples_1.npz', 'report_1.npz'} & same
    config.eval.batch_size = 70  # each batch has a separate seed
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


def test_disabled_parts_of_the_evaluation_load_nothing(config, tmp_path, monkeypatch):
    trained(config, tmp_path)
    config.eval.update(enable_bpd=False, metrics_backend='none', num_samples=5, enable_loss=False)
    for module, name in ((datasets, 'get_split'), (evaluation, 'get_extractor')):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail('not asked for'))
    run_lib.evaluate(config, tmp_path)
    assert len(np.load(tmp_path / 'eval' / 'ckpt_1' / 'samples_0.npz')['samples']) == 5


def test_waiting_has_a_limit(config, tmp_path):
    path = tmp_path / 'checkpoint_1.pth'
    started = time.monotonic()
    with pytest.raises(CheckpointError, match='checkpoint_1.pth does not exist after 0.01 minutes'):
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
def test_invalid_settings_raise_an_error_before_the_evaluation(config, tmp_path, changes, words):
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        run_lib.evaluate(config, tmp_path)


def test_the_size_limit_applies_to_the_smaller_set(config):
    config.data.update(image_size=64, num_channels=3)
    evaluation.check_size(config, 64)
    evaluation.check_size(config, 50000, 270)
    with pytest.raises(
        UserError,
        match=r'size 9000, expected at most 8192 '
        r'.*--config.eval.stats_samples=8192',
    ):
        evaluation.check_size(config, 9000, 10000)
    config.data.image_size = 32
    evaluation.check_size(config, 50000, 50000)
