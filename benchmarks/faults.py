"""Is anything lost when training or evaluation is killed at random moments?

    python benchmarks/faults.py --kills 100 --json faults.json      # a few minutes on one core
    # --work is training, two (two processes that train together) or evaluation
    python benchmarks/faults.py --kills 5 --work evaluation

A small network is trained on digits and saves a checkpoint every two steps. Its process is killed
(SIGKILL) after a random time, even during saves, and started again until training is complete. This
is repeated with other seeds until --kills is reached. After every kill, a readable checkpoint must
exist that is not older than the previous one. At the end, parameters, optimizer moments, EMA
weights, random states and snapshots must equal those of an uninterrupted training bit for bit. The
log and the TensorBoard file must contain every step once. The same is tested for two processes that
train together and are killed at the same moment, and for evaluation, whose files must contain the
same arrays.
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

KINDS = ('whole', 'parts')  # uninterrupted and killed


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
    """Fork a process that calls each of `at_first`, then `work`, and exits; return its id."""
    process = os.fork()
    if process:
        return process
    try:
        for prepare in at_first:
            prepare()
        with open(os.devnull, 'w') as nothing, contextlib.redirect_stderr(nothing):
            work()
        os._exit(0)
    except BaseException as error:  # noqa: B036 (the child must never run the code of the parent)
        print(f'{type(error).__name__}: {error}', file=sys.stdout, flush=True)
        os._exit(1)


def killed(work, longest: float, rng) -> bool:
    """Start `work` and kill it and its children after a random time of at most `longest` seconds.

    Returns:
        False if `work` had finished before.
    """
    alive, held = os.pipe()
    process = in_child(work, os.setsid, functools.partial(os.close, alive))
    deadline = time.monotonic() + rng.uniform(0, longest)
    os.close(held)
    try:
        while time.monotonic() < deadline:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                if status:
                    raise SystemExit(
                        'the process exited by itself with status '
                        f'{os.waitstatus_to_exitcode(status)}'
                    )
                return False
            time.sleep(0.001)
        for kill in (os.killpg, os.kill):  # a new process has no group yet
            with contextlib.suppress(ProcessLookupError):
                kill(process, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(process, 0)[1])
    finally:
        os.read(alive, 1)  # returns when all the processes are dead
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
        raise SystemExit('one of the two training processes exited with an error')


def evaluate(config, workdir):
    command_line.log_to(workdir / 'stdout.txt')
    run_lib.evaluate(config, workdir)


def tensors(value) -> list:
    """Return the contents of a checkpoint as bytes, sorted by key."""
    if isinstance(value, dict):
        return [(key, tensors(value[key])) for key in sorted(value, key=str)]
    if isinstance(value, (list, tuple)):
        return [tensors(part) for part in value]
    return value.numpy().tobytes() if torch.is_tensor(value) else value


def state_of(workdir) -> list:
    paths = [checkpoints.resume_path(workdir), *sorted((workdir / 'checkpoints').glob('*.pth'))]
    return [(path.name, tensors(checkpoints.load(path))) for path in paths]


def steps_of(workdir) -> dict:
    """Return the steps of the log and of every TensorBoard curve, in order."""
    log = [
        int(step)
        for step in re.findall(r' step: (\d+), training_loss', (workdir / 'stdout.txt').read_text())
    ]
    return dict(log=log) | {
        tag: [*map(int, steps)] for tag, (steps, _) in plots.curves(workdir).items()
    }


def loadable_step(workdir) -> int:
    """Return the step from which training would resume; -1 before the first save."""
    path = checkpoints.resume_path(workdir)
    for file in (path, checkpoints.previous(path)):
        if file.is_file():
            try:
                return checkpoints.load(file)['step']
            except CheckpointError as error:
                print(f'  {error}')
    return -1


def undisturbed(work) -> float:
    """Run `work` to the end in a child process and return the elapsed seconds."""
    started = time.monotonic()
    assert not killed(work, 1e4, random.Random(1)), 'the process was killed before `work` was done'
    return time.monotonic() - started


def kills(work, seconds: float, args, rng):
    """Start `work` again and again until it finishes; kill it each time and yield after each kill.

    Each kill comes within 30 % of the `seconds` that the work takes. After 30 kills (or
    --kills, if smaller) it may come later, so that the work finishes.
    """
    here = 0
    while killed(work, seconds * (3 if here >= min(args.kills, 30) else 0.3), rng):
        here += 1
        yield


def trainings(args, folder, rng, train=train, what='training') -> dict:
    """Kill trainings until the number of kills is reached, and count the faults."""
    done, finished, faults = 0, 0, dict(lost=0, state=0, steps=0)
    while done < args.kills:
        config = config_of(finished, args, folder)
        whole, parts = (folder / f'{train.__name__}_{kind}_{finished}' for kind in KINDS)
        whole.mkdir()
        parts.mkdir()
        seconds = undisturbed(functools.partial(train, config, whole))
        newest, here = -1, 0
        for _ in kills(functools.partial(train, config, parts), seconds, args, rng):
            here += 1
            step = loadable_step(parts)
            faults['lost'] += step < newest
            newest = max(newest, step)
        done, finished = done + here, finished + 1
        steps = steps_of(parts)
        faults['state'] += state_of(whole) != state_of(parts)
        faults['steps'] += steps != steps_of(whole) or steps['log'] != [*range(args.steps)]
        report(what, finished, here, done, faults)
    return dict(what=what, kills=done, finished=finished) | faults


def report(what: str, finished: int, here: int, done: int, faults: dict) -> None:
    print(f'{what} {finished}: {here} kills, {done} in total; faults so far: {faults}', flush=True)


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
    """Kill evaluations of a trained network until --kills is reached, and count the faults."""
    done, finished, faults = 0, 0, dict(lost=0, state=0, steps=0)
    trained = folder / 'trained'
    trained.mkdir()
    undisturbed(functools.partial(train, config_of(0, args, folder), trained))
    while done < args.kills:
        config = config_of(finished, args, folder)
        whole, parts = (folder / f'eval_{kind}_{finished}' for kind in KINDS)
        shutil.copytree(trained, whole)
        shutil.copytree(trained, parts)
        seconds = undisturbed(functools.partial(evaluate, config, whole))
        files, here = 0, 0
        for _ in kills(functools.partial(evaluate, config, parts), seconds, args, rng):
            here += 1
            now = len(arrays_of(parts))
            faults['lost'] += now < files
            files = now
        done, finished = done + here, finished + 1
        faults['state'] += arrays_of(whole) != arrays_of(parts)
        report('evaluation', finished, here, done, faults)
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
        '--kills',
        type=int,
        default=100,
        help='minimum number of kills of each kind (default: %(default)s)',
    )
    parser.add_argument('--work', choices=(*WORK, 'all'), default='all')
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='seed of the moments of the kills (default: %(default)s)',
    )
    parser.add_argument(
        '--json', metavar='PATH', help='write the rows and the machine to this file'
    )
    parser.set_defaults(repeats=1, steps=60)
    args = parse_args(parser, kills=1, steps=6)
    torch.set_num_threads(1)  # before the first fork: threads do not survive a fork
    logging.getLogger('tensorboard').setLevel(logging.ERROR)  # it warns about every restart
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
