"""Training, evaluation and sampling: the wiring of data, SDE, network, loss, sampler and files. The mathematics is elsewhere."""
import contextlib
import ctypes
import functools
import itertools
import json
import math
import os
import pathlib
import re
import sys
import time
import types
from typing import NamedTuple

import numpy as np
import torch
from absl import logging
from ml_collections import ConfigDict

import checkpoints
import datasets
import distributed
import evaluation
import fast_sampling
import interruption
import likelihood
import losses
import preflight
import reports
import results
import sampling
import sde_lib
from configs import stored
from errors import UserError
from models import utils as mutils
from models.ema import ExponentialMovingAverage
from models.score import Score
from models.utils import times_like
from progress import duration, progress, watched
from randomness import own_randomness, per_image, seed_of
from score_model import ScoreModel


def keep_memory(device):
    """On a CPU, keep freed memory in the process: the system would otherwise clear every page again for the next batch.

    Memory use does not grow with the number of batches. This has an effect only with the allocator of glibc.
    """
    allocator = ctypes.CDLL(None) if sys.platform == 'linux' and torch.device(device).type == 'cpu' else None
    if hasattr(allocator, 'mallopt'):
        trim_threshold, most_mappings = -1, -4  # as <malloc.h> numbers them
        allocator.mallopt(trim_threshold, -1)
        allocator.mallopt(most_mappings, 0)


def create_state(config) -> dict:
    """A fresh training state: model, optimizer, ema, step."""
    model = mutils.create_model(config)
    return dict(model=model, optimizer=losses.get_optimizer(config, model.parameters()),
                ema=ExponentialMovingAverage(model.parameters(), decay=config.model.ema_rate), step=0)


def to_tensor(batch: dict, config, scaler) -> torch.Tensor:
    """The images of a batch as networks see them: (B, C, H, W) on the config's device."""
    return scaler(to_device(torch.from_numpy(batch['image']).permute(0, 3, 1, 2).contiguous(), config.device))


def to_device(x: torch.Tensor, device) -> torch.Tensor:
    """`x` on the device, which the host does not wait for."""
    return x.pin_memory().to(device, non_blocking=True) if torch.device(device).type == 'cuda' else x.to(device)


def get_classes(batch: dict, config) -> dict[str, torch.Tensor]:
    """{'classes': (B,)} for networks that know classes, {} for others; UserError for a label beyond `model.num_classes`."""
    number = config.model.num_classes
    if not number:
        return {}
    if len(batch['label']) and not 0 <= batch['label'].min() <= batch['label'].max() < number:
        wrong = next(label for label in batch['label'] if not 0 <= label < number)
        raise UserError(f'the data set has the label {wrong}, but config.model.num_classes={number}: labels start at 0, so '
                        f'expected 0 to {number - 1} (--mode data counts them)')
    return {'classes': to_device(torch.from_numpy(batch['label']), config.device)}


def to_images(samples: torch.Tensor, config) -> np.ndarray:
    """Samples (B, C, H, W) in [0, 1] as 8-bit images (B, H, W, C)."""
    images = samples.permute(0, 2, 3, 1).cpu().numpy()
    if not np.isfinite(images).all():
        logging.warning('%d of %d samples are not finite.', (~np.isfinite(images).all((1, 2, 3))).sum(), len(images))
    return datasets.to_uint8(images, datasets.get_levels(config), config.data.uniform_dequantization)


def shown_evaluations(model: Score, what: str, times=None, forward: bool = False):
    """A block in which each network evaluation counts as progress of `what` and looks for signals, see `progress.watched`.

    Args:
        model: the score model.
        what: the task, such as 'encoding 8 images'.
        times: the times of a solver's steps. None: the solver chooses its steps, which are taken to be even in lambda_t.
        forward: whether the latter go from images to codes.
    """
    steps = times is not None
    if not steps:
        times = fast_sampling.time_grid(model.sde, 100, 1e-5 if forward else model.sde.sampling_eps)
        times = times.flip(0) if forward else times
    return watched(model.network, what, times, lambda t: model.label(t.float()), steps)


