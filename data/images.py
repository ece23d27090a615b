"""Sequences of images that are read by index."""

import functools
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging

from runtime import interruption
from runtime.errors import UserError


class Damaged(UserError):
    """One image or record that cannot be read."""


class Images:
    """Images (N, H, W, C) in memory, as grey levels 0 .. levels - 1, and their labels (N,); the
    names of the `classes`, where known.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        levels: int = 256,
        classes: tuple[str, ...] = (),
    ):
        self.images, self.labels, self.levels, self.classes, self.shape = (
            images,
            labels,
            levels,
            classes,
            images.shape[1:],
        )

    def __len__(self):
        return len(self.images)

    def read(self, indices):
        return np.take(self.images, indices, axis=0), self.labels[indices]


class Streamed:
    """Images that are decoded when they are asked for, by all processor cores: decode(i) returns
    image `shape` and label, or raises Damaged; name(i) says where it lies. With on_error='skip'
    damaged images are left out of what `read` returns, told once each, and collected in `damaged`.
    Tiny ones are better not decoded in `parallel`: Python's lock would be the bottleneck.
    """

    def __init__(
        self,
        decode: Callable[[int], tuple],
        n: int,
        shape: tuple[int, int, int],
        name: Callable[[int], str],
        on_error: str = 'raise',
        levels: int = 256,
        parallel: bool = True,
        classes: tuple[str, ...] = (),
    ):
        self.decode, self.n, self.shape, self.name, self.on_error, self.levels = (
            decode,
            n,
            shape,
            name,
            on_error,
            levels,
        )
        self.classes = classes
        self.run = pool().map if parallel else map
        self.damaged, self._lock = set(), threading.Lock()

    def __len__(self):
        return self.n

    def _decode(self, i):
        interruption.look()
        try:
            return self.decode(i)
        except Damaged as fault:
            if self.on_error == 'raise':
                raise Damaged(
                    f'{self.name(i)} {fault}; --config.data.on_error=skip leaves such images out'
                ) from fault
            with self._lock:
                if i not in self.damaged:
                    self.damaged.add(i)
                    logging.warning(
                        '%s %s; skipped, %d of %d images so far',
                        self.name(i),
                        fault,
                        len(self.damaged),
                        self.n,
                    )
        except UserError as fault:
            raise UserError(f'{self.name(i)} {fault}') from fault

    def read(self, indices):
        tasks = np.array_split(indices, max(1, min(len(indices), 4 * cores())))
        found = self.run(lambda task: [self._decode(int(i)) for i in task], tasks)
        found = [item for items in found for item in items if item is not None]
        images = (
            np.stack([image for image, _ in found])
            if found
            else np.empty((0, *self.shape), np.uint8)
        )
        return images, np.array([label for _, label in found], np.int64)


def into_memory(source, gib: float) -> Images | Streamed:
    """The source, decoded once where its images take `gib` GiB or less."""
    if isinstance(source, Images) or len(source) * math.prod(source.shape) > gib * 2**30:
        return source
    started, n = time.monotonic(), 0
    images, labels = (
        np.empty((len(source), *source.shape), np.uint8),
        np.empty(len(source), np.int64),
    )
    for start in range(0, len(source), 4096):
        some, their_labels = source.read(np.arange(start, min(start + 4096, len(source))))
        images[n : n + len(some)], labels[n : n + len(some)] = some, their_labels
        n += len(some)
    logging.info(
        'Decoded %d images into memory (%.1f s, %d damaged ones left out).',
        n,
        time.monotonic() - started,
        len(source.damaged),
    )
    return Images(images[:n], labels[:n], source.levels, source.classes)


def held_out(n: int, data, split: str) -> np.ndarray:
    """The indices of a split of n images, in random order, where `data.test_fraction` of them,
    rounded up, are the test set.
    """
    order, held_out = np.random.default_rng(0).permutation(n), math.ceil(data.test_fraction * n)
    return order if held_out == 0 else order[:held_out] if split == 'test' else order[held_out:]


def image_shape(data) -> tuple[int, int, int]:
    return data.image_size, data.image_size, data.num_channels


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


@functools.cache
def pool():
    """Threads for decoding: the decoders release the interpreter's lock."""
    return ThreadPoolExecutor(cores(), 'decode')


@functools.cache
def warn_once(message: str):
    """Log a warning, unless the same one has been logged: the files of a set are listed for each
    split and for its digest.
    """
    logging.warning('%s', message)


class Subset:
    """Those of the `images` that are numbered in `indices`, in that order."""

    def __init__(self, images: Images | Streamed, indices: np.ndarray):
        self.images, self.indices, self.levels, self.classes, self.shape = (
            images,
            indices,
            images.levels,
            get_classes(images),
            images.shape,
        )

    def __len__(self):
        return len(self.indices)

    def read(self, indices):
        return self.images.read(self.indices[indices])


def at_most(images: Images | Streamed, most: int, seed: int) -> Images | Streamed | Subset:
    """All images, or `most` of them, drawn at random from the seed and kept in order; 0: all."""
    if not 0 < most < len(images):
        return images
    return Subset(
        images, np.sort(np.random.default_rng(seed).choice(len(images), most, replace=False))
    )


def get_classes(images) -> tuple[str, ...]:
    """The names of a set's classes in the order of their labels; () where they are not known."""
    names = getattr(images, 'classes', ())
    return names if any(names) else ()


def shown_classes(images: Images | Streamed, most: int = 20) -> str:
    """The names of the classes by label, such as '0: cats, 1: dogs'; '' where there are none."""
    names = get_classes(images)
    shown = [f'{label}: {name or "(no folder)"}' for label, name in enumerate(names[:most])]
    return ', '.join(shown + [f'... (of {len(names)})'] * (len(names) > most))
