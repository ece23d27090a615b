"""Errors that the command line shows without a traceback.

Importing this module raises ImportError if Python finds another package under one of our names.
"""

import importlib.util
import pathlib
import sys
from collections.abc import Iterable

ROOT = pathlib.Path(__file__).resolve().parents[1]


class UserError(ValueError):
    """A mistake in a config, a file or a call.

    The message is enough to correct it: what was expected, what was given, what to do.
    """


class CheckpointError(UserError):
    """A checkpoint that is missing, corrupt, or of another network.

    Attributes:
        details: one line for each entry that does not match the network.
    """

    def __init__(self, message: str, details: Iterable[str] = ()):
        super().__init__(message)
        self.details = list(details)


def reason_of(error: Exception) -> str:
    """Return the first line of an error of another library, as the reason in our own message.

    An error without a message is described by its type, a KeyError by the missing key.
    """
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, KeyError):
        key, _, hint = str(error.args[0] if error.args else '').partition('\n')
        key = key.strip('"\'')
        hint = f' ({hint})' if hint.startswith('Did you mean') else ''
        return key if ' ' in key else f'the key {key!r} is missing{hint}'
    return text


def _check_names(names):
    """Raise ImportError if Python finds another package under one of our names.

    Hugging Face's `datasets` is an example.
    """
    for name in names:
        found = sys.modules.get(name)
        place = (
            getattr(found, '__file__', None)
            if found
            else getattr(importlib.util.find_spec(name), 'origin', None)
        )
        if place is None or pathlib.Path(place).resolve() not in (
            ROOT / f'{name}.py',
            ROOT / name / '__init__.py',
        ):
            raise ImportError(
                f'expected the package {name} of this library, got {place}: put '
                f'{ROOT} first on sys.path before the first '
                f'import of {name}'
            )


NAMES = 'checkpoints commands configs control data datasets evaluation losses metrics models op'
_check_names((*NAMES.split(), 'reports', 'runtime', 'sampling', 'sdes', 'solvers'))
