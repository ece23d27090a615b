"""Folders and zip files of pictures, in which sub-folders are splits and classes."""

import collections
import glob
import hashlib
import os
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from configs import defaults
from data.images import Streamed, image_shape, split_indices
from data.listing import list_pictures
from data.pictures import PictureDecoder
from reports import results
from runtime.errors import UserError

SPLITS = {'train': ('train', 'training'), 'test': ('test', 'val', 'valid', 'validation', 'eval')}


def load(config: ConfigDict, split: str) -> Streamed:
    """Return the pictures of a split of the folder or zip file `data.path` in a fixed random order.

    Sub-folders are classes. Folders called train and test (or validation) are the splits. Without
    them, the fraction `data.test_fraction` of the pictures is the test set; if it is 0, both splits
    contain all pictures.
    """
    data = config.data
    listing = list_pictures(data.path)
    arranged = arrange(listing.names)
    if split == 'train':
        listing.warn_of_others()
        _warn_of_strays(arranged, data.path)
    if arranged.split_folders:
        order = np.random.default_rng(0).permutation(len(listing.names))
        chosen = [i for i in order if arranged.splits[i] == split]
    else:
        chosen = split_indices(len(listing.names), data.test_fraction, split)
    classes = _in_order(set(arranged.used_classes()))
    label_of = {name: label for label, name in enumerate(classes)}
    to_picture = PictureDecoder(data, data.levels)

    def decode(i):
        k = chosen[i]
        return to_picture(listing.read(listing.names[k])), label_of[arranged.classes[k]]

    return Streamed(
        decode,
        len(chosen),
        image_shape(data),
        lambda i: f'{data.path}: {listing.names[chosen[i]]}',
        data.on_error,
        get_levels(config),
        classes=tuple(classes),
    )


def get_levels(config: ConfigDict) -> int:
    """The number of grey levels of decoded pictures: `data.levels`, at most 256 (the default)."""
    return min(config.data.levels or 256, 256)


def has_test_set(path: str) -> bool:
    """Whether a folder or zip file contains folders for both splits."""
    return bool(arrange(list_pictures(path).names).split_folders)


class Arrangement(NamedTuple):
    """How pictures are arranged in folders.

    Attributes:
        splits: 'train' or 'test' for each picture, None if it is in neither.
        classes: The folder that is the class of each picture, '' if there is none.
        split_folders: The names of the split folders in lower case; empty if there are none.
    """

    splits: list[str | None]
    classes: list[str]
    split_folders: list[str]

    def used_classes(self) -> list[str]:
        """The classes of the pictures in a split; without split folders, of all pictures."""
        if not self.split_folders:
            return self.classes
        return [name for name, split in zip(self.classes, self.splits) if split]


def arrange(names: list[str]) -> Arrangement:
    """Find the split and the class of each picture from its path.

    All split folders are at one depth, above or below the class folders, as in
    images/train/cats/1.png or cats/train/1.png. Other folders and pictures at this depth belong to
    neither split. A folder that contains all pictures is not a class.
    """
    paths = [tuple(name.split('/')) for name in names]
    parents = _parents_of_splits(paths)
    if not parents:
        common = len(os.path.commonprefix([path[:-1] for path in paths]))
        return Arrangement([None] * len(paths), [_first(path[common:-1]) for path in paths], [])
    depth = len(next(iter(parents)))
    common = len(os.path.commonprefix(list(parents)))
    splits, classes = [], []
    for path in paths:
        folder = path[depth].lower() if len(path) > depth + 1 else None
        splits.append(parents.get(path[:depth], {}).get(folder))
        classes.append(_first(path[common:depth] + path[depth + 1 : -1]))
    split_folders = dict.fromkeys(folder for found in parents.values() for folder in found)
    return Arrangement(splits, classes, list(split_folders))


