"""Whether anything is lost when a training, or an evaluation, is killed at random moments.

    python benchmarks/faults.py --kills 100 --json faults.json      # some minutes on one core
    # or training, or two: processes that train together
    python benchmarks/faults.py --kills 5 --work evaluation

A small network of digits is trained with a checkpoint every two steps. Its process is killed
(SIGKILL) after a random time, during saves too, and started again, until the training is done; then
all over again with another seed, until there have been so many kills. Behind every kill a
checkpoint must be there that can be read and is not older than the one before. In the end
parameters, moments, averages, random states and snapshots must be those of a training that was
never stopped, bit for bit, and log and TensorBoard file must have every step once. So are two
processes that train together, killed at the same moment and compared with two that were not; and
the evaluation, whose files must hold the same arrays.
"""

import argparse
import contextlib
import functools
import logging
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time

import numpy as np
import sklearn.datasets  # noqa: F401 (once, before the first fork)
import torch
from timing import parse_args, show

import checkpoints
import run_lib
from commands import command_line
from configs.vp import digits_ddpmpp_continuous
from reports import plots, results
from runtime import distributed
from runtime.errors import CheckpointError


def config_of(seed: int, args, folder):
    """The config of a tiny training and evaluation, with statistics in `folder`."""
    config = digits_ddpmpp_continuous.get_config()
    config.seed, config.device = seed, 'cpu'
    config.model.update(nf=8, num_scales=25, ema_rate=0.9)
    config.training.update(
        batch_size=8,
        n_iters=args.steps,
        snapshot_freq=args.steps // 3,
        snapshot_freq_for_preemption=2,
        log_freq=1,
        eval_freq=7,
        snapshot_sampling=False,
    )
    config.eval.update(
        begin_ckpt=1,
        end_ckpt=2,
        batch_size=60,
        num_samples=120,
        stats_dir=str(folder / 'stats'),
        bpd_rtol=0.1,
        bpd_atol=0.1,
    )
    if args.quick:
        config.eval.update(batch_size=8, num_samples=8, most_images=8)
    return config


def in_child(work, *at_first) -> int:
    """The number of a process that does all that is in `at_first`, then `work`, and ends."""
    process = os.fork()
    if process:
        return process
    try:
        for prepare in at_first:
            prepare()
        with open(os.devnull, 'w') as nothing, contextlib.redirect_stderr(nothing):
            work()
        os._exit(0)
    except BaseException as error:  # noqa: B036 (whatever it is, the child must not go on as the parent)
        print(f'{type(error).__name__}: {error}', file=sys.stdout, flush=True)
        os._exit(1)


def killed(work, longest: float, rng) -> bool:
    """Start `work` and kill it and its children after a random time of at most `longest` seconds.

    Returns:
        False if it had finished before.
    """
    alive, held = os.pipe()
    process, deadline = (
        in_child(work, os.setsid, functools.partial(os.close, alive)),
        time.monotonic() + rng.uniform(0, longest),
    )
    os.close(held)
    try:
        while time.monotonic() < deadline:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                if status:
                    raise SystemExit(
                        'the process ended by itself, with status '
                        f'{os.waitstatus_to_exitcode(status)}'
                    )
                return False
            time.sleep(0.001)
        for kill in (os.killpg, os.kill):  # the first moment it has no group yet
            with contextlib.suppress(ProcessLookupError):
                kill(process, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(process, 0)[1])
    finally:
        os.read(alive, 1)  # comes to its end when the last of them is dead
        os.close(alive)


def train(config, workdir):
    command_line.log_to(workdir / 'stdout.txt')
    run_lib.train(config, workdir)


def train_by_two(config, workdir):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        place = dict(
            MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free.getsockname()[1]), WORLD_SIZE='2'
        )

    def join(rank):
        os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
        distributed.start(config.device, 5.0)
        if rank == 0:
            command_line.log_to(workdir / 'stdout.txt')
        run_lib.train(config, workdir)
        distributed.stop()

    others = [in_child(functools.partial(join, rank)) for rank in range(2)]
    if any([os.waitpid(process, 0)[1] for process in others]):
        raise SystemExit('one of the two processes ended by itself')


def evaluate(config, workdir):
    command_line.log_to(workdir / 'stdout.txt')
    run_lib.evaluate(config, workdir)


def tensors(value) -> list:
    """All that is in a checkpoint, as bytes, by the order of keys."""
    if isinstance(value, dict):
        return [(key, tensors(value[key])) for key in sorted(value, key=str)]
    if isinstance(value, (list, tuple)):
        return [tensors(part) for part in value]
    return value.numpy().tobytes() if torch.is_tensor(value) else value


def state_of(workdir) -> list:
    paths = [checkpoints.resume_path(workdir), *sorted((workdir / 'checkpoints').glob('*.pth'))]
    return [(path.name, tensors(checkpoints.load(path))) for path in paths]


