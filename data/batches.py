"""Batches of images, which depend only on the seed and the number of the batch."""

import collections
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data.images import Images, Streamed, Subset
from runtime.errors import UserError

# Seeds of different kinds of random numbers begin with different entries, and are independent.
ORDER, TRAINING, PASS = 0, 1, 2


class ImageArray(np.ndarray):
    """An array with the method `_numpy()` of TensorFlow's eager tensors, for notebooks."""

    def _numpy(self):
        return np.asarray(self)


class Batches:
    """Batches of images: dicts with 'image' (B, H, W, C), float32 in [0, 1], and 'label' (B,).

    If unreadable images are skipped, they are missing from the batches of a pass. In an endless
    sequence, other images of the same rows replace them.

    Args:
        images: The images.
        batch_size: Images in a batch.
        seed: The seed of the order of images, of flips and of noise.
        shuffle: Whether each epoch has a new order.
        random_flip: Whether half of the images are mirrored.
        dequantize: Whether uniform noise is added, new in each pass.
        start: The number of the first batch of an endless sequence of epochs. None: one pass over
            all images.
        rows: The rows that are read of every batch of the endless sequence.
    """

    def __init__(
        self,
        images: Images | Streamed | Subset,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        random_flip: bool = False,
        dequantize: bool = False,
        start: int | None = None,
        rows: slice = slice(None),
    ):
        self.data = images
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.random_flip = random_flip
        self.dequantize = dequantize
        self.start = start
        self.rows = rows
        self.passes = 0
        self._order = functools.lru_cache(maxsize=2)(self._order_of)  # a batch can span two epochs

    def __len__(self) -> int:
        """The number of batches in one pass over the images."""
        return math.ceil(len(self.data) / self.batch_size)

    def __iter__(self) -> Iterator[dict]:
        if self.start is not None:
            make, numbers = self.batch, itertools.count(self.start)
        else:
            make = functools.partial(self.part, repeat=self.passes)
            numbers = iter(range(len(self)))
            self.passes += 1
        if isinstance(self.data, Images):  # too fast to gain from other threads
            yield from map(make, numbers)
        else:
            yield from (batch for batch in _ahead(make, numbers) if len(batch['label']))

    def batch(self, i: int) -> dict:
        """Return the i-th batch, from 0, of the endless sequence."""
        places = np.arange(i * self.batch_size, (i + 1) * self.batch_size)
        epochs, places = np.divmod(places, len(self.data))
        indices = np.concatenate(
            [self._order(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs)]
        )
        found = self._collect(indices, self._rng(TRAINING, i), self.rows)
        size, n = len(indices[self.rows]), len(found['label'])
        if not n:
            raise UserError(f'none of the {size} images of a training batch could be read')
        if n == size:
            return found
        return {key: value[np.arange(size) % n] for key, value in found.items()}

    def part(self, i: int, repeat: int = 0) -> dict:
        """Return the i-th batch, from 0, of one pass in order.

        Passes, numbered by `repeat`, differ in the noise of dequantization.
        """
        indices = np.arange(i * self.batch_size, min((i + 1) * self.batch_size, len(self.data)))
        return self._collect(indices, self._rng(PASS, repeat, i))

    def _rng(self, *position: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64((self.seed, int(self.shuffle), *position)))

    def _order_of(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.data))
        return self._rng(ORDER, epoch).permutation(len(self.data))

    def _collect(self, indices: np.ndarray, rng: np.random.Generator, rows=slice(None)) -> dict:
        images, labels = self.data.read(indices[rows])
        # random numbers are drawn for the whole batch, so they do not depend on the rows
        if self.random_flip:
            flipped = (rng.random(len(indices)) < 0.5)[rows][: len(images)]
            images[flipped] = images[flipped, :, ::-1]
        x = images.astype(np.float32)
        if self.dequantize:
            x += rng.random((len(indices), *x.shape[1:]), np.float32)[rows][: len(x)]
            x /= np.float32(self.data.levels)
        else:
            x /= np.float32(self.data.levels - 1)
        return {'image': x.view(ImageArray), 'label': labels}


def _ahead(make: Callable, numbers: Iterator[int], depth: int = 2) -> Iterator:
    """Yield make(i) for each of the numbers, computed by threads `depth` items in advance."""
    with ThreadPoolExecutor(depth, 'batches') as threads:
        pending = collections.deque(
            threads.submit(make, i) for i in itertools.islice(numbers, depth)
        )
        while pending:
            ready = pending.popleft().result()
            pending.extend(threads.submit(make, i) for i in itertools.islice(numbers, 1))
            yield ready
