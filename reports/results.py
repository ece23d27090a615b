"""Results in npz files that are computed once. Each says by which protocol it came about, and is
used again for that protocol only.

A protocol is a dict of what the numbers depend on, kept in the file as JSON under 'protocol'. Files
are written beside their place and
renamed: one that is there is whole. An evaluation made of such files goes on, after a kill, at the
file that was not there yet.
"""

import hashlib
import json
import os
import pathlib
import zipfile
import zlib

import numpy as np
from absl import logging


def stored(path, protocol: dict, make) -> dict:
    """The arrays of the file at `path` where it is of this protocol; else those of make(), written
    there.
    """
    found = matching(path, protocol)
    if found is not None:
        return found
    arrays = make()
    save(path, protocol, **arrays)
    return {key: np.asarray(value) for key, value in arrays.items()}


def matching(path, protocol: dict) -> dict | None:
    """The arrays of the file at `path` where it is of this protocol, else None."""
    found = load(path)
    return found if found is not None and found.pop('protocol') == normal(protocol) else None


def save(path, protocol: dict, **arrays):
    """Writes arrays and protocol to the npz file at `path`, as a whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + '.partial')
    with open(partial, 'wb') as file:
        np.savez_compressed(file, protocol=np.array(json.dumps(protocol)), **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path) -> dict | None:
    """The arrays of the file at `path` and its 'protocol' as a dict ({} where it tells none); None
    where no file can be read.
    """
    if not os.path.isfile(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        return arrays | dict(protocol=json.loads(str(arrays.get('protocol', '{}'))))
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        logging.warning('%s cannot be read and does not count: %s', path, error)
        return None


def normal(protocol: dict) -> dict:
    """The protocol as it comes back from a file."""
    return json.loads(json.dumps(protocol))


def differences(found: dict, expected: dict, prefix: str = '') -> list[str]:
    """What two protocols disagree in, as sentences."""
    lines = []
    for key in sorted(found.keys() | expected.keys()):
        ours, theirs = expected.get(key), found.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            lines += differences(theirs, ours, f'{prefix}{key}.')
        elif ours != theirs:
            lines.append(f'{prefix}{key} is {theirs!r} there and {ours!r} here')
    return lines


def digest(path) -> str:
    """The first 16 digits of the SHA-256 of a file's content, or of all names and contents in a
    folder.
    """
    path, sha = pathlib.Path(path).expanduser(), hashlib.sha256()
    for file in sorted(p for p in path.rglob('*') if p.is_file()) if path.is_dir() else [path]:
        sha.update(
            file.relative_to(path).as_posix().encode(errors='surrogateescape')
            if path.is_dir()
            else b''
        )
        with open(file, 'rb') as content:
            while block := content.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()[:16]
