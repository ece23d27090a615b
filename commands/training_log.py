"""The reports of training: log lines, TensorBoard curves, and the table at the start."""

import contextlib
import os
import pathlib
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from absl import logging
from ml_collections import ConfigDict

import sde_lib
from runtime import distributed
from runtime.errors import UserError
from runtime.progress import duration
from runtime.tensorflow import stub

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class LossMeaning(NamedTuple):
    """A description of the loss in log lines.

    Args:
        words: text for log lines, such as 'mean over 3072 values'.
        to_mean: the factor that converts the loss to its mean over the values of an image; None
            if the loss has no such mean.
    """

    words: str
    to_mean: float | None = None

    def scalars(self, name: str, loss: float) -> dict[str, float]:
        """Return the points to plot: the loss, and its mean over the values of an image."""
        if self.to_mean is None:
            return {name: loss}
        return {name: loss, f'{name}_per_value': loss * self.to_mean}

    def text(self, loss: float) -> str:
        """Return the text of a loss for log lines."""
        if self.to_mean is None:
            return f'{loss:.5e} ({self.words})'
        return f'{loss:.5e} ({self.words}), per value: {loss * self.to_mean:.5f}'


class Log:
    """The log lines and curves of a training that begins with the step `first`."""

    def __init__(
        self, settings: ConfigDict, meaning: LossMeaning, writer: 'SummaryWriter | None', first: int
    ):
        self.settings, self.meaning, self.writer, self.first = settings, meaning, writer, first
        self.started = self.paced = time.monotonic()

    def first_step_done(self) -> None:
        """Start to measure the speed after the first step, because that step may compile."""
        self.paced = time.monotonic()

    def training(
        self, step: int, loss: float, optimizer: torch.optim.Optimizer, gradient_norm: torch.Tensor
    ) -> None:
        """Log the loss of a training step, the speed and the time left."""
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

    def evaluation(self, step: int, loss: float) -> None:
        """Log the loss of a batch of the test set."""
        logging.info('step: %d, eval_loss: %s', step, self.meaning.text(loss))
        write(self.writer, step, **self.meaning.scalars('eval_loss', loss))


class Skips:
    """Counts, on the device, the steps skipped because their gradients were not finite."""

    def __init__(self, device: str | torch.device):
        self.since, self.in_row, self.longest = (
            torch.zeros((), dtype=torch.long, device=device) for _ in range(3)
        )

    def count(self, grad_norm: torch.Tensor) -> None:
        """Count a step by the norm of its gradient."""
        bad = ~torch.isfinite(grad_norm)
        self.since = self.since + bad
        self.in_row = torch.where(bad, self.in_row + 1, 0)
        self.longest = torch.maximum(self.longest, self.in_row)

    def report(self, step: int, rate: float, most: int, checkpoint: pathlib.Path | None) -> None:
        """Log the number of steps skipped since the last report.

        Args:
            step: the current step.
            rate: the learning rate.
            most: the number of consecutive skipped steps that stops training; 0: never.
            checkpoint: the path of the checkpoint to resume from, or None.

        Raises:
            UserError: if `most` or more consecutive steps were skipped.
        """
        since, longest = torch.stack([self.since, self.longest]).tolist()
        if since:
            logging.warning(
                'step: %d, skipped %d steps since the last log line: gradients were not finite',
                step,
                since,
            )
        if most and longest >= most:
            last = f'resume from {checkpoint}' if checkpoint else 'start again (no checkpoint yet)'
            raise UserError(
                f'training stopped at step {step}: the gradients of {longest} steps in a row were '
                f'not finite (max_bad_steps={most}, learning rate {rate:g}). These steps did not '
                f'change the parameters: {last} with a smaller learning rate'
            )
        self.since, self.longest = torch.zeros_like(self.since), self.in_row


def facts(
    config: ConfigDict,
    workdir: str | os.PathLike,
    state: dict,
    meaning: LossMeaning,
    train_images: int,
    test_images: int,
) -> list[tuple[str, str]]:
    """Return the rows of a table about the network, the data and the length of a training."""
    settings, data, device = config.training, config.data, torch.device(config.device)
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type
    compiled = ', compiled' if settings.compile else ''
    parameters = sum(parameter.numel() for parameter in state['model'].parameters())
    time = 'continuous' if settings.continuous else 'discrete'
    samples = f'; samples by {config.sampling.method}' if settings.snapshot_sampling else ''
    return [
        ('  device', f'{name}, processes: {distributed.size()}'),
        ('  precision', f'{settings.precision}{compiled}'),
        ('  network', f'{config.model.name}, {parameters:,} parameters'),
        ('  SDE', f'{sde_lib.get_sde(config)!r}, {time} time'),
        (
            '  data',
            f'{data.dataset}, {data.image_size}x{data.image_size} pixels, channels: '
            f'{data.num_channels}, {train_images} training and {test_images} test images',
        ),
        (
            '  steps',
            f'{state["step"]} to {settings.n_iters}, batch size {settings.batch_size}, '
            f'learning rate {config.optim.lr:g}',
        ),
        ('  loss', meaning.words),
        (
            '  snapshots',
            f'every {settings.snapshot_freq} steps{samples}; the checkpoint to resume from every '
            f'{settings.snapshot_freq_for_preemption} steps',
        ),
        ('  work directory', str(workdir)),
    ]


@contextlib.contextmanager
def tensorboard(workdir: pathlib.Path, first_step: int) -> Iterator['SummaryWriter | None']:
    """Yield a TensorBoard writer in process 0, None in the others.

    The curves of an interrupted run are cut at `first_step`.
    """
    if not distributed.is_main():
        yield None
        return
    # TensorBoard's own file writer: importing TensorFlow takes seconds
    with stub('tensorboard.compat.notf'):
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(workdir / 'tensorboard', purge_step=first_step)
    with writer:
        yield writer


def remove_steps(path: pathlib.Path, first: int) -> None:
    """Remove the lines of steps from `first` on from a log: the resumed run logs them again."""
    lines = path.read_text(errors='replace').splitlines(keepends=True) if path.is_file() else []
    steps = [re.search(r' step: (\d+),', line) for line in lines]
    kept = [line for line, step in zip(lines, steps) if not step or int(step[1]) < first]
    if len(kept) < len(lines):
        partial = path.with_name(path.name + '.partial')
        partial.write_text(''.join(kept))
        os.replace(partial, path)  # the log's handler notices and opens the new one


def write(writer: 'SummaryWriter | None', step: int, **scalars) -> None:
    """Add points to the curves, if `writer` is not None."""
    for name, value in scalars.items() if writer else ():
        writer.add_scalar(name, value, step)
