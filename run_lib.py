"""Training, evaluation and sampling: the wiring of data, SDE, network, loss, sampler and files. The
mathematics is elsewhere.
"""

import contextlib
import functools
import json
import math
import pathlib

import numpy as np
import torch
from absl import logging
from ml_collections import ConfigDict

import checkpoints
import datasets
import losses
import reports
import sde_lib
from commands import drawing, preflight, training_log
from commands import evaluate as evaluate_command
from configs import stored
from data.batches import Batches
from data.tensors import get_classes, to_tensor
from models import utils as mutils
from models.ema import ExponentialMovingAverage
from models.utils import times_like
from runtime import distributed, interruption
from runtime.memory import keep_memory
from runtime.progress import progress
from runtime.randomness import own_randomness
from score_model import ScoreModel


def create_state(config) -> dict:
    """A fresh training state: model, optimizer, ema, step."""
    model = mutils.create_model(config)
    return dict(
        model=model,
        optimizer=losses.get_optimizer(config, model.parameters()),
        ema=ExponentialMovingAverage(model.parameters(), decay=config.model.ema_rate),
        step=0,
    )


@interruption.interruptible()
def train(config, workdir):
    """Train the network of `config` up to `training.n_iters` steps, or resume the training in
    `workdir`.
    """
    config = preflight.check(config, workdir, 'train')
    sde, settings = sde_lib.get_sde(config), config.training
    loss_settings = dict(
        reduce_mean=settings.reduce_mean,
        continuous=settings.continuous,
        likelihood_weighting=settings.likelihood_weighting,
    )
    values = config.data.image_size**2 * config.data.num_channels
    meaning = training_log.LossMeaning(
        ('mean' if settings.reduce_mean else 'half the sum')
        + f' over {values} values'
        + (', likelihood weighting' if settings.likelihood_weighting else ''),
        1.0 if settings.reduce_mean else 2 / values,
    )
    _fit(
        config,
        workdir,
        functools.partial(losses.get_step_fn, sde, **loss_settings),
        meaning,
        'score model',
        *(_save_training_samples, _has_samples) if settings.snapshot_sampling else (),
    )


@interruption.interruptible()
def train_classifier(config, workdir):
    """Trains the classifier of noisy images that `config` describes, as `train` does, and logs its
    accuracy at each snapshot.

    Its checkpoints hold the config, so that they can be used without it.
    """
    config = preflight.check(config, workdir, 'classifier')
    _fit(
        config,
        workdir,
        functools.partial(losses.get_classifier_step_fn, sde_lib.get_sde(config)),
        training_log.LossMeaning('cross-entropy'),
        'classifier',
        _log_accuracy,
        _has_accuracy,
    )


def _fit(config, workdir, get_step_fn, meaning, kind: str, at_snapshot=None, was_done=None):
    """The loop of both. `get_step_fn(train, optimize_fn, accumulation)`; `meaning`: of its loss;
    `kind`: what is trained, which goes into the checkpoints with the config; `at_snapshot(config,
    state, step, workdir, writer)`, which every process calls; `was_done(workdir, step)`: whether it
    finished for that step, if not it is repeated on resume. Between log lines the host does not
    wait for the device.
    """
    with checkpoints.only_writer(workdir) if distributed.is_main() else contextlib.nullcontext():
        distributed.broadcast(None)  # refused: none of the processes goes on
        for sentence in preflight.warnings(config) if distributed.is_main() else ():
            logging.warning('%s.', sentence)
        _train(config, pathlib.Path(workdir), get_step_fn, meaning, kind, at_snapshot, was_done)


def _resumed(config, workdir):
    """A training state, that of the checkpoint to resume from if there is one, and the random state
    in it, else None.
    """
    state, randomness = create_state(config), None
    found = distributed.broadcast(
        checkpoints.find_resumable(workdir) if distributed.is_main() else None
    )
    if found:
        state |= dict(rng=None, config=None)
        checkpoints.restore(found, state, config.device, optional=('rng', 'config'), config=config)
        randomness, before = state.pop('rng'), state.pop('config')
        logging.info('Resumed from step %d of %s.', state['step'], found)
        for key, old, new in (
            stored.differences(config, ConfigDict(json.loads(before))) if before else ()
        ):
            logging.info('Changed config.%s: %r -> %r.', key, old, new)
            if key == 'training.batch_size':
                logging.warning(
                    'Changed the position in the data: with '
                    'config.training.batch_size=%r instead of %r the epoch resumes at '
                    'other images.',
                    new,
                    old,
                )
    return state, randomness