def _draw(model: ScoreModel, what: tuple, first: int, count: int) -> dict:
    """Draw samples by the config's sampler: `samples`, 8-bit images (count, H, W, C), their `nfe`, the seconds it took, and for a network
    that is conditioned on classes the `labels`, which are drawn uniformly.

    They are those from the number `first` on of the samples called `what`: their random numbers follow from it and `config.seed`. With
    `sampling.seed_per_image` each image has its own.
    """
    config, number, started = model.config, model.num_classes, time.monotonic()
    seeds = [seed_of(config.seed, *what) + i for i in range(first, first + count)]
    alone, labels = config.sampling.seed_per_image, None
    with own_randomness(config.seed, *what, first), per_image(seeds) if alone else contextlib.nullcontext():
        if number:
            labels = torch.tensor([seed % number for seed in seeds]) if alone else torch.randint(number, (count,))
        times = sampling.times_of(model.sde, model.options())
        with shown_evaluations(model, f'drawing samples {first + 1} to {first + count}', times):
            samples, nfe = (model.guided(labels) if number else model).draw(count)
            samples = to_images(samples, config)
    seconds = time.monotonic() - started
    logging.info('Drew %d samples with %d network evaluations.', count, nfe)
    return dict(samples=samples, nfe=nfe, seconds=seconds) | (dict(labels=labels.numpy()) if number else {})


def _batches(total: int, largest: int) -> list[tuple[int, int]]:
    """(first, count) of batches of at most `largest` among `total` images."""
    return [(first, min(largest, total - first)) for first in range(0, total, largest)]


def _draw_all(model: ScoreModel, what: tuple, total: int, largest: int) -> list[dict]:
    """`total` samples in batches of at most `largest`, which the processes share, for process 0. Images with random numbers of their own
    are shared out evenly, batches only as a whole."""
    if model.config.sampling.seed_per_image:
        largest = min(largest, math.ceil(total / distributed.size()))
    batches = _batches(total, largest)
    return [part for _, part in progress(distributed.in_turns(batches, lambda batch: _draw(model, what, *batch)), 'sampling',
                                         len(batches), 'batch')]


@interruption.interruptible()
def train(config, workdir):
    """Train the network of `config` up to `training.n_iters` steps, or resume the training in `workdir`."""
    config = preflight.check(config, workdir, 'train')
    sde, settings = sde_lib.get_sde(config), config.training
    loss_settings = dict(reduce_mean=settings.reduce_mean, continuous=settings.continuous,
                         likelihood_weighting=settings.likelihood_weighting)
    values = config.data.image_size**2 * config.data.num_channels
    meaning = LossMeaning(('mean' if settings.reduce_mean else 'half the sum') + f' over {values} values' + (
        ', likelihood weighting' if settings.likelihood_weighting else ''), 1.0 if settings.reduce_mean else 2 / values)
    _fit(config, workdir, functools.partial(losses.get_step_fn, sde, **loss_settings), meaning,
         'score model', *(_save_training_samples, _has_samples) if settings.snapshot_sampling else ())


@interruption.interruptible()
def train_classifier(config, workdir):
    """Trains the classifier of noisy images that `config` describes, as `train` does, and logs its accuracy at each snapshot.

    Its checkpoints hold the config, so that they can be used without it.
    """
    config = preflight.check(config, workdir, 'classifier')
    _fit(config, workdir, functools.partial(losses.get_classifier_step_fn, sde_lib.get_sde(config)), LossMeaning('cross-entropy'),
         'classifier', _log_accuracy, _has_accuracy)


class LossMeaning(NamedTuple):
    """What the logged loss is, in words, and the factor from it to the mean over the values of an image, None where there are none."""
    words: str
    to_mean: float | None = None

    def scalars(self, name: str, loss: float) -> dict[str, float]:
        """The curves of a loss: itself, and its mean per value."""
        return {name: loss} if self.to_mean is None else {name: loss, f'{name}_per_value': loss * self.to_mean}

    def text(self, loss: float) -> str:
        """The loss as log lines give it."""
        return f'{loss:.5e} ({self.words})' + ('' if self.to_mean is None else f', per value: {loss * self.to_mean:.5f}')


class _Log:
    """The log lines and curves of a training that begins with the step `first`."""

    def __init__(self, settings, meaning: LossMeaning, writer, first: int):
        self.settings, self.meaning, self.writer, self.first = settings, meaning, writer, first
        self.started = self.paced = time.monotonic()

    def first_step_done(self):
        """The pace of training, from which the time left follows, is that of the steps after the first one, which may compile."""
        self.paced = time.monotonic()

    def training(self, step: int, loss: float, optimizer, gradient_norm):
        done, now, steps = step - self.first, time.monotonic(), self.settings.n_iters
        rate = (done + 1) * self.settings.batch_size / (now - self.started)
        left = f', {duration((steps - 1 - step) * (now - self.paced) / done)} left' if done else ''
        logging.info('step: %d, training_loss: %s, images/s: %.0f, %d of %d steps%s', step, self.meaning.text(loss), rate, step + 1, steps,
                     left)
        write(self.writer, step, **self.meaning.scalars('training_loss', loss), learning_rate=optimizer.param_groups[0]['lr'],
              gradient_norm=gradient_norm, images_per_second=rate)

    def evaluation(self, step: int, loss: float):
        logging.info('step: %d, eval_loss: %s', step, self.meaning.text(loss))
        write(self.writer, step, **self.meaning.scalars('eval_loss', loss))


