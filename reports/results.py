"""Results in npz files, each with its protocol.

A protocol is a dict of everything that the numbers of a file depend on. It is stored as JSON under
the key 'protocol'. A file is used again only for the same protocol. Files are written atomically
(temporary file, then rename), so an interrupted evaluation resumes at the first missing file.
"""

import hashlib
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from absl import logging

from runtime.errors import reason_of


def stored(path: str | os.PathLike, protocol: dict, make: Callable[[], dict]) -> dict:
    """Return the arrays in `path` if it has this protocol, else call make() and save its arrays."""
    found = matching(path, protocol)
    if found is not None:
        return found
    arrays = make()
    save(path, protocol, **arrays)
    return {key: np.asarray(value) for key, value in arrays.items()}


def matching(path: str | os.PathLike, protocol: dict) -> dict | None:
    """Return the arrays of the file at `path` if it has this protocol, else None."""
    found = load(path)
    return found if found is not None and found.pop('protocol') == normal(protocol) else None


def save(path: str | os.PathLike, protocol: dict, **arrays) -> None:
    """Write arrays and protocol to the npz file at `path`, atomically."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + '.partial')
    with open(partial, 'wb') as file:
        np.savez_compressed(file, protocol=np.array(json.dumps(protocol)), **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path: str | os.PathLike) -> dict | None:
    """Read the arrays of the file at `path` and its 'protocol', {} if it has none.

    Returns:
        The arrays. None if the file does not exist or, with a warning, if it cannot be read.
    """
    if not os.path.isfile(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        return arrays | dict(protocol=json.loads(str(arrays.get('protocol', '{}'))))
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        logging.warning('Ignored %s, which cannot be read: %s', path, reason_of(error))
        return None


def normal(protocol: dict) -> dict:
    """Return the protocol as it is read from a file, with lists instead of tuples."""
    return json.loads(json.dumps(protocol))


def differences(found: dict, expected: dict, prefix: str = '') -> list[str]:
    """List the differences between the protocol of a file and the expected one, as sentences."""
    lines = []
    for key in sorted(found.keys() | expected.keys()):
        ours, theirs = expected.get(key), found.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            lines += differences(theirs, ours, f'{prefix}{key}.')
        elif ours != theirs:
            lines.append(f'{prefix}{key} is {theirs!r}, expected {ours!r}')
    return lines


def digest(path: str | os.PathLike) -> str:
    """Return 16 digits of the SHA-256 of a file, or of all names and contents in a folder."""
    path, sha = pathlib.Path(path).expanduser(), hashlib.sha256()
    is_folder = path.is_dir()
    files = sorted(p for p in path.rglob('*') if p.is_file()) if is_folder else [path]
    for file in files:
        if is_folder:
            sha.update(file.relative_to(path).as_posix().encode(errors='surrogateescape'))
        with open(file, 'rb') as content:
            while block := content.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()[:16]
