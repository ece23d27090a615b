"""Sequences of images that are read by index.

A sequence has a length, the `shape` (H, W, C) of its images, a number of grey `levels` (values 0 to
levels - 1), the names of its `classes` (empty if they are unknown), and `read(indices)`, which
returns images (k, H, W, C) of type uint8 and labels (k,) of type int64. Reading by index makes the
order of training a function of (seed, epoch) for data of any size, and lets all processor cores
decode a batch at once.
"""

import dataclasses
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from runtime import interruption
from runtime.errors import UserError


class UnreadableImage(UserError):
    """One image or record of a data set that is corrupt or cannot be decoded."""


@dataclasses.dataclass(eq=False)
class Images:
    """Images in memory.

    Args:
        images: (N, H, W, C), grey levels 0 to levels - 1.
        labels: (N,), int64.
        levels: Number of grey levels.
        classes: The names of the classes in the order of their labels; empty if unknown.
    """

    images: np.ndarray
    labels: np.ndarray
    levels: int = 256
    classes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.take(self.images, indices, axis=0), self.labels[indices]


@dataclasses.dataclass(eq=False)
class Streamed:
    """Images that are decoded by all processor cores when they are read.

    Args:
        decode: `decode(i)` returns an image of the given shape and its label, or raises
            UnreadableImage.
        n: Number of images.
        shape: (H, W, C).
        name: `name(i)` returns the place of an image, for error messages.
        on_error: 'raise', or 'skip': `read` leaves out unreadable images, logs each once, and adds
            its number to the set `skipped`.
        levels: Number of grey levels.
        parallel: Whether several threads decode. One thread decodes tiny images faster, because
            Python's lock is the bottleneck.
        classes: The names of the classes in the order of their labels; empty if unknown.
    """

    decode: Callable[[int], tuple]
    n: int
    shape: tuple[int, int, int]
    name: Callable[[int], str]
    on_error: str = 'raise'
    levels: int = 256
    parallel: bool = True
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        self.skipped = set()
        self._lock = threading.Lock()
        # threads, because decoders release the interpreter's lock
        self._map = ThreadPoolExecutor(cores(), 'decode').map if self.parallel else map

    def __len__(self) -> int:
        return self.n

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tasks = np.array_split(indices, max(1, min(len(indices), 4 * cores())))
        found = [pair for pairs in self._map(self._decode_all, tasks) for pair in pairs]
        if not found:
            return np.empty((0, *self.shape), np.uint8), np.empty(0, np.int64)
        images, labels = zip(*found)
        return np.stack(images), np.array(labels, np.int64)

    def _decode_all(self, indices):
        pairs = [self._decode(int(i)) for i in indices]
        return [pair for pair in pairs if pair is not None]

    def _decode(self, i):
        interruption.look()
        try:
            return self.decode(i)
        except UnreadableImage as fault:
            if self.on_error.lower() == 'raise':
                raise UnreadableImage(
                    f'{self.name(i)} {fault}; --config.data.on_error=skip leaves such images out'
                ) from fault
            self._skip(i, fault)
            return None
        except UserError as fault:
            raise UserError(f'{self.name(i)} {fault}') from fault

    def _skip(self, i, fault):
        with self._lock:
            if i in self.skipped:
                return
            self.skipped.add(i)
            logging.warning(
                '%s %s; skipped (%d of %d images so far)',
                self.name(i),
                fault,
                len(self.skipped),
                self.n,
            )


@dataclasses.dataclass(eq=False)
class Subset:
    """The images of a sequence with the numbers `indices`, in that order."""

    images: Images | Streamed
    indices: np.ndarray

    def __post_init__(self):
        self.levels = self.images.levels
        self.classes = self.images.classes
        self.shape = self.images.shape

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.images.read(self.indices[indices])


def at_most(images: Images | Streamed, most: int, seed: int) -> Images | Streamed | Subset:
    """Draw `most` images at random and keep their order; 0 keeps all."""
    if not 0 < most < len(images):
        return images
    drawn = np.random.default_rng(seed).choice(len(images), most, replace=False)
    return Subset(images, np.sort(drawn))


def into_memory(source: Images | Streamed, gib: float) -> Images | Streamed:
    """Decode all images now if they take at most `gib` GiB."""
    if isinstance(source, Images) or len(source) * math.prod(source.shape) > gib * 2**30:
        return source
    started = time.monotonic()
    images = np.empty((len(source), *source.shape), np.uint8)
    labels = np.empty(len(source), np.int64)
    n = 0
    for start in range(0, len(source), 4096):
        some, some_labels = source.read(np.arange(start, min(start + 4096, len(source))))
        images[n : n + len(some)] = some
        labels[n : n + len(some)] = some_labels
        n += len(some)
    logging.info(
        'Decoded %d images into memory (%.1f s, %d unreadable ones skipped).',
        n,
        time.monotonic() - started,
        len(source.skipped),
    )
    return Images(images[:n], labels[:n], source.levels, source.classes)


def class_names(images: Images | Streamed | Subset) -> tuple[str, ...]:
    """The names of the classes in the order of their labels; empty if they are unknown."""
    return images.classes if any(images.classes) else ()


def shown_classes(images: Images | Streamed, most: int = 20) -> str:
    """The names of the classes by label, such as '0: cats, 1: dogs'; '' if they are unknown."""
    names = class_names(images)
    shown = [f'{label}: {name or "(no folder)"}' for label, name in enumerate(names[:most])]
    if len(names) > most:
        shown.append(f'... (of {len(names)})')
    return ', '.join(shown)


def split_indices(n: int, test_fraction: float, split: str) -> np.ndarray:
    """Return the indices of the images of a split in a fixed random order, out of n images.

    Args:
        n: Number of images.
        test_fraction: The fraction in the test set, whose size is rounded up. If it is 0, both
            splits have all images.
        split: 'train' or 'test'.
    """
    order = np.random.default_rng(0).permutation(n)
    held_out = math.ceil(test_fraction * n)
    if held_out == 0:
        return order
    return order[:held_out] if split == 'test' else order[held_out:]


def image_shape(data: ConfigDict) -> tuple[int, int, int]:
    """The shape (H, W, C) of images that `config.data` sets."""
    return data.image_size, data.image_size, data.num_channels


def cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def reason(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
