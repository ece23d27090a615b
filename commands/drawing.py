"""Draw samples as 8-bit images, in batches that processes share, and show progress."""

import contextlib
import math
import time

import numpy as np
import torch
from absl import logging
from ml_collections import ConfigDict

import datasets
import sampling
import solvers
from data.levels import to_uint8
from models.score import Score
from runtime import distributed
from runtime.progress import progress, watched
from runtime.randomness import own_randomness, per_image, seed_of
from score_model import ScoreModel


def to_images(samples: torch.Tensor, config: ConfigDict) -> np.ndarray:
    """Convert samples (B, C, H, W) in [0, 1] to 8-bit images (B, H, W, C)."""
    images = samples.permute(0, 2, 3, 1).cpu().numpy()
    if not np.isfinite(images).all():
        logging.warning(
            'Found values that are not finite in %d of %d samples.',
            (~np.isfinite(images).all((1, 2, 3))).sum(),
            len(images),
        )
    return to_uint8(images, datasets.get_levels(config), config.data.uniform_dequantization)


def shown_evaluations(
    model: Score, what: str, times: torch.Tensor | None = None, forward: bool = False
) -> contextlib.AbstractContextManager[None]:
    """Return a context in which network evaluations update the progress and check for signals.

    See `progress.watched`.

    Args:
        model: the score model.
        what: the task, such as 'encoding 8 images'.
        times: the times of a solver's steps. None: the solver chooses its steps, which are assumed
            to be even in lambda_t.
        forward: if `times` is None, whether the solver goes from images to codes.
    """
    steps = times is not None
    if not steps:
        times = solvers.time_grid(model.sde, 100, 1e-5 if forward else model.sde.sampling_eps)
        times = times.flip(0) if forward else times
    return watched(model.network, what, times, lambda t: model.label(t.float()), steps)


def draw(model: ScoreModel, what: tuple, first: int, count: int) -> dict:
    """Draw a batch of samples with the config's sampler.

    Random numbers depend on `config.seed`, `what` and `first`; with `sampling.seed_per_image` each
    image has its own seed.

    Args:
        model: The model.
        what: Name of the samples, such as ('samples',), from which their seed is derived.
        first: Number of the first sample.
        count: Number of samples.

    Returns:
        A dict with `samples`, 8-bit images (count, H, W, C), their `nfe`, and the `seconds` of
        drawing. For a class-conditional network it also has `labels`, drawn uniformly.
    """
    config, number, started = model.config, model.num_classes, time.monotonic()
    seeds = [seed_of(config.seed, *what) + i for i in range(first, first + count)]
    alone, labels = config.sampling.seed_per_image, None
    with (
        own_randomness(config.seed, *what, first),
        per_image(seeds) if alone else contextlib.nullcontext(),
    ):
        if number and alone:
            labels = torch.tensor([seed % number for seed in seeds])
        elif number:
            labels = torch.randint(number, (count,))
        times = sampling.times_of(model.sde, model.options())
        with shown_evaluations(model, f'drawing samples {first + 1} to {first + count}', times):
            samples, nfe = (model.guided(labels) if number else model).draw(count)
            samples = to_images(samples, config)
    found = dict(samples=samples, nfe=nfe, seconds=time.monotonic() - started)
    logging.info('Drew %d samples with %d network evaluations.', count, nfe)
    return found if labels is None else found | dict(labels=labels.numpy())


def batches(total: int, largest: int) -> list[tuple[int, int]]:
    """Split `total` images into batches of at most `largest`; return (first, count) of each."""
    return [(first, min(largest, total - first)) for first in range(0, total, largest)]


def draw_all(model: ScoreModel, what: tuple, total: int, largest: int) -> list[dict]:
    """Draw `total` samples in batches of at most `largest`, which the processes share.

    With `sampling.seed_per_image`, batches are small enough that every process gets a share.
    Otherwise `largest` sets the batches, because the samples depend on their size.

    Returns:
        The results of `draw` for all batches, in process 0.
    """
    if model.config.sampling.seed_per_image:
        largest = min(largest, math.ceil(total / distributed.size()))
    parts = batches(total, largest)
    found = distributed.in_turns(parts, lambda batch: draw(model, what, *batch))
    return [part for _, part in progress(found, 'sampling', len(parts), 'batch')]
