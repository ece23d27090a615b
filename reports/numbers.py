"""A number of an evaluation, with everything that it depends on.

A `Number` has a value, the protocol of its file, and the sizes of the sets that it was computed
from. `Number.limits` returns a warning for each set that is small. Values that a file does not
contain are 'unknown'.
"""

import collections
import math
from typing import NamedTuple

import numpy as np

UNKNOWN = 'unknown'
SPLITS = {'train': 'training', 'test': 'test'}

# (extractor, feature) of a Frechet distance that is called FID. Files of the 2021 release do not
# contain them, because it had no other features.
FID_FEATURES = (('Inception (2015)', 'pool_3'), ('inception-v3-compat', '2048'), (UNKNOWN, UNKNOWN))


class Metric(NamedTuple):
    """How a metric is shown: kind, name, name with the features of FID, and key of its error."""

    kind: str
    name: str
    name_of_fid: str
    error: str | None = None
    note: str = ''


# by key in report_{k}.npz
METRICS = {
    'fid': Metric('frechet', 'Frechet distance', 'FID'),
    'kid': Metric(
        'kernel',
        'kernel distance',
        'KID',
        'kid_error',
        'mean of {kid_blocks} blocks, error from {kid_error_blocks}',
    ),
    'precision': Metric('coverage', 'precision', 'precision'),
    'recall': Metric('coverage', 'recall', 'recall'),
    'IS': Metric('IS', 'IS', 'IS', 'IS_std', 'parts of the samples: {IS_splits}'),
}


class Least(NamedTuple):
    """A set size below which a number gets a note.

    Attributes:
        of: Kind or quantity of the number.
        counts: Names of the sets to count. The smallest count is compared with `least`.
        least: The smallest count without a note.
        note: The effect of a smaller count on the number.
    """

    of: str
    counts: tuple[str, ...]
    least: int
    note: str


SETS = ('samples', 'reference images')
LEAST = (
    Least(  # since Heusel et al. 2017
        'FID',
        ('samples',),
        50_000,
        'comparable only with values for the same n, because the bias falls roughly as 1/n '
        '(Chong & Forsyth 2020); published FIDs use 50000 samples',
    ),
    Least(  # Heusel et al. 2017
        'frechet',
        SETS,
        10_000,
        'comparable only with values for the same n, because the bias falls roughly as 1/n '
        '(Chong & Forsyth 2020)',
    ),
    Least(
        'kernel',
        SETS,
        1000,
        'the standard error is larger than with blocks of 1000 as in Binkowski et al. 2018',
    ),
    Least(
        'kernel',
        ('blocks',),
        10,
        'the standard error is itself uncertain by a quarter or more',
    ),
    Least(
        'IS',
        ('samples',),
        5000,
        'comparable only with values for the same n, because the score is biased downwards '
        '(Chong & Forsyth 2020); published scores use 50000 samples',
    ),
    Least(
        'coverage',
        SETS,
        1000,
        'comparable only with values for the same n, because with few features the balls around '
        'them are too wide (Kynkaanniemi et al. 2019 use 50000)',
    ),
    Least(
        'bits/dim',
        ('images',),
        1000,
        'published values are means over whole test sets (10000 images for CIFAR-10)',
    ),
)