def _parents_of_splits(paths: list[tuple[str, ...]]) -> dict[tuple[str, ...], dict[str, str]]:
    """Return {parent: {folder name in lower case: split}} for parents that contain both splits.

    Only the parents at the smallest depth count.
    """
    folders_in = collections.defaultdict(set)
    for parent in {path[:-1] for path in paths}:
        for depth in range(len(parent)):
            folders_in[parent[:depth]].add(parent[depth].lower())
    found = {parent: _split_folders(folders) for parent, folders in folders_in.items()}
    depth = min((len(parent) for parent, splits in found.items() if splits), default=None)
    return {parent: splits for parent, splits in found.items() if splits and len(parent) == depth}


def _split_folders(names: set[str]) -> dict[str, str]:
    """Return {name: split}, such as {'train': 'train', 'val': 'test'}; {} unless both exist."""
    found = {}
    for split, words in SPLITS.items():
        name = next((word for word in words if word in names), None)
        if name is None:
            return {}
        found[name] = split
    return found


def _first(folders: tuple[str, ...]) -> str:
    return folders[0] if folders else ''


def _in_order(classes: set[str]) -> list[str]:
    """Sort class names as labels number them, by value if all are numbers; '' (no folder) first."""
    if all(name.isascii() and name.isdigit() for name in classes if name):
        return sorted(classes, key=lambda name: (int(name or -1), name))
    return sorted(classes)


def _warn_of_strays(arranged: Arrangement, path: str):
    """Log how many pictures are outside the folders of splits or classes."""
    if arranged.split_folders and None in arranged.splits:
        logging.warning(
            'Left out %d pictures of %s that lie outside %s.',
            arranged.splits.count(None),
            path,
            ' and '.join(arranged.split_folders),
        )
    used = arranged.used_classes()
    if '' in used and len(set(used)) > 1:
        logging.warning(
            'Found %d pictures of %s outside its class folders: they have the label 0.',
            used.count(''),
            path,
        )


def read_pictures(path: str, data: ConfigDict) -> tuple[list[str], np.ndarray]:
    """Read all pictures at a path, which is a file, a folder or a zip file.

    Args:
        path: The file, folder or zip file.
        data: `config.data`, which sets their size and channels; see `PictureDecoder`.

    Returns:
        The sorted names, and the pictures (n, H, W, C), uint8, with 256 grey levels.

    Raises:
        UserError: if a picture cannot be read; the message names it.
    """
    data = defaults.complete(ConfigDict(dict(data=data.to_dict()))).data
    to_picture = PictureDecoder(data, data.levels if data.levels > 256 else 0)
    file = pathlib.Path(path).expanduser()
    listing = None
    if not file.is_file() or zipfile.is_zipfile(file):
        listing = list_pictures(path, path)
        listing.warn_of_others()
    names = listing.names if listing else [file.name]
    images = []
    for name in names:
        try:
            images.append(to_picture(listing.read(name) if listing else file.read_bytes()))
        except (UserError, OSError) as fault:
            problem = getattr(fault, 'strerror', None) or fault
            raise UserError(f'{path}: {name} {problem}') from fault
    return names, np.stack(images)


def digest(path: str) -> str:
    """Return the first 16 digits of a SHA-256 that identifies the images at `path`.

    It covers names and sizes of the pictures in a folder, names and checksums of those in a zip
    file, the content of an npz or npy file, or names, sizes and first MiB of the files that match a
    pattern.
    """
    root = pathlib.Path(path).expanduser()
    if root.suffix.lower() in ('.npz', '.npy') and root.is_file():
        return results.digest(root)
    if root.is_dir() or zipfile.is_zipfile(root):
        listing = list_pictures(path)
        marks = [f'{name} {listing.mark(name)}' for name in listing.names]
    else:
        marks = [
            f'{file.name} {file.stat().st_size} {_beginning(file)}'
            for file in sorted(map(pathlib.Path, glob.glob(str(root))))
        ]
    if not marks:
        raise UserError(f'{path!r}: no such file')
    # names need not be UTF-8
    return hashlib.sha256('\n'.join(marks).encode(errors='surrogateescape')).hexdigest()[:16]


def _beginning(file, size: int = 2**20) -> str:
    with open(file, 'rb') as content:
        return hashlib.sha256(content.read(size)).hexdigest()
