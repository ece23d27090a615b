"""Several processes on the CPU (gloo) give the same losses, samples and files as one process."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.multiprocessing

from commands import preflight
from configs.vp import digits_ddpmpp_continuous
from runtime.errors import UserError

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = 'configs/vp/digits_ddpmpp_continuous.py'
SMALL = [
    '--config.device=cpu',
    '--config.model.nf=8',
    '--config.model.num_scales=25',
    '--config.training.batch_size=16',
    '--config.training.n_iters=21',
    '--config.training.snapshot_freq=20',
    '--config.training.snapshot_freq_for_preemption=100',
    '--config.training.log_freq=1',
    '--config.training.eval_freq=5',
    '--config.sampling.seed_per_image=True',
]
EVALUATION = [
    '--config.eval.num_samples=50',
    '--config.eval.batch_size=20',
    '--config.eval.bpd_rtol=0.1',
    '--config.eval.bpd_atol=0.1',
]


def command(processes, workdir, mode, *arguments):
    """Return the command line for several processes."""
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    place = '--config', CONFIG, '--workdir', str(workdir), '--mode', mode
    return [
        sys.executable,
        *(launcher if processes > 1 else ()),
        'main.py',
        *place,
        *SMALL,
        *arguments,
    ]


def run(processes, workdir, mode, *arguments, fails=False):
    """Run the command line in several processes and return its log."""
    result = subprocess.run(
        command(processes, workdir, mode, *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
    )
    assert (result.returncode != 0) == fails, result.stderr
    return result.stderr


def logged(log, name):
    return np.array([float(value) for value in re.findall(rf'{name}: ([-+.e\d]+)', log)])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Run the same training in one and in two processes; return work directories and logs."""
    folder = tmp_path_factory.mktemp('trained')
    return {n: (folder / str(n), run(n, folder / str(n), 'train')) for n in (1, 2)}


def endless(tmp_path, *arguments, wanted='step: 4, training_loss'):
    """Start a job of two processes that trains forever; wait until its log contains `wanted`."""
    log = tmp_path / 'stdout.txt'
    flags = (
        '--config.training.n_iters=100000',
        '--config.training.snapshot_freq_for_preemption=2',
        '--config.training.snapshot_freq=100000',
        '--config.timeout_minutes=0.5',
    )
    job = subprocess.Popen(
        command(2, tmp_path, 'train', *flags, *arguments),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
    )
    deadline = time.monotonic() + 120
    while not (log.is_file() and wanted in log.read_text()):
        assert time.monotonic() < deadline and job.poll() is None, job.communicate()[1]
        time.sleep(0.05)
    return job


def test_a_signal_to_two_processes_saves_and_stops(tmp_path):
    job = endless(tmp_path)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=60)
    stopped = re.search(
        r'Stopped by signal 15 after step (\d+)', (tmp_path / 'stdout.txt').read_text()
    )
    assert job.returncode != 0 and checkpoint(tmp_path)['step'] == int(stopped[1]) + 1 > 5
    log = run(
        2,
        tmp_path,
        'train',
        '--config.training.snapshot_freq=100000',
        f'--config.training.n_iters={int(stopped[1]) + 4}',
    )
    assert logged(log, 'step')[0] == int(stopped[1]) + 1


def workers_of(tmp_path) -> dict[int, int]:
    """Return the process ids of the two processes of a job, by rank."""
    workers = {}
    for folder in pathlib.Path('/proc').glob('[0-9]*'):
        try:
            settings = dict(
                part.split('=', 1)
                for part in (folder / 'environ').read_text().split('\0')
                if '=' in part
            )
            if str(tmp_path) in (folder / 'cmdline').read_text() and 'LOCAL_RANK' in settings:
                workers[int(settings['RANK'])] = int(folder.name)
        except OSError:  # the process belongs to another user, or has ended
            continue
    assert workers.keys() == {0, 1}
    return workers


def test_a_signal_to_one_of_two_processes_while_a_snapshot_is_sampled(tmp_path):
    """Both processes exit within seconds with status 143; the samples are drawn on resume."""
    slow = ['--config.training.snapshot_freq=4', '--config.sampling.steps=20000']
    job = endless(tmp_path, *slow, wanted='step: 4, training_loss')
    time.sleep(0.5)
    started = time.monotonic()
    os.kill(workers_of(tmp_path)[1], signal.SIGTERM)
    said = job.communicate(timeout=60)[1]
    assert time.monotonic() - started < 10 and said.count('exitcode  : 143') == 2, said
    assert 'Stopped by signal 15 after step 4 (checkpoint saved)' in said and 'error:' not in said
    assert checkpoint(tmp_path)['step'] == 5 and not (tmp_path / 'samples').exists()
    run(2, tmp_path, 'train', '--config.training.snapshot_freq=4', '--config.training.n_iters=5')
    assert np.load(tmp_path / 'samples' / 'iter_4' / 'sample.np').shape == (16, 8, 8, 1)


def test_a_dead_process_ends_the_job_with_a_message(tmp_path):
    """If one process is killed, the other soon reports it, and the checkpoint remains."""
    job = endless(tmp_path)
    os.kill(workers_of(tmp_path)[1], signal.SIGKILL)
    said = job.communicate(timeout=60)[1]
    assert (
        job.returncode != 0
        and 'error: process 0 of 2: another process of this job has died' in said
    ), said
    assert checkpoint(tmp_path)['step'] >= 3


