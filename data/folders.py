"""Folders and zip files of pictures."""

import collections
import glob
import hashlib
import os
import pathlib
import zipfile

import numpy as np
from ml_collections import ConfigDict

from configs import defaults
from data.arrays import ARRAY_NAMES, open_arrays
from data.images import Streamed, held_out, image_shape, warn_once
from data.listing import listing
from data.pictures import pictures
from reports import results
from runtime.errors import UserError

SPLITS = {'train': ('train', 'training'), 'test': ('test', 'val', 'valid', 'validation', 'eval')}


def folder(config, split: str) -> Streamed:
    """The pictures of the folder or zip file `data.path`, in a random order that is always the
    same.

    Sub-folders are classes. Where there are folders called train and test (or else validation),
    these are the splits; otherwise `data.test_fraction` of the pictures are held out, and with 0
    all of them serve for both.
    """
    data = config.data
    names, read, _ = listing(data.path)
    kinds, folders, splits = _arrangement(names)
    classes = _in_order({name for name, kind in zip(folders, kinds) if kind or not splits})
    chosen = held_out(len(names), data, split)
    if splits:
        if None in kinds:
            warn_once(
                f'Left out {kinds.count(None)} pictures of {data.path} that lie outside '
                f'{" and ".join(splits)}.'
            )
        chosen = [i for i in np.random.default_rng(0).permutation(len(names)) if kinds[i] == split]
    if '' in classes and len(classes) > 1:
        outside = sum(name == '' and (kind or not splits) for name, kind in zip(folders, kinds))
        warn_once(
            f'Found {outside} pictures of {data.path} '
            'outside its class folders: they have the label 0.'
        )
    label_of, to_picture = (
        {name: label for label, name in enumerate(classes)},
        pictures(data, data.levels),
    )

    def decode(i):
        return to_picture(read(names[chosen[i]])), label_of[folders[chosen[i]]]

    return Streamed(
        decode,
        len(chosen),
        image_shape(data),
        lambda i: f'{data.path}: {names[chosen[i]]}',
        data.on_error,
        folder_levels(config),
        classes=tuple(classes),
    )


def folder_levels(config) -> int:
    """The grey levels of pictures once decoded: `data.levels`, at most 256; 256 by default."""
    return min(config.data.levels or 256, 256)


def _in_order(classes) -> list[str]:
    """The names of classes in the order of their labels: sorted, by value where all of them are
    numbers; '' (no folder) first.
    """
    numeric = all(name.isascii() and name.isdigit() for name in classes if name)
    return sorted(classes, key=lambda name: (int(name or -1), name) if numeric else name)


def _arrangement(names: list[str]) -> tuple[list[str | None], list[str], list[str]]:
    """How pictures are arranged, by their names.

    Returns: the split of each ('train', 'test', or None: of neither); the folder that is its class
    ('' without any); and what the folders of the splits are called, in lower case, [] without any.
    Splits lie at any one depth, also within the folders of classes, as in images/train/cats/1.png
    or cats/train/1.png; other folders and pictures beside them belong to neither.
    """
    parts = [tuple(name.split('/')) for name in names]
    below = collections.defaultdict(set)  # {folder: lower-case names of the folders in it}
    for place in {path[:-1] for path in parts}:
        for depth in range(len(place)):
            below[place[:depth]].add(place[depth].lower())
    splits = {place: _split_folders(inner) for place, inner in below.items()}
    depth = min((len(place) for place, words in splits.items() if words), default=None)
    if depth is None:
        parts = [name.split('/') for name in _without_common_folders(names)]
        return [None] * len(names), [path[0] if len(path) > 1 else '' for path in parts], []
    splits = {place: words for place, words in splits.items() if words and len(place) == depth}
    common = len(os.path.commonprefix(list(splits)))
    kinds = [
        splits.get(path[:depth], {}).get(path[depth].lower()) if len(path) > depth + 1 else None
        for path in parts
    ]
    classes = [(path[common:depth] + path[depth + 1 : -1] + ('',))[0] for path in parts]
    return kinds, classes, list(dict.fromkeys(word for words in splits.values() for word in words))


def _split_folders(names: set[str]) -> dict[str, str]:
    """{folder: split} among the lower-case names of folders: {'train': 'train', 'val': 'test'}
    etc.; {} unless both splits are there.
    """
    found = {kind: next(filter(names.__contains__, words), None) for kind, words in SPLITS.items()}
    return {word: kind for kind, word in found.items()} if all(found.values()) else {}


def _without_common_folders(names):
    """Each name without the folders that all of them are in."""
    folders = [name.split('/')[:-1] for name in names]
    common = 0
    for level in zip(*folders):
        if len(set(level)) > 1:
            break
        common += 1
    return ['/'.join(name.split('/')[common:]) for name in names]


def has_test_set(config) -> bool:
    """Whether the folder, zip file or npz file `data.path` brings a test set of its own."""
    if config.data.dataset.upper() == 'NPZ':
        with open_arrays(config.data.path) as arrays:
            return any(name in arrays for name in ARRAY_NAMES['test'])
    return bool(_arrangement(listing(config.data.path)[0])[2])


def read_pictures(path: str, data) -> tuple[list[str], np.ndarray]:
    """The names of the pictures at `path`, a file, a folder or a zip file, sorted, and the pictures
    (n, H, W, C), uint8, with the size and channels of `data`, see `pictures`, and 256 grey levels.
    UserError naming the one that cannot be read.
    """
    data = defaults.complete(ConfigDict(dict(data=data.to_dict()))).data
    levels = data.levels
    file, to_picture = (
        pathlib.Path(path).expanduser(),
        pictures(data, levels if levels > 256 else 0),
    )
    one = file.is_file() and not zipfile.is_zipfile(file)
    names, read = ([file.name], lambda _: file.read_bytes()) if one else listing(path, path)[:2]

    def decode(name):
        try:
            return to_picture(read(name))
        except (UserError, OSError) as fault:
            raise UserError(
                f'{path}: {name} {getattr(fault, "strerror", None) or fault}'
            ) from fault

    return names, np.stack([decode(name) for name in names])


def digest(path: str) -> str:
    """The first 16 digits of the SHA-256 of what tells the images at `path` from others: names and
    sizes of the pictures in a folder, names and checksums of those in a zip file, the content of an
    array's file, names, sizes and first MiB of the files of a pattern.
    """
    root = pathlib.Path(path).expanduser()
    if root.suffix.lower() in ('.npz', '.npy') and root.is_file():
        return results.digest(root)
    if root.is_dir() or zipfile.is_zipfile(root):
        marks = [f'{name} {mark}' for name, mark in zip(*listing(path)[::2])]
    else:
        marks = [
            f'{file.name} {file.stat().st_size} {_beginning(file)}'
            for file in sorted(map(pathlib.Path, glob.glob(str(root))))
        ]
    if not marks:
        raise UserError(f'{path!r}: there is no such file')
    # names need not be UTF-8
    return hashlib.sha256('\n'.join(marks).encode(errors='surrogateescape')).hexdigest()[:16]


def _beginning(file, size: int = 2**20) -> str:
    with open(file, 'rb') as content:
        return hashlib.sha256(content.read(size)).hexdigest()