def _fit(config, workdir, get_step_fn, meaning, kind: str, at_snapshot=None, was_done=None):
    """The loop of both. `get_step_fn(train, optimize_fn, accumulation)`; `meaning`: of its loss; `kind`: what is trained, which goes into
    the checkpoints with the config; `at_snapshot(config, state, step, workdir, writer)`, which every process calls; `was_done(workdir,
    step)`: whether it finished for that step, if not it is repeated on resume. Between log lines the host does not wait for the device."""
    with checkpoints.only_writer(workdir) if distributed.is_main() else contextlib.nullcontext():
        distributed.broadcast(None)  # refused: none of the processes goes on
        for sentence in preflight.warnings(config) if distributed.is_main() else ():
            logging.warning('%s.', sentence)
        _train(config, pathlib.Path(workdir), get_step_fn, meaning, kind, at_snapshot, was_done)


def _resumed(config, workdir):
    """A training state, that of the checkpoint to resume from if there is one, and the random state in it, else None."""
    state, randomness = create_state(config), None
    found = distributed.broadcast(checkpoints.find_resumable(workdir) if distributed.is_main() else None)
    if found:
        state |= dict(rng=None, config=None)
        checkpoints.restore(found, state, config.device, optional=('rng', 'config'), config=config)
        randomness, before = state.pop('rng'), state.pop('config')
        logging.info('Resumed from step %d of %s.', state['step'], found)
        for key, old, new in stored.differences(config, ConfigDict(json.loads(before))) if before else ():
            logging.info('Changed config.%s: %r -> %r.', key, old, new)
            if key == 'training.batch_size':
                logging.warning('Changed the position in the data: with config.training.batch_size=%r instead of %r the epoch resumes at '
                                'other images.', new, old)
    return state, randomness


def _train(config, workdir, get_step_fn, meaning, kind, at_snapshot, was_done):
    settings, scaler, kept = config.training, datasets.get_data_scaler(config), dict(config=stored.as_json(config), kind=kind)
    keep_memory(config.device)
    torch.manual_seed(config.seed)
    state, randomness = _resumed(config, workdir)
    resume, first, last, stopping = checkpoints.resume_path(workdir), state['step'], settings.n_iters - 1, 0
    missed = at_snapshot and first and _is_snapshot(first - 1, settings) and not distributed.broadcast(was_done(workdir, first - 1))
    if first > last and not missed:
        logging.info('Training has reached step %d of config.training.n_iters=%d: nothing to do.', first, settings.n_iters)
        return
    if distributed.is_main():
        _forget_steps(workdir / 'stdout.txt', first)
    distributed.begin_randomness(config.device, config.seed, randomness, first)
    state['model'].share()

    with distributed.main_first():
        train_ds, eval_ds, _ = datasets.get_dataset(config, config.data.uniform_dequantization, start=first)
    logging.info('Started training:\n%s', reports.table(_facts(config, workdir, state, meaning, len(train_ds.data), len(eval_ds.data))))
    datasets.record(config, train_ds.data, workdir)
    if distributed.is_main():
        stored.write(config, workdir)
    eval_batches = iter(eval_ds)
    train_step = get_step_fn(train=True, optimize_fn=losses.optimization_manager(config), accumulation=settings.accumulation)
    eval_step = get_step_fn(train=False)

    with interruption.held(), tensorboard(workdir, first) as writer, checkpoints.Saver() as saver:
        if missed:
            stopping = _may_stop(at_snapshot, config, state, first - 1, workdir, writer)
        log, metrics, skips, step = _Log(settings, meaning, writer, first), {}, losses.Skips(config.device), first - 1
        steps = range(first, first if stopping else settings.n_iters)
        for step, batch in progress(zip(steps, train_ds), 'training', settings.n_iters, 'step', first, in_log=False):
            images, known = to_tensor(batch, config, scaler), get_classes(batch, config)
            if step == first:
                with interruption.released():  # may compile for minutes, while there is nothing to save
                    if settings.compile:
                        with own_randomness(config.seed):
                            eval_step(state, images, **known)
                    loss = train_step(state, images, metrics, **known)
                log.first_step_done()
            else:
                loss = train_step(state, images, metrics, **known)
            skips.count(metrics['grad_norm'])
            if step % settings.log_freq == 0 or step == last:
                log.training(step, distributed.mean(loss).item(), state['optimizer'], metrics['grad_norm'])
                skips.tell(step, state['optimizer'].param_groups[0]['lr'], settings.max_bad_steps,
                           resume if resume.is_file() else None)
            if step % settings.eval_freq == 0:
                held_out = next(eval_batches)
                images, known = to_tensor(held_out, config, scaler), get_classes(held_out, config)
                with own_randomness(config.seed + step):
                    log.evaluation(step, distributed.mean(eval_step(state, images, **known)).item())
            stopping, is_snapshot = distributed.any_of(interruption.signal_noted()), _is_snapshot(step, settings)
            if is_snapshot and distributed.is_main():
                number = max(1, math.ceil(step / settings.snapshot_freq))
                saver.save(checkpoints.snapshot_path(workdir, number), state | kept, keep=settings.keep_checkpoints)
            if stopping or is_snapshot or step > 0 and step % settings.snapshot_freq_for_preemption == 0:
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
    """Calls `work(*arguments)`, which a signal may interrupt: in any process, all of which must call this. Returns its number, else 0."""
    number = 0
    try:
        with interruption.released():
            work(*arguments)
    except interruption.Interrupted as error:
        number = error.signal
    return distributed.any_of(number)


