"""Download published checkpoints and statistics from Google Drive, with the package `gdown`.

    fetch_published('ve/cifar10_ncsnpp_continuous', 'models')
    # models/ve_cifar10_ncsnpp_continuous/checkpoint_24.pth

A file is downloaded to NAME.part, checked against the SHA-256 in `published` if it has one, and
then renamed. So a file with its final name is complete. Interrupted downloads resume.
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
    """Return the path of a published checkpoint; download it if it is missing.

    Args:
        name: name of the model, such as 'vp/cifar10_ddpmpp_continuous'.
        folder: folder of the downloads. It has a subfolder for each model, named after the model
            with _ instead of /.
        number: number of the checkpoint. Default: the checkpoint that was also published as a
            single file, else the smallest number, which gave Table 3 of the paper.

    Raises:
        UserError: if it cannot be downloaded. The message explains how to get the file by hand.
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
    """Return the path of the published statistics of CIFAR-10; download them if missing."""
    file = CIFAR10_STATISTICS
    return fetch(file, pathlib.Path(folder) / file.name, DRIVE_PAGE.format(file.file_id))


def fetch(file: DriveFile, path: str | os.PathLike, page: str) -> pathlib.Path:
    """Return `path`; download the file to it if it does not exist.

    Args:
        file: the file to download, with its SHA-256 if known.
        path: path of the downloaded file.
        page: address of the page for a download by hand, for the error message.

    Raises:
        UserError: if the file cannot be downloaded, or has another SHA-256.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_file():
        if fault := _fault(path, file):
            raise UserError(f'{fault}: delete the file to download it again')
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
            raise UserError(f'{fault}: the file was deleted, run the command again')
        os.replace(part, path)
    except (OSError, gdown.DownloadError) as error:
        raise _by_hand(path, page, error) from error
    logging.info('Downloaded %s (%d bytes).', path, path.stat().st_size)
    return path


def _file_in_folder(model: Published, number: int | None, place: pathlib.Path) -> DriveFile:
    """Find the checkpoint `number` in the folder of a model; by default the smallest number."""
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
    """Return a message if a file does not have the expected SHA-256, else None."""
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
    """Import `gdown`; raise UserError if it is not installed."""
    try:
        import gdown
    except ImportError as error:
        raise UserError(
            'downloads from Google Drive need the package gdown: run pip install gdown'
        ) from error
    return gdown


def _by_hand(path: pathlib.Path, page: str, error: Exception) -> UserError:
    """Return a one-line error that explains how to get a file by hand."""
    reason = textwrap.shorten(str(error), 300, placeholder=' ...') or type(error).__name__
    return UserError(
        f'{path.name} could not be downloaded ({reason}): download it by hand from {page} and '
        f'put it at {path}'
    )
