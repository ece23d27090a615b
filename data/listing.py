"""The pictures in a folder or zip file."""

import collections
import os
import pathlib
import zipfile

from data.images import Damaged, warn_once
from runtime.errors import UserError

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.webp', '.avif', '.bmp', '.tif', '.tiff', '.gif')
SYSTEM_NAMES = {
    '.ds_store',
    'thumbs.db',
    'desktop.ini',
    '__macosx',
    '@eadir',
    '@recycle',
    '#recycle',
    '$recycle.bin',
    '.thumbnails',
    # what operating systems and network drives leave behind
    '.@__thumb',
    'lost+found',
    'system volume information',
}


def listing(path: str, called: str = ''):
    """The names of the pictures in a folder or zip file, sorted; a function from a name to the
    file's bytes; the size (in a zip file the checksum) of each. `called`: how errors refer to it.
    """
    root, called = pathlib.Path(path).expanduser(), called or f'config.data.path={path!r}'
    if root.is_dir():
        files = _files(root)
        names = _pictures_among(files, called)
        marks = [
            os.stat(files[name]).st_size if os.path.exists(files[name]) else 'a broken link'
            for name in names
        ]

        def read(name):
            try:
                return pathlib.Path(files[name]).read_bytes()
            except OSError as error:
                raise Damaged(f'cannot be read: {error.strerror}') from error
    elif zipfile.is_zipfile(root):
        try:
            archive = zipfile.ZipFile(root)
        except Exception as error:  # a damaged directory makes zipfile raise errors of many kinds
            raise UserError(f'{called} cannot be read as a zip file: {reason(error)}') from error
        entries = {
            _with_slashes(info.filename): info
            for info in archive.infolist()
            if not info.filename.endswith(('/', '\\'))
        }
        names = _pictures_among(entries, called)
        marks = [entries[name].CRC for name in names]

        def read(name):
            try:
                return archive.read(entries[name])
            except (
                Exception
            ) as error:  # damaged, encrypted, or packed in a way that Python does not know
                raise Damaged(f'cannot be read: {reason(error)}') from error
    else:
        raise UserError(
            f'{called}: neither a folder nor a zip file'
            if root.exists()
            else f'{called}: not found'
        )
    if not names:
        raise UserError(f'{called} holds no pictures ({", ".join(EXTENSIONS)})')
    return names, read, marks


def reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _with_slashes(name: str) -> str:
    """The name of a file in a zip file as a path of our own: some are made with backslashes, or
    begin with './'.
    """
    return '/'.join(part for part in name.replace('\\', '/').split('/') if part not in ('', '.'))


def _files(root) -> dict[str, str]:
    """{name: real path} of the files below a folder, links followed, every real file once.

    A file that is reached in several ways has the name without links, if there is one, else the
    first that is found. A link to a folder that it lies in leads nowhere.
    """
    found, links, seen = {}, [], set()
    top = os.path.realpath(root)
    folders = collections.deque([('', top)])
    while folders or links:
        if not folders:  # links come last
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
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f'{place} cannot be read: {error.strerror}') from error
        for entry in entries:
            if entry.is_symlink():
                links.append((prefix + entry.name, os.path.realpath(entry.path)))
            elif entry.is_dir():
                folders.append((f'{prefix}{entry.name}/', entry.path))
            else:
                found.setdefault(entry.path, prefix + entry.name)
    return {name: place for place, name in found.items()}


def _pictures_among(names, called: str) -> list[str]:
    """Those of the names that end as pictures do, sorted. How many others there are is logged once,
    by their endings, without the files that operating systems leave behind.
    """
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
    if others and found:
        warn_once(
            f'Left out {others.total()} files of {called} that are not read as pictures: '
            f'{", ".join(f"{count} {ending}" for ending, count in others.most_common(20))}.'
        )
    return found