def _facts(config, workdir, state, meaning, train_images: int, test_images: int) -> list[tuple[str, str]]:
    """What is trained, on what and for how long, as rows of a table."""
    settings, data, model, device = config.training, config.data, config.model, torch.device(config.device)
    samples = f'; samples by {config.sampling.method}' if settings.snapshot_sampling else ''
    return [
        ('  device', (torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type) + f', processes: {distributed.size()}'),
        ('  precision', settings.precision + ', compiled' * settings.compile),
        ('  network', f'{model.name}, {sum(parameter.numel() for parameter in state["model"].parameters()):,} parameters'),
        ('  SDE', f'{sde_lib.get_sde(config)!r}, {"continuous" if settings.continuous else "discrete"} time'),
        ('  data', f'{data.dataset}, {data.image_size}x{data.image_size} pixels, channels: {data.num_channels}, {train_images} training '
                   f'and {test_images} test images'),
        ('  steps', f'{state["step"]} to {settings.n_iters}, batch size {settings.batch_size}, learning rate {config.optim.lr:g}'),
        ('  loss', meaning.words),
        ('  snapshots', f'every {settings.snapshot_freq} steps{samples}; the checkpoint to resume from every '
                        f'{settings.snapshot_freq_for_preemption} steps'),
        ('  work directory', str(workdir))]


def _is_snapshot(step: int, settings) -> bool:
    return step == settings.n_iters - 1 or step > 0 and step % settings.snapshot_freq == 0


def _has_samples(workdir, step: int) -> bool:
    return (workdir / 'samples' / f'iter_{step}' / 'sample.png').is_file()


def _save_training_samples(config, state, step, workdir, writer):
    """A batch of samples of the averaged weights, as `samples/iter_{step}/sample.np` and `.png`, and on TensorBoard."""
    model, size = state['model'], config.training.batch_size
    with state['ema'].applied_to(model.parameters()):
        parts = _draw_all(ScoreModel.from_config(config, model), ('snapshot', step), size, size // distributed.size())
    if not distributed.is_main():
        return
    images, folder = np.concatenate([part['samples'] for part in parts]), workdir / 'samples' / f'iter_{step}'
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'sample.np', 'wb') as file:
        np.save(file, images)
    writer.add_image('samples', reports.save_grid(folder / 'sample.png', images), step)


def _has_accuracy(workdir, step: int) -> bool:
    log = workdir / 'stdout.txt'
    return not log.is_file() or f' step: {step}, accuracy' in log.read_text(errors='replace')


