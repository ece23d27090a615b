"""Short trainings of small networks, in this process or in separate processes."""

import os
import signal
import subprocess
import sys
import time

import torch

import checkpoints
from configs.vp import digits_ddpmpp_continuous
from conftest import ROOT


def config_for(steps, **training):
    """Return the config of a small network that is trained for `steps` steps."""
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
    """Return the weights, EMA weights, random state and step from which training resumes."""
    content = checkpoints.load(checkpoints.resume_path(workdir))
    return [
        *content['model'].values(),
        *content['ema']['shadow_params'],
        content['rng']['common'],
        torch.tensor(content['step']),
    ]


def same_end(a, b):
    """Return whether two trainings have the same final state, bit for bit."""
    return all(map(torch.equal, final_state(a), final_state(b)))


def start(workdir, steps, *arguments, start_new_session=False, **environment):
    """Start training with `main.py` in a separate process; `arguments` are additional flags."""
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
    """Wait until a training has logged a step."""
    deadline, log = time.monotonic() + seconds, workdir / 'stdout.txt'
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and f'step: {step}, training_loss' in log.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f'step {step} was not logged: {process.communicate()[1]}')


def stopped_while(wanted, log, *command, number=signal.SIGTERM, pause=0.5):
    """Start `main.py` and send a signal `pause` seconds after `wanted` appears in the log.

    Returns:
        Exit status, last line of the log, and the seconds from the signal to the exit.
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
