"""Kinds of values that a key of a config may have, each with its text for error messages."""

import math
import numbers
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch


class Rule(NamedTuple):
    """Which values are accepted; `text` completes 'config.{key} must be {text}, got ...'."""

    accepts: Callable[[Any], bool]
    text: str


def _is_flag(value) -> bool:
    return isinstance(value, (bool, np.bool_))


def whole(least: int, most: int = 2**63 - 1) -> Rule:
    """An integer from `least` to `most`."""
    text = f'an integer >= {least}' if most == 2**63 - 1 else f'an integer from {least} to {most}'
    return Rule(
        lambda value: (
            isinstance(value, numbers.Integral) and not _is_flag(value) and least <= value <= most
        ),
        text,
    )


def real(interval: str = '(-inf, inf)') -> Rule:
    """A finite number in an interval such as '(0, 1]'."""
    low, high = (float(end) for end in interval[1:-1].split(','))
    open_low, open_high = interval[0] == '(', interval[-1] == ')'

    def accepts(value):
        if not isinstance(value, numbers.Real) or _is_flag(value) or not math.isfinite(value):
            return False
        return (low < value if open_low else low <= value) and (
            value < high if open_high else value <= high
        )

    if high < math.inf:
        return Rule(accepts, f'a number in {interval}')
    if low > -math.inf:
        return Rule(accepts, f'a number {">" if open_low else ">="} {low:g}')
    return Rule(accepts, 'a finite number')


def several(rule: Rule, least: int = 0) -> Rule:
    """A tuple or list of at least `least` values, each of which follows `rule`."""

    def accepts(value):
        return (
            isinstance(value, (tuple, list))
            and len(value) >= least
            and all(map(rule.accepts, value))
        )

    kind = 'a non-empty tuple' if least > 0 else 'a tuple'
    return Rule(accepts, f'{kind}, each value {rule.text}')


def one_of(*names: str) -> Rule:
    """One of the names; case is ignored."""
    return Rule(
        lambda value: isinstance(value, str) and value.lower() in names,
        ' or '.join(map(repr, names)),
    )


def unused(value: object) -> Rule:
    """A key without effect (a misspelt or old name): only its value in the 2021 release."""
    return Rule(
        lambda given: type(given) in (type(value), int) and given == value,
        f'{value!r} as in the 2021 release (it has no effect)',
    )


def _is_filter(value) -> bool:
    taps = np.asarray(value, object)
    return (
        taps.ndim == 1
        and 0 < len(taps) <= 64
        and all(map(real().accepts, taps))
        and abs(sum(taps)) > 1e-3 * max(map(abs, taps))
    )


FLAG = Rule(_is_flag, 'True or False')
TEXT = Rule(lambda value: isinstance(value, str), 'a string')
PATH = Rule(lambda value: isinstance(value, (str, os.PathLike)), 'a path')
DEVICE = Rule(
    lambda value: isinstance(value, (str, torch.device)),
    "a device such as 'cpu', 'cuda' or 'cuda:0'",
)
FILTER = Rule(_is_filter, 'a tuple of at most 64 numbers whose sum is not 0')
OR_DEFAULT = Rule(
    lambda value: real('[1e-10, 1]').accepts(value) or real('[0, 0]').accepts(value),
    'a number in [1e-10, 1], or 0.0 for the default of the method',
)
LEVELS = Rule(
    lambda value: whole(2, 65536).accepts(value) or whole(0, 0).accepts(value),
    'an integer from 2 to 65536, or 0 for the number of grey levels of the file',
)
SOURCE = Rule(lambda value: value in ('', 'tfds', 'torchvision'), "'', 'tfds' or 'torchvision'")
SECTION = Rule(lambda value: False, 'a section with keys')
COUNT, TOLERANCE, NOISE = whole(1), real('[1e-10, 1]'), real('[1e-6, 1e6]')
CLIPPING = Rule(
    lambda value: real().accepts(value) and value != 0,
    'a number other than 0 (negative: no clipping)',
)
