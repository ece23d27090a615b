"""Checks that every working checkpoint passes, even one of low quality.

The weights are finite, denoising is better than a linear estimate, samples vary, and metrics are in
the range of possible values.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

import datasets
from data.batches import Batches
from data.images import Images, Streamed, Subset, at_most
from data.tensors import to_tensor
from reports import Number
from runtime.randomness import own_randomness
from score_model import ScoreModel

# Fractions of the time from data to noise.
TIMES = (
    *(0.0, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    *(0.6, 0.7, 0.85, 1.0),
)

# Possible values, by `Number.kind`.
RANGES = {
    'loss': (0.0, math.inf),
    'bits/dim': (-1.0, 9.0),
    'frechet': (0.0, math.inf),
    'kernel': (-math.inf, math.inf),
    'IS': (1.0, math.inf),
}


class Check(NamedTuple):
    """Result of a check: whether it passed (None if it could not be made), and the evidence."""

    name: str
    passed: bool | None
    detail: str


class Denoising(NamedTuple):
    """Squared errors per pixel of estimates of E[x_0 | x_t].

    Args:
        t: times (T,).
        network: errors of the network (T,).
        linear: errors of the best estimate that is a linear function of the pixel (T,).
        n: number of images.
        variance: variance of a pixel, which is the error of an estimate that ignores x_t.
    """

    t: np.ndarray
    network: np.ndarray
    linear: np.ndarray
    n: int
    variance: float


def weights(state: dict) -> list[Check]:
    """Check that the weights are finite, and that raw and EMA weights differ.

    Returns:
        Both checks, in this order.
    """
    trained = [p.detach() for p in state['model'].parameters() if p.requires_grad]
    averaged = state['ema'].shadow_params
    broken = []
    for name, tensors in (('raw', trained), ('averaged', averaged)):
        if count := sum(not torch.isfinite(p).all() for p in tensors):
            broken.append(f'{count} of {len(tensors)} {name} tensors')
    if broken:
        finite = Check('weights are finite', False, ', '.join(broken) + ' are not finite')
    else:
        count = sum(p.numel() for p in trained)
        finite = Check('weights are finite', True, f'{count:,} raw and averaged parameters')
    apart = _norm(p - q for p, q in zip(trained, averaged))
    if apart == 0:
        two = Check('raw and averaged weights', None, 'equal: the checkpoint has only one set')
    else:
        share = f'difference: {100 * apart / _norm(trained):.2g} % of the norm of the raw weights'
        two = Check('raw and averaged weights', True, share)
    return [finite, two]


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    return math.sqrt(sum(p.square().sum().item() for p in tensors))


def denoising(
    model: ScoreModel, split: Images | Streamed | Subset, seed: int, most: int = 256
) -> Denoising:
    """Return the errors of denoising on at most `most` images of a split.

    Args:
        model: the trained network.
        split: images of the data set.
        seed: seed of the choice of images and of the noise.
        most: maximum number of images.
    """
    config, sde = model.config, model.sde
    images = at_most(split, most, seed)
    batches = Batches(images, 64, seed, dequantize=config.data.uniform_dequantization)
    scale_data = datasets.get_data_scaler(config)
    x = torch.cat([to_tensor(batches.part(i), config, scale_data) for i in range(len(batches))])
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
    """Check that the error of the network is below that of the linear estimate.

    Only noise levels are tested at which the error of the linear estimate is 5 to 80 % of the
    variance. At lower noise both estimates are nearly exact. At higher noise x_t contains almost no
    information, and a small error of the predicted noise becomes a large error of the image.
    """
    left = found.linear / found.variance
    between = (left > 0.05) & (left < 0.8)
    if not between.any():
        return Check('denoises', False, 'found no noise level to test')
    ratio, t = (found.network / found.linear)[between], found.t[between]
    passed = bool(np.isfinite(found.network).all() and ratio.max() < 1)
    return Check(
        'denoises',
        passed,
        f'squared error {ratio.min():.2f} to {ratio.max():.2f} times that of the best linear '
        f'estimate, at t from {t.min():.2f} to {t.max():.2f}, {found.n} images',
    )


def of_numbers(numbers: Iterable[Number]) -> list[Check]:
    """Check that the metrics of an evaluation are in the range of possible values."""
    found = []
    for number in numbers:
        if number.kind in RANGES and not number.real:
            low, high = RANGES[number.kind]
            passed = math.isfinite(number.value) and low <= number.value <= high
            found.append(Check(f'{number.quantity} is a number', passed, number.text()))
    return found


def of_samples(samples: np.ndarray, real: np.ndarray | None) -> Check:
    """Check that samples differ from each other about as much as real images do.

    Args:
        samples: 8-bit images (n, H, W, C).
        real: real images (m, H, W, C), or None without a data set.
    """
    spread = samples.astype(np.float64).std(0).mean()
    evidence = f'standard deviation of a pixel {spread:.1f} (of 255)'
    if real is None:
        return Check('samples vary', bool(spread > 1), f'{evidence} over {len(samples)} samples')
    expected = real.astype(np.float64).std(0).mean()
    passed = bool(0.5 < spread / expected < 1.5)
    return Check('samples vary', passed, f'{evidence}, {expected:.1f} for real images')
