"""Download published checkpoints and statistics from Google Drive, by the package `gdown`.

    fetch_published('ve/cifar10_ncsnpp_continuous', 'models')
    # models/ve_cifar10_ncsnpp_continuous/checkpoint_24.pth

A download goes to NAME.part, is verified by what the table `published` knows of the file, and is
renamed: a file under its own name is complete. Interrupted downloads resume.
"""

import hashlib
import os
import pathlib
import re
import sys
import textwrap

from absl import logging

from runtime.errors import UserError

from .published import CIFAR10_STATISTICS, DRIVE_PAGE, DriveFile, Published, published

SECONDS_WITHOUT_DATA, RETRIES = 30, 4


def fetch_published(
    name: str, folder: str | os.PathLike, number: int | None = None
) -> pathlib.Path:
    """Return the path of a published checkpoint, downloaded if it is not there.

    Args:
        name: of the model, as 'vp/cifar10_ddpmpp_continuous'.
        folder: has a folder for each model, named after it with _ for /.
        number: of the checkpoint; by default the one published by itself, else the smallest, which
            gave Table 3 of the paper.

    Raises:
        UserError: if it cannot be downloaded; it says how to get the file by hand.
    """
    model = published(name)
    place = pathlib.Path(folder).expanduser() / name.replace('/', '_')
    if model.file and number in (None, _number(model.file.name)):
        return fetch(model.file, place / model.file.name, model.address)
    there = {_number(path) for path in place.glob('checkpoint_*.pth')} - {None}
    if number is None and there:
        number = min(there)
    if number in there:
        return place / f'checkpoint_{number}.pth'
    file = _file_in_folder(model, number, place)
    return fetch(file, place / file.name, model.address)


def fetch_statistics(folder: str | os.PathLike = 'assets/stats') -> pathlib.Path:
    """Return the path of the published statistics of CIFAR-10, downloaded if it is not there."""
    file = CIFAR10_STATISTICS
    return fetch(file, pathlib.Path(folder) / file.name, DRIVE_PAGE.format(file.file_id))


def fetch(file: DriveFile, path: str | os.PathLike, page: str) -> pathlib.Path:
    """Return `path`, where the file is downloaded to if it is not there.

    Args:
        file: what to download, and its digest if known.
        path: where it belongs.
        page: where it can be downloaded by hand, for the error.

    Raises:
        UserError: if it cannot be downloaded, or has another digest.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_file():
        if fault := _fault(path, file):
            raise UserError(f'{fault}: delete it to download it again')
        return path
    gdown = _gdown()
    part = path.with_name(f'{path.name}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        gdown.download(
            id=file.file_id,
            output=str(part),
            quiet=not sys.stderr.isatty(),
            use_cookies=False,
            resume=True,
            timeout=SECONDS_WITHOUT_DATA,
            retries=RETRIES,
        )
        if fault := _fault(part, file):
            part.unlink()
            raise UserError(f'{fault}: it was deleted, try again')
        os.replace(part, path)
    except (OSError, gdown.DownloadError) as error:
        raise _by_hand(path, page, error) from error
    logging.info('Downloaded %s (%d bytes).', path, path.stat().st_size)
    return path


def _file_in_folder(model: Published, number: int | None, place: pathlib.Path) -> DriveFile:
    """Return the checkpoint with this number in the folder of a model; by default the smallest."""
    gdown = _gdown()
    try:
        entries = gdown.download_folder(
            id=model.folder,
            skip_download=True,
            quiet=True,
            use_cookies=False,
            timeout=SECONDS_WITHOUT_DATA,
        )
    except (OSError, gdown.DownloadError) as error:
        wanted = place / f'checkpoint_{"N" if number is None else number}.pth'
        raise _by_hand(wanted, model.address, error) from error
    files = {_number(entry.path): entry.id for entry in entries}
    files.pop(None, None)
    if number is None and files:
        number = min(files)
    if number not in files:
        raise UserError(
            f'expected a checkpoint{"" if number is None else f" {number}"} of {model.name} in '
            f'{model.address}, got {sorted(files)}'
        )
    return DriveFile(files[number], f'checkpoint_{number}.pth')


def _number(path: str | os.PathLike) -> int | None:
    """Return the number in a name such as 'folder/checkpoint_24.pth', None for other names."""
    match = re.fullmatch(r'checkpoint_(\d+)\.pth', pathlib.PurePath(path).name)
    return int(match[1]) if match else None


def _fault(path: pathlib.Path, file: DriveFile) -> str | None:
    """Return a sentence if a file has another digest than expected."""
    if file.sha256 is None:
        return None
    sha = hashlib.sha256()
    with open(path, 'rb') as content:
        while block := content.read(1 << 20):
            sha.update(block)
    if sha.hexdigest() == file.sha256:
        return None
    return f'{path} has the SHA-256 {sha.hexdigest()}, expected {file.sha256}'


def _gdown():
    """Import `gdown`; UserError if it is not installed."""
    try:
        import gdown
    except ImportError as error:
        raise UserError(
            'downloads from Google Drive need the package gdown: pip install gdown'
        ) from error
    return gdown


def _by_hand(path: pathlib.Path, page: str, error: Exception) -> UserError:
    """Return an error of one line that says how to get a file by hand."""
    reason = textwrap.shorten(str(error), 300, placeholder=' ...') or type(error).__name__
    return UserError(
        f'{path.name} could not be downloaded ({reason}): download it by hand from {page} and '
        f'put it at {path}'
    )
