"""Training and evaluation: combine data, SDE, network, loss and files.

    config = command_line.load_config('configs/vp/cifar10_ddpmpp_continuous.py')
    train(config, 'runs/vp')       # --mode train; the same call resumes
    evaluate(config, 'runs/vp')    # --mode eval

The loss is defined in losses.py, the sampler in sampling.py. Work directories have the layout of
the 2021 release, described in docs/getting-started.md.
"""

import contextlib
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from absl import logging
from ml_collections import ConfigDict

import checkpoints
import datasets
import losses
import reports
import sde_lib
from commands import evaluate as evaluate_command
from commands import preflight, snapshots, training_log
from configs import stored
from data.batches import Batches
from data.tensors import get_classes, to_tensor
from models.ema import ExponentialMovingAverage
from models.utils import create_model
from runtime import distributed, interruption
from runtime.progress import progress
from runtime.randomness import own_randomness


def create_state(config: ConfigDict) -> dict:
    """Return a new training state: model, optimizer, ema, step."""
    model = create_model(config)
    return dict(
        model=model,
        optimizer=losses.get_optimizer(config, model.parameters()),
        ema=ExponentialMovingAverage(model.parameters(), decay=config.model.ema_rate),
        step=0,
    )


class Objective(NamedTuple):
    """The kind of network to train, its loss, and its work at snapshots.

    Args:
        kind: 'score model' or 'classifier', stored in the checkpoints.
        get_step_fn: called with `train`, `optimize_fn` and `accumulation`; returns a step function,
            see `losses.get_step_fn`.
        meaning: describes the loss in log lines.
        at_snapshot: called by every process at a snapshot, see commands/snapshots.py; or None.
        was_done: `was_done(workdir, step)` returns whether `at_snapshot` finished for a step.
    """

    kind: str
    get_step_fn: Callable
    meaning: training_log.LossMeaning
    at_snapshot: Callable | None = None
    was_done: Callable | None = None


