"""Downloads from a server in this process: whole files, broken connections, other content, pages;
and the table of published files.
"""

import hashlib
import http.server
import importlib
import json
import re
import socket
import threading
import time
import urllib.parse
from typing import NamedTuple

import numpy as np
import pytest

from conftest import ROOT
from runtime.errors import UserError
from validation import fetch as fetching
from validation import published as table
from validation.fetch import fetch, fetch_published, fetch_statistics, verify
from validation.published import (
    CIFAR10_STATISTICS,
    DEFAULT,
    ELSEWHERE,
    FOLDER_OF_ALL,
    PUBLISHED,
    published,
)

CONTENT = np.random.default_rng(0).bytes(300_001)
OTHER = np.random.default_rng(1).bytes(300_001)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FORM = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title><style>p {color: red}</style></head><body>
<p>checkpoint.pth is too large for Google to scan for viruses. Would you still like to download this file?</p>
<form action="/search" method="get"><input type="hidden" name="q" value="x"></form>
<form id="download-form" action="/download?ignored=1" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="a&amp;b"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="0-1"></form></body></html>"""
FULL = """<html><head><title>Google Drive</title></head><body>
<p>Sorry, you can't view or download this file at this time.</p>
<p>Too many users have viewed or
downloaded this file recently. Please try accessing the file again later.</p></body></html>"""


class Request(NamedTuple):
    path: str
    range: str | None
    if_range: str | None


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` and `etag`; `script` has one entry for each of the next requests, a dict
    with what is special in its answer.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.content, self.etag, self.script, self.requests, self.sent = CONTENT, '"1"', [], [], []
        self.url = f'http://127.0.0.1:{self.server_port}/checkpoint.pth'

    def handle_error(self, request, client_address):
        pass  # clients that leave are part of the tests


class Handler(http.server.BaseHTTPRequestHandler):
    """`page`: this HTML; `status`: this error; `content`, `etag`: others from now on; `ignore`: a
    header to overlook; `stop`: the bytes after which the connection breaks off; `stall`: seconds of
    silence then; `chunked`: no length; `headers`: to be replaced.
    """

    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, self.close_connection = self.server, True
        server.requests.append(Request(self.path, self.headers['Range'], self.headers['If-Range']))
        how = server.script.pop(0) if server.script else {}
        server.content, server.etag = (
            how.get('content', server.content),
            how.get('etag', server.etag),
        )
        if 'page' in how or 'status' in how:
            body = how.get('page', '<html><title>None</title></html>').encode()
            self.answer(
                how.get('status', 200),
                {'Content-Type': 'text/html; charset=utf-8', 'Content-Length': len(body)},
            )
            self.wfile.write(body)
            return
        start, body = 0, server.content
        headers = {'Content-Type': 'application/octet-stream', 'ETag': server.etag}
        fits = self.headers['If-Range'] in (None, server.etag) or 'If-Range' in how.get(
            'ignore', ()
        )
        if self.headers['Range'] and fits and 'Range' not in how.get('ignore', ()):
            start = int(re.fullmatch(r'bytes=(\d+)-', self.headers['Range'])[1])
            headers['Content-Range'] = f'bytes {start}-{len(body) - 1}/{len(body)}'
        status, body = 206 if start else 200, body[start:]
        headers |= (
            {'Transfer-Encoding': 'chunked'}
            if how.get('chunked')
            else {'Content-Length': len(body)}
        )
        self.answer(status, headers | how.get('headers', {}))
        body = body[: how.get('stop')]
        server.sent.append((start, len(body)))
        self.wfile.write(b'%x\r\n%s\r\n' % (len(body), body) if how.get('chunked') else body)
        self.wfile.write(b'0\r\n\r\n' if how.get('chunked') and 'stop' not in how else b'')
        time.sleep(how.get('stall', 0))

    def answer(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'models' / 'checkpoint.pth'


def get(server, path, *script, **settings):
    server.script += script
    return fetch(server.url, path, **dict(timeout=5.0, pause=0.01) | settings)


def beside(path):
    return {file.name for file in path.parent.iterdir()}


def check(path, content=CONTENT):
    """The file is whole, its record is right, and nothing else is left."""
    assert path.read_bytes() == content
    assert beside(path) == {path.name, path.name + '.json'}
    record = json.loads(path.with_name(path.name + '.json').read_text())
    assert record.keys() == {'name', 'url', 'bytes', 'sha256', 'date'}
    assert (record['name'], record['bytes'], record['sha256']) == (
        path.name,
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    return record


def refused(call, *words):
    """The message of the UserError that a call ends in: one line with all these words."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert '\n' not in message and all(word in message for word in words), message
    return message


