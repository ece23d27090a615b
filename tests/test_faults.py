"""Faults under training and its files: nothing is lost, nothing damaged is taken for whole, nothing
in a file is executed.
"""

import builtins
import errno
import functools
import io
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch

import checkpoints
import datasets
import evaluation
import losses
import run_lib
from checkpoints import files
from checkpoints.formats import torch_zip
from commands import command_line, control, training_log
from commands.data import describe_data
from commands.stats import statistics
from configs.vp import digits_ddpmpp_continuous
from conftest import ROOT, load_config
from data.images import Streamed, into_memory
from models import utils as mutils
from runtime import interruption
from runtime.errors import CheckpointError, UserError

KEYS = dict(
    model={'module.w': torch.arange(300.0)},
    ema=dict(decay=0.9, num_updates=3, shadow_params=[torch.arange(300.0)]),
    step=7,
)


def config_for(steps, **training):
    config = digits_ddpmpp_continuous.get_config()
    config.device = 'cpu'
    config.model.update(nf=8, num_scales=25)
    config.training.update(
        batch_size=8,
        n_iters=steps,
        snapshot_freq=2,
        snapshot_freq_for_preemption=1,
        log_freq=1,
        eval_freq=3,
        snapshot_sampling=False,
    )
    config.training.update(training)
    return config


def final_state(workdir):
    content = checkpoints.load(checkpoints.resume_path(workdir))
    return [
        *content['model'].values(),
        *content['ema']['shadow_params'],
        content['rng']['common'],
        torch.tensor(content['step']),
    ]


def same_end(a, b):
    return all(map(torch.equal, final_state(a), final_state(b)))


# Damaged files ------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp('whole') / 'a.pth'
    checkpoints.save(path, KEYS)
    return path.read_bytes()


def test_a_sealed_file_is_an_ordinary_one(whole, tmp_path):
    (tmp_path / 'a.pth').write_bytes(whole)
    # as the 2021 release reads it, and any zip program
    assert torch.load(tmp_path / 'a.pth', weights_only=True)['step'] == 7
    with zipfile.ZipFile(tmp_path / 'a.pth') as archive:
        assert archive.testzip() is None and archive.comment.startswith(b'sha256:')


def test_every_flipped_byte_is_noticed(whole, tmp_path):
    """At 200 places at random, and at each of the last ones, where the seal is."""
    places = [
        *np.random.default_rng(0).integers(0, len(whole), 200),
        *range(len(whole) - 100, len(whole)),
    ]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(place % 8)
        (tmp_path / 'a.pth').write_bytes(damaged)
        with pytest.raises(CheckpointError, match='a.pth'):
            checkpoints.load(tmp_path / 'a.pth')


