"""Files from the network, whole or not at all: downloads that go on where they broke off, and are
verified ever after.

    fetch('https://example.org/model.pth', 'models/model.pth')
    # models/ve_cifar10_ncsnpp_continuous/checkpoint_24.pth
    fetch_published('ve/cifar10_ncsnpp_continuous', 'models')

| file | |
|---|---|
| `model.pth` | is there when it is whole |
| `model.pth.json` | its name, url, bytes, sha256 and date: later calls verify the file by it and ask no server |
| `model.pth.part`, `model.pth.part.json` | what came so far, and of which content at the server (length, ETag, date) |

A download is resumed by the rules of HTTP (RFC 9110, sections 13 and 14): 'Range: bytes=N-' asks
for the rest and 'If-Range' for that of the same content only; the answer 206 tells in
'Content-Range' what it brings, and 200 brings everything again. Google Drive shows a page with a
form in front of large files, which is sent as a browser would; other pages are never kept as a
file.
"""

import contextlib
import datetime
import hashlib
import html.parser
import http.client
import json
import os
import pathlib
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from absl import logging
from tqdm import tqdm

from runtime.errors import UserError

from .published import CIFAR10_STATISTICS, published

DRIVE_FILE = 'https://drive.google.com/uc?export=download&id={}'
DRIVE_PAGE = 'https://drive.google.com/file/d/{}/view'
QUOTA = ('too many users have viewed or downloaded this file', 'quota exceeded')
BLOCK, LARGEST_PAGE = 2**18, 2**20  # bytes


def fetch(
    url_or_drive_id: str,
    path,
    sha256: str | None = None,
    page: str | None = None,
    timeout: float = 15.0,
    attempts: int = 5,
    pause: float = 1.0,
) -> pathlib.Path:
    """The path of a file that is whole and verified: downloaded from a URL or by its id at Google
    Drive, unless it is there already.

    `sha256` is the digest it must have; without, that of the first time is recorded and must be
    found again. `page`: where one downloads it by hand, for the errors. An attempt fails after
    `timeout` seconds without a byte. After `attempts` failures in a row, without progress and with
    pauses of `pause` seconds, then twice that and so on, or at once where no server can be reached,
    it is a UserError that says how to get the file by hand. So is a file with another digest.
    """
    path = pathlib.Path(path).expanduser()
    is_url = '://' in url_or_drive_id
    if not is_url and not re.fullmatch(r'[\w-]{20,}', url_or_drive_id):
        raise UserError(
            f'{url_or_drive_id!r} is neither a URL nor the id of a file at Google Drive'
        )
    url = url_or_drive_id if is_url else DRIVE_FILE.format(url_or_drive_id)
    if path.exists():
        return verify(path, sha256, url)
    page = page or (url if is_url else DRIVE_PAGE.format(url_or_drive_id))
    download = _Download(
        url, path, f'download it by hand from {page} and put it at {path}', timeout
    )
    failures, most = 0, download.size()
    while not download.is_whole():
        try:
            download.attempt()
        except _Broken as error:
            failures, most = (
                1 if download.size() > most else failures + 1,
                max(most, download.size()),
            )
            if failures >= attempts:
                raise UserError(
                    f'{path.name} could not be downloaded in {failures} attempts '
                    f'({error}): '
                    f'try again later, which goes on at byte {download.size()}, or '
                    f'{download.by_hand}'
                ) from error
            logging.warning(
                '%s: %s; the next attempt is in %g s.',
                path.name,
                error,
                pause * 2 ** (failures - 1),
            )
            time.sleep(pause * 2 ** (failures - 1))
    return download.finish(sha256)


def fetch_published(name: str, folder, number: int | None = None, **settings) -> pathlib.Path:
    """The file of a published checkpoint, folder/<name, with _ for />/checkpoint_<number>.pth;
    `settings` are those of `fetch`.

    It is downloaded if it was published by itself. Google's folders cannot be listed without a key,
    so others are put there by hand: a UserError says from where. Without a `number` it is the
    single one, or else the smallest that is there: that of the paper's Table 3.
    """
    model, place = published(name), pathlib.Path(folder).expanduser() / name.replace('/', '_')
    if model.file_name and (number is None or model.file_name == f'checkpoint_{number}.pth'):
        return fetch(model.file_id, place / model.file_name, page=model.address, **settings)
    there = [
        int(match[1])
        for file in place.glob('checkpoint_*.pth')
        if (match := re.fullmatch(r'checkpoint_(\d+)\.pth', file.name))
    ]
    if not there or number is not None and number not in there:
        file = f'checkpoint_{"N" if number is None else number}.pth'
        raise UserError(
            f'{name} was published as a folder only, which no program can list without '
            "a key of Google's: "
            f'download {file} by hand from {model.address} and put it at '
            f'{place / file}'
        )
    return verify(
        place / f'checkpoint_{min(there) if number is None else number}.pth',
        settings.get('sha256'),
        model.address,
    )


