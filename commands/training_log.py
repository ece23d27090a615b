"""What training reports: log lines, TensorBoard curves, and the table that it begins with."""

import contextlib
import os
import re
import time
from typing import NamedTuple

import torch
from absl import logging

import sde_lib
from runtime import distributed
from runtime.progress import duration
from runtime.tensorflow import stand_in


class LossMeaning(NamedTuple):
    """What the logged loss is, in words, and the factor from it to the mean over the values of an
    image, None where there are none.
    """

    words: str
    to_mean: float | None = None

    def scalars(self, name: str, loss: float) -> dict[str, float]:
        """The curves of a loss: itself, and its mean per value."""
        return (
            {name: loss}
            if self.to_mean is None
            else {name: loss, f'{name}_per_value': loss * self.to_mean}
        )

    def text(self, loss: float) -> str:
        """The loss as log lines give it."""
        return f'{loss:.5e} ({self.words})' + (
            '' if self.to_mean is None else f', per value: {loss * self.to_mean:.5f}'
        )


class Log:
    """The log lines and curves of a training that begins with the step `first`."""

    def __init__(self, settings, meaning: LossMeaning, writer, first: int):
        self.settings, self.meaning, self.writer, self.first = settings, meaning, writer, first
        self.started = self.paced = time.monotonic()

    def first_step_done(self):
        """The pace of training, from which the time left follows, is that of the steps after the
        first one, which may compile.
        """
        self.paced = time.monotonic()

    def training(self, step: int, loss: float, optimizer, gradient_norm):
        done, now, steps = step - self.first, time.monotonic(), self.settings.n_iters
        rate = (done + 1) * self.settings.batch_size / (now - self.started)
        left = f', {duration((steps - 1 - step) * (now - self.paced) / done)} left' if done else ''
        logging.info(
            'step: %d, training_loss: %s, images/s: %.0f, %d of %d steps%s',
            step,
            self.meaning.text(loss),
            rate,
            step + 1,
            steps,
            left,
        )
        write(
            self.writer,
            step,
            **self.meaning.scalars('training_loss', loss),
            learning_rate=optimizer.param_groups[0]['lr'],
            gradient_norm=gradient_norm,
            images_per_second=rate,
        )

    def evaluation(self, step: int, loss: float):
        logging.info('step: %d, eval_loss: %s', step, self.meaning.text(loss))
        write(self.writer, step, **self.meaning.scalars('eval_loss', loss))


def facts(
    config, workdir, state, meaning, train_images: int, test_images: int
) -> list[tuple[str, str]]:
    """What is trained, on what and for how long, as rows of a table."""
    settings, data, model, device = (
        config.training,
        config.data,
        config.model,
        torch.device(config.device),
    )
    samples = f'; samples by {config.sampling.method}' if settings.snapshot_sampling else ''
    return [
        (
            '  device',
            (torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type)
            + ', processes: '
            f'{distributed.size()}',
        ),
        ('  precision', settings.precision + ', compiled' * settings.compile),
        (
            '  network',
            f'{model.name}, '
            f'{sum(parameter.numel() for parameter in state["model"].parameters()):,} '
            'parameters',
        ),
        (
            '  SDE',
            f'{sde_lib.get_sde(config)!r}, '
            f'{"continuous" if settings.continuous else "discrete"} time',
        ),
        (
            '  data',
            f'{data.dataset}, {data.image_size}x{data.image_size} pixels, channels: '
            f'{data.num_channels}, {train_images} training '
            f'and {test_images} test images',
        ),
        (
            '  steps',
            f'{state["step"]} to {settings.n_iters}, batch size {settings.batch_size}, '
            f'learning rate {config.optim.lr:g}',
        ),
        ('  loss', meaning.words),
        (
            '  snapshots',
            f'every {settings.snapshot_freq} steps{samples}; the checkpoint to resume '
            'from every '
            f'{settings.snapshot_freq_for_preemption} steps',
        ),
        ('  work directory', str(workdir)),
    ]


@contextlib.contextmanager
def tensorboard(workdir, first_step: int):
    """A writer of TensorBoard files, in which steps from `first_step` on, of an interrupted run,
    give way to new ones; None for all processes but the first.
    """
    if not distributed.is_main():
        yield None
        return
    # TensorBoard's own file writer: importing TensorFlow takes seconds
    with stand_in('tensorboard.compat.notf'):
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(workdir / 'tensorboard', purge_step=first_step)
    with writer:
        yield writer


def forget_steps(path, first: int):
    """Takes the lines on steps from `first` on out of a log: of a run that was broken off, they
    will come again.
    """
    lines = path.read_text(errors='replace').splitlines(keepends=True) if path.is_file() else []
    kept = [
        line
        for line in lines
        if not ((told := re.search(r' step: (\d+),', line)) and int(told[1]) >= first)
    ]
    if len(kept) < len(lines):
        partial = path.with_name(path.name + '.partial')
        partial.write_text(''.join(kept))
        os.replace(partial, path)  # the log's handler notices and opens the new one


def write(writer, step: int, **scalars):
    for name, value in scalars.items() if writer else ():
        writer.add_scalar(name, value, step)
