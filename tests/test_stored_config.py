"""The config in a work directory replaces `--config`; a config of another model is rejected."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import torch

import checkpoints
import run_lib
from checkpoints.trained import load_averaged_model
from commands import control
from commands.sample import sample
from configs import stored
from conftest import ROOT, load_config
from runtime.errors import UserError


def small():
    config = load_config('configs.vp.digits_ddpmpp_continuous')
    config.model.update(nf=8, num_res_blocks=1, num_scales=25)
    config.training.update(batch_size=8, n_iters=3, snapshot_freq=2, snapshot_sampling=False)
    config.optim.warmup = 0
    config.eval.update(enable_bpd=False, enable_sampling=False)
    config.sampling.update(method='dpmpp_2m', steps=2)
    return config


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    run_lib.train(small(), folder)
    return folder


def tree(folder) -> dict[str, tuple[int, bytes]]:
    """Return {path: (modification time, content)} of a folder and everything in it."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b'')
        for path in (pathlib.Path(folder), *pathlib.Path(folder).rglob('*'))
    }


def run(cwd, *flags):
    return subprocess.run(
        [sys.executable, ROOT / 'main.py', *map(str, flags)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def copied(workdir, folder) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(workdir, folder / 'copy'))


def test_the_config_is_stored_next_to_and_in_the_checkpoints(workdir):
    config = small()
    assert not [*stored.differences(config, stored.get_config(workdir / 'config.json'))]
    for path in (workdir / 'checkpoints' / 'checkpoint_1.pth', checkpoints.resume_path(workdir)):
        assert json.loads(checkpoints.load(path)['config']) == json.loads(stored.as_json(config))


WORK = {
    'train': run_lib.train,
    'eval': run_lib.evaluate,
    'sample': sample,
    'control': lambda *args: control.control(*args, task='inpaint', mask='right'),
}
OTHERS = {
    'model.beta_max': (8.0, '20.0'),
    'training.sde': ('subvpsde', "'vpsde'"),
    'data.centered': (False, 'True'),
    'model.nf': (16, '8'),
}


def changed(key, **settings):
    """Return the config with another value of a key and five training steps."""
    config, (section, name) = small(), key.split('.')
    config[section][name] = OTHERS[key][0]
    config.training.n_iters = 5
    config.update(settings)
    return config


@pytest.mark.parametrize('mode', WORK)
@pytest.mark.parametrize('key', OTHERS)
def test_another_model_than_the_trained_one_raises_an_error(workdir, key, mode):
    value, old = OTHERS[key]
    before = tree(workdir)
    with pytest.raises(
        UserError,
        match=rf'^config\.{key}={value!r} differs from {old}, with which '
        r'.*\.pth was trained \(--force_config',
    ):
        WORK[mode](changed(key), str(workdir))
    assert tree(workdir) == before


def test_another_model_on_the_command_line_writes_nothing(workdir):
    before = tree(workdir)
    done = run(
        workdir.parent,
        f'--workdir={workdir}',
        '--mode=train',
        '--config.model.beta_max=8',
        '--config.training.n_iters=5',
    )
    resume = checkpoints.resume_path(workdir)
    assert done.returncode == 1 and tree(workdir) == before
    assert done.stderr == (
        'error: config.model.beta_max=8.0 differs from 20.0, with which '
        f'{resume} was trained '
        '(--force_config accepts it)\n'
    )


def test_without_config_json_the_model_is_compared_with_checkpoints(workdir, tmp_path):
    folder = copied(workdir, tmp_path)
    (folder / 'config.json').unlink()
    for work in WORK.values():
        with pytest.raises(
            UserError,
            match=r'^config\.model\.beta_max=8\.0 differs from 20\.0, '
            r'with which .*\.pth was trained',
        ):
            work(changed('model.beta_max'), str(folder))


@pytest.mark.parametrize('mode', WORK)
def test_force_config_accepts_another_model_with_a_warning(workdir, tmp_path, mode, caplog):
    folder = copied(workdir, tmp_path)
    WORK[mode](changed('model.beta_max', force_config=True), str(folder))
    found = [
        record.message for record in caplog.records if record.message.startswith('Used config.')
    ]
    assert len(found) == 1 and re.fullmatch(
        r'Used config\.model\.beta_max=8\.0, although .*\.pth '
        r'was trained with 20\.0\.',
        found[0],
    )
    kept = json.loads((folder / 'config.json').read_text())
    assert 'force_config' not in kept and kept['model']['beta_max'] == (
        8.0 if mode == 'train' else 20.0
    )
    assert 'force_config' not in json.loads(
        checkpoints.load(checkpoints.resume_path(folder))['config']
    )


def test_a_given_checkpoint_is_compared_instead_of_the_work_directory(workdir, tmp_path):
    """The work directory then only receives the samples."""
    config = changed('model.nf')
    run_lib.train(config, tmp_path / 'other')
    checkpoint = str(checkpoints.latest(tmp_path / 'other'))
    assert sample(config, str(copied(workdir, tmp_path)), checkpoint, 2).is_dir()


def test_all_keys_that_differ_are_named_except_unused_ones(tmp_path):
    config, other = small(), small()
    other.model.update(beta_max=8.0, sigma_max=7.0, dropout=0.3, ch_mult=(1, 3))
    other.sampling.steps = 9
    with pytest.raises(UserError) as caught:
        stored.check(other, config, 'a.pth')
    assert sorted(line.partition('=')[0] for line in str(caught.value).splitlines()) == [
        'config.model.beta_max',
        'config.model.ch_mult',
    ]
    other.model.update(beta_max=20.0, ch_mult=[1, 2])
    stored.check(other, config, 'a.pth')
    assert {key for key, *_ in stored.differences(other, config)} == {
        'model.sigma_max',
        'model.dropout',
        'sampling.steps',
    }


def test_names_of_classes_can_have_any_case():
    config, other = small(), small()
    other.training.sde, other.model.name = 'VPSDE', 'NCSNpp'
    assert not [*stored.differences(other, config)]
    other.data.path = 'A'
    config.data.path = 'a'
    assert [*stored.differences(other, config)] == [('data.path', 'a', 'A')]


def test_changed_keys_are_logged_on_resume(workdir, tmp_path, caplog):
    checkpoints.resume_path(tmp_path).parent.mkdir()
    checkpoints.resume_path(tmp_path).write_bytes(checkpoints.resume_path(workdir).read_bytes())
    config = small()
    config.optim.lr, config.training.n_iters, config.training.batch_size = 1e-3, 4, 16
    caplog.set_level('INFO')
    run_lib.train(config, tmp_path)
    assert 'Resumed from step 3' in caplog.text
    for change in (
        'optim.lr: 0.002 -> 0.001',
        'training.n_iters: 3 -> 4',
        'training.batch_size: 8 -> 16',
    ):
        assert f'Changed config.{change}.' in caplog.text
    (warning,) = (record.message for record in caplog.records if record.levelname == 'WARNING')
    assert warning == (
        'Changed the position in the data: with config.training.batch_size=16 '
        'instead of 8 the epoch resumes at other '
        'images.'
    )
    assert stored.get_config(tmp_path / 'config.json').training.n_iters == 4


def test_a_checkpoint_without_a_config_loads(workdir, tmp_path):
    path = tmp_path / 'checkpoint.pth'
    saved = checkpoints.load(workdir / 'checkpoints' / 'checkpoint_1.pth')
    torch.save({key: saved[key] for key in ('model', 'ema', 'optimizer', 'step')}, path)
    config = small()
    config.model.beta_max = 8.0
    load_averaged_model(config, path)


def test_a_work_directory_is_enough_to_sample(workdir, tmp_path):
    done = run(
        tmp_path,
        f'--workdir={workdir}',
        '--mode=sample',
        '--num_samples=2',
        f'--output={tmp_path / "out"}',
        '--config.sampling.steps=3',
    )
    assert done.returncode == 0 and (tmp_path / 'out' / '00001.png').is_file(), done.stderr
    done = run(tmp_path, f'--workdir={tmp_path}', '--mode=sample')
    assert (
        done.returncode == 1
        and done.stderr.strip() == f'error: --config is missing: {tmp_path} has no config.json'
    )


def test_data_and_statistics_need_only_the_work_directory(workdir, tmp_path):
    folder = copied(workdir, tmp_path)
    done = run(tmp_path, f'--workdir={folder}', '--mode=data')
    assert done.returncode == 0 and '8x8 pixels, 1 channels, 17 grey levels' in done.stderr, (
        done.stderr
    )
    assert (folder / 'data.png').is_file()
    done = run(
        tmp_path,
        f'--workdir={folder}',
        '--mode=stats',
        f'--config.eval.stats_dir={tmp_path / "stats"}',
    )
    assert done.returncode == 0 and (tmp_path / 'stats' / 'digits_pixels_stats.npz').is_file(), (
        done.stderr
    )


def test_the_flag_forces_a_config(workdir, tmp_path):
    done = run(
        tmp_path,
        f'--workdir={workdir}',
        '--mode=sample',
        '--num_samples=2',
        f'--output={tmp_path / "out"}',
        '--config.model.beta_max=8',
        '--force_config',
    )
    assert done.returncode == 0 and (tmp_path / 'out' / '00001.png').is_file(), done.stderr
    assert 'WARNING Used config.model.beta_max=8.0, although ' in done.stderr