def _log_accuracy(config, state, step, workdir, writer):
    """The share of test images that the averaged weights classify rightly, at several times; by process 0."""
    if not distributed.is_main():
        return
    model, sde, scaler = state['model'], sde_lib.get_sde(config), datasets.get_data_scaler(config)
    batches = datasets.Batches(datasets.get_split(config, 'test'), config.eval.batch_size, config.seed,
                               dequantize=config.data.uniform_dequantization)
    times = [max(fraction * sde.T, sde.sampling_eps) for fraction in (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)]
    with torch.no_grad(), own_randomness(config.seed + step), state['ema'].applied_to(model.parameters()):
        classify = mutils.get_model_fn(model, train=False)
        right = []
        for batch in batches:
            x, (classes,) = to_tensor(batch, config, scaler), get_classes(batch, config).values()
            answers = [classify(sde.perturb(x, times_like(x, t)), sde.network_label(times_like(x, t))).argmax(1) for t in times]
            right.append([(answer == classes).float() for answer in answers])
    accuracies = [torch.cat(parts).mean().item() for parts in zip(*right)]
    n = sum(len(parts[0]) for parts in right)
    logging.info('step: %d, accuracy on %d test images %s', step, n, ', '.join(f'at t={t:g}: {a:.3f}' for t, a in zip(times, accuracies)))
    write(writer, step, **{f'accuracy/t={t:g}': accuracy for t, accuracy in zip(times, accuracies)})


@contextlib.contextmanager
def tensorboard(workdir, first_step: int):
    """A writer of TensorBoard files, in which steps from `first_step` on, of an interrupted run, give way to new ones; None for all
    processes but the first."""
    if not distributed.is_main():
        yield None
        return
    sys.modules.setdefault('tensorboard.compat.notf', types.ModuleType('notf'))  # its own file writer: importing TensorFlow takes seconds
    from torch.utils.tensorboard import SummaryWriter
    with SummaryWriter(workdir / 'tensorboard', purge_step=first_step) as writer:
        sys.modules.pop('tensorboard.compat.notf')
        yield writer


def _forget_steps(path, first: int):
    """Takes the lines on steps from `first` on out of a log: of a run that was broken off, they will come again."""
    lines = path.read_text(errors='replace').splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if not ((told := re.search(r' step: (\d+),', line)) and int(told[1]) >= first)]
    if len(kept) < len(lines):
        partial = path.with_name(path.name + '.partial')
        partial.write_text(''.join(kept))
        os.replace(partial, path)  # the log's handler notices and opens the new one


def write(writer, step: int, **scalars):
    for name, value in scalars.items() if writer else ():
        writer.add_scalar(name, value, step)


@interruption.interruptible()
def evaluate(config, workdir, eval_folder='eval'):
    """Evaluate the snapshots from `eval.begin_ckpt` to `eval.end_ckpt` as `eval.enable_*` say: loss, bits/dim, samples and their metrics.

    Snapshots that are missing are logged and skipped, unless `eval.wait_minutes` says how long to wait for each. Everything goes into files
    of `workdir/eval_folder`, a batch at a time; files of the very same protocol are not computed again, so that an interrupted evaluation
    resumes. Ends with report.md, summary.csv and pictures of the whole folder.

    Raises:
        UserError: if there is no such snapshot, or if another evaluation is running in the folder.
    """
    config = preflight.check(config, workdir, 'eval')
    numbers = range(config.eval.begin_ckpt, config.eval.end_ckpt + 1)
    if config.eval.wait_minutes == 0:
        present = distributed.broadcast(checkpoints.snapshot_numbers(workdir))
        missing, numbers = [k for k in numbers if k not in present], [k for k in numbers if k in present]
        if missing and distributed.is_main():
            logging.warning('Skipped %d missing checkpoints of config.eval.begin_ckpt=%d to config.eval.end_ckpt=%d: %s. '
                            'Set config.eval.wait_minutes to wait for them.', len(missing), config.eval.begin_ckpt, config.eval.end_ckpt,
                            preflight.ranges(missing))
    eval_dir = pathlib.Path(workdir, eval_folder)
    with checkpoints.only_writer(eval_dir, 'evaluation', '--eval_folder') if distributed.is_main() else contextlib.nullcontext():
        distributed.broadcast(None)  # if another evaluation holds the lock, none of the processes continues
        _evaluate(config, workdir, eval_dir, numbers)
        if distributed.is_main():
            logging.info('Wrote %s.', reports.write([workdir], eval_dir, eval_folder))


