"""Section of gpu.py: a training by `main.py` that is stopped and resumed."""

import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from sections import Run, Table

ROOT = pathlib.Path(__file__).parents[1]


def command(run: Run, mode: str, *flags: str) -> list[str]:
    data = ['--config.data.dataset=NPZ', f'--config.data.path={run.npz}'] if run.npz else []
    fast = [] if run.quick else ['--config.training.precision=bfloat16']
    return [
        sys.executable,
        'main.py',
        '--config',
        run.config,
        '--workdir',
        str(run.folder / 'training'),
        '--mode',
        mode,
        '--config.training.snapshot_sampling=False',
        f'--config.device={run.device}',
        *fast,
        *data,
        *flags,
    ]


def logged_steps(log: pathlib.Path) -> int:
    """The last step that a training has logged, -1 if none."""
    return max(
        (
            int(step)
            for step in re.findall(r'step: (\d+)', log.read_text() if log.is_file() else '')
        ),
        default=-1,
    )


def training(run: Run) -> list[Table]:
    """Train with main.py until a minute is left, stop it by SIGTERM, resume for some steps, draw a
    grid of samples.
    """
    workdir = run.folder / 'training'
    shutil.rmtree(workdir, ignore_errors=True)
    if not run.npz and not run.quick:
        run.npz = str(run.folder / 'random.npz')
        images = np.random.default_rng(run.seed).integers(0, 256, (4096, 32, 32, 3), dtype=np.uint8)
        np.savez(run.npz, x_train=images, x_test=images[:256])
    compiled = [] if run.quick else ['--config.training.compile=True']
    log_freq = '--config.training.log_freq=50'
    process = subprocess.Popen(command(run, 'train', *compiled, log_freq), cwd=ROOT)
    log, until = workdir / 'stdout.txt', time.monotonic() + max(60, run.left() - 60)
    while (
        process.poll() is None
        and time.monotonic() < until
        and not (run.quick and logged_steps(log) > 50)
    ):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    status = process.wait(timeout=60)
    stopped, lines, last = time.monotonic() - asked, log.read_text(), logged_steps(log)
    seen = re.findall(r'step: (\d+).*?training_loss: ([\d.e+-]+).*?images/s: (\d+)', lines)
    subprocess.run(
        command(run, 'train', log_freq, f'--config.training.n_iters={last + 60}'),
        cwd=ROOT,
        check=True,
    )
    resumed = logged_steps(log)
    sampler = ['--config.sampling.method=dpmpp_2m_sde', '--config.sampling.steps=30']
    subprocess.run(
        command(run, 'sample', *sampler, '--num_samples', '16' if run.quick else '64'),
        cwd=ROOT,
        check=True,
    )
    shutil.copy(workdir / 'generated' / 'grid.png', run.folder / 'grid.png')
    rows = [
        dict(
            config=run.config,
            steps=last,
            loss=float(seen[-1][1]),
            images=float(seen[-1][2]),
            status=status,
            stopped=stopped,
            resumed=resumed,
        )
    ]
    return [
        Table(
            'Training by `main.py`' + (' on random pictures' if 'random.npz' in run.npz else ''),
            {
                'config': ('config', '{}'),
                'steps': ('steps', '{}'),
                'last loss': ('loss', '{:.4g}'),
                'images/s': ('images', '{:.0f}'),
                'exit status': ('status', '{}'),
                'seconds from SIGTERM to exit': ('stopped', '{:.1f}'),
                'resumed to step': ('resumed', '{}'),
            },
            rows,
        )
    ]