def fetch_statistics(folder='assets/stats', **settings) -> pathlib.Path:
    """The file of the published statistics of CIFAR-10 in `folder`, where `evaluation` looks for
    it; `settings` are those of `fetch`.
    """
    return fetch(
        CIFAR10_STATISTICS.file_id, pathlib.Path(folder) / CIFAR10_STATISTICS.file_name, **settings
    )


def verify(path, sha256: str | None = None, url: str = '') -> pathlib.Path:
    """The path of a file that is there, if it has the digest that is given and the one recorded
    beside it; UserError if not.

    Where none is recorded, as for files put there by hand, its digest is recorded now, with the
    `url` it is said to be from.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise UserError(
            f'{path} is {"a folder" if path.is_dir() else "not there"}, expected a file'
        )
    found, recorded, record = _digest(path), _recorded(path), _beside(path, '.json')
    if _is_page_file(path):
        raise UserError(
            f'{path} is an HTML page instead of the file: delete it, and download the file itself'
        )
    if recorded and found != recorded:
        raise UserError(
            f'{path} has the SHA-256 {found}, but {record.name} recorded {recorded}: '
            'delete the file to get it again, or the '
            'record if you trust the file as it is'
        )
    if sha256 and found != sha256.lower():
        raise UserError(
            f'{path} has the SHA-256 {found}, expected {sha256.lower()}: delete it and '
            f'{record.name} to get it again'
        )
    if recorded:
        logging.info('%s is there, with the SHA-256 that was recorded (%s...).', path, found[:16])
    else:
        _record(path, url, found)
        logging.info(
            '%s was there; its SHA-256, %s, is recorded in %s from now on.',
            path,
            found,
            record.name,
        )
    return path


# One download -------------------------------------------------------------------------------------


class _Broken(Exception):
    """An attempt that failed and may be repeated."""


class _Download:
    """What there is of a file at `url`, and attempts to get the rest of it; `by_hand` is the advice
    where they are in vain.
    """

    def __init__(self, url: str, path: pathlib.Path, by_hand: str, timeout: float):
        self.url, self.path, self.by_hand, self.timeout = url, path, by_hand, timeout
        self.part, self.note = _beside(path, '.part'), _beside(path, '.part.json')
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        self.answered = False
        with self._files():
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.part.exists() and self._noted().get('url') != url:
                self._discard('is of another address, or of none that was noted')

    def size(self) -> int:
        """The bytes that came so far."""
        return self.part.stat().st_size if self.part.exists() else 0

    def is_whole(self) -> bool:
        return self.part.exists() and self.size() == self._noted().get('bytes')

    def attempt(self):
        """Adds to the part what the server sends; _Broken where it is still not whole, UserError
        where repeating would not help.
        """
        try:
            noted = self._noted()
            if self.size() and not self.size() < (noted.get('bytes') or 0):
                self._discard('is longer than the file, or that has no known length')
            start = self.size()
            response, form = self._answer(start, noted)
            with response:
                start, length = self._agreed(response, start, noted, form)
                self._receive(response, start, length)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(f'the connection broke off: {_reason(error)}') from error

    def finish(self, sha256: str | None) -> pathlib.Path:
        """The path, once the part is verified and has its name."""
        found, recorded = _digest(self.part), _recorded(self.path)
        if _is_page_file(self.part):
            self._discard('is an HTML page')
            raise self._error('the server sent an HTML page instead of it')
        for expected, by, remedy in (
            (sha256, 'was expected', 'correct what you expect'),
            (recorded, 'is recorded from an earlier time', f'delete {_beside(self.path, ".json")}'),
        ):
            if expected and found != expected.lower():
                self._discard('has another SHA-256')
                raise UserError(
                    f'{self.path.name} came from {self.url} with the SHA-256 {found}, '
                    f'but {expected.lower()} {by}: try '
                    f'again in case it was damaged on the way, or {remedy} if it was '
                    'replaced there'
                )
        with self._files():
            with open(self.part, 'rb+') as file:
                os.fsync(file.fileno())
            os.replace(self.part, self.path)
            _record(self.path, self.url, found)
            self.note.unlink(missing_ok=True)
        logging.info(
            '%s is there: %d bytes, SHA-256 %s.', self.path, self.path.stat().st_size, found
        )
        return self.path

    def _answer(self, start: int, noted: dict):
        """The server's response from byte `start` on, or from the first, and whether Drive's form
        was sent to get it.
        """
        rest = {}
        if start:
            rest['Range'] = f'bytes={start}-'
            validator = noted.get('etag') or noted.get('modified')
            if validator and not validator.startswith('W/'):  # a weak ETag is no validator of bytes
                rest['If-Range'] = validator
        # the page with the form is wanted from its first byte on
        response = self._request(self.url, {} if noted.get('form') else rest)
        if not _is_page(response):
            return response, False
        with response:
            page = self._read_page(response)
        if page.form is None:
            raise self._error(f'the server sent an HTML page, {page.title!r}, instead of it')
        logging.info(
            '%s: Google Drive wants to be asked again for a file of this size.', self.path.name
        )
        response = self._request(page.form, rest)
        if _is_page(response):
            with response:
                raise self._error(
                    'Google Drive sent an HTML page, '
                    f'{self._read_page(response).title!r}, instead of it'
                )
        return response, True

    def _request(self, url: str, headers: dict):
        if (
            urllib.parse.urlsplit(url).scheme not in ('http', 'https')
            or not urllib.parse.urlsplit(url).hostname
        ):
            raise UserError(f'{url!r} is no address of http or https')
        try:
            response = self.opener.open(
                urllib.request.Request(url, headers=headers), timeout=self.timeout
            )
        except urllib.error.HTTPError as error:
            self.answered = True
            with error:
                if _is_page(error):
                    self._read_page(error)
            answer = f'the server answered {error.code} {error.reason}'
            if error.code == 416:
                self._discard('does not fit the file that is there now')
            if error.code >= 500 or error.code in (408, 416, 429):
                raise _Broken(answer) from error
            raise self._error(answer) from error
        except urllib.error.URLError as error:  # no connection at all
            if self.answered:
                raise
            raise self._error(
                f'{urllib.parse.urlsplit(url).hostname} cannot be reached, {_reason(error)}'
            ) from error
        except http.client.InvalidURL as error:
            raise UserError(f'{url!r} is no address: {error}') from error
        self.answered = True
        return response

    def _read_page(self, response) -> '_Page':
        """The page in a response; UserError where it says that a file was downloaded too often."""
        page = _Page(response.url, response.read(LARGEST_PAGE).decode(errors='replace'))
        if any(words in page.text.lower() for words in QUOTA):
            raise self._error(
                'Google Drive refuses it for now, since too many people downloaded it recently'
            )
        return page

    def _agreed(self, response, start: int, noted: dict, form: bool) -> tuple[int, int | None]:
        """Where the body of a response begins, and the length of the whole file, None if unknown;
        both are noted for later attempts.
        """
        etag, modified = response.headers.get('ETag'), response.headers.get('Last-Modified')
        if response.status == 206 and start:
            match = re.fullmatch(
                r'bytes (\d+)-\d+/(\d+|\*)', response.headers.get('Content-Range', '').strip()
            )
            length = (
                noted['bytes'] if match and match[2] == '*' else int(match[2]) if match else None
            )
            changed = any(
                old and new and old != new
                for old, new in ((noted.get('etag'), etag), (noted.get('modified'), modified))
            )
            if changed or match is None or int(match[1]) != start or length != noted['bytes']:
                self._discard('does not fit the file that is there now')
                raise _Broken('the server has another file now than the one that was begun')
            logging.info('%s: going on at byte %d of %d.', self.path.name, start, length)
            return start, length
        if response.status != 200:
            raise self._error(f'the server answered {response.status} {response.reason}')
        length = response.headers.get('Content-Length', '')
        length = int(length) if length.isdecimal() else None
        if start:
            logging.info('%s: the server sends it from the first byte on again.', self.path.name)
        logging.info(
            'Downloading %s (%s bytes) from %s.',
            self.path.name,
            'unknown' if length is None else length,
            self.url,
        )
        with self._files():
            # before the note: bytes must never be taken for those of other content
            self.part.unlink(missing_ok=True)
            _write_json(
                self.note, dict(url=self.url, bytes=length, etag=etag, modified=modified, form=form)
            )
        return 0, length

    def _receive(self, response, start: int, length: int | None):
        """Appends the body of a response to the part, `start` bytes long."""
        shown = tqdm(
            total=length,
            initial=start,
            desc=self.path.name,
            unit='B',
            unit_scale=True,
            dynamic_ncols=True,
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        with self._files():
            with open(self.part, 'ab') as file, shown:
                while block := self._block(response):
                    file.write(block)
                    shown.update(len(block))
            if length is None:  # the end of the stream is that of the file
                _write_json(self.note, self._noted() | dict(bytes=self.size()))
        if length not in (None, self.size()):
            raise _Broken(f'{self.size()} of {length} bytes came')

    @staticmethod
    def _block(response) -> bytes:
        """What has come by now, so that nothing is lost when the connection breaks off."""
        try:
            return response.read1(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(f'the connection broke off: {_reason(error)}') from error

    def _noted(self) -> dict:
        return _read_json(self.note) or {}

    def _discard(self, why: str):
        logging.warning('%s %s; it is deleted.', self.part, why)
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _error(self, why: str) -> UserError:
        return UserError(f'{self.path.name} cannot be downloaded ({why}): {self.by_hand}')

    @contextlib.contextmanager
    def _files(self):
        """What goes wrong with the disk is no fault of the network, and is not repeated."""
        try:
            yield
        except OSError as error:
            raise UserError(f'{self.path} cannot be written: {error.strerror or error}') from error


# Pages --------------------------------------------------------------------------------------------


class _Page(html.parser.HTMLParser):
    """An HTML page at `url`: its `title`, its `text`, and as `form` the address that sending its
    form with a 'confirm' asks for, if any.
    """

    def __init__(self, url: str, content: str):
        super().__init__()
        self.title, self.text, self._tag, self._forms = '', '', '', []
        self.feed(content)
        self.close()
        self.text = ' '.join(self.text.split())
        self.form = next(
            (
                f'{urllib.parse.urljoin(url, action).partition("?")[0]}?{urllib.parse.urlencode(fields)}'
                for action, fields in self._forms
                if 'confirm' in fields
            ),
            None,
        )

    def handle_starttag(self, tag, attributes):
        self._tag, given = tag, {name: value or '' for name, value in attributes}
        if tag == 'form':
            self._forms.append((given.get('action', ''), {}))
        elif tag == 'input' and given.get('type') == 'hidden' and self._forms:
            self._forms[-1][1][given.get('name', '')] = given.get('value', '')

    def handle_endtag(self, tag):
        self._tag = ''

    def handle_data(self, data):
        self.text += data
        if self._tag == 'title':
            self.title += data.strip()


def _is_page(response) -> bool:
    return response.headers.get_content_type() in ('text/html', 'application/xhtml+xml')


def _is_page_file(path: pathlib.Path) -> bool:
    """Whether a file begins like an HTML page."""
    with open(path, 'rb') as file:
        begin = file.read(512).removeprefix(b'\xef\xbb\xbf').lstrip().lower()
    return begin.startswith((b'<!doctype html', b'<html', b'<head'))


# Files beside the file ----------------------------------------------------------------------------


def _beside(path: pathlib.Path, ending: str) -> pathlib.Path:
    return path.with_name(path.name + ending)


def _digest(path: pathlib.Path) -> str:
    """The SHA-256 of a file's content."""
    sha = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            sha.update(block)
    return sha.hexdigest()


def _recorded(path: pathlib.Path) -> str | None:
    """The SHA-256 recorded beside a file, None where there is no record; UserError where that
    cannot be read.
    """
    record = _beside(path, '.json')
    if not record.exists():
        return None
    found = _read_json(record)
    if not isinstance((found or {}).get('sha256'), str):
        raise UserError(
            f'{record} holds no record of a download: delete it if you trust {path.name} as it is'
        )
    return found['sha256'].lower()


def _record(path: pathlib.Path, url: str, sha256: str):
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
    _write_json(
        _beside(path, '.json'),
        dict(name=path.name, url=url, bytes=path.stat().st_size, sha256=sha256, date=now),
    )


def _read_json(path: pathlib.Path) -> dict | None:
    """The dict in a JSON file, None where there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write_json(path: pathlib.Path, content: dict):
    partial = _beside(path, '.partial')
    partial.write_text(json.dumps(content, indent=2) + '\n')
    os.replace(partial, path)


def _reason(error) -> str:
    """What an error of the network says, in a few words."""
    error = getattr(error, 'reason', None) or error
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__