def checkpoint(workdir):
    return torch.load(workdir / 'checkpoints-meta' / 'checkpoint.pth', weights_only=True)


def test_training_gives_the_losses_of_one_process(trained):
    for name, count in (('training_loss', 21), ('eval_loss', 5)):
        one, two = (logged(trained[n][1], name) for n in (1, 2))
        assert len(one) == len(two) == count
        np.testing.assert_allclose(two, one, rtol=1e-5)
    one, two = (checkpoint(trained[n][0]) for n in (1, 2))
    assert one['step'] == two['step'] == 21 and list(one['model']) == list(two['model'])
    for a, b in zip(one['ema']['shadow_params'], two['ema']['shadow_params']):
        # rounding, amplified by 21 steps of Adam, which divides by small numbers
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)


def test_only_process_0_writes(trained):
    files = [
        sorted(
            str(path.relative_to(workdir))
            for path in workdir.rglob('*')
            if 'tfevents' not in path.name
        )
        for workdir, _ in trained.values()
    ]
    assert files[0] == files[1]
    for workdir, _ in trained.values():
        assert len(list(workdir.glob('tensorboard/*'))) == 1
        assert (workdir / 'stdout.txt').read_text().count('step: 3, training_loss') == 1


def test_training_draws_the_samples_of_one_process(trained):
    one, two = (
        np.load(workdir / 'samples' / 'iter_20' / 'sample.np').astype(int)
        for workdir, _ in trained.values()
    )
    # a difference of one of the 17 grey levels
    assert one.shape == (16, 8, 8, 1) and np.abs(one - two).max() <= 255 // 16
    assert (one != two).mean() < 0.01


def test_resume_with_another_number_of_processes(trained, tmp_path):
    """Shared random numbers continue; those of a process only with the same number of processes."""
    run(2, tmp_path / 'two', 'train', '--config.training.n_iters=9')
    before = checkpoint(tmp_path / 'two')
    assert len(before['rng']['own']) == 2 and not torch.equal(*before['rng']['own'])
    log = run(1, shutil.copytree(tmp_path / 'two', tmp_path / 'one'), 'train')
    np.testing.assert_allclose(
        logged(log, 'training_loss'), logged(trained[1][1], 'training_loss')[9:], rtol=1e-5
    )

    run(2, tmp_path / 'two', 'train')
    resumed, whole = checkpoint(tmp_path / 'two'), checkpoint(trained[2][0])
    for key in whole['model']:
        assert torch.equal(resumed['model'][key], whole['model'][key]), key
    assert all(map(torch.equal, resumed['rng']['own'], whole['rng']['own']))


def test_evaluation_gives_the_files_of_one_process(trained, tmp_path):
    """Losses, likelihoods, samples, features, statistics and metrics are the same.

    The solver of the likelihood uses a different number of steps in each process.
    """
    workdir = trained[1][0]
    for n in (1, 2):
        log = run(
            n,
            workdir,
            'eval',
            f'--eval_folder=eval{n}',
            *EVALUATION,
            f'--config.eval.stats_dir={tmp_path / str(n)}',
        )
        assert log.count('Wrote') >= 1 and 'Frechet distance, pixels' in log
    one, two = (
        {path.relative_to(folder): path for path in sorted(folder.rglob('*.npz'))}
        for folder in (workdir / 'eval1', workdir / 'eval2')
    )
    assert list(one) == list(two) and len(one) == 1 + 18 + 6 + 1
    for name in one:
        a, b = (dict(np.load(path)) for path in (one[name], two[name]))
        assert a.pop('protocol') == b.pop('protocol') and a.keys() == b.keys()
        a.pop('seconds', None)
        for key in a:
            np.testing.assert_allclose(
                b[key], a[key], rtol=1e-6, atol=1e-6, err_msg=f'{name} {key}'
            )
    nfe = {int(np.load(path)['nfe']) for path in one.values() if 'bpd' in path.name}
    assert len(nfe) > 1, 'expected batches with different numbers of solver steps'
    a, b = (
        np.load(next((tmp_path / str(n)).glob('digits_pixels*_stats.npz')))['pool_3']
        for n in (1, 2)
    )
    np.testing.assert_array_equal(a, b)


def test_sampling_gives_the_images_of_one_process(trained, tmp_path):
    for n in (1, 2):
        run(n, trained[1][0], 'sample', '--num_samples=7', f'--output={tmp_path / str(n)}')
    one, two = (np.load(tmp_path / str(n) / 'samples.npz')['samples'] for n in (1, 2))
    np.testing.assert_array_equal(one, two)
    assert len(one) == 7 and len({image.tobytes() for image in one}) == 7


def test_control_with_several_processes_raises_an_error(tmp_path):
    log = run(2, tmp_path, 'control', '--task=interpolate', fails=True)
    assert '--mode control runs in a single process: start it without torchrun' in log


def test_a_fault_ends_all_processes(tmp_path):
    log = run(2, tmp_path, 'train', '--config.training.batch_size=15', fails=True)
    assert (
        'config.training.batch_size must be a multiple of config.training.accumulation=1 times 2 '
        'processes, got 15' in log
    )


def test_a_batch_that_cannot_be_divided_raises_an_error(tmp_path):
    config = digits_ddpmpp_continuous.get_config()
    config.device, config.training.batch_size, config.training.accumulation = 'cpu', 16, 3
    with pytest.raises(
        UserError,
        match='config.training.batch_size must be a multiple of '
        'config.training.accumulation=3.*, got 16',
    ):
        preflight.check(config, tmp_path, 'train')
