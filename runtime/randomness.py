"""Separate streams of random numbers for a block of code, or for every image.

`own_randomness` gives a block a stream that depends only on a seed and a place. With `per_image`
every image has its own stream, so it does not depend on the rest of the batch, the batch size or
the number of devices. Code that draws noise for a batch of images therefore calls `normal_like`.
"""

import contextlib
import contextvars
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

_seeds: contextvars.ContextVar['_Images | None'] = contextvars.ContextVar('seeds', default=None)


def seed_of(seed: int, *place) -> int:
    """A seed below 2^56 that depends on `seed` and the place; `seed` itself without a place.

    Args:
        seed: the seed of the job.
        *place: numbers and words that name the purpose of the seed.
    """
    return (
        int.from_bytes(hashlib.sha256(repr((seed, *place)).encode()).digest()[:7], 'little')
        if place
        else seed
    )


@contextlib.contextmanager
def own_randomness(seed: int, *place) -> Iterator[None]:
    """Make the random numbers in the block depend on `seed` and `place` alone.

    The stream outside the block is unchanged.
    """
    has_mps = torch.backends.mps.is_available()
    # fork_rng supports only one type of device at a time
    outside = torch.mps.get_rng_state() if has_mps else None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed_of(seed, *place))
        try:
            yield
        finally:
            if has_mps:
                torch.mps.set_rng_state(outside)


class _Images:
    """The streams of a batch of images, created on a device when first used there.

    An image has two seeds, one for its prior and one for its noise. The seeds of consecutive images
    differ in the lower 32 bits, because the CPU generator uses only these bits.
    """

    def __init__(self, seeds):
        self.seeds, self.generators = list(seeds), {}

    def on(self, device) -> list[torch.Generator]:
        if device not in self.generators:
            self.generators[device] = [
                torch.Generator(device).manual_seed(2 * seed + 1) for seed in self.seeds
            ]
        return self.generators[device]


@contextlib.contextmanager
def per_image(seeds: Iterable[int]) -> Iterator[None]:
    """Make `normal_like` in the block draw each row of a batch from its own stream.

    Args:
        seeds: one seed for each row of a batch; consecutive integers below 2^62.
    """
    token = _seeds.set(_Images(seeds))
    try:
        yield
    finally:
        _seeds.reset(token)


def is_per_image() -> bool:
    """Whether each image draws from its own stream."""
    return _seeds.get() is not None


WITHOUT_FLOAT64 = {'mps'}  # device types


def float64_device(device: torch.device) -> torch.device:
    """The device for float64 tensors: `device`, or the CPU if it lacks float64."""
    return torch.device('cpu') if device.type in WITHOUT_FLOAT64 else device


def normal_like(x: torch.Tensor) -> torch.Tensor:
    """Standard normal numbers of the shape, dtype and device of `x` (B, ...)."""
    images = _seeds.get()
    if images is None:
        return torch.randn_like(x)
    if len(images.seeds) != len(x):
        raise ValueError(
            f'expected a batch of {len(images.seeds)} images, one for each seed, got {len(x)}'
        )
    return torch.stack(
        [
            torch.randn(x.shape[1:], generator=generator, dtype=x.dtype, device=x.device)
            for generator in images.on(x.device)
        ]
    )


def batch_mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of `values` (B,) over the images of a batch; with `per_image` the values themselves.

    Images with their own streams must not depend on each other.
    """
    return values if is_per_image() else values.mean()


def prior_sampling(sde: Any, shape: Sequence[int]) -> torch.Tensor:
    """A draw from the prior of an SDE, of `shape` (B, ...), on the CPU."""
    images = _seeds.get()
    if images is None:
        return sde.prior_sampling(shape)
    parts, state = [], torch.get_rng_state()
    for seed in images.seeds:  # `own_randomness` would save the states of all GPUs each time
        torch.default_generator.manual_seed(2 * seed)
        parts.append(sde.prior_sampling((1, *shape[1:])))
    torch.set_rng_state(state)
    return torch.cat(parts)
