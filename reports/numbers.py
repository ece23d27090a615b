"""A number of an evaluation and what it rests on; when it rests on too little."""

import collections
import math
from typing import NamedTuple

import numpy as np

UNKNOWN = 'unknown'
SPLITS = {'train': 'training', 'test': 'test'}
# Metrics by their key in a file: kind, name, name in the features of FID (the 2021 release had no
# others), key of the error, note.
FID_FEATURES = (('Inception (2015)', 'pool_3'), ('inception-v3-compat', '2048'), (UNKNOWN, UNKNOWN))
METRICS = {
    'fid': ('frechet', 'Frechet distance', 'FID', None, ''),
    'kid': (
        'kernel',
        'kernel distance',
        'KID',
        'kid_error',
        'mean of {kid_blocks} blocks, error from {kid_error_blocks}',
    ),
    'precision': ('coverage', 'precision', 'precision', None, ''),
    'recall': ('coverage', 'recall', 'recall', None, ''),
    'IS': ('IS', 'IS', 'IS', 'IS_std', 'parts of the samples: {IS_splits}'),
}
# What is too few: kind or name of a number, what is counted (the least decides), how many there
# should be, what it means to have less.
SETS = ('samples', 'reference images')
LEAST = (
    # since Heusel et al. 2017
    ('FID', ('samples',), 50_000, 'not comparable with published FIDs, which are of 50000'),
    (
        'frechet',
        SETS,
        10_000,
        'the distance is biased upwards, roughly as 1/n (Chong & Forsyth '
        '2020), and can be compared only with '
        'those of the same n',
    ),  # 10000: Heusel et al. 2017
    (
        'kernel',
        SETS,
        1000,
        'Binkowski et al. 2018 take blocks of 1000, and the error grows as the number falls',
    ),
    (
        'kernel',
        ('blocks behind the error',),
        10,
        'the standard error is itself uncertain by a quarter or more',
    ),
    (
        'IS',
        ('samples',),
        5000,
        'the score is biased downwards (Chong & Forsyth 2020), and published ones are of 50000',
    ),
    (
        'coverage',
        SETS,
        1000,
        'the balls around few features are wide and cover too much '
        '(Kynkaanniemi et al. 2019 take 50000)',
    ),
    (
        'bits/dim',
        ('images',),
        1000,
        'published values are of whole test sets, of 10000 images for CIFAR10',
    ),
)


class Number(NamedTuple):
    """A number of an evaluation with all that it rests on, in words: '' where a thing does not
    apply, 'unknown' where no file tells it.
    """

    kind: str
    quantity: str
    value: float
    protocol: dict
    n: int | str
    counted: str  # what n counts
    reference: str = ''  # the real images that it is of, or compared with
    n_reference: int | str = ''
    sampler: str = ''
    nfe: str = ''
    features: tuple = ('', '', '')  # backend, extractor, feature
    error: float | None = None
    blocks: int | str = ''  # behind the error of a kernel distance
    note: str = ''
    complete: bool = True
    real: str = ''  # ', real to real' between two sets of real images, for scale
    parts: np.ndarray | None = None  # bits/dim of each image; the first samples

    def text(self, sign: str = '±', digits: int = 4) -> str:
        """The value in so many digits, or with its error in two; fractions of images in three
        decimals.
        """
        size, digits = (self.error, 2) if self.error else (self.value, digits)
        decimals = (
            digits - 1 - math.floor(math.log10(abs(size))) if size and math.isfinite(size) else 3
        )
        decimals = {'coverage': 3, 'samples': 0}.get(self.kind, min(10, max(0, decimals)))
        error = f' {sign} {self.error:.{decimals}f}' if self.error else ''
        return f'{self.value:.{decimals}f}{error}' + ' (so far)' * (not self.complete)

    def basis(self) -> dict[str, str]:
        """The columns that stand beside the value in every table."""
        against = (
            ' '.join(dict.fromkeys(('to', str(self.n_reference), self.reference)))
            if self.n_reference
            else self.reference
        )
        features = ' '.join(
            dict.fromkeys(part for part in self.features if part not in ('none', ''))
        )
        return {
            'n': f'{self.n} {self.counted}',
            'Of, or compared with': against,
            'Sampler': self.sampler,
            'NFE': self.nfe,
            'Features': features,
            'Seed': '' if self.real or self.given else str(self.protocol.get('seed', UNKNOWN)),
        }

    @property
    def given(self) -> str:
        """The name of the file or folder that samples of --mode metrics came from; '' for
        others.
        """
        return self.protocol['input']['name'] if 'input' in self.protocol else ''

    def words(self) -> dict[str, str]:
        """All that is known of it and of its protocol, by name."""
        p = self.protocol
        parts = {
            name: value
            for part in ('data', 'model', 'training', 'input', 'reference')
            for name, value in p.get(part, {}).items()
        }
        texts = {
            key: ', '.join(f'{name} {value}' for name, value in p.get(key, {}).items())
            for key in ('sampling', 'extractor')
        }
        return collections.defaultdict(
            lambda: UNKNOWN, parts | p | self._asdict() | self.basis() | texts
        )

    def warnings(self) -> list[str]:
        """A sentence for everything that there is too little of."""
        # those of the published statistics, which do not tell
        dimensions = self.protocol.get('reference', {}).get('dimensions', 2048)
        rank = (
            'frechet',
            SETS,
            dimensions + 1,
            f'their covariance in {dimensions} feature dimensions is without full rank',
        )
        counts = {
            self.counted: self.n,
            'reference images': self.n_reference,
            'blocks behind the error': self.blocks,
        }
        said = (
            []
            if self.protocol
            else ['the file tells no protocol: what this number rests on is unknown']
        )
        for of, names, least, meaning in () if self.real else (*LEAST, rank):
            count, name = min(
                ((counts[name], name) for name in names if isinstance(counts.get(name), int)),
                default=(least, ''),
            )
            if of in (self.kind, self.quantity) and count < least:
                said.append(f'{count} {name} are fewer than {least}: {meaning}')
        return said
