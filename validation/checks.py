"""What a checkpoint must do, whatever its quality: be read strictly, be finite, denoise, and give
samples and likelihoods that can be.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

import datasets
from data.batches import Batches
from data.images import at_most
from data.tensors import to_tensor
from runtime.randomness import own_randomness
from score_model import ScoreModel

# fractions of the way to noise
TIMES = (
    0.0,
    0.01,
    0.03,
    0.06,
    0.1,
    0.15,
    0.2,
    0.25,
    0.3,
    0.35,
    0.4,
    0.45,
    0.5,
    0.6,
    0.7,
    0.85,
    1.0,
)

RANGES = {
    'loss': (0.0, math.inf),
    'bits/dim': (-1.0, 9.0),
    'frechet': (0.0, math.inf),
    'kernel': (-math.inf, math.inf),
    'IS': (1.0, math.inf),
}  # of numbers that can be, by their kind


class Check(NamedTuple):
    """Whether something holds (None: it could not be tried), and by what."""

    name: str
    passed: bool | None
    detail: str


class Denoising(NamedTuple):
    """Squared errors of E[x_0 | x_t] a pixel, at the times `t`, over `n` images: of the network,
    and of the best estimate that is linear in the pixel itself, for which no network is needed.
    `variance`: of a pixel, the error without looking at x_t.
    """

    t: np.ndarray
    network: np.ndarray
    linear: np.ndarray
    n: int
    variance: float


def weights(state) -> list[Check]:
    """Of a training state: that nothing in it is infinite or no number; that raw and averaged
    weights are two.
    """
    parameters = [p.detach() for p in state['model'].parameters() if p.requires_grad]
    sets = dict(raw=parameters, averaged=state['ema'].shadow_params)
    broken = [
        f'{sum(not torch.isfinite(p).all() for p in tensors)} of {len(tensors)} {name} tensors'
        for name, tensors in sets.items()
        if not all(torch.isfinite(p).all() for p in tensors)
    ]
    size = math.sqrt(sum(p.square().sum().item() for p in parameters))
    apart = math.sqrt(
        sum((p - q).square().sum().item() for p, q in zip(parameters, state['ema'].shadow_params))
    )
    return [
        Check(
            'weights are finite',
            not broken,
            ', '.join(broken) + ' are not'
            if broken
            else f'{sum(p.numel() for p in parameters):,} raw and averaged parameters',
        ),
        Check(
            'raw and averaged weights',
            None if apart == 0 else True,
            'are the same: the source had one set'
            if apart == 0
            else f'{100 * apart / size:.2g} % apart, relative to the norm of the former',
        ),
    ]


def denoising(model: ScoreModel, split, seed: int, most: int = 256) -> Denoising:
    """The errors on images of a split (`Images` and the like), each with noise from the
    seed.
    """
    config, sde, images = model.config, model.sde, at_most(split, most, seed)
    batches = Batches(images, 64, seed, dequantize=config.data.uniform_dequantization)
    x = torch.cat(
        [
            to_tensor(batches.part(i), config, datasets.get_data_scaler(config))
            for i in range(len(batches))
        ]
    )
    mean, variance = x.mean(), x.var()
    rows = []
    with own_randomness(seed, 'denoising'):
        for fraction in TIMES:
            t = sde.sampling_eps + fraction * (sde.T - sde.sampling_eps)
            scale, std = sde.mean_and_std(torch.full((1,), t, device=x.device))
            gain = scale * variance / (scale**2 * variance + std**2)
            errors = []
            for part in x.split(64):
                noisy = model.perturb(part, t)
                with torch.no_grad():
                    estimates = model.denoise(noisy, t), mean + gain * (noisy - scale * mean)
                errors.append([(estimate - part).square().sum().item() for estimate in estimates])
            rows.append((t, *np.sum(errors, 0) / x.numel()))
    return Denoising(*np.array(rows).T, len(x), variance.item())


def of_denoising(found: Denoising) -> Check:
    """That the network's error is below the linear one wherever that leaves 5 to 80 % of the
    variance: with less noise both see all, with more neither sees anything, and an error of the
    predicted noise counts many times.
    """
    left = found.linear / found.variance
    between = (0.05 < left) & (left < 0.8)
    ratio = (found.network / found.linear)[between]
    passed = bool(np.isfinite(found.network).all() and len(ratio) and ratio.max() < 1)
    return Check(
        'denoises',
        passed,
        f'squared error {ratio.min():.2f} to {ratio.max():.2f} of '
        'that of the best linear estimate, at t from '
        f'{found.t[between].min():.2f} to {found.t[between].max():.2f}, {found.n} images'
        if len(ratio)
        else 'no such noise level',
    )


def of_numbers(numbers) -> list[Check]:
    """That the metrics of an evaluation are numbers, that bits/dim lie where those of images
    can.
    """
    found = []
    for number in numbers:
        if number.kind in RANGES and not number.real:
            low, high = RANGES[number.kind]
            passed = math.isfinite(number.value) and low <= number.value <= high
            found.append(Check(f'{number.quantity} is a number', passed, number.text()))
    return found


def of_samples(samples: np.ndarray, real: np.ndarray | None) -> Check:
    """That 8-bit samples (n, H, W, C) differ from each other about as much as real images do."""
    spread = samples.astype(np.float64).std(0).mean()
    if real is None:
        return Check(
            'samples vary',
            bool(spread > 1),
            f'standard deviation of a pixel {spread:.1f} of 255, over {len(samples)} samples',
        )
    expected = real.astype(np.float64).std(0).mean()
    return Check(
        'samples vary',
        bool(0.5 < spread / expected < 1.5),
        f'standard deviation of a pixel {spread:.1f} of 255, of real images {expected:.1f}',
    )
