"""One section of gpu.py: training with `main.py` is stopped and resumed."""

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
LOG = '--config.training.log_freq=50'


def command(run: Run, mode: str, *flags: str) -> list[str]:
    """Return the command line of main.py in a mode, with the config, data and device of the run."""
    data = ['--config.data.dataset=NPZ', f'--config.data.path={run.npz}'] if run.npz else []
    fast = [] if run.quick else ['--config.training.precision=bfloat16']
    workdir = str(run.folder / 'training')
    return [
        *(sys.executable, 'main.py', '--config', run.config, '--workdir', workdir, '--mode', mode),
        '--config.training.snapshot_sampling=False',
        f'--config.device={run.device}',
        *fast,
        *data,
        *flags,
    ]


def logged_steps(log: pathlib.Path) -> int:
    """Return the last step in a training log; -1 if it has none."""
    text = log.read_text() if log.is_file() else ''
    return max(map(int, re.findall(r'step: (\d+)', text)), default=-1)


def training(run: Run) -> list[Table]:
    """Train with main.py until a minute is left, stop with SIGTERM, resume, and draw samples."""
    workdir = run.folder / 'training'
    shutil.rmtree(workdir, ignore_errors=True)
    if not run.npz and not run.quick:
        run.npz = random_pictures(run)
    status, stopped = stopped_training(run, workdir / 'stdout.txt')
    text, last = (workdir / 'stdout.txt').read_text(), logged_steps(workdir / 'stdout.txt')
    seen = re.findall(r'step: (\d+).*?training_loss: ([\d.e+-]+).*?images/s: (\d+)', text)
    more = f'--config.training.n_iters={last + 60}'
    subprocess.run(command(run, 'train', LOG, more), cwd=ROOT, check=True)
    row = dict(
        config=run.config,
        steps=last,
        loss=float(seen[-1][1]),
        images=float(seen[-1][2]),
        status=status,
        stopped=stopped,
        resumed=logged_steps(workdir / 'stdout.txt'),
    )
    draw_grid(run, workdir)
    return [
        Table(
            'Training with `main.py`' + (' on random images' if 'random.npz' in run.npz else ''),
            {
                'config': ('config', '{}'),
                'steps': ('steps', '{}'),
                'last loss': ('loss', '{:.4g}'),
                'images/s': ('images', '{:.0f}'),
                'exit status': ('status', '{}'),
                'seconds from SIGTERM to exit': ('stopped', '{:.1f}'),
                'resumed to step': ('resumed', '{}'),
            },
            [row],
        )
    ]


def random_pictures(run: Run) -> str:
    """Write random images in the format of --npz and return the file."""
    path = run.folder / 'random.npz'
    images = np.random.default_rng(run.seed).integers(0, 256, (4096, 32, 32, 3), dtype=np.uint8)
    np.savez(path, x_train=images, x_test=images[:256])
    return str(path)


def stopped_training(run: Run, log: pathlib.Path) -> tuple[int, float]:
    """Start training and stop it with SIGTERM.

    It runs until a minute of the time is left, but at least for a minute. A dry run has 50 steps.

    Returns:
        The exit status, and the seconds from SIGTERM to exit.
    """
    compiled = [] if run.quick else ['--config.training.compile=True']
    process = subprocess.Popen(command(run, 'train', *compiled, LOG), cwd=ROOT)
    until = time.monotonic() + max(60, run.left() - 60)
    while process.poll() is None and time.monotonic() < until:
        if run.quick and logged_steps(log) > 50:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    return process.wait(timeout=60), time.monotonic() - asked


def draw_grid(run: Run, workdir: pathlib.Path) -> None:
    """Draw samples of the trained network and copy their grid to the folder of the report."""
    sampler = ['--config.sampling.method=dpmpp_2m_sde', '--config.sampling.steps=30']
    n = '16' if run.quick else '64'
    subprocess.run(command(run, 'sample', *sampler, '--num_samples', n), cwd=ROOT, check=True)
    shutil.copy(workdir / 'generated' / 'grid.png', run.folder / 'grid.png')
