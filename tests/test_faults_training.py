"""Faults during training: nothing is lost, and training resumes as if uninterrupted."""

import errno
import os
import subprocess
import sys

import pytest
import torch

import checkpoints
import run_lib
from checkpoints import files
from commands import command_line, training_log
from conftest import ROOT
from runtime.errors import CheckpointError, UserError
from small_runs import config_for, final_state, same_end, start, wait_for_step


def test_a_full_disk_stops_training_with_a_one_line_error(tmp_path, monkeypatch):
    run_lib.train(config_for(3), tmp_path)
    before = final_state(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(CheckpointError, match='No space left on device. Earlier checkpoints'):
        run_lib.train(config_for(6), tmp_path)
    monkeypatch.undo()
    assert all(map(torch.equal, before, final_state(tmp_path)))


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'empty', 'gone'])
def test_training_resumes_from_the_previous_file(tmp_path, damage, caplog):
    """If the latest file is corrupt, training resumes from the previous one, with equal results."""
    run_lib.train(config_for(8), tmp_path / 'whole')
    run_lib.train(config_for(5), tmp_path / 'parts')
    path = checkpoints.resume_path(tmp_path / 'parts')
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == 'gone':
        path.unlink()
    else:
        path.write_bytes(
            {'cut': content[: len(content) // 3], 'flipped': content, 'empty': b''}[damage]
        )
    with caplog.at_level('INFO', logger='absl'):
        run_lib.train(config_for(8), tmp_path / 'parts')
    assert 'Resumed from step 4 of' in caplog.text and (
        'Resuming from the previous checkpoint' in caplog.text
    ) == (damage != 'gone')
    assert path.with_name('checkpoint_corrupt.pth').exists() == (damage != 'gone')
    assert same_end(tmp_path / 'whole', tmp_path / 'parts')


def test_a_corrupt_file_never_replaces_the_previous_one(tmp_path, monkeypatch):
    """A corrupt file never replaces the previous one, even if the next save fails at its end."""
    run_lib.train(config_for(5), tmp_path)
    path = checkpoints.resume_path(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    replace = os.replace

    def broken(source, target):
        if str(target) == str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, 'replace', broken)
    with pytest.raises(CheckpointError, match='cannot be written'):
        run_lib.train(config_for(7), tmp_path)
    monkeypatch.undo()
    assert checkpoints.load(checkpoints.find_resumable(tmp_path))['step'] == 4


def test_partial_files_of_a_killed_process_are_removed(tmp_path):
    run_lib.train(config_for(2), tmp_path)
    leftover = checkpoints.resume_path(tmp_path).with_name('checkpoint.pth.123.partial')
    leftover.write_bytes(b'half')
    run_lib.train(config_for(3), tmp_path)
    assert not leftover.exists()


def test_a_file_system_without_locks_causes_only_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, 'flock', unsupported)
    with caplog.at_level('WARNING'):
        run_lib.train(config_for(2), tmp_path)
    assert 'nothing prevents a second training in it' in caplog.text


def test_two_corrupt_files_raise_an_error_and_do_not_change(tmp_path):
    run_lib.train(config_for(3), tmp_path)
    path = checkpoints.resume_path(tmp_path)
    for file in (path, checkpoints.previous(path)):
        file.write_bytes(b'PK nothing')
    with pytest.raises(CheckpointError, match='previous'):
        run_lib.train(config_for(5), tmp_path)
    assert path.read_bytes() == b'PK nothing'


def test_the_newest_snapshots_are_kept(tmp_path):
    run_lib.train(config_for(9, keep_checkpoints=2), tmp_path)
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == [
        'checkpoint_3.pth',
        'checkpoint_4.pth',
    ]


def test_one_training_at_a_time(tmp_path):
    first = start(tmp_path, 100000)
    wait_for_step(first, tmp_path, 1)
    second = start(tmp_path, 100000)
    _, log = second.communicate(timeout=120)
    assert second.returncode == 1 and log.count('error:') == 1
    assert (
        f'another training is running in {tmp_path} (process {first.pid} on ' in log
        and first.poll() is None
    )
    first.kill()
    first.communicate()
    run_lib.train(config_for(1), tmp_path)  # the first process has died, which released its lock


def test_bad_steps_in_a_row_stop_training(tmp_path, monkeypatch):
    """Weights and EMA weights stay finite; the error has step, learning rate and checkpoint."""

    backward = torch.Tensor.backward
    calls = []

    def poisoned(loss, *arguments, **settings):
        calls.append(1)
        backward(loss * (float('nan') if len(calls) > 4 else 1.0), *arguments, **settings)

    monkeypatch.setattr(torch.Tensor, 'backward', poisoned)
    with pytest.raises(
        UserError,
        match=r'stopped at step 6: the gradients of 3 steps in a row '
        r'.*max_bad_steps=3.*learning rate 0\.000.*'
        r'checkpoint\.pth',
    ):
        run_lib.train(config_for(30, max_bad_steps=3), tmp_path)
    assert all(
        torch.isfinite(value).all() for value in final_state(tmp_path) if value.is_floating_point()
    )
    skips = training_log.Skips('cpu')
    for norm in (1.0, float('inf'), float('nan'), 2.0, float('nan')):
        skips.count(torch.tensor(norm))
    skips.report(5, 0.1, 3, 'x')  # two bad steps in a row, then one
    for norm in (float('nan'), float('nan')):
        skips.count(torch.tensor(norm))
    with pytest.raises(UserError, match='3 steps in a row'):
        skips.report(7, 0.1, 3, 'x')  # the first of these steps was before the last log line


def test_lines_of_repeated_steps_are_removed_from_the_log(tmp_path):
    path = tmp_path / 'stdout.txt'
    command_line.log_to(path)
    from absl import logging

    for step in range(4):
        logging.info('step: %d, training_loss: 1.0', step)
    logging.warning('something went wrong after step 3')
    training_log.remove_steps(path, 2)
    logging.info('step: 2, training_loss: 1.0')
    kept = [line.split('INFO ')[-1].split('WARNING ')[-1] for line in path.read_text().splitlines()]
    assert kept == [
        'step: 0, training_loss: 1.0',
        'step: 1, training_loss: 1.0',
        'something went wrong after step 3',
        'step: 2, training_loss: 1.0',
    ]


@pytest.mark.parametrize('work, kills', [('training', 5), ('two', 3)])
def test_kills_at_random_moments(tmp_path, work, kills):
    """A short run of benchmarks/faults.py, with one process and with two that train together."""
    done = subprocess.run(
        [
            sys.executable,
            'benchmarks/faults.py',
            '--kills',
            str(kills),
            '--work',
            work,
            '--json',
            f'{tmp_path}/a.json',
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0 and (tmp_path / 'a.json').is_file(), done.stdout + done.stderr
