"""Random numbers of their own: for a block of code, or for every image.

A block draws from a stream that follows from a seed and a place (`own_randomness`). With
`per_image` every image draws from a stream of its own: it does not depend on the images beside it,
on the size of the batch or on the number of devices. What draws noise for a batch of images
therefore asks `normal_like`.
"""

import contextlib
import contextvars
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

_seeds: contextvars.ContextVar['_Images | None'] = contextvars.ContextVar('seeds', default=None)


def seed_of(seed: int, *place) -> int:
    """A seed below 2^56 that follows from `seed` and the place, numbers and words; `seed` itself
    without one.
    """
    return (
        int.from_bytes(hashlib.sha256(repr((seed, *place)).encode()).digest()[:7], 'little')
        if place
        else seed
    )


@contextlib.contextmanager
def own_randomness(seed: int, *place) -> Iterator[None]:
    """Random numbers that follow from `seed` and `place` alone, leaving the stream outside the
    block as it was.
    """
    has_mps = torch.backends.mps.is_available()
    # fork_rng knows one type of device at a time
    outside = torch.mps.get_rng_state() if has_mps else None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed_of(seed, *place))
        try:
            yield
        finally:
            if has_mps:
                torch.mps.set_rng_state(outside)


class _Images:
    """The streams of some images, each of which begins on a device when it is first asked for
    there.

    An image has two seeds, one for its prior and one for its noise; those of consecutive images
    differ in the lower 32 bits, all that the generator of the CPU heeds.
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
    """Within the block, `normal_like` draws each row from the stream of its own seed, for batches
    of as many rows as there are seeds: consecutive whole numbers below 2^62.
    """
    token = _seeds.set(_Images(seeds))
    try:
        yield
    finally:
        _seeds.reset(token)


def is_per_image() -> bool:
    """Whether images draw from streams of their own."""
    return _seeds.get() is not None


WITHOUT_FLOAT64 = {'mps'}  # types of devices


def float64_device(device: torch.device) -> torch.device:
    """Where float64 numbers that belong to tensors on `device` are kept: there, or on the CPU if
    the device lacks float64.
    """
    return torch.device('cpu') if device.type in WITHOUT_FLOAT64 else device


def normal_like(x: torch.Tensor) -> torch.Tensor:
    """Standard normal numbers of the shape, dtype and device of `x` (B, ...)."""
    images = _seeds.get()
    if images is None:
        return torch.randn_like(x)
    if len(images.seeds) != len(x):
        raise ValueError(
            f'there are streams for {len(images.seeds)} images, got a batch of {len(x)}'
        )
    return torch.stack(
        [
            torch.randn(x.shape[1:], generator=generator, dtype=x.dtype, device=x.device)
            for generator in images.on(x.device)
        ]
    )


def batch_mean(values: torch.Tensor) -> torch.Tensor:
    """The mean over the images of a batch, of `values` (B,); of images with streams of their own,
    which must not depend on each other, the values themselves.
    """
    return values if is_per_image() else values.mean()


def prior_sampling(sde: Any, shape: Sequence[int]) -> torch.Tensor:
    """A draw from the prior of an SDE, of `shape` (B, ...), on the CPU."""
    images = _seeds.get()
    if images is None:
        return sde.prior_sampling(shape)
    parts, state = [], torch.get_rng_state()
    for seed in images.seeds:  # `own_randomness` would set aside the streams of every GPU each time
        torch.default_generator.manual_seed(2 * seed)
        parts.append(sde.prior_sampling((1, *shape[1:])))
    torch.set_rng_state(state)
    return torch.cat(parts)