class Number(NamedTuple):
    """A number of an evaluation with everything that it depends on.

    A text is '' if it does not apply, and 'unknown' if no file contains it.

    Attributes:
        kind: 'loss', 'bits/dim', 'samples', or the kind of a `Metric`.
        quantity: Name of the number in tables.
        value: The number.
        protocol: Protocol of the file of the number; {} if the file has none.
        n: Number of images or samples.
        counted: Noun for n, such as 'images' or 'samples'.
        reference: The real images that the number describes or that samples are compared with.
        n_reference: Number of reference images.
        sampler: Sampler with the settings that change its samples.
        nfe: Network evaluations per batch.
        features: Backend, extractor and feature.
        error: Standard error.
        blocks: Number of blocks for the error of a kernel distance.
        note: How the number was averaged.
        complete: Whether all files of the evaluation exist.
        real: ', real to real' for a metric between two sets of real images.
        parts: Bits/dim of each image, or the first samples, for plots and pictures.
    """

    kind: str
    quantity: str
    value: float
    protocol: dict
    n: int | str
    counted: str
    reference: str = ''
    n_reference: int | str = ''
    sampler: str = ''
    nfe: str = ''
    features: tuple = ('', '', '')
    error: float | None = None
    blocks: int | str = ''
    note: str = ''
    complete: bool = True
    real: str = ''
    parts: np.ndarray | None = None

    def text(self, sign: str = '±', digits: int = 4) -> str:
        """Format the value with `digits` digits, or with its error if it has one.

        The error has two digits. Fractions of images have three decimals.
        """
        size, digits = (self.error, 2) if self.error else (self.value, digits)
        decimals = 3
        if size and math.isfinite(size):
            decimals = digits - 1 - math.floor(math.log10(abs(size)))
        decimals = {'coverage': 3, 'samples': 0}.get(self.kind, min(10, max(0, decimals)))
        error = f' {sign} {self.error:.{decimals}f}' if self.error else ''
        return f'{self.value:.{decimals}f}{error}{"" if self.complete else " (so far)"}'

    def basis(self) -> dict[str, str]:
        """Return the columns that follow the value in every table."""
        images = (str(self.n_reference), self.reference) if self.n_reference else (self.reference,)
        features = (part for part in self.features if part not in ('none', ''))
        seed = '' if self.real or self.given else str(self.protocol.get('seed', UNKNOWN))
        return {
            'n': f'{self.n} {self.counted}',
            'Real images': ' '.join(dict.fromkeys(images)),
            'Sampler': self.sampler,
            'NFE': self.nfe,
            'Features': ' '.join(dict.fromkeys(features)),
            'Seed': seed,
        }

    @property
    def given(self) -> str:
        """The file or folder of the samples in --mode metrics, else ''."""
        return self.protocol['input']['name'] if 'input' in self.protocol else ''

    def words(self) -> dict[str, str]:
        """Return attributes, basis and protocol by name; 'unknown' for any other name."""
        protocol = self.protocol
        parts = {
            name: value
            for part in ('data', 'model', 'training', 'input', 'reference')
            for name, value in protocol.get(part, {}).items()
        }
        extractor = ', '.join(
            f'{name} {value}' for name, value in protocol.get('extractor', {}).items()
        )
        known = parts | protocol | self._asdict() | self.basis() | dict(extractor=extractor)
        return collections.defaultdict(lambda: UNKNOWN, known)

    def limits(self) -> list[str]:
        """Return sentences on the limits of the number: a missing protocol, small sets.

        Each count gives at most one sentence, that of the first rule in LEAST that applies.
        """
        found = {}
        if not self.protocol:
            found[''] = 'the file has no protocol, so the settings of this number are unknown'
        if self.real:
            return [*found.values()]
        counts = {
            self.counted: self.n,
            'reference images': self.n_reference,
            'blocks': self.blocks,
        }
        known = {name: count for name, count in counts.items() if isinstance(count, int)}
        for rule in LEAST:
            names = [name for name in rule.counts if name in known]
            if not names or rule.of not in (self.kind, self.quantity):
                continue
            name = min(names, key=known.get)
            if known[name] < rule.least:
                found.setdefault(name, f'{known[name]} {name} (< {rule.least}): {rule.note}')
        return [*found.values(), *self._rank(known)]

    def _rank(self, known: dict[str, int]) -> list[str]:
        """Return a note if the features are too few for a covariance matrix of full rank."""
        # published statistics, of 2048 dimensions, have no protocol
        dimensions = self.protocol.get('reference', {}).get('dimensions', 2048)
        names = [name for name in SETS if name in known]
        name = min(names, key=known.get, default='')
        if self.kind != 'frechet' or not name or known[name] > dimensions:
            return []
        return [
            f'{known[name]} {name} (< {dimensions + 1}): the covariance matrix of '
            f'{dimensions} features does not have full rank'
        ]
