"""Signals during training, evaluation and sampling: nothing is lost, the same command resumes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import checkpoints
import datasets
import evaluation
import losses
import run_lib
from commands import command_line, control, snapshots
from commands.data import describe_data
from commands.stats import statistics
from conftest import ROOT, load_config
from data.images import Streamed, into_memory
from models import utils as mutils
from runtime import interruption
from runtime.errors import UserError
from small_runs import config_for, same_end, start, stopped_while, wait_for_step


def test_samples_skipped_after_a_signal_are_drawn_on_resume(tmp_path, monkeypatch):
    """After a signal the state is saved, and sampling is not started until training resumes."""
    drawn = []

    def drawing(config, state, step, workdir, writer):
        drawn.append(step)
        assert checkpoints.find_resumable(tmp_path) is not None
        (workdir / 'samples' / f'iter_{step}').mkdir(parents=True)
        (workdir / 'samples' / f'iter_{step}' / 'sample.png').write_bytes(b'')

    monkeypatch.setattr(snapshots, 'save_samples', drawing)
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


SLOW = '--config.sampling.steps=20000'  # half a minute or more


def test_a_signal_while_a_snapshot_is_sampled(tmp_path):
    """The signal ends the process within five seconds, after the checkpoint is saved.

    The resumed training draws the missing samples and has the final state of an uninterrupted one,
    even if a second signal comes while they are drawn.
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
        # the second signal may come before the sampling
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
        if len(calls) == 70:  # network evaluations; the first 50 are for step 2
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(interruption, 'look', look)
    with pytest.raises(SystemExit) as caught:
        run_lib.train(config, tmp_path / 'parts')
    monkeypatch.undo()
    assert caught.value.code == 143 and not (tmp_path / 'parts' / 'samples' / 'iter_3').exists()
    run_lib.train(config, tmp_path / 'parts')  # all steps are done, but the samples are missing
    name = 'samples/iter_3/sample.np'
    assert (tmp_path / 'parts' / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()
    assert same_end(tmp_path / 'whole', tmp_path / 'parts')


def test_a_signal_while_a_classifier_is_tested(tmp_path, monkeypatch):
    """After a signal during the test, the accuracy is logged on resume."""
    config = load_config('configs.vp.digits_wideresnet', widen=1)
    config.training.update(batch_size=8, n_iters=3, snapshot_freq=2, log_freq=1)
    command_line.log_to(tmp_path / 'stdout.txt')
    log_accuracy = snapshots.log_accuracy

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        log_accuracy(*arguments)

    monkeypatch.setattr(snapshots, 'log_accuracy', signalled)
    with pytest.raises(SystemExit) as caught:
        run_lib.train_classifier(config, tmp_path)
    monkeypatch.undo()
    assert caught.value.code == 143 and 'accuracy' not in (tmp_path / 'stdout.txt').read_text()
    for _ in range(2):  # the second call has nothing to do
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
    """The first batch is kept, and the same command draws the second one.

    The files equal those of an uninterrupted evaluation.
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
    """A signal during the work interrupts it immediately."""
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
    """Images in the queue are not decoded after a signal."""
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


def test_an_error_caused_by_a_signal_is_reported_in_one_line(caplog):
    """Errors caused by a signal are reported in one line.

    Compilers and other processes of the group get the same signal and cause such errors. A
    UserError remains a UserError.
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
    """A signal to the whole process group, including compilers, is reported in one line.

    The process does not wait for kernels that are not compiled yet.
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
    for pause in (0.3, 2.0, 0.0):  # the second counts as the first one delivered twice
        process.send_signal(signal.SIGTERM)
        time.sleep(pause)
        assert pause == 0 or process.poll() is None
    assert process.wait(timeout=5) == 143
    process.stdout.close()