# Whole files --------------------------------------------------------------------------------------


def test_downloads_and_records(server, path):
    assert get(server, path, sha256=SHA256.upper()) == path
    assert check(path)['url'] == server.url
    assert server.requests == [('/checkpoint.pth', None, None)]


@pytest.mark.parametrize(
    'how',
    [dict(chunked=True), dict(headers={'Content-Length': None}), dict(headers={'ETag': None})],
)
def test_downloads_without_a_length_or_an_etag(server, path, how):
    get(server, path, how)
    assert len(server.requests) == 1
    check(path)


def test_what_is_there_and_verified_is_not_asked_for(server, path):
    get(server, path)
    record = check(path)
    server.requests.clear()
    assert get(server, path) == get(server, path, sha256=SHA256) == verify(path) == path
    assert server.requests == [] and check(path) == record


def test_what_was_put_there_by_hand_is_recorded(server, path):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    get(server, path)
    assert server.requests == []
    check(path)


def test_a_file_that_changed_since_is_refused(server, path):
    get(server, path)
    path.write_bytes(OTHER)
    refused(
        lambda: get(server, path),
        SHA256,
        hashlib.sha256(OTHER).hexdigest(),
        'checkpoint.pth.json',
        'delete',
    )
    assert path.read_bytes() == OTHER
    path.unlink()
    # the server's has changed
    refused(
        lambda: get(server, path, dict(content=OTHER)), SHA256, 'recorded', f'delete {path}.json'
    )
    assert beside(path) == {'checkpoint.pth.json'}
    get(server, path, dict(content=CONTENT))
    check(path)


def test_another_digest_than_expected(server, path):
    refused(lambda: get(server, path, sha256='0' * 64), SHA256, '0' * 64, server.url)
    assert beside(path) == set()
    get(server, path)
    refused(lambda: get(server, path, sha256='0' * 64), SHA256, '0' * 64, 'delete')


def test_a_record_that_cannot_be_read(server, path):
    get(server, path)
    path.with_name('checkpoint.pth.json').write_text('[]')
    refused(lambda: get(server, path), 'checkpoint.pth.json', 'delete')


# Broken connections -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'break_off', [dict(stop=100_000), dict(stop=100_000, stall=1.0)], ids=['closed', 'silent']
)
def test_goes_on_where_the_connection_broke_off(server, path, break_off):
    get(server, path, break_off, dict(stop=50_000), timeout=0.5)
    assert [request[1:] for request in server.requests] == [
        (None, None),
        ('bytes=100000-', '"1"'),
        ('bytes=150000-', '"1"'),
    ]
    # no byte was sent again
    assert server.sent == [(0, 100_000), (100_000, 50_000), (150_000, 150_001)]
    check(path)


def test_attempts_that_get_further_do_not_count(server, path):
    get(server, path, *[dict(stop=50_000)] * 5, attempts=2)
    assert [start for start, _ in server.sent] == [50_000 * k for k in range(6)]
    check(path)


def test_goes_on_when_the_network_was_away(server, path, monkeypatch):
    connect, faults = (
        socket.create_connection,
        [None, ConnectionRefusedError('Connection refused'), socket.gaierror('no name'), None],
    )

    def sometimes(*args, **settings):
        if fault := faults.pop(0):
            raise fault
        return connect(*args, **settings)

    monkeypatch.setattr(socket, 'create_connection', sometimes)
    get(server, path, dict(stop=100_000))
    assert faults == [] and server.sent == [(0, 100_000), (100_000, 200_001)]
    check(path)


def test_goes_on_in_a_later_call(server, path):
    message = refused(
        lambda: get(server, path, dict(stop=100_000), attempts=1), '100000', str(path), server.url
    )
    assert 'goes on at byte 100000' in message and not path.exists()
    assert beside(path) == {'checkpoint.pth.part', 'checkpoint.pth.part.json'}
    get(server, path)
    assert server.sent == [(0, 100_000), (100_000, 200_001)]
    check(path)