def steps_of(workdir) -> dict:
    """The steps, in their order, that the log and every curve of TensorBoard tell."""
    log = [
        int(step)
        for step in re.findall(r' step: (\d+), training_loss', (workdir / 'stdout.txt').read_text())
    ]
    return dict(log=log) | {
        tag: [*map(int, steps)] for tag, (steps, _) in plots.curves(workdir).items()
    }


def loadable_step(workdir) -> int:
    """The step from which training would go on; -1 before the first save."""
    path = checkpoints.resume_path(workdir)
    for file in (path, checkpoints.previous(path)):
        if file.is_file():
            try:
                return checkpoints.load(file)['step']
            except CheckpointError as error:
                print(f'  {error}')
    return -1


def trainings(args, folder, rng, train=train, what='training') -> dict:
    done, finished, faults = 0, 0, dict(lost=0, state=0, steps=0)
    while done < args.kills:
        config = config_of(finished, args, folder)
        whole, parts = (
            folder / f'{train.__name__}_whole_{finished}',
            folder / f'{train.__name__}_parts_{finished}',
        )
        for workdir in (whole, parts):
            workdir.mkdir()
        started = time.monotonic()
        assert not killed(functools.partial(train, config, whole), 1e4, random.Random(1)), (
            'the undisturbed one'
        )
        longest, newest, here = 0.3 * (time.monotonic() - started), -1, 0
        while killed(
            functools.partial(train, config, parts),
            longest * (10 if here >= min(args.kills, 30) else 1),
            rng,
        ):
            done, here, step = done + 1, here + 1, loadable_step(parts)
            faults['lost'] += step < newest
            newest = max(newest, step)
        faults['state'] += state_of(whole) != state_of(parts)
        faults['steps'] += steps_of(whole) != steps_of(parts) or steps_of(parts)['log'] != list(
            range(args.steps)
        )
        finished += 1
        print(
            f'{what} {finished}: {here} kills, {done} in all; faults so far: {faults}', flush=True
        )
    return dict(what=what, kills=done, finished=finished) | faults


def arrays_of(workdir) -> dict:
    found = {
        path.relative_to(workdir).as_posix(): results.load(path)
        for path in workdir.glob('eval/**/*.npz')
    }
    return {
        name: [
            (key, np.asarray(value).tobytes())
            for key, value in sorted(file.items())
            if key not in ('seconds', 'protocol')
        ]
        for name, file in found.items()
    }


def evaluations(args, folder, rng) -> dict:
    done, finished, faults = 0, 0, dict(lost=0, state=0, steps=0)
    trained = folder / 'trained'
    trained.mkdir()
    assert not killed(
        functools.partial(train, config_of(0, args, folder), trained), 1e4, random.Random(1)
    ), 'the training'
    while done < args.kills:
        config = config_of(finished, args, folder)
        whole, parts = folder / f'eval_whole_{finished}', folder / f'eval_parts_{finished}'
        for workdir in (whole, parts):
            shutil.copytree(trained, workdir)
        started = time.monotonic()
        assert not killed(functools.partial(evaluate, config, whole), 1e4, random.Random(1)), (
            'the undisturbed one'
        )
        longest, files, here = 0.3 * (time.monotonic() - started), 0, 0
        while killed(
            functools.partial(evaluate, config, parts),
            longest * (10 if here >= min(args.kills, 30) else 1),
            rng,
        ):
            now = len(arrays_of(parts))
            faults['lost'] += now < files
            files, done, here = now, done + 1, here + 1
        faults['state'] += arrays_of(whole) != arrays_of(parts)
        finished += 1
        print(
            f'evaluation {finished}: {here} kills, {done} in all; faults so far: {faults}',
            flush=True,
        )
    return dict(what='evaluation', kills=done, finished=finished) | faults


WORK = {
    'training': trainings,
    'two': functools.partial(trainings, train=train_by_two, what='training by two processes'),
    'evaluation': evaluations,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--kills', type=int, default=100, help='at least so many of each kind (%(default)s)'
    )
    parser.add_argument('--work', choices=(*WORK, 'all'), default='all')
    parser.add_argument(
        '--seed', type=int, default=0, help='of the moments of the kills (%(default)s)'
    )
    parser.add_argument(
        '--json', metavar='PATH', help='write the rows and the machine to this file'
    )
    parser.set_defaults(repeats=1, steps=60)
    args = parse_args(parser, kills=1, steps=6)
    torch.set_num_threads(1)  # before the first fork: threads would not survive it
    logging.getLogger('tensorboard').setLevel(logging.ERROR)  # it tells of every restart
    rng, rows = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as folder:
        for what, work in WORK.items():
            if args.work in (what, 'all'):
                rows.append(work(args, pathlib.Path(folder), rng))
    show(
        args,
        'Killed at random moments',
        rows,
        {
            'what': ('what', '{}'),
            'kills': ('kills', '{}'),
            'runs to the end': ('finished', '{}'),
            'checkpoints or files lost': ('lost', '{}'),
            'other end states': ('state', '{}'),
            'steps missing or doubled': ('steps', '{}'),
        },
    )
    return any(row[fault] for row in rows for fault in ('lost', 'state', 'steps'))


if __name__ == '__main__':
    sys.exit(main())