def test_every_truncation_is_noticed(whole, tmp_path):
    for size in [*(len(whole) * i // 16 for i in range(16)), *range(len(whole) - 100, len(whole))]:
        (tmp_path / 'a.pth').write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match='a.pth'):
            checkpoints.load(tmp_path / 'a.pth')


def test_flipped_bytes_of_data_in_files_of_others(tmp_path):
    """Without a seal the archive's own sums are what there is."""
    torch.save(KEYS, tmp_path / 'a.pth')
    content = (tmp_path / 'a.pth').read_bytes()
    assert checkpoints.load(tmp_path / 'a.pth')['step'] == 7
    place = content.index(struct.pack('<3f', 100, 101, 102))
    (tmp_path / 'a.pth').write_bytes(content[:place] + b'\x01' + content[place + 1 :])
    with pytest.raises(CheckpointError, match='is damaged: the sum of'):
        checkpoints.load(tmp_path / 'a.pth')


class Limited(io.FileIO):
    """A file on a disk that is full, or broken, after so many bytes."""

    left, fault = 2000, errno.ENOSPC

    def write(self, data):
        Limited.left -= len(data)
        if Limited.left < 0:
            raise OSError(Limited.fault, os.strerror(Limited.fault))
        return super().write(data)


@pytest.mark.parametrize('bytes_left', [0, 100, 2000, 3000])
@pytest.mark.parametrize('fault', [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails(whole, tmp_path, monkeypatch, fault, bytes_left):
    path = tmp_path / 'a.pth'
    path.write_bytes(whole)

    def limited(name, mode='r', **settings):
        return (
            Limited(name, mode)
            if '.partial' in str(name) and 'w' in mode
            else builtins.open(name, mode, **settings)
        )

    monkeypatch.setattr(files, 'open', limited, raising=False)
    monkeypatch.setattr(Limited, 'left', bytes_left)
    monkeypatch.setattr(Limited, 'fault', fault)
    with pytest.raises(
        CheckpointError, match='cannot be written.*Earlier checkpoints are as they were'
    ) as caught:
        checkpoints.save(path, KEYS, keep_previous=True)
    assert os.strerror(fault) in str(caught.value) and '\n' not in str(caught.value)
    assert path.read_bytes() == whole and [file.name for file in tmp_path.iterdir()] == ['a.pth']


@pytest.mark.parametrize('name', ['replace', 'fsync', 'link'])
def test_a_call_that_fails(whole, tmp_path, monkeypatch, name):
    """Renaming, flushing: what was there stays; linking: a file system that cannot, where the old
    file is renamed instead.
    """
    path = tmp_path / 'a.pth'
    path.write_bytes(whole)

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, name, broken)
    if name == 'link':
        checkpoints.save(path, KEYS | dict(step=8), keep_previous=True)
        assert (
            checkpoints.load(path)['step'] == 8
            and checkpoints.load(checkpoints.previous(path))['step'] == 7
        )
        return
    with pytest.raises(CheckpointError, match=os.strerror(errno.EIO)):
        checkpoints.save(path, KEYS)
    assert path.read_bytes() == whole and [file.name for file in tmp_path.iterdir()] == ['a.pth']


def test_a_full_disk_stops_training_with_a_sentence(tmp_path, monkeypatch):
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
def test_the_one_before_is_used(tmp_path, damage, caplog):
    """A damaged latest file is told, training goes on from the one before it, and ends as if
    nothing had been.
    """
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
    assert path.with_name('checkpoint_damaged.pth').exists() == (damage != 'gone')
    assert same_end(tmp_path / 'whole', tmp_path / 'parts')


def test_a_damaged_one_never_takes_the_place_of_the_one_before(tmp_path, monkeypatch):
    """Even where the next save fails at its last call."""
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


def test_without_links_one_of_the_two_is_always_there(whole, tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    path.write_bytes(whole)
    replace, calls = os.replace, []

    def broken(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    def unsupported(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, 'replace', broken)
    monkeypatch.setattr(os, 'link', unsupported)
    with pytest.raises(CheckpointError, match='cannot be written'):
        checkpoints.save(path, KEYS, keep_previous=True)
    assert checkpoints.load(checkpoints.previous(path))['step'] == 7


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    run_lib.train(config_for(2), tmp_path)
    leftover = checkpoints.resume_path(tmp_path).with_name('checkpoint.pth.123.partial')
    leftover.write_bytes(b'half')
    run_lib.train(config_for(3), tmp_path)
    assert not leftover.exists()


def test_a_file_system_without_locks_is_no_conflict(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, 'flock', unsupported)
    with caplog.at_level('WARNING'):
        run_lib.train(config_for(2), tmp_path)
    assert 'a second training there is not prevented' in caplog.text


def test_samples_that_a_signal_kept_from_being_drawn_come_after_the_resume(tmp_path, monkeypatch):
    """What takes long is not begun behind a signal; the state is saved before it."""
    drawn = []

    def drawing(config, state, step, workdir, writer):
        drawn.append(step)
        assert checkpoints.find_resumable(tmp_path) is not None
        (workdir / 'samples' / f'iter_{step}').mkdir(parents=True)
        (workdir / 'samples' / f'iter_{step}' / 'sample.png').write_bytes(b'')

    monkeypatch.setattr(run_lib, '_save_training_samples', drawing)
    step_fn = losses.get_step_fn

    def signalling(*arguments, **settings):
        inner = step_fn(*arguments, **settings)

        def step(state, batch, *rest, **known):
            if settings['train'] and state['step'] == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(state, batch, *rest, **known)

        return step

    config = config_for(8, snapshot_sampling=True, snapshot_freq=4)
    monkeypatch.setattr(losses, 'get_step_fn', signalling)
    with pytest.raises(SystemExit) as caught:
        run_lib.train(config, tmp_path)
    assert caught.value.code == 143 and drawn == []
    monkeypatch.setattr(losses, 'get_step_fn', step_fn)
    run_lib.train(config, tmp_path)
    assert drawn == [4, 7]


def test_two_damaged_ones_are_an_error_and_stay_as_they_are(tmp_path):
    run_lib.train(config_for(3), tmp_path)
    path = checkpoints.resume_path(tmp_path)
    for file in (path, checkpoints.previous(path)):
        file.write_bytes(b'PK nothing')
    with pytest.raises(CheckpointError, match='previous'):
        run_lib.train(config_for(5), tmp_path)
    assert path.read_bytes() == b'PK nothing'


# Saving beside training ---------------------------------------------------------------------------


def test_saving_takes_no_longer_than_the_copy(tmp_path, monkeypatch):
    """The writer is slow; training goes on, what is written is the state as it was, and a failure
    is told.
    """
    state = dict(model={'w': torch.zeros(3)})
    write = files._write

    def slow(*arguments):
        time.sleep(0.3)
        write(*arguments)

    monkeypatch.setattr(files, '_write', slow)
    with checkpoints.Saver() as saver:
        for i in range(2):
            started = time.monotonic()
            saver.save(tmp_path / f'checkpoint_{i}.pth', state)
            assert time.monotonic() - started < 0.1
            state['model']['w'] += 1
        saver.wait()
        assert [
            checkpoints.load(tmp_path / f'checkpoint_{i}.pth')['model']['w'][0].item()
            for i in range(2)
        ] == [0, 1]

    def broken(*_):
        raise CheckpointError('cannot be written')

    monkeypatch.setattr(files, '_write', broken)
    with pytest.raises(CheckpointError, match='cannot be written'), checkpoints.Saver() as saver:
        saver.save(tmp_path / 'checkpoint_9.pth', state)


def test_the_newest_snapshots_stay(tmp_path):
    run_lib.train(config_for(9, keep_checkpoints=2), tmp_path)
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == [
        'checkpoint_3.pth',
        'checkpoint_4.pth',
    ]


# Signals, a second writer, bad steps --------------------------------------------------------------


def start(workdir, steps, *arguments, start_new_session=False, **environment):
    return subprocess.Popen(
        [
            sys.executable,
            'main.py',
            '--config',
            'configs/vp/digits_ddpmpp_continuous.py',
            '--workdir',
            str(workdir),
            '--mode',
            'train',
            '--config.device=cpu',
            '--config.model.nf=8',
            '--config.model.num_scales=25',
            '--config.training.batch_size=8',
            f'--config.training.n_iters={steps}',
            '--config.training.snapshot_freq=100000',
            '--config.training.log_freq=1',
            '--config.training.eval_freq=3',
            '--config.training.snapshot_sampling=False',
            *arguments,
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=start_new_session,
        env=os.environ | {'OMP_NUM_THREADS': '1'} | environment,
    )


def wait_for_step(process, workdir, step, seconds=120):
    deadline, log = time.monotonic() + seconds, workdir / 'stdout.txt'
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and f'step: {step}, training_loss' in log.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f'there was no step {step}: {process.communicate()[1]}')


@pytest.mark.parametrize('number, status', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops(tmp_path, number, status):
    process = start(tmp_path, 100000)
    wait_for_step(process, tmp_path, 5)
    process.send_signal(number)
    _, log = process.communicate(timeout=60)
    assert (
        process.returncode == status
        and f'Stopped by signal {int(number)} after step' in log
        and 'Traceback' not in log
    )
    stopped = checkpoints.load(checkpoints.resume_path(tmp_path))['step']
    assert (
        stopped > 5
        and f'after step {stopped - 1} (checkpoint saved). Run the same command to resume.' in log
    )
    again, whole = (start(workdir, stopped + 4) for workdir in (tmp_path, tmp_path / 'whole'))
    for process in (again, whole):
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert same_end(tmp_path, tmp_path / 'whole')
    steps = [
        line
        for line in (tmp_path / 'stdout.txt').read_text().splitlines()
        if 'training_loss' in line
    ]
    assert len(steps) == stopped + 4


def stopped_while(wanted, log, *command, number=signal.SIGTERM, pause=0.5):
    """Starts `main.py`, signals it `pause` seconds after `wanted` appeared in the log: its status,
    its last line, and how long it took.
    """
    before = len(log.read_text()) if log.is_file() else 0
    process = start(*command)
    deadline = time.monotonic() + 60
    while not (log.is_file() and wanted in log.read_text()[before:]):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    time.sleep(pause)
    started = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert 'Traceback' not in said, said
    return (
        process.returncode,
        said.splitlines()[-1].partition(' INFO ')[2],
        time.monotonic() - started,
    )


SLOW = '--config.sampling.steps=20000'  # half a minute and more


def test_a_signal_while_a_snapshot_is_sampled(tmp_path):
    """It ends the process within five seconds, behind the save; training that is resumed draws
    these samples and ends as if nothing had been. So it does where the next signal comes while the
    missed samples are drawn.
    """
    config = config_for(7, snapshot_sampling=True, snapshot_freq=4)
    run_lib.train(config, tmp_path / 'whole')
    parts, log = tmp_path / 'parts', tmp_path / 'parts' / 'stdout.txt'
    snapshots = [
        '--config.training.snapshot_sampling=True',
        '--config.training.snapshot_freq=4',
        SLOW,
    ]
    for wanted, number, status in (
        ('step: 4, training_loss', signal.SIGTERM, 143),
        ('Started training', signal.SIGINT, 130),
    ):
        code, line, took = stopped_while(wanted, log, parts, 7, *snapshots, number=number)
        assert code == status and took < 5
        # the second may come before the sampling
        saved = r' after step 4 \(checkpoint saved\)' if number == signal.SIGTERM else '.*'
        assert re.fullmatch(
            f'Stopped by signal {int(number)}{saved}. Run the same command to resume.', line
        ), line
    run_lib.train(config, parts)
    names = [f'samples/iter_{step}/sample.{kind}' for step in (4, 6) for kind in ('np', 'png')]
    assert all(
        (parts / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes() for name in names
    )
    assert same_end(tmp_path / 'whole', parts)


def test_a_signal_while_the_last_samples_are_drawn(tmp_path, monkeypatch):
    config = config_for(4, snapshot_sampling=True)
    run_lib.train(config, tmp_path / 'whole')
    calls = []

    def look():
        calls.append(1)
        if len(calls) == 70:  # network evaluations; 50 are of step 2
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(interruption, 'look', look)
    with pytest.raises(SystemExit) as caught:
        run_lib.train(config, tmp_path / 'parts')
    monkeypatch.undo()
    assert caught.value.code == 143 and not (tmp_path / 'parts' / 'samples' / 'iter_3').exists()
    run_lib.train(config, tmp_path / 'parts')  # all steps are done, but not their samples
    name = 'samples/iter_3/sample.np'
    assert (tmp_path / 'parts' / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()
    assert same_end(tmp_path / 'whole', tmp_path / 'parts')


def test_a_signal_while_a_classifier_is_tested(tmp_path, monkeypatch):
    """Its accuracy is logged on resume."""
    config = load_config('configs.vp.digits_wideresnet', widen=1)
    config.training.update(batch_size=8, n_iters=3, snapshot_freq=2, log_freq=1)
    command_line.log_to(tmp_path / 'stdout.txt')
    log_accuracy = run_lib._log_accuracy

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        log_accuracy(*arguments)

    monkeypatch.setattr(run_lib, '_log_accuracy', signalled)
    with pytest.raises(SystemExit) as caught:
        run_lib.train_classifier(config, tmp_path)
    monkeypatch.undo()
    assert caught.value.code == 143 and 'accuracy' not in (tmp_path / 'stdout.txt').read_text()
    for _ in range(2):  # the second time there is nothing to do
        run_lib.train_classifier(config, tmp_path)
    assert re.findall(r'step: (\d), accuracy', (tmp_path / 'stdout.txt').read_text()) == ['2']


def evaluation_config(folder):
    config = config_for(3)
    config.eval.update(
        begin_ckpt=1,
        end_ckpt=1,
        batch_size=6,
        num_samples=12,
        enable_loss=False,
        enable_bpd=False,
        metrics_floor=False,
        stats_dir=str(folder / 'stats'),
    )
    return config


def test_a_signal_while_an_evaluation_samples(tmp_path):
    """The first batch stays, the second one is drawn by the same command, and the files are those
    of an evaluation in one go.
    """
    config = evaluation_config(tmp_path)
    run_lib.train(config, tmp_path)
    config.sampling.steps = 300
    run_lib.evaluate(config, tmp_path, 'whole')
    command = [
        tmp_path,
        3,
        '--mode=eval',
        '--eval_folder=parts',
        '--config.sampling.steps=300',
        f'--config.eval.stats_dir={tmp_path / "stats"}',
        '--config.eval.batch_size=6',
        '--config.eval.num_samples=12',
        '--config.eval.begin_ckpt=1',
        '--config.eval.end_ckpt=1',
        '--config.eval.enable_loss=False',
        '--config.eval.enable_bpd=False',
        '--config.eval.metrics_floor=False',
        '--config.training.snapshot_freq=2',
        '--config.training.snapshot_freq_for_preemption=1',
    ]
    code, line, took = stopped_while('Drew 6 samples', tmp_path / 'stdout.txt', *command, pause=0.2)
    assert (code, line) == (
        143,
        'Stopped by signal 15. Run the same command to resume.',
    ) and took < 5
    files = tmp_path / 'parts' / 'ckpt_1'
    assert (files / 'samples_0.npz').is_file() and not (files / 'samples_1.npz').exists()
    first = (files / 'samples_0.npz').stat().st_mtime_ns
    run_lib.evaluate(config, tmp_path, 'parts')
    assert (files / 'samples_0.npz').stat().st_mtime_ns == first
    for k in range(2):
        found, expected = (
            np.load(tmp_path / name / 'ckpt_1' / f'samples_{k}.npz') for name in ('parts', 'whole')
        )
        assert (
            np.array_equal(found['samples'], expected['samples'])
            and found['protocol'] == expected['protocol']
        )
    assert (
        np.load(tmp_path / 'parts' / 'report_1.npz')['fid']
        == np.load(tmp_path / 'whole' / 'report_1.npz')['fid']
    )


@pytest.mark.parametrize(
    'command',
    [('--mode=control', '--task=inpaint', '--mask=right'), ('--mode=sample',)],
    ids=['control', 'sample'],
)
def test_a_signal_while_pictures_are_drawn(tmp_path, command):
    run_lib.train(config_for(3), tmp_path)
    code, line, took = stopped_while('Loaded', tmp_path / 'stdout.txt', tmp_path, 3, *command, SLOW)
    assert (
        code == 143
        and took < 5
        and re.fullmatch('Stopped by signal 15. No (results|samples) were written.', line)
    )
    assert not [*tmp_path.glob('control_inpaint/*'), *tmp_path.glob('generated/*')]


@pytest.mark.parametrize('place', ['decoding', 'likelihood', 'features', 'encoding'])
def test_a_signal_while_other_work_is_done(tmp_path, monkeypatch, place):
    """The signal comes within the work itself, and interrupts it there."""
    config = evaluation_config(tmp_path)
    config.eval.update(enable_bpd=True, enable_sampling=False)
    run_lib.train(config, tmp_path)
    calls, done = [], []

    def signalling(fn):
        def wrapped(*arguments, **settings):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return fn(*arguments, **settings)

        return wrapped

    if place == 'decoding':
        decode = signalling(lambda i: (np.zeros((8, 8, 1), np.uint8), 0))
        source = Streamed(decode, 100_000, (8, 8, 1), str, parallel=False)
        monkeypatch.setattr(datasets, 'get_split', lambda *_, **__: into_memory(source, 4.0))
    elif place == 'features':
        extractor = evaluation.Extractor(
            dict(backend='pixels', extractor='none', feature='pixels', input='x'),
            signalling(
                lambda images: {'pool_3': images.reshape(len(images), -1).astype(np.float32)}
            ),
        )
        monkeypatch.setattr(evaluation, 'get_extractor', lambda config: extractor)
    else:
        monkeypatch.setattr(
            mutils.get_model('ddpmpp'), 'forward', signalling(mutils.get_model('ddpmpp').forward)
        )
    work = {
        'decoding': lambda: describe_data(config),
        'features': lambda: statistics(config),
        'likelihood': lambda: run_lib.evaluate(config, tmp_path),
        'encoding': lambda: control.control(config, tmp_path, 'reconstruct'),
    }[place]
    with pytest.raises(SystemExit) as caught:
        done.append(work())
    assert caught.value.code == 143 and not done and len(calls) == 3


def test_threads_stop_too(monkeypatch):
    """Images that wait to be decoded are not decoded any more."""
    monkeypatch.setattr(interruption._noted, 'signal', 0)
    decoded = []

    def decode(i):
        if i == 5:
            interruption._noted.signal = signal.SIGTERM
        decoded.append(i)
        return np.zeros((8, 8, 1), np.uint8), 0

    with pytest.raises(interruption.Interrupted):
        Streamed(decode, 10_000, (8, 8, 1), str).read(np.arange(10_000))
    assert len(decoded) < 5000


def test_an_error_that_a_signal_brings_about_is_one_line(caplog):
    """Compilers and other processes of the group get the same signal, and what they answer is an
    error; a mistake stays one.
    """
    with (
        caplog.at_level('INFO', logger='absl'),
        pytest.raises(SystemExit) as caught,
        interruption.interruptible(),
        interruption.held(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError('C++ compile error:\n' + 1000 * 'and so on\n')
    assert (
        caught.value.code == 143
        and caplog.messages[-1]
        == 'Stopped by signal 15 (RuntimeError). Run the same command to resume.'
    )
    with pytest.raises(UserError), interruption.interruptible(), interruption.held():
        os.kill(os.getpid(), signal.SIGTERM)
        raise UserError('the disk is full')
    with pytest.raises(RuntimeError), interruption.interruptible():
        raise RuntimeError('without a signal')


@pytest.mark.skipif(
    shutil.which('g++') is None and shutil.which('clang++') is None,
    reason='compiling for a CPU needs a C++ compiler',
)
def test_a_signal_while_the_network_is_compiled(tmp_path):
    """To the whole group, compilers and all: one line, and no waiting for the kernels that are
    still to be compiled.
    """
    process = start(
        tmp_path,
        100,
        '--config.training.compile=True',
        start_new_session=True,
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / 'cache'),
    )
    deadline = time.monotonic() + 120
    while not [*(tmp_path / 'cache').rglob('*.cpp')]:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    lines = [
        line
        for line in said.partition('work directory')[2].splitlines()[1:]
        if 'No CUDA runtime' not in line
    ]
    assert process.returncode == 143 and time.monotonic() - started < 10
    assert len(lines) == 1 and lines[0].endswith(
        'Stopped by signal 15. Run the same command to resume.'
    ), said


def test_a_second_signal_stops_at_once(tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            '-c',
            'import time\nfrom runtime import '
            'interruption\n'
            'with interruption.interruptible(), interruption.held():\n'
            ' print("go", flush=True)\n time.sleep(60)',
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == 'go\n'
    for pause in (0.3, 2.0, 0.0):  # the second is the first, delivered twice
        process.send_signal(signal.SIGTERM)
        time.sleep(pause)
        assert pause == 0 or process.poll() is None
    assert process.wait(timeout=5) == 143
    process.stdout.close()


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
    run_lib.train(config_for(1), tmp_path)  # it died, and with it its lock


def test_bad_steps_in_a_row_stop_training(tmp_path, monkeypatch):
    """Never a value in parameters or averages that is not finite; the error names step, learning
    rate and checkpoint.
    """
    import losses

    backward = torch.Tensor.backward
    calls = []

    def poisoned(loss, *arguments, **settings):
        calls.append(1)
        backward(loss * (float('nan') if len(calls) > 4 else 1.0), *arguments, **settings)

    monkeypatch.setattr(torch.Tensor, 'backward', poisoned)
    with pytest.raises(
        UserError,
        match=r'stopped at step 6: the gradients of 3 steps in a row '
        r'.*max_bad_steps=3.*learning rate of 0\.000.*'
        r'checkpoint\.pth',
    ):
        run_lib.train(config_for(30, max_bad_steps=3), tmp_path)
    assert all(
        torch.isfinite(value).all() for value in final_state(tmp_path) if value.is_floating_point()
    )
    skips = losses.Skips('cpu')
    for norm in (1.0, float('inf'), float('nan'), 2.0, float('nan')):
        skips.count(torch.tensor(norm))
    skips.tell(5, 0.1, 3, 'x')  # two in a row, then one
    for norm in (float('nan'), float('nan')):
        skips.count(torch.tensor(norm))
    with pytest.raises(UserError, match='3 steps in a row'):
        skips.tell(7, 0.1, 3, 'x')  # which began before the last log line


def test_the_log_forgets_what_comes_again(tmp_path):
    path = tmp_path / 'stdout.txt'
    command_line.log_to(path)
    from absl import logging

    for step in range(4):
        logging.info('step: %d, training_loss: 1.0', step)
    logging.warning('something went wrong behind step 3')
    training_log.forget_steps(path, 2)
    logging.info('step: 2, training_loss: 1.0')
    told = [line.split('INFO ')[-1].split('WARNING ')[-1] for line in path.read_text().splitlines()]
    assert told == [
        'step: 0, training_loss: 1.0',
        'step: 1, training_loss: 1.0',
        'something went wrong behind step 3',
        'step: 2, training_loss: 1.0',
    ]


# Files that are not to be trusted -----------------------------------------------------------------


class Trap:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def hostile(folder):
    """{file name: (what makes it, words of its error)}."""
    spring = (os.system, f'touch {folder}/sprung')

    def saved(content, **settings):
        return functools.partial(torch.save, content, **settings)

    def pickled(content, protocol=2):
        return lambda path: path.write_bytes(pickle.dumps(content, protocol))

    def archive(compression, **files):
        def make(path):
            with zipfile.ZipFile(path, 'w', compression) as file:
                for name, content in files.items():
                    file.writestr(f'a/{name.replace("_", ".")}', content)

        return make

    found = {
        'system.pth': (saved({'model': Trap(*spring)}), 'wants to import'),
        'eval.pth': (
            saved({'model': {}, 'x': Trap(eval, f'open("{folder}/sprung", "w")')}),
            'wants to import eval',
        ),
        'exec.pth': (
            saved({'model': {}, 'x': [Trap(exec, f'open("{folder}/sprung", "w")')]}),
            'wants to import exec',
        ),
        'popen.pth': (
            saved({'model': {}, 'x': Trap(subprocess.Popen, ['touch', f'{folder}/sprung'])}),
            'wants to import .*Popen',
        ),
        'getattr.pth': (
            saved({'model': {}, 'x': Trap(getattr, 'x', 'upper')}),
            'code in it|cannot be read',
        ),
        'old_system.pth': (
            saved({'model': Trap(*spring)}, _use_new_zipfile_serialization=False),
            'wants to import',
        ),
        'pickle.pth': (pickled({'model': Trap(*spring)}), 'code in it|cannot be read'),
        'pickle4.pth': (pickled({'model': Trap(*spring)}, 4), 'code in it|cannot be read'),
        'numpy.pth': (
            saved({'model': np.arange(5)}),
            'code in it|no training state|cannot be read',
        ),
        'bomb.pth': (archive(zipfile.ZIP_DEFLATED, data_pkl=bytes(50_000_000)), 'compressed data'),
        'no_pickle.pth': (archive(zipfile.ZIP_STORED, version=b'3'), 'cannot be read'),
        'bad_pickle.pth': (
            archive(zipfile.ZIP_STORED, data_pkl=b'\x80\x02garbage.', version=b'3'),
            'code in it|cannot be read',
        ),
        'deep.pth': (
            archive(
                zipfile.ZIP_STORED,
                data_pkl=b'\x80\x02' + b'(' * 100_000 + b'l' * 100_000 + b'.',
                version=b'3',
            ),
            'code in it|cannot be read|no training state',
        ),
        'list.pth': (saved([1, 2, 3]), 'no training state'),
        'number.pth': (saved(3.0), 'no training state'),
        'other.pth': (saved({'weights': {}}), "no 'model'"),
        'text.pth': (lambda path: path.write_text('hello'), 'cannot be read'),
        'html.pth': (lambda path: path.write_text('<!doctype html>'), 'cannot be read'),
        'zeros.pth': (lambda path: path.write_bytes(bytes(10_000)), 'cannot be read'),
        'empty.pth': (lambda path: path.write_bytes(b''), 'cannot be read'),
    }
    for i in range(15):
        found[f'cut_{i}.pth'] = (functools.partial(_cut, i), 'damaged|cannot be read')
        noise = b'PK' + np.random.default_rng(i).bytes(5000)
        found[f'noise_{i}.pth'] = (
            lambda path, noise=noise: path.write_bytes(noise),
            'damaged|cannot be read',
        )
        if i < 10:
            data = b'\x80\x02' + np.random.default_rng(i).bytes(300)
            found[f'random_pickle_{i}.pth'] = (
                archive(zipfile.ZIP_STORED, data_pkl=data, version=b'3'),
                'code in it|cannot be read',
            )
    return found


def _cut(i, path):
    checkpoints.save(path, KEYS)
    path.write_bytes(path.read_bytes()[: -(i + 1) * 500])


def test_hostile_files_are_refused(tmp_path):
    """One sentence each that names the file; nothing is executed; memory stays bounded."""
    files = hostile(tmp_path)
    assert len(files) >= 50
    for name, (make, words) in files.items():
        make(tmp_path / name)
        with pytest.raises(CheckpointError, match=words) as caught:
            checkpoints.load(tmp_path / name)
        assert name in str(caught.value) and '\n' not in str(caught.value), name
    assert not (tmp_path / 'sprung').exists()


@pytest.mark.parametrize('kind', ['compressed', 'sealed', 'bytearray', 'old'])
def test_memory_stays_bounded(tmp_path, kind):
    """A file of a few bytes or a megabyte that would become gigabytes; in a process of its own,
    whose memory is then its own.
    """
    path = tmp_path / 'bomb.pth'
    if kind == 'bytearray':
        torch.save({'model': {}, 'x': Trap(bytearray, 3_000_000_000)}, path)
    elif kind == 'old':
        torch.save(
            {'model': {}, 'x': Trap(bytearray, 3_000_000_000)},
            path,
            _use_new_zipfile_serialization=False,
        )
    else:
        with (
            zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive,
            archive.open('a/data.pkl', 'w', force_zip64=True) as file,
        ):
            for _ in range(60):
                file.write(bytes(2**24))
        if kind == 'sealed':
            with open(path, 'r+b') as file:
                torch_zip.seal(file)
    assert path.stat().st_size < 2_000_000
    code = (
        'import resource, torch, checkpoints\nbefore = '
        'resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
        f'try: checkpoints.load({str(path)!r})\nexcept CheckpointError as error: print(error)\n'
        'print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    message, grown = done.stdout.splitlines()
    assert 'bomb.pth' in message and int(grown) < 200_000, done.stdout  # KiB


def test_a_huge_claim_is_no_memory(tmp_path):
    """A tensor said to have far more values than the file has bytes."""
    torch.save(
        {'model': {'w': torch.zeros(10)}}, tmp_path / 'a.pth', _use_new_zipfile_serialization=False
    )
    content = (tmp_path / 'a.pth').read_bytes()
    claims = content.replace(b'K\n', b'\x8a\x05\x00\x00\x00\x00\x10')  # 10 -> 2^36
    assert claims != content
    (tmp_path / 'a.pth').write_bytes(claims)
    with pytest.raises(CheckpointError):
        checkpoints.load(tmp_path / 'a.pth')


def test_published_scalars_are_still_read(tmp_path):
    torch.save(
        {'model': {}, 'lr': np.float64(0.5), 'n': np.int64(3), 'x': np.float32(2)},
        tmp_path / 'a.pth',
    )
    assert torch_zip.load(tmp_path / 'a.pth')['lr'] == 0.5


@pytest.mark.parametrize('work, kills', [('training', 5), ('two', 3)])
def test_kills_at_random_moments(tmp_path, work, kills):
    """The short version of benchmarks/faults.py, of one process and of two that train together."""
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