def test_a_whole_part_is_not_asked_for(server, path, monkeypatch):
    """A kill between the last byte and the rename."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetching, '_digest', lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        get(server, path)
    get(server, path)
    assert len(server.requests) == 1
    check(path)


@pytest.mark.parametrize('note', ['{}', 'no JSON', None])
def test_a_part_of_unknown_origin_does_not_count(server, path, note):
    path.parent.mkdir()
    path.with_name('checkpoint.pth.part').write_bytes(OTHER[:1000])
    if note:
        path.with_name('checkpoint.pth.part.json').write_text(note)
    get(server, path)
    assert server.sent == [(0, len(CONTENT))]
    check(path)


def test_a_part_of_another_address_does_not_count(server, path):
    refused(lambda: get(server, path, dict(content=OTHER, stop=1000), attempts=1))
    server.content = CONTENT  # with the same ETag
    assert fetch(server.url + '?other', path) == path
    assert server.sent[-1] == (0, len(CONTENT))
    check(path)


def test_a_server_that_sends_everything_again(server, path):
    get(server, path, dict(stop=100_000), dict(ignore=('Range',)))
    assert server.sent == [(0, 100_000), (0, len(CONTENT))]
    check(path)


@pytest.mark.parametrize('ignore', [(), ('If-Range',)], ids=['200', '206'])
@pytest.mark.parametrize(
    'content', [OTHER, OTHER + b'1', OTHER[:200_000]], ids=['as long', 'longer', 'shorter']
)
def test_another_file_at_the_server(server, path, ignore, content):
    """Whether it heeds If-Range and sends the new file, or sends the rest of it, nothing of the old
    one stays.
    """
    get(server, path, dict(stop=100_000), dict(content=content, etag='"2"', ignore=ignore))
    assert server.sent[-1] == (0, len(content))
    check(path, content)


def test_another_file_that_is_shorter_than_the_part(server, path):
    get(server, path, dict(stop=100_000), dict(content=OTHER[:5000], etag='"2"', status=416))
    check(path, OTHER[:5000])


def test_another_length_alone_tells_another_file(server, path):
    get(
        server,
        path,
        dict(stop=100_000, headers={'ETag': None}),
        dict(content=OTHER + b'1', headers={'ETag': None}),
    )
    assert server.requests[1].if_range is None
    check(path, OTHER + b'1')


def test_a_weak_etag_is_no_validator_but_tells_another_file(server, path):
    get(server, path, dict(etag='W/"1"', stop=100_000), dict(etag='W/"2"', content=OTHER))
    assert server.requests[1][1:] == ('bytes=100000-', None)
    check(path, OTHER)


@pytest.mark.parametrize(
    'given', ['bytes 99999-300000/300001', 'bytes 100000-300000/300002', 'bytes', None]
)
def test_a_rest_that_does_not_fit_is_not_appended(server, path, given):
    get(server, path, dict(stop=100_000), dict(headers={'Content-Range': given}))
    assert server.sent[-1] == (0, len(CONTENT))
    check(path)


def test_a_body_that_is_always_cut_short(server, path):
    script = [dict(stop=100_000, ignore=('Range',))] * 3
    refused(
        lambda: get(server, path, *script, attempts=3),
        '100000 of 300001 bytes',
        '3 attempts',
        server.url,
        str(path),
    )
    assert len(server.requests) == 3 and not path.exists()


def test_a_chunked_body_that_is_cut_short(server, path):
    get(server, path, dict(chunked=True, stop=100_000))
    # without a length nothing tells whether a rest would fit
    assert server.sent == [(0, 100_000), (0, len(CONTENT))]
    check(path)


def test_a_server_that_is_busy(server, path):
    get(server, path, dict(status=503), dict(status=500), dict(status=429))
    assert len(server.requests) == 4
    check(path)


def test_pauses_grow(server, path, monkeypatch):
    pauses = []
    monkeypatch.setattr(fetching.time, 'sleep', pauses.append)
    refused(
        lambda: get(server, path, *[dict(status=503)] * 4, attempts=4, pause=1.0),
        '503',
        '4 attempts',
    )
    assert pauses == [1.0, 2.0, 4.0]


def test_a_file_that_the_server_does_not_have(server, path):
    refused(
        lambda: get(server, path, dict(status=404)), 'checkpoint.pth', '404', server.url, str(path)
    )
    assert len(server.requests) == 1 and beside(path) == set()


def test_no_server(path, monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    refused(
        lambda: fetch(f'http://127.0.0.1:{port}/checkpoint.pth', path),
        '127.0.0.1',
        'Connection refused',
        'by hand',
        str(path),
    )
    assert time.monotonic() - started < 2


def test_no_network(path, tmp_path, monkeypatch):
    def no_names(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, 'Temporary failure in name resolution')

    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(socket, 'getaddrinfo', no_names)
    name = 've/cifar10_ncsnpp_continuous'
    refused(
        lambda: fetch_published(name, tmp_path),
        'checkpoint_24.pth',
        'drive.google.com',
        'name resolution',
        'by hand',
        'https://drive.google.com/drive/folders/1b0gy_LLgO_DaQBgoWXwlVnL_rcAUgREh',
        str(tmp_path / 've_cifar10_ncsnpp_continuous'),
    )
    refused(
        lambda: fetch_statistics(tmp_path),
        'cifar10_stats.npz',
        f'https://drive.google.com/file/d/{CIFAR10_STATISTICS.file_id}/view',
    )


@pytest.mark.parametrize(
    'address', ['checkpoint.pth', 'file:///etc/hostname', 'http://', 'http://127.0.0.1/a b']
)
def test_what_is_no_address(path, address, monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    refused(lambda: fetch(address, path), address)


def test_a_place_that_cannot_be_written(server, tmp_path):
    (tmp_path / 'models').write_text('a file')
    refused(lambda: get(server, tmp_path / 'models' / 'checkpoint.pth'), 'cannot be written')
    (tmp_path / 'checkpoint.pth').mkdir()
    refused(lambda: get(server, tmp_path / 'checkpoint.pth'), 'a folder')


# Pages --------------------------------------------------------------------------------------------


@pytest.fixture
def drive(server, monkeypatch):
    """The server, in Google Drive's place."""
    monkeypatch.setattr(
        fetching, 'DRIVE_FILE', f'http://127.0.0.1:{server.server_port}/uc?export=download&id={{}}'
    )
    return server


