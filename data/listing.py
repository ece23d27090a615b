"""The pictures in a folder or zip file, by name.

listing = list_pictures('cats.zip')
content = listing.read(listing.names[0])               # the bytes of a file
"""

import collections
import os
import pathlib
import zipfile

from absl import logging

from data.images import UnreadableImage, reason
from runtime.errors import UserError

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.webp', '.avif', '.bmp', '.tif', '.tiff', '.gif')
SYSTEM_NAMES = {  # names of files and folders that operating systems and network drives create
    '.ds_store',
    'thumbs.db',
    'desktop.ini',
    '__macosx',
    '@eadir',
    '@recycle',
    '#recycle',
    '$recycle.bin',
    '.thumbnails',
    '.@__thumb',
    'lost+found',
    'system volume information',
}


class Listing:
    """The pictures among files.

    Args:
        files: The files by their path below the folder or in the zip file.
        label: How errors and log lines refer to the folder or zip file.

    Attributes:
        names: The paths of the pictures, sorted.
        others: The number of other files by their ending; system files are not counted.

    Raises:
        UserError: if there are no pictures.
    """

    def __init__(self, files: dict, label: str):
        self.files = files
        self.label = label
        self.names, self.others = _pictures_among(files)
        if not self.names:
            raise UserError(f'{label} contains no pictures ({", ".join(EXTENSIONS)})')

    def warn_of_others(self) -> None:
        """Log how many files are not pictures."""
        if self.others:
            logging.warning(
                'Left out %d files of %s that are not read as pictures: %s.',
                self.others.total(),
                self.label,
                ', '.join(f'{count} {ending}' for ending, count in self.others.most_common(20)),
            )


class FolderListing(Listing):
    """The pictures below a folder."""

    def __init__(self, root: pathlib.Path, label: str):
        super().__init__(_files(root), label)

    def read(self, name: str) -> bytes:
        try:
            return pathlib.Path(self.files[name]).read_bytes()
        except OSError as error:
            raise UnreadableImage(f'cannot be read: {error.strerror}') from error

    def mark(self, name: str) -> int | str:
        """Return the size of a file; it is part of the digest of the data set."""
        place = self.files[name]
        return os.stat(place).st_size if os.path.exists(place) else 'a broken link'


class ZipListing(Listing):
    """The pictures in a zip file."""

    def __init__(self, root: pathlib.Path, label: str):
        try:
            self.archive = zipfile.ZipFile(root)
        except Exception as error:  # a corrupt directory makes zipfile raise errors of many kinds
            raise UserError(f'{label} cannot be read as a zip file: {reason(error)}') from error
        files = {
            _with_slashes(info.filename): info
            for info in self.archive.infolist()
            if not info.filename.endswith(('/', '\\'))
        }
        super().__init__(files, label)

    def read(self, name: str) -> bytes:
        try:
            return self.archive.read(self.files[name])
        except Exception as error:  # corrupt, encrypted, or of an unknown compression
            raise UnreadableImage(f'cannot be read: {reason(error)}') from error

    def mark(self, name: str) -> int:
        """Return the CRC of a file; it is part of the digest of the data set."""
        return self.files[name].CRC


def list_pictures(path: str, label: str = '') -> FolderListing | ZipListing:
    """List the pictures in a folder or zip file.

    Args:
        path: The folder or zip file.
        label: Its name in error messages. Default: `config.data.path`.

    Raises:
        UserError: if there is no such folder or zip file, or no picture in it.
    """
    root = pathlib.Path(path).expanduser()
    label = label or f'config.data.path={path!r}'
    if root.is_dir():
        return FolderListing(root, label)
    if zipfile.is_zipfile(root):
        return ZipListing(root, label)
    raise UserError(
        f'{label}: neither a folder nor a zip file' if root.exists() else f'{label}: not found'
    )


def _with_slashes(name: str) -> str:
    """Return the path of a file in a zip file with '/' as separator and without '.' parts."""
    return '/'.join(part for part in name.replace('\\', '/').split('/') if part not in ('', '.'))


def _files(root) -> dict[str, str]:
    """Return {path below the folder: real path} of the files below a folder, each file once.

    Links are followed. A file with several paths is listed under the path without links, or else
    under the first path that is found. Links to a folder that contains them are ignored.
    """
    found, links, seen = {}, [], set()
    top = os.path.realpath(root)
    folders = collections.deque([('', top)])
    while folders or links:
        if not folders:  # links are followed last
            name, place = links.pop(0)
            if not os.path.isdir(place):
                found.setdefault(place, name)
                continue
            if os.path.commonpath([top, place]) == place:
                continue
            folders.append((name + '/', place))
        prefix, place = folders.popleft()
        if place in seen:
            continue
        seen.add(place)
        for entry in _entries(place):
            if entry.is_symlink():
                links.append((prefix + entry.name, os.path.realpath(entry.path)))
            elif entry.is_dir():
                folders.append((f'{prefix}{entry.name}/', entry.path))
            else:
                found.setdefault(entry.path, prefix + entry.name)
    return {name: place for place, name in found.items()}


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f'{folder} cannot be read: {error.strerror}') from error


def _pictures_among(names) -> tuple[list[str], collections.Counter]:
    """The sorted names with an ending of pictures, and the number of other files by ending."""
    found, others = [], collections.Counter()
    for name in sorted(names):
        parts = name.lower().split('/')
        if SYSTEM_NAMES.intersection(parts) or parts[-1].startswith('._'):
            continue
        if any(part.startswith('.') for part in parts):
            others['hidden'] += 1
        elif parts[-1].endswith(EXTENSIONS):
            found.append(name)
        else:
            others[pathlib.PurePosixPath(parts[-1]).suffix or 'without an ending'] += 1
    return found, others