def _train(config, workdir, get_step_fn, meaning, kind, at_snapshot, was_done):
    settings, scaler, kept = (
        config.training,
        datasets.get_data_scaler(config),
        dict(config=stored.as_json(config), kind=kind),
    )
    keep_memory(config.device)
    torch.manual_seed(config.seed)
    state, randomness = _resumed(config, workdir)
    resume, first, last, stopping = (
        checkpoints.resume_path(workdir),
        state['step'],
        settings.n_iters - 1,
        0,
    )
    missed = (
        at_snapshot
        and first
        and _is_snapshot(first - 1, settings)
        and not distributed.broadcast(was_done(workdir, first - 1))
    )
    if first > last and not missed:
        logging.info(
            'Training has reached step %d of config.training.n_iters=%d: nothing to do.',
            first,
            settings.n_iters,
        )
        return
    if distributed.is_main():
        training_log.forget_steps(workdir / 'stdout.txt', first)
    distributed.begin_randomness(config.device, config.seed, randomness, first)
    state['model'].share()

    with distributed.main_first():
        train_ds, eval_ds, _ = datasets.get_dataset(
            config, config.data.uniform_dequantization, start=first
        )
    logging.info(
        'Started training:\n%s',
        reports.table(
            training_log.facts(
                config, workdir, state, meaning, len(train_ds.data), len(eval_ds.data)
            )
        ),
    )
    datasets.record(config, train_ds.data, workdir)
    if distributed.is_main():
        stored.write(config, workdir)
    eval_batches = iter(eval_ds)
    train_step = get_step_fn(
        train=True,
        optimize_fn=losses.optimization_manager(config),
        accumulation=settings.accumulation,
    )
    eval_step = get_step_fn(train=False)

    with (
        interruption.held(),
        training_log.tensorboard(workdir, first) as writer,
        checkpoints.Saver() as saver,
    ):
        if missed:
            stopping = _may_stop(at_snapshot, config, state, first - 1, workdir, writer)
        log, metrics, skips, step = (
            training_log.Log(settings, meaning, writer, first),
            {},
            losses.Skips(config.device),
            first - 1,
        )
        steps = range(first, first if stopping else settings.n_iters)
        for step, batch in progress(
            zip(steps, train_ds), 'training', settings.n_iters, 'step', first, in_log=False
        ):
            images, known = to_tensor(batch, config, scaler), get_classes(batch, config)
            if step == first:
                # may compile for minutes, while there is nothing to save
                with interruption.released():
                    if settings.compile:
                        with own_randomness(config.seed):
                            eval_step(state, images, **known)
                    loss = train_step(state, images, metrics, **known)
                log.first_step_done()
            else:
                loss = train_step(state, images, metrics, **known)
            skips.count(metrics['grad_norm'])
            if step % settings.log_freq == 0 or step == last:
                log.training(
                    step, distributed.mean(loss).item(), state['optimizer'], metrics['grad_norm']
                )
                skips.tell(
                    step,
                    state['optimizer'].param_groups[0]['lr'],
                    settings.max_bad_steps,
                    resume if resume.is_file() else None,
                )
            if step % settings.eval_freq == 0:
                held_out = next(eval_batches)
                images, known = to_tensor(held_out, config, scaler), get_classes(held_out, config)
                with own_randomness(config.seed + step):
                    log.evaluation(step, distributed.mean(eval_step(state, images, **known)).item())
            stopping, is_snapshot = (
                distributed.any_of(interruption.signal_noted()),
                _is_snapshot(step, settings),
            )
            if is_snapshot and distributed.is_main():
                number = max(1, math.ceil(step / settings.snapshot_freq))
                saver.save(
                    checkpoints.snapshot_path(workdir, number),
                    state | kept,
                    keep=settings.keep_checkpoints,
                )
            if (
                stopping
                or is_snapshot
                or step > 0
                and step % settings.snapshot_freq_for_preemption == 0
            ):
                randomness = distributed.random_state(config.device)
                if distributed.is_main():
                    writer.flush()  # a step that is saved is told
                    saver.save(resume, state | kept | dict(rng=randomness), keep_previous=True)
            if is_snapshot and at_snapshot and not stopping:
                stopping = _may_stop(at_snapshot, config, state, step, workdir, writer)
            if stopping:
                break
    if stopping and (step < last or at_snapshot):
        raise interruption.Interrupted(stopping, f' after step {step} (checkpoint saved)')


def _may_stop(work, *arguments) -> int:
    """Calls `work(*arguments)`, which a signal may interrupt: in any process, all of which must
    call this. Returns its number, else 0.
    """
    number = 0
    try:
        with interruption.released():
            work(*arguments)
    except interruption.Interrupted as error:
        number = error.signal
    return distributed.any_of(number)


def _is_snapshot(step: int, settings) -> bool:
    return step == settings.n_iters - 1 or step > 0 and step % settings.snapshot_freq == 0


