"""Work with the EMA weights at a snapshot of a training: draw samples, or log the accuracy.

Every process calls `save_samples` (score networks) or `log_accuracy` (classifiers) with `(config,
state, step, workdir, writer)`. `has_samples` and `has_accuracy` are called with `(workdir, step)`
and return whether that work finished for the step; if not, training repeats it on resume.
"""

import pathlib

import numpy as np
import torch
from absl import logging
from ml_collections import ConfigDict

import datasets
import reports
import sde_lib
from commands import drawing, training_log
from data.batches import Batches
from data.tensors import get_classes, to_tensor
from models.utils import get_model_fn, times_like
from runtime import distributed
from runtime.randomness import own_randomness
from score_model import ScoreModel

FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # of T: times at which a classifier is tested


def has_samples(workdir: pathlib.Path, step: int) -> bool:
    """Whether `save_samples` finished for this step."""
    return (workdir / 'samples' / f'iter_{step}' / 'sample.png').is_file()


def save_samples(
    config: ConfigDict,
    state: dict,
    step: int,
    workdir: pathlib.Path,
    writer: 'training_log.SummaryWriter | None',
) -> None:
    """Draw a batch of samples for `samples/iter_{step}/sample.np` and `.png`, and TensorBoard."""
    model, size = state['model'], config.training.batch_size
    with state['ema'].applied_to(model.parameters()):
        score_model = ScoreModel.from_config(config, model)
        share = size // distributed.size()
        parts = drawing.draw_all(score_model, ('snapshot', step), size, share)
    if not distributed.is_main():
        return
    images = np.concatenate([part['samples'] for part in parts])
    folder = workdir / 'samples' / f'iter_{step}'
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'sample.np', 'wb') as file:
        np.save(file, images)
    writer.add_image('samples', reports.save_grid(folder / 'sample.png', images), step)


def has_accuracy(workdir: pathlib.Path, step: int) -> bool:
    """Whether `log_accuracy` finished for this step, according to the log."""
    log = workdir / 'stdout.txt'
    return not log.is_file() or f' step: {step}, accuracy' in log.read_text(errors='replace')


def log_accuracy(
    config: ConfigDict,
    state: dict,
    step: int,
    workdir: pathlib.Path,
    writer: 'training_log.SummaryWriter | None',
) -> None:
    """Log the accuracy of a classifier on the test set at several times t (only in process 0)."""
    if not distributed.is_main():
        return
    sde, model = sde_lib.get_sde(config), state['model']
    times = [max(fraction * sde.T, sde.sampling_eps) for fraction in FRACTIONS]
    with (
        torch.no_grad(),
        own_randomness(config.seed + step),
        state['ema'].applied_to(model.parameters()),
    ):
        right = _correct(config, sde, get_model_fn(model, train=False), times)
    accuracies = right.mean(0).tolist()
    logging.info(
        'step: %d, accuracy on %d test images %s',
        step,
        len(right),
        ', '.join(f'at t={t:g}: {accuracy:.3f}' for t, accuracy in zip(times, accuracies)),
    )
    scalars = {f'accuracy/t={t:g}': accuracy for t, accuracy in zip(times, accuracies)}
    training_log.write(writer, step, **scalars)


def _correct(config, sde, classify, times) -> torch.Tensor:
    """Return 1.0 where a noisy test image is classified correctly, else 0.0; (images, times)."""
    batches = Batches(
        datasets.get_split(config, 'test'),
        config.eval.batch_size,
        config.seed,
        dequantize=config.data.uniform_dequantization,
    )
    scaler, right = datasets.get_data_scaler(config), []
    for batch in batches:
        x, classes = to_tensor(batch, config, scaler), get_classes(batch, config)['classes']
        logits = [
            classify(sde.perturb(x, times_like(x, t)), sde.network_label(times_like(x, t)))
            for t in times
        ]
        right.append(torch.stack([part.argmax(1) == classes for part in logits], 1).float())
    return torch.cat(right)