@interruption.interruptible()
def train(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Train a score network up to `training.n_iters` steps, or resume the training in `workdir`."""
    config = preflight.check(config, workdir, 'train')
    settings, values = config.training, config.data.image_size**2 * config.data.num_channels
    get_step_fn = functools.partial(
        losses.get_step_fn,
        sde_lib.get_sde(config),
        reduce_mean=settings.reduce_mean,
        continuous=settings.continuous,
        likelihood_weighting=settings.likelihood_weighting,
    )
    reduction, to_mean = ('mean', 1.0) if settings.reduce_mean else ('half the sum', 2 / values)
    weighting = ', likelihood weighting' if settings.likelihood_weighting else ''
    meaning = training_log.LossMeaning(f'{reduction} over {values} values{weighting}', to_mean)
    objective = Objective('score model', get_step_fn, meaning)
    if settings.snapshot_sampling:
        objective = objective._replace(
            at_snapshot=snapshots.save_samples, was_done=snapshots.has_samples
        )
    _train(config, workdir, objective)


@interruption.interruptible()
def train_classifier(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Train the classifier of noisy images that `config` describes, as `train` does.

    Its accuracy is logged at each snapshot. Its checkpoints contain the config, so their path is
    enough to use them.
    """
    config = preflight.check(config, workdir, 'classifier')
    get_step_fn = functools.partial(losses.get_classifier_step_fn, sde_lib.get_sde(config))
    meaning = training_log.LossMeaning('cross-entropy')
    _train(
        config,
        workdir,
        Objective(
            'classifier', get_step_fn, meaning, snapshots.log_accuracy, snapshots.has_accuracy
        ),
    )


def _train(config, workdir, objective: Objective):
    """Train `objective`; resume from a checkpoint if there is one.

    Between log lines the host does not wait for the device.
    """
    workdir, settings = pathlib.Path(workdir), config.training
    with _sole_writer(workdir), own_randomness(config.seed):
        for sentence in preflight.warnings(config) if distributed.is_main() else ():
            logging.warning('%s.', sentence)
        state, randomness = _resumed(config, workdir)
        first, last = state['step'], settings.n_iters - 1
        missed = first and _was_missed(first - 1, settings, workdir, objective)
        if first > last and not missed:
            logging.info(
                'Training has reached step %d of config.training.n_iters=%d: nothing to do.',
                first,
                settings.n_iters,
            )
            return
        if distributed.is_main():
            training_log.remove_steps(workdir / 'stdout.txt', first)
        distributed.begin_randomness(config.device, config.seed, randomness, first)
        state['model'].share()
        train_ds, eval_ds = _data(config, workdir, state, objective)
        with (
            interruption.held(),
            training_log.tensorboard(workdir, first) as writer,
            checkpoints.Saver() as saver,
        ):
            job = Training(config, workdir, objective, state, eval_ds, writer, saver)
            step, stopping = _loop(job, train_ds, missed)
    if stopping and (step < last or objective.at_snapshot):
        raise interruption.Interrupted(stopping, f' after step {step} (checkpoint saved)')


def _loop(job: 'Training', train_ds, missed: bool) -> tuple[int, int]:
    """Take the remaining training steps.

    Args:
        job: the training.
        train_ds: the batches.
        missed: whether the previous step was a snapshot whose `at_snapshot` did not finish.

    Returns:
        The last step, and the number of the signal that stopped the training (0: none).
    """
    settings, first = job.config.training, job.first
    stopping = job.at_snapshot(first - 1) if missed else 0
    steps, step = range(first, first if stopping else settings.n_iters), first - 1
    for step, batch in progress(
        zip(steps, train_ds), 'training', settings.n_iters, 'step', first, in_log=False
    ):
        loss = job.step(step, batch)
        if step % settings.log_freq == 0 or step == settings.n_iters - 1:
            job.report(step, loss)
        if step % settings.eval_freq == 0:
            job.evaluate(step)
        stopping = distributed.any_of(interruption.signal_noted())
        is_snapshot = _is_snapshot(step, settings)
        if is_snapshot:
            job.save_snapshot(step)
        if stopping or is_snapshot or _is_preemption(step, settings):
            job.save_to_resume()
        if is_snapshot and not stopping:
            stopping = job.at_snapshot(step)
        if stopping:
            break
    return step, stopping


def _is_snapshot(step: int, settings) -> bool:
    return step == settings.n_iters - 1 or step > 0 and step % settings.snapshot_freq == 0


def _is_preemption(step: int, settings) -> bool:
    return step > 0 and step % settings.snapshot_freq_for_preemption == 0


def _was_missed(step: int, settings, workdir, objective: Objective) -> bool:
    """Whether `step` was a snapshot whose `at_snapshot` did not finish."""
    if not objective.at_snapshot or not _is_snapshot(step, settings):
        return False
    return not distributed.broadcast(objective.was_done(workdir, step))


def _resumed(config, workdir) -> tuple[dict, dict | None]:
    """Return a training state, resumed from a checkpoint if there is one, and its random state."""
    state = create_state(config)
    found = checkpoints.find_resumable(workdir) if distributed.is_main() else None
    found = distributed.broadcast(found)
    if not found:
        return state, None
    state |= dict(rng=None, config=None)
    checkpoints.restore(found, state, config.device, optional=('rng', 'config'), config=config)
    randomness, before = state.pop('rng'), state.pop('config')
    logging.info('Resumed from step %d of %s.', state['step'], found)
    if before:
        _log_changes(config, ConfigDict(json.loads(before)))
    return state, randomness


def _log_changes(config, before):
    """Log how the config differs from that of the checkpoint."""
    for key, old, new in stored.differences(config, before):
        logging.info('Changed config.%s: %r -> %r.', key, old, new)
        if key == 'training.batch_size':
            logging.warning(
                'Changed the position in the data: with config.training.batch_size=%r instead of '
                '%r the epoch resumes at other images.',
                new,
                old,
            )


def _data(config, workdir, state, objective):
    """Return the training and test batches; log the settings; store config and data record."""
    with distributed.main_first():
        train_ds, eval_ds, _ = datasets.get_dataset(
            config, config.data.uniform_dequantization, start=state['step']
        )
    facts = training_log.facts(
        config, workdir, state, objective.meaning, len(train_ds.data), len(eval_ds.data)
    )
    logging.info('Started training:\n%s', reports.table(facts))
    datasets.record(config, train_ds.data, workdir)
    if distributed.is_main():
        stored.write(config, workdir)
    return train_ds, eval_ds


class Training:
    """A running training: its methods take a step, log the losses and save checkpoints.

    `writer` (of TensorBoard; None except in process 0) and `saver` are open while the loop runs.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: pathlib.Path,
        objective: Objective,
        state: dict,
        eval_ds: Batches,
        writer: 'training_log.SummaryWriter | None',
        saver: checkpoints.Saver,
    ):
        settings = config.training
        self.config, self.workdir, self.objective = config, workdir, objective
        self.state, self.writer, self.saver = state, writer, saver
        self.first, self.resume = state['step'], checkpoints.resume_path(workdir)
        self.kept = dict(config=stored.as_json(config), kind=objective.kind)
        self.scaler, self.eval_batches = datasets.get_data_scaler(config), iter(eval_ds)
        self.train_step = objective.get_step_fn(
            train=True,
            optimize_fn=losses.optimization_manager(config),
            accumulation=settings.accumulation,
        )
        self.eval_step = objective.get_step_fn(train=False)
        self.log = training_log.Log(settings, objective.meaning, writer, self.first)
        self.skips, self.gradient_norm = training_log.Skips(config.device), None

    def step(self, step: int, batch: dict) -> torch.Tensor:
        """Take a step; return the loss of this process, on the device."""
        images, known = self._on_device(batch)
        if step == self.first:
            # it may compile for minutes, and there is nothing to save yet
            with interruption.released():
                if self.config.training.compile:
                    with own_randomness(self.config.seed):
                        self.eval_step(self.state, images, **known)
                loss = self._optimize(images, known)
            self.log.first_step_done()
        else:
            loss = self._optimize(images, known)
        self.skips.count(self.gradient_norm)
        return loss

    def _optimize(self, images, known):
        metrics = {}
        loss = self.train_step(self.state, images, metrics, **known)
        self.gradient_norm = metrics['grad_norm']
        return loss

    def _on_device(self, batch):
        images = to_tensor(batch, self.config, self.scaler)
        return images, get_classes(batch, self.config)

    def report(self, step: int, loss: torch.Tensor) -> None:
        """Log the loss and the skipped steps; raise UserError if too many were skipped."""
        optimizer, resume = self.state['optimizer'], self.resume
        self.log.training(step, distributed.mean(loss).item(), optimizer, self.gradient_norm)
        self.skips.report(
            step,
            optimizer.param_groups[0]['lr'],
            self.config.training.max_bad_steps,
            resume if resume.is_file() else None,
        )

    def evaluate(self, step: int) -> None:
        """Log the loss of a batch of the test set."""
        images, known = self._on_device(next(self.eval_batches))
        with own_randomness(self.config.seed + step):
            loss = distributed.mean(self.eval_step(self.state, images, **known)).item()
        self.log.evaluation(step, loss)

    def save_snapshot(self, step: int) -> None:
        """Save the numbered checkpoint of a step."""
        if distributed.is_main():
            number = max(1, math.ceil(step / self.config.training.snapshot_freq))
            path = checkpoints.snapshot_path(self.workdir, number)
            keep = self.config.training.keep_checkpoints
            self.saver.save(path, self.state | self.kept, keep=keep)

    def save_to_resume(self) -> None:
        """Save the checkpoint to resume from, with the state of the random numbers."""
        randomness = distributed.random_state(self.config.device)
        if distributed.is_main():
            self.writer.flush()  # the curves then include all steps of the checkpoint
            content = self.state | self.kept | dict(rng=randomness)
            self.saver.save(self.resume, content, keep_previous=True)

    def at_snapshot(self, step: int) -> int:
        """Call `at_snapshot` of the objective, which a signal may interrupt.

        Returns:
            The number of the signal that any of the processes received (0: none).
        """
        if not self.objective.at_snapshot:
            return 0
        number = 0
        try:
            with interruption.released():
                self.objective.at_snapshot(self.config, self.state, step, self.workdir, self.writer)
        except interruption.Interrupted as error:
            number = error.signal
        return distributed.any_of(number)


@interruption.interruptible()
def evaluate(config: ConfigDict, workdir: str | os.PathLike, eval_folder: str = 'eval') -> None:
    """Evaluate the snapshots of a work directory: loss, bits/dim, samples and their metrics.

    Snapshots from `eval.begin_ckpt` to `eval.end_ckpt` are evaluated; `eval.enable_*` choose the
    parts. Missing snapshots are logged and skipped; if `eval.wait_minutes` is set, each is waited
    for. Results are written to `workdir/eval_folder`, one file per batch. A file with the same
    protocol is not computed again, so an interrupted evaluation resumes. At the end the folder also
    contains report.md, summary.csv and pictures.

    Raises:
        UserError: if none of the snapshots exists, or another evaluation is running in the folder.
    """
    config = preflight.check(config, workdir, 'eval')
    numbers = range(config.eval.begin_ckpt, config.eval.end_ckpt + 1)
    if config.eval.wait_minutes == 0:
        numbers = _present(numbers, workdir)
    eval_dir = pathlib.Path(workdir, eval_folder)
    with _sole_writer(eval_dir, 'evaluation', '--eval_folder'):
        evaluate_command.evaluate(config, workdir, eval_dir, numbers)
        if distributed.is_main():
            logging.info('Wrote %s.', reports.write([workdir], eval_dir, eval_folder))


def _present(numbers: range, workdir) -> list[int]:
    """Return the numbers of the snapshots that exist; log the missing ones."""
    present = distributed.broadcast(checkpoints.snapshot_numbers(workdir))
    missing = [k for k in numbers if k not in present]
    if missing and distributed.is_main():
        logging.warning(
            'Skipped %d missing checkpoints of config.eval.begin_ckpt=%d to '
            'config.eval.end_ckpt=%d: %s. Set config.eval.wait_minutes to wait for them.',
            len(missing),
            numbers[0],
            numbers[-1],
            preflight.ranges(missing),
        )
    return [k for k in numbers if k in present]


@contextlib.contextmanager
def _sole_writer(folder, *what):
    """Hold the lock of a folder in process 0 during a block, see `checkpoints.only_writer`.

    If another job holds the lock, no process enters the block.
    """
    with checkpoints.only_writer(folder, *what) if distributed.is_main() else nullcontext():
        distributed.broadcast(None)
        yield