ID = '1' * 33


def from_drive(drive, path, *script, **settings):
    drive.script += script
    return fetch(
        ID, path, **dict(page='https://drive.example/folder', timeout=5.0, pause=0.01) | settings
    )


def test_the_form_before_large_files_is_sent(drive, path):
    from_drive(drive, path, dict(page=FORM))
    asked, sent = (urllib.parse.urlsplit(request.path) for request in drive.requests)
    assert urllib.parse.parse_qs(asked.query) == dict(export=['download'], id=[ID])
    assert sent.path == '/download'
    assert urllib.parse.parse_qs(sent.query) == dict(
        id=['a&b'], export=['download'], confirm=['t'], uuid=['0-1']
    )
    check(path)


def test_goes_on_behind_the_form(drive, path):
    from_drive(drive, path, dict(page=FORM), dict(stop=100_000), dict(page=FORM))
    assert [request.range for request in drive.requests] == [None, None, None, 'bytes=100000-']
    assert drive.sent == [(0, 100_000), (100_000, 200_001)]
    check(path)


@pytest.mark.parametrize(
    'script',
    [
        [dict(page=FULL)],
        [dict(page=FULL, status=403)],
        [dict(page=FORM), dict(page=FULL)],
        [dict(page='<title>Google Drive - Quota exceeded</title>')],
    ],
    ids=['page', 'error', 'behind the form', 'by its title'],
)
def test_a_file_that_was_downloaded_too_often(drive, path, script):
    refused(
        lambda: from_drive(drive, path, *script),
        'checkpoint.pth',
        'recently',
        'https://drive.example/folder',
        str(path),
    )
    assert len(drive.requests) == len(script) and beside(path) == set()


def test_a_quota_leaves_what_came_before(drive, path):
    refused(lambda: from_drive(drive, path, dict(stop=100_000), dict(page=FULL)), 'recently')
    from_drive(drive, path)
    assert drive.sent == [(0, 100_000), (100_000, 200_001)]
    check(path)


@pytest.mark.parametrize(
    'script',
    [
        [dict(page='<html><title>Sign in</title></html>')],
        [dict(page=FORM), dict(page='<html><title>Sign in</title></html>')],
        [dict(content=b'\n<!DOCTYPE HTML><title>Sign in</title>')],
    ],
    ids=['page', 'behind the form', 'called a file'],
)
def test_no_page_is_kept_as_a_file(drive, path, script):
    refused(
        lambda: from_drive(drive, path, *script),
        'HTML page',
        'https://drive.example/folder',
        str(path),
    )
    assert beside(path) == set()


def test_a_page_saved_by_hand_is_refused(server, path):
    path.parent.mkdir()
    path.write_text(FULL)
    refused(lambda: get(server, path), 'HTML page', 'delete it')
    assert beside(path) == {'checkpoint.pth'}


# The published files ------------------------------------------------------------------------------