def _evaluate(config, workdir, eval_dir, numbers):
    keep_memory(config.device)

    @functools.cache
    def split(name):
        with distributed.main_first():
            return datasets.at_most(datasets.get_split(config, name), config.eval.most_images, config.seed)
    run = types.SimpleNamespace(config=config, sde=sde_lib.get_sde(config), eval_dir=eval_dir, extractor=None, other=None, split=split)
    parts = [part for part, wanted in ((_evaluate_loss, config.eval.enable_loss), (_evaluate_bpd, config.eval.enable_bpd),
                                       (_evaluate_samples, config.eval.enable_sampling)) if wanted]
    if config.eval.enable_sampling and config.eval.metrics_backend != 'none':  # what is missing shows before hours of sampling
        with distributed.main_first():
            run.extractor = evaluation.get_extractor(config)
        run.real = evaluation.reference(config, run.extractor, config.eval.stats_split)
        if config.eval.metrics_floor:
            run.other = evaluation.reference(config, run.extractor, 'test' if config.eval.stats_split == 'train' else 'train')
    for run.number in numbers:
        path = checkpoints.wait_for(checkpoints.snapshot_path(workdir, run.number), config.eval.wait_minutes)
        run.model = ScoreModel.load(path, config)
        run.protocol = _protocol(config, path)
        for part in parts:
            part(run)
        rows = reports.evaluation_rows(eval_dir, run.number) if distributed.is_main() else []
        if rows:
            logging.info('Checkpoint %d, seed %d:\n%s', run.number, config.seed, reports.table(rows))
        distributed.broadcast(None)  # all begin together to wait for the next checkpoint


def _protocol(config, checkpoint) -> dict:
    """What every number of a checkpoint depends on."""
    precision = config.training.precision
    return dict(checkpoint=checkpoint.name, weights=results.digest(checkpoint), seed=config.seed, device=torch.device(config.device).type,
                model=config.model.to_dict(), training=dict(sde=config.training.sde, continuous=config.training.continuous) | (
                    {} if precision == 'float32' else dict(precision=precision)),
                data={key: config.data[key] for key in ('dataset', 'image_size', 'num_channels', 'centered', 'uniform_dequantization')})


def _images(config, split: str) -> dict:
    """What the images are that losses and likelihoods are of."""
    most = config.eval.most_images
    return datasets.describe(config, split) | (dict(at_most=most) if most else {})


def _evaluate_loss(run):
    """The mean loss over the test set; the file holds the batches so far, and the mean when all are there."""
    config, settings, path = run.config, run.config.training, run.eval_dir / f'ckpt_{run.number}_loss.npz'
    batches = datasets.Batches(run.split('test'), config.eval.batch_size, config.seed, dequantize=config.data.uniform_dequantization)
    loss_fn = losses.get_loss_fn(run.sde, False, settings.reduce_mean, settings.continuous, settings.likelihood_weighting)
    protocol = results.normal(run.protocol | dict(
        part='loss', images=_images(config, 'test'), batch_size=config.eval.batch_size, reduce_mean=settings.reduce_mean,
        likelihood_weighting=settings.likelihood_weighting))
    found = results.matching(path, protocol)
    values, sizes = ([*found['all_losses']], [*found['batch_sizes']]) if found else ([], [])
    places = range(distributed.broadcast(len(values)), len(batches))

    def work(i):
        batch = batches.part(i)
        images = to_tensor(batch, config, datasets.get_data_scaler(config))
        with torch.no_grad(), own_randomness(config.seed, 'loss', i):  # no images: all damaged, and left out
            return loss_fn(run.model.network, images, **get_classes(batch, config)).item() if len(images) else 0.0, len(images)

    for i, (value, size) in progress(distributed.in_turns(places, work), 'the loss', len(places), 'batch'):
        values.append(value)
        sizes.append(size)
        complete = dict(mean_loss=np.average(values, weights=sizes)) if i == len(batches) - 1 else {}
        results.save(path, protocol, all_losses=np.array(values), batch_sizes=np.array(sizes), **complete)
    if distributed.is_main():
        logging.info('ckpt-%d loss: %.5e, of %d images', run.number, np.average(values, weights=sizes), sum(sizes))


