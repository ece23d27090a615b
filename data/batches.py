"""Batches of images."""

import collections
import functools
import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data.images import Images, Streamed
from runtime.errors import UserError


class ImageArray(np.ndarray):
    """An array that also answers `_numpy()`, as the eager tensors of TensorFlow do, for notebooks
    that ask for it.
    """

    def _numpy(self):
        return np.asarray(self)


class Batches:
    """Batches of `images`.

    Args:
        images: The images.
        batch_size: Images in a batch.
        seed: Of the order of images, of flips and of noise.
        shuffle: Whether each epoch has a new order.
        random_flip: Whether half of the images are mirrored.
        dequantize: Whether uniform noise is added, new in each pass.
        start: The number of the first batch of a sequence without end, one epoch after another.
            None: one pass over all images.
        rows: The rows of every batch of such a sequence that are wanted.

    Damaged images, if they may be skipped, are missing from the batches of a pass; in a sequence
    without end, others of the same rows take their places.
    """

    def __init__(
        self,
        images: Images | Streamed,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        random_flip: bool = False,
        dequantize: bool = False,
        start: int | None = None,
        rows: slice = slice(None),
    ):
        self.data, self.batch_size, self.seed, self.start = images, batch_size, seed, start
        self.shuffle, self.random_flip, self.dequantize = shuffle, random_flip, dequantize
        self.rows, self.passes = rows, 0
        self._order = functools.lru_cache(maxsize=2)(self._order_of)

    def __len__(self):
        """The number of batches in one pass over the images."""
        return math.ceil(len(self.data) / self.batch_size)

    def _rng(self, *position):
        return np.random.Generator(np.random.SFC64((self.seed, int(self.shuffle), *position)))

    def _order_of(self, epoch):
        return (
            self._rng(0, epoch).permutation(len(self.data))
            if self.shuffle
            else np.arange(len(self.data))
        )

    def _collect(self, indices, rng, rows=slice(None)):
        images, labels = self.data.read(indices[rows])
        # what is random is drawn for the whole batch, whichever rows of it are wanted
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

    def batch(self, i: int):
        """The i-th batch, from 0, of the sequence without end."""
        places = np.arange(i * self.batch_size, (i + 1) * self.batch_size)
        epochs, places = np.divmod(places, len(self.data))
        indices = np.concatenate(
            [self._order(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs)]
        )
        found, size = self._collect(indices, self._rng(1, i), self.rows), len(indices[self.rows])
        if not len(found['label']):
            raise UserError(f'not one of the {size} images of a training batch could be read')
        return (
            found
            if len(found['label']) == size
            else {key: value[np.arange(size) % len(value)] for key, value in found.items()}
        )

    def part(self, i: int, repeat: int = 0):
        """The i-th batch, from 0, of one pass in order; `repeat` numbers the passes, which differ
        by the noise of dequantisation.
        """
        return self._collect(
            np.arange(i * self.batch_size, min((i + 1) * self.batch_size, len(self.data))),
            self._rng(2, repeat, i),
        )

    def __iter__(self):
        if self.start is not None:
            make, numbers = self.batch, itertools.count(self.start)
        else:
            self.passes += 1
            make, numbers = (
                functools.partial(self.part, repeat=self.passes - 1),
                iter(range(len(self))),
            )
        if isinstance(self.data, Images):  # too quick to gain from other threads
            yield from map(make, numbers)
        else:
            yield from (batch for batch in _ahead(make, numbers) if len(batch['label']))


def _ahead(make, numbers, depth: int = 2):
    """make(i) for each of the numbers, computed by other threads `depth` calls before it is asked
    for.
    """
    with ThreadPoolExecutor(depth, 'batches') as threads:
        pending = collections.deque(
            threads.submit(make, i) for i in itertools.islice(numbers, depth)
        )
        while pending:
            ready = pending.popleft().result()
            pending.extend(threads.submit(make, i) for i in itertools.islice(numbers, 1))
            yield ready
