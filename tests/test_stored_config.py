"""A work directory knows its config: it serves without `--config`, and another model than the trained one is refused by name."""
import json
import pathlib
import subprocess
import sys

import pytest
import torch

import checkpoints
import control
import run_lib
from configs import stored
from conftest import ROOT, load_config
from errors import UserError
from score_model import load_averaged_model


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


def content(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in pathlib.Path(folder).rglob('*') if path.is_file()}


def test_the_config_lies_beside_and_within_the_checkpoints(workdir):
    config = small()
    assert not [*stored.differences(config, stored.get_config(workdir / 'config.json'))]
    for path in (workdir / 'checkpoints' / 'checkpoint_1.pth', checkpoints.resume_path(workdir)):
        assert json.loads(checkpoints.load(path)['config']) == json.loads(config.to_json())


@pytest.mark.parametrize('key, value, old', [('model.beta_max', 8.0, '20.0'), ('training.sde', 'subvpsde', "'vpsde'"),
                                             ('data.centered', False, 'True'), ('model.nf', 16, '8')])
def test_another_model_than_the_trained_one_is_refused_by_name(workdir, key, value, old):
    config, (section, name) = small(), key.split('.')
    config[section][name] = value
    config.training.n_iters = 5
    before = content(workdir)
    for work in (run_lib.train, run_lib.evaluate, run_lib.sample, lambda *args: control.control(*args, task='inpaint', mask='right')):
        with pytest.raises(UserError, match=rf'^config\.{key}={value!r} differs from {old}, with which .*\.pth was trained$'):
            work(config, str(workdir))
    after = content(workdir)
    assert {path: data for path, data in after.items() if data} == {path: data for path, data in before.items() if data}


def test_all_keys_that_differ_are_named_and_unused_ones_pass(tmp_path):
    config, other = small(), small()
    other.model.update(beta_max=8.0, sigma_max=7.0, dropout=0.3, ch_mult=(1, 3))
    other.sampling.steps = 9
    with pytest.raises(UserError) as caught:
        stored.check(other, config, 'a.pth')
    assert sorted(line.partition('=')[0] for line in str(caught.value).splitlines()) == ['config.model.beta_max', 'config.model.ch_mult']
    other.model.update(beta_max=20.0, ch_mult=[1, 2])
    stored.check(other, config, 'a.pth')
    assert {key for key, *_ in stored.differences(other, config)} == {'model.sigma_max', 'model.dropout', 'sampling.steps'}


def test_what_changes_on_resume_is_logged(workdir, tmp_path, caplog):
    checkpoints.resume_path(tmp_path).parent.mkdir()
    checkpoints.resume_path(tmp_path).write_bytes(checkpoints.resume_path(workdir).read_bytes())
    config = small()
    config.optim.lr, config.training.n_iters = 1e-3, 4
    caplog.set_level('INFO')
    run_lib.train(config, tmp_path)
    assert 'Resumed from step 3' in caplog.text
    assert 'Changed config.optim.lr: 0.002 -> 0.001.' in caplog.text and 'Changed config.training.n_iters: 3 -> 4.' in caplog.text
    assert stored.get_config(tmp_path / 'config.json').training.n_iters == 4


def test_a_checkpoint_without_a_config_loads(workdir, tmp_path):
    path = tmp_path / 'checkpoint.pth'
    saved = checkpoints.load(workdir / 'checkpoints' / 'checkpoint_1.pth')
    torch.save({key: saved[key] for key in ('model', 'ema', 'optimizer', 'step')}, path)
    config = small()
    config.model.beta_max = 8.0
    load_averaged_model(config, path)


def test_a_work_directory_serves_without_a_config(workdir, tmp_path):
    def run(*flags):
        return subprocess.run([sys.executable, ROOT / 'main.py', *flags], cwd=tmp_path, capture_output=True, text=True)
    done = run(f'--workdir={workdir}', '--mode=sample', '--num_samples=2', f'--output={tmp_path / "out"}', '--config.sampling.steps=3')
    assert done.returncode == 0 and (tmp_path / 'out' / '00001.png').is_file(), done.stderr
    done = run(f'--workdir={tmp_path}', '--mode=sample')
    assert done.returncode == 1 and done.stderr.strip() == 'error: --config is missing'