def _evaluate_bpd(run):
    """Bits/dim of every image of the training or the test set, dequantised anew in each of `bpd_repeats` passes."""
    config, settings = run.config, run.config.eval
    split = settings.bpd_dataset.lower()
    batches = datasets.Batches(run.split(split), settings.batch_size, config.seed, dequantize=True)
    solver = dict(rtol=settings.bpd_rtol, atol=settings.bpd_atol, method=settings.bpd_method, probes=settings.bpd_probes)
    options, levels = likelihood.Options(**solver), datasets.get_levels(config)
    places = [*itertools.product(range(settings.bpd_repeats), range(len(batches)))]
    paths = [run.eval_dir / f'{split}_ckpt_{run.number}_bpd_{k}.npz' for k in range(len(places))]
    common = run.protocol | dict(part='bpd', images=_images(config, split), batch_size=settings.batch_size) | solver
    protocols = [common | dict(repeat=repeat, batch=i) for repeat, i in places]

    def work(k):
        repeat, i = places[k]
        images = to_tensor(batches.part(i, repeat), config, datasets.get_data_scaler(config))
        if not len(images):  # all damaged, and left out
            return dict(bpd=np.empty(0), nats=np.empty(0), repeat=repeat, nfe=0, seconds=0.0)
        started = time.monotonic()
        what = f'computing likelihoods, batch {k + 1} of {len(places)}'
        with shown_evaluations(run.model, what, forward=True), own_randomness(config.seed, 'bpd', repeat, i):
            result = likelihood.log_likelihood(run.model, images, run.model.unscale, levels, options)
            bpd, nats = result.bpd.cpu().numpy(), result.nats.cpu().numpy()
        return dict(bpd=bpd, nats=nats, repeat=repeat, nfe=result.nfe, seconds=time.monotonic() - started)

    missing = distributed.broadcast([k for k in range(len(places)) if results.matching(paths[k], protocols[k]) is None])
    for k, found in distributed.in_turns(missing, work):
        results.save(paths[k], protocols[k], **found, files=len(places))
        logging.info('ckpt-%d bits/dim: %.4f, of %d images (nfe %d), %d of %d', run.number, np.mean(found['bpd']), len(found['bpd']),
                     found['nfe'], k + 1, len(places))
    if not distributed.is_main():
        return
    passes = [[] for _ in range(settings.bpd_repeats)]
    for path, protocol, (repeat, _) in zip(paths, protocols, places):
        found = results.matching(path, protocol)
        if found['files'] != len(places):  # other repeats than when it was made
            results.save(path, protocol, **found | dict(files=len(places)))
        passes[repeat].extend(found['bpd'])
    values = np.mean(passes, 0)  # of each image
    logging.info('ckpt-%d bits/dim: %.4f +- %.4f, of %d images, each averaged over %d passes', run.number, values.mean(),
                 values.std() / len(values) ** 0.5, len(values), len(passes))
    _remove_others(run.eval_dir.glob(f'{split}_ckpt_{run.number}_bpd_*.npz'), paths)


def _evaluate_samples(run):
    """Exactly `num_samples` samples, their features, and their metrics."""
    config, settings = run.config, run.config.eval
    folder, report, measured = run.eval_dir / f'ckpt_{run.number}', run.eval_dir / f'report_{run.number}.npz', run.extractor is not None
    batches = _batches(settings.num_samples, settings.batch_size)  # whose random numbers follow from the number of their first image
    of_batch = [run.protocol | dict(sampling=config.sampling.to_dict(), batch_size=settings.batch_size, batch=i, size=size)
                for i, (_, size) in enumerate(batches)]
    samples = [(folder / f'samples_{i}.npz', protocol | dict(part='samples')) for i, protocol in enumerate(of_batch)]
    features = [(folder / f'statistics_{i}.npz', protocol | dict(part='features', extractor=run.extractor.protocol))
                for i, protocol in enumerate(of_batch)] if measured else []

    def work(i):
        batch = results.matching(*samples[i]) or _draw(run.model, ('samples',), *batches[i])
        return batch, run.extractor.run(batch['samples']) if measured else None

    missing = [i for i in range(len(batches)) if any(results.matching(*file) is None for file in (samples[i], *features[i:i + 1]))]
    missing = distributed.broadcast(missing)
    if missing and distributed.is_main():
        report.unlink(missing_ok=True)  # of other samples
    for i, (batch, found) in progress(distributed.in_turns(missing, work), 'sampling', len(missing), 'batch'):
        if results.matching(*samples[i]) is None:  # else it was there, without its features
            results.save(*samples[i], **batch)
        if measured:
            results.save(*features[i], **found)
    if not distributed.is_main():
        return
    reports.save_grid(folder / 'samples.png', results.matching(*samples[0])['samples'][:100])
    _remove_others([*folder.glob('samples_*.npz'), *folder.glob('statistics_*.npz')], [path for path, _ in samples + features])

    def measure():
        parts = [results.matching(*file) for file in features]
        gathered = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        nfe = np.mean([int(results.matching(*file)['nfe']) for file in samples])
        return evaluation.measure(gathered, run.real, settings.is_splits, config.device, run.other) | dict(nfe=nfe)
    if measured:
        results.stored(report, run.protocol | dict(
            part='metrics', sampling=config.sampling.to_dict(), batch_size=settings.batch_size, num_samples=settings.num_samples,
            is_splits=settings.is_splits, extractor=run.extractor.protocol, reference=run.real.protocol,
            floor=run.other and run.other.protocol), measure)