def _has_samples(workdir, step: int) -> bool:
    return (workdir / 'samples' / f'iter_{step}' / 'sample.png').is_file()


def _save_training_samples(config, state, step, workdir, writer):
    """A batch of samples of the averaged weights, as `samples/iter_{step}/sample.np` and `.png`,
    and on TensorBoard.
    """
    model, size = state['model'], config.training.batch_size
    with state['ema'].applied_to(model.parameters()):
        parts = drawing.draw_all(
            ScoreModel.from_config(config, model),
            ('snapshot', step),
            size,
            size // distributed.size(),
        )
    if not distributed.is_main():
        return
    images, folder = (
        np.concatenate([part['samples'] for part in parts]),
        workdir / 'samples' / f'iter_{step}',
    )
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'sample.np', 'wb') as file:
        np.save(file, images)
    writer.add_image('samples', reports.save_grid(folder / 'sample.png', images), step)


def _has_accuracy(workdir, step: int) -> bool:
    log = workdir / 'stdout.txt'
    return not log.is_file() or f' step: {step}, accuracy' in log.read_text(errors='replace')


def _log_accuracy(config, state, step, workdir, writer):
    """The share of test images that the averaged weights classify rightly, at several times; by
    process 0.
    """
    if not distributed.is_main():
        return
    model, sde, scaler = state['model'], sde_lib.get_sde(config), datasets.get_data_scaler(config)
    batches = Batches(
        datasets.get_split(config, 'test'),
        config.eval.batch_size,
        config.seed,
        dequantize=config.data.uniform_dequantization,
    )
    times = [
        max(fraction * sde.T, sde.sampling_eps) for fraction in (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    ]
    with (
        torch.no_grad(),
        own_randomness(config.seed + step),
        state['ema'].applied_to(model.parameters()),
    ):
        classify = mutils.get_model_fn(model, train=False)
        right = []
        for batch in batches:
            x, (classes,) = to_tensor(batch, config, scaler), get_classes(batch, config).values()
            answers = [
                classify(
                    sde.perturb(x, times_like(x, t)), sde.network_label(times_like(x, t))
                ).argmax(1)
                for t in times
            ]
            right.append([(answer == classes).float() for answer in answers])
    accuracies = [torch.cat(parts).mean().item() for parts in zip(*right)]
    n = sum(len(parts[0]) for parts in right)
    logging.info(
        'step: %d, accuracy on %d test images %s',
        step,
        n,
        ', '.join(f'at t={t:g}: {a:.3f}' for t, a in zip(times, accuracies)),
    )
    training_log.write(
        writer, step, **{f'accuracy/t={t:g}': accuracy for t, accuracy in zip(times, accuracies)}
    )


@interruption.interruptible()
def evaluate(config, workdir, eval_folder='eval'):
    """Evaluate the snapshots from `eval.begin_ckpt` to `eval.end_ckpt` as `eval.enable_*` say:
    loss, bits/dim, samples and their metrics.

    Snapshots that are missing are logged and skipped, unless `eval.wait_minutes` says how long to
    wait for each. Everything goes into files of `workdir/eval_folder`, a batch at a time; files of
    the very same protocol are not computed again, so that an interrupted evaluation resumes. Ends
    with report.md, summary.csv and pictures of the whole folder.

    Raises:
        UserError: if there is no such snapshot, or if another evaluation is running in the folder.
    """
    config = preflight.check(config, workdir, 'eval')
    numbers = range(config.eval.begin_ckpt, config.eval.end_ckpt + 1)
    if config.eval.wait_minutes == 0:
        present = distributed.broadcast(checkpoints.snapshot_numbers(workdir))
        missing, numbers = (
            [k for k in numbers if k not in present],
            [k for k in numbers if k in present],
        )
        if missing and distributed.is_main():
            logging.warning(
                'Skipped %d missing checkpoints of config.eval.begin_ckpt=%d to '
                'config.eval.end_ckpt=%d: %s. '
                'Set config.eval.wait_minutes to wait for them.',
                len(missing),
                config.eval.begin_ckpt,
                config.eval.end_ckpt,
                preflight.ranges(missing),
            )
    eval_dir = pathlib.Path(workdir, eval_folder)
    with (
        checkpoints.only_writer(eval_dir, 'evaluation', '--eval_folder')
        if distributed.is_main()
        else contextlib.nullcontext()
    ):
        # if another evaluation holds the lock, none of the processes continues
        distributed.broadcast(None)
        evaluate_command.evaluate(config, workdir, eval_dir, numbers)
        if distributed.is_main():
            logging.info('Wrote %s.', reports.write([workdir], eval_dir, eval_folder))