@pytest.mark.parametrize('name', DEFAULT)
def test_published_files_have_folders_of_their_own(drive, tmp_path, name):
    path = fetch_published(name, tmp_path)
    assert path == tmp_path / name.replace('/', '_') / published(name).file_name
    assert drive.requests[0].path.endswith(f'id={published(name).file_id}')
    check(path)


def test_published_statistics(drive, tmp_path):
    assert fetch_statistics(tmp_path) == tmp_path / 'cifar10_stats.npz'
    assert drive.requests[0].path.endswith(f'id={CIFAR10_STATISTICS.file_id}')


@pytest.mark.parametrize(
    'name, number, file',
    [
        ('vp/cifar10_ddpm', None, 'checkpoint_N.pth'),
        ('vp/cifar10_ddpm', 3, 'checkpoint_3.pth'),
        ('ve/cifar10_ncsnpp_continuous', 3, 'checkpoint_3.pth'),
    ],
)
def test_folders_are_for_hands(server, tmp_path, name, number, file):
    place = tmp_path / name.replace('/', '_')
    address = f'https://drive.google.com/drive/folders/{published(name).folder}'
    refused(lambda: fetch_published(name, tmp_path, number), name, address, str(place / file))
    place.mkdir()
    for k in (26, 7):
        (place / f'checkpoint_{k}.pth').write_bytes(CONTENT)
    (place / 'checkpoint_2.pth.part').write_bytes(b'')
    refused(lambda: fetch_published(name, tmp_path, 3), address, 'checkpoint_3.pth')
    assert fetch_published(name, tmp_path, 26) == place / 'checkpoint_26.pth'
    if number is None:
        assert fetch_published(name, tmp_path) == place / 'checkpoint_7.pth'
        assert json.loads((place / 'checkpoint_7.pth.json').read_text())['url'] == address
        refused(lambda: fetch_published(name, tmp_path, sha256='0' * 64), '0' * 64)
    assert server.requests == []


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_configs_exist_and_load(name):
    model = published(name)
    assert (ROOT / model.config).is_file() and model.name == name
    config = importlib.import_module(model.module).get_config()
    sde, data = config.training.sde, config.data.dataset.lower()
    assert name.startswith(sde.removesuffix('sde') + '/')
    assert config.training.continuous == ('continuous' in name)
    assert config.model.name == ('ddpm' if re.search(r'_ddpm(_|$)', name) else 'ncsnpp')
    assert data in name.replace('bedroom', 'lsun').replace('church', 'lsun')
    assert config.data.image_size == int(
        (re.search(r'_(\d+)_', name) or [0, 32 if 'cifar10' in name else 256])[1]
    )


def test_published_ids():
    models = PUBLISHED.values()
    ids = [model.folder for model in models] + [model.file_id for model in models if model.file_id]
    ids += [CIFAR10_STATISTICS.file_id, FOLDER_OF_ALL]
    assert len(ids) == len(set(ids)) == 20
    assert all(re.fullmatch(r'[A-Za-z0-9_-]{33}', one) for one in ids)
    assert {model.name for model in models if model.file_name} == set(DEFAULT)
    assert ELSEWHERE.keys() <= PUBLISHED.keys()


@pytest.mark.parametrize(
    'name, fid, inception_score, fid_ode, bpd',
    [
        ('ve/cifar10_ncsnpp_deep_continuous', 2.20, 9.89, None, None),
        ('vp/cifar10_ddpm', 3.24, None, 3.37, 3.28),
        ('vp/cifar10_ddpmpp_continuous', 2.55, 9.58, 3.93, 3.16),
        ('subvp/cifar10_ddpm_continuous', None, None, 3.56, 3.05),
        ('subvp/cifar10_ddpmpp_deep_continuous', 2.41, 9.57, 2.92, 2.99),
        ('ve/church_ncsnpp_continuous', None, None, None, None),
    ],
)
def test_published_numbers(name, fid, inception_score, fid_ode, bpd):
    model = published(name)
    assert (model.fid, model.inception_score, model.fid_ode, model.bpd) == (
        fid,
        inception_score,
        fid_ode,
        bpd,
    )
    numbers = [number for number in (fid, inception_score, fid_ode, bpd) if number]
    expect = ' '.join(importlib.import_module(model.module).__doc__.split())
    # the config promises the same
    assert all(re.search(rf'(?<!\d){number:.2f}(?!\d)', expect) for number in numbers)


def test_an_unknown_name(tmp_path):
    message = refused(lambda: fetch_published('ve/cifar10', tmp_path), "'ve/cifar10'")
    assert all(name in message for name in PUBLISHED)
    assert table.published is published