def _remove_others(paths, kept):
    """Deletes what an earlier evaluation with other settings left behind."""
    others = sorted(set(paths) - set(kept))
    for path in others:
        path.unlink()
    if others:
        logging.info('Removed %d files that an evaluation with other settings had left, from %s on.', len(others), others[0])


@interruption.interruptible()
def statistics(config, workdir=''):
    """Computes the statistics that metrics refer to, of the config's data and extractor, if they are not there; returns their file."""
    config = preflight.check(config, workdir, 'stats')
    with distributed.main_first():
        extractor = evaluation.get_extractor(config)
    real = evaluation.reference(config, extractor, config.eval.stats_split)
    path = evaluation.statistics_path(config, extractor, config.eval.stats_split)
    if real:
        logging.info('%s has the features of %d images.', path, len(real.features))
    return path


@interruption.interruptible('')
def describe_data(config, workdir=''):
    """Logs what the config's data set holds and the `sigma_max` that it suggests; a grid of training images goes to `workdir/data.png`."""
    config = preflight.check(config, workdir, 'data')
    rows = []
    for split in ('train', 'test'):
        images = datasets.get_split(config, split)
        chosen = np.random.default_rng(config.seed).permutation(len(images))[:min(10000, 2**26 // math.prod(images.shape))]
        some, labels = images.read(chosen)
        if split == 'train':
            datasets.warn_of_range(config, some, images.levels)
            datasets.check_labels(config, images)
        pixels = some.reshape(-1, some.shape[-1]) / (images.levels - 1)
        rows.append((f'{split} set', f'{len(images)} images', f'{some.shape[1]}x{some.shape[2]} pixels, {some.shape[3]} channels, '
                     f'{images.levels} grey levels, {_count_labels(labels)}'))
        rows.append(('  channels', ' '.join(f'{value:.4f}' for value in pixels.mean(0)),
                     f'mean; std {" ".join(f"{value:.4f}" for value in pixels.std(0))}; of {len(some)} images in [0, 1]'))
        if split == 'train':
            if classes := datasets.shown_classes(images):
                rows.append(('  labels', classes, 'by the names of their folders'))
            distance, n = datasets.largest_distance(images, config.seed)
            rows.append(('  largest distance', f'{distance:.2f}', f'between two of {n} images in [0, 1], estimated from below: '
                         f'--config.model.sigma_max={float(f"{distance:.2g}")} suits a VE SDE (it is {config.model.sigma_max})'))
            if workdir:
                reports.save_grid(pathlib.Path(workdir, 'data.png'), datasets.to_8_bits(some[:100], images.levels))
    logging.info('%s:\n%s', config.data.dataset, reports.table(rows))
    return rows


def _count_labels(labels: np.ndarray) -> str:
    found = np.unique(labels)
    return f'{len(found)} labels' + (f' ({found[0]} to {found[-1]})' if len(found) > 1 else '')


@interruption.interruptible('No samples were written.')
def sample(config, workdir, checkpoint='', num_samples=64, output=''):
    """Draws `num_samples` images from a checkpoint file (the latest of `workdir`) into the folder `output` (`workdir/generated`).

    Each becomes a PNG; `samples.npz` (key 'samples', 8 bits, NHWC; 'labels' of a network that knows classes) holds all, `grid.png` shows
    up to 100. Returns the folder.
    """
    config = preflight.check(config, workdir, 'sample', checkpoint)
    keep_memory(config.device)
    model = ScoreModel.load(checkpoint or checkpoints.latest(workdir), config)
    folder = pathlib.Path(output or pathlib.Path(workdir, 'generated'))
    folder.mkdir(parents=True, exist_ok=True)
    parts = _draw_all(model, ('sample',), num_samples, config.eval.batch_size)
    if not distributed.is_main():
        return folder
    images = np.concatenate([part['samples'] for part in parts])
    if (folder / 'samples.npz').is_file():  # pictures of an earlier call, which may have drawn more
        for path in (path for path in folder.glob('*.png') if path.stem.isdigit()):
            path.unlink()
    for i, image in enumerate(images):
        reports.save_image(folder / f'{i:05d}.png', image)
    labels = dict(labels=np.concatenate([part['labels'] for part in parts])) if 'labels' in parts[0] else {}
    np.savez_compressed(folder / 'samples.npz', samples=images, **labels)
    reports.save_grid(folder / 'grid.png', images[:100])
    logging.info('Wrote %d images, samples.npz and grid.png to %s.', len(images), folder)
    return folder
