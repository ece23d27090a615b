"""Downloads of published files with a simulated `gdown`, and the table of published files."""

import hashlib
import importlib
import inspect
import pathlib
import re
import sys
import types

import pytest

from conftest import ROOT
from runtime.errors import UserError
from validation.fetch import fetch, fetch_published, fetch_statistics
from validation.published import (
    CIFAR10_STATISTICS,
    DEFAULT,
    ELSEWHERE,
    FOLDER_OF_ALL,
    PUBLISHED,
    DriveFile,
    published,
)

CONTENT = b'the weights' * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = 'https://drive.google.com/drive/folders/x'


class DownloadError(Exception):
    """As `gdown.DownloadError`."""


class Drive(types.SimpleNamespace):
    """A simulated `gdown`: raises `faults`, then returns `content`; folders contain `names`."""

    DownloadError = DownloadError

    def __init__(self):
        super().__init__(content=CONTENT, faults=[], names=(), calls=[])

    def download(self, id, output, resume, **settings):
        self.calls.append(dict(settings, id=id, output=output, resume=resume))
        if resume and pathlib.Path(output).is_file():
            return output
        if self.faults:
            raise self.faults.pop(0)
        pathlib.Path(output).write_bytes(self.content)
        return output

    def download_folder(self, id, skip_download, **settings):
        self.calls.append(dict(settings, id=id, skip_download=skip_download))
        if self.faults:
            raise self.faults.pop(0)
        return [types.SimpleNamespace(id=f'id of {name}', path=name) for name in self.names]


@pytest.fixture
def drive(monkeypatch):
    drive = Drive()
    monkeypatch.setitem(sys.modules, 'gdown', drive)
    return drive


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'models' / 'checkpoint.pth'


def names_in(folder):
    return [file.name for file in folder.iterdir()]


def check_error(call, *words):
    """Return the message of the UserError of a call; check that it is one line with `words`."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert '\n' not in message and all(word in message for word in words), message
    return message


# Downloads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('sha256', [None, SHA256])
def test_a_file_is_downloaded_once(drive, path, sha256):
    file = DriveFile('id', 'checkpoint.pth', sha256)
    for _ in range(2):
        assert fetch(file, path, PAGE) == path
        assert path.read_bytes() == CONTENT and names_in(path.parent) == ['checkpoint.pth']
    (call,) = drive.calls
    assert call['id'] == 'id' and call['output'] == f'{path}.part' and call['resume']


@pytest.mark.parametrize(
    'fault',
    [
        ConnectionError('connection\nreset'),
        OSError(28, 'No space left on device'),
        DownloadError('quota\nexceeded'),
    ],
)
def test_an_interrupted_download(drive, path, fault):
    """A one-line error explains how to get the file by hand; the next call downloads it."""
    drive.faults = [fault]
    file = DriveFile('id', 'checkpoint.pth')
    check_error(lambda: fetch(file, path, PAGE), ' '.join(str(fault).split()), PAGE, str(path))
    assert not path.exists()
    assert fetch(file, path, PAGE).read_bytes() == CONTENT


def test_an_interruption_before_the_rename(drive, path):
    """A complete NAME.part is verified and used, not downloaded again."""
    path.parent.mkdir()
    path.with_name('checkpoint.pth.part').write_bytes(CONTENT)
    drive.content = b'other'
    assert fetch(DriveFile('id', 'checkpoint.pth', SHA256), path, PAGE).read_bytes() == CONTENT
    assert names_in(path.parent) == ['checkpoint.pth']


def test_another_digest_than_expected(drive, path):
    """A download with a wrong digest is deleted; an existing file is not."""
    drive.content, file = b'other', DriveFile('id', 'checkpoint.pth', SHA256)
    check_error(lambda: fetch(file, path, PAGE), SHA256, hashlib.sha256(b'other').hexdigest())
    assert names_in(path.parent) == []
    path.write_bytes(b'other')
    check_error(lambda: fetch(file, path, PAGE), SHA256, str(path), 'delete the file')
    assert path.read_bytes() == b'other'
    path.unlink()
    drive.content = CONTENT
    assert fetch(file, path, PAGE).read_bytes() == CONTENT


def test_without_gdown(path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gdown', None)
    check_error(lambda: fetch(DriveFile('id', 'checkpoint.pth'), path, PAGE), 'pip install gdown')
    check_error(lambda: fetch_published('vp/cifar10_ddpm', path), 'pip install gdown')


def test_a_destination_that_cannot_be_written(drive, tmp_path):
    (tmp_path / 'file').write_text('')
    place = tmp_path / 'file' / 'checkpoint.pth'
    check_error(lambda: fetch(DriveFile('id', 'checkpoint.pth'), place, PAGE), str(place))


def test_gdown_accepts_these_arguments(drive, tmp_path, monkeypatch):
    fetch_statistics(tmp_path)
    drive.names = ('checkpoint_3.pth',)
    fetch_published('vp/cifar10_ddpm', tmp_path)
    monkeypatch.undo()
    gdown = pytest.importorskip('gdown')
    download, listing, _ = drive.calls
    inspect.signature(gdown.download).bind(**download)
    inspect.signature(gdown.download_folder).bind(**listing)
    assert issubclass(gdown.DownloadError, Exception)


# The published files ------------------------------------------------------------------------------


@pytest.mark.parametrize('name', DEFAULT)
def test_files_of_the_2021_release_have_separate_folders(drive, tmp_path, name):
    file = published(name).file
    path = fetch_published(name, tmp_path)
    assert path == tmp_path / name.replace('/', '_') / file.name
    assert drive.calls[0]['id'] == file.file_id and path.read_bytes() == CONTENT


def test_published_statistics(drive, tmp_path):
    assert fetch_statistics(tmp_path) == tmp_path / 'cifar10_stats.npz'
    assert drive.calls[0]['id'] == CIFAR10_STATISTICS.file_id


@pytest.mark.parametrize('number, chosen', [(None, 9), (9, 9), (12, 12)])
def test_checkpoints_in_folders(drive, tmp_path, number, chosen):
    """The default is the smallest number; an existing file is not downloaded again."""
    name = 'vp/cifar10_ddpm'
    drive.names = ('log.txt', 'vp/checkpoint_12.pth', 'vp/checkpoint_9.pth', 'checkpoint_x.pth')
    path = fetch_published(name, tmp_path, number)
    assert path == tmp_path / 'vp_cifar10_ddpm' / f'checkpoint_{chosen}.pth'
    listing, download = drive.calls
    assert listing['id'] == published(name).folder and listing['skip_download']
    assert download['id'] == f'id of vp/checkpoint_{chosen}.pth'
    assert fetch_published(name, tmp_path, number) == path and len(drive.calls) == 2


def test_checkpoints_downloaded_by_hand(drive, tmp_path):
    place = tmp_path / 'vp_cifar10_ddpm'
    place.mkdir()
    for number in (26, 7):
        (place / f'checkpoint_{number}.pth').write_bytes(CONTENT)
    (place / 'checkpoint_2.pth.part').write_bytes(b'')
    assert fetch_published('vp/cifar10_ddpm', tmp_path) == place / 'checkpoint_7.pth'
    assert fetch_published('vp/cifar10_ddpm', tmp_path, 26) == place / 'checkpoint_26.pth'
    assert drive.calls == []


def test_folders_that_cannot_be_listed(drive, tmp_path):
    address = published('vp/cifar10_ddpm').address
    for number, file in ((None, 'checkpoint_N.pth'), (3, 'checkpoint_3.pth')):
        drive.faults = [DownloadError('no network')]
        place = tmp_path / 'vp_cifar10_ddpm' / file
        check_error(
            lambda number=number: fetch_published('vp/cifar10_ddpm', tmp_path, number),
            'no network',
            address,
            str(place),
        )
    drive.names = ('checkpoint_9.pth',)
    check_error(
        lambda: fetch_published('vp/cifar10_ddpm', tmp_path, 3), 'checkpoint 3', address, '[9]'
    )
    drive.names = ()
    check_error(
        lambda: fetch_published('vp/cifar10_ddpm', tmp_path), 'a checkpoint of', address, '[]'
    )


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
    ids = [model.folder for model in models]
    ids += [model.file.file_id for model in models if model.file]
    ids += [CIFAR10_STATISTICS.file_id, FOLDER_OF_ALL]
    assert len(ids) == len(set(ids)) == 20
    assert all(re.fullmatch(r'[A-Za-z0-9_-]{33}', one) for one in ids)
    assert {model.name for model in models if model.file} == set(DEFAULT)
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
    # the docstring of the config has the same numbers
    assert all(re.search(rf'(?<!\d){number:.2f}(?!\d)', expect) for number in numbers)


def test_an_unknown_name(tmp_path):
    message = check_error(lambda: fetch_published('ve/cifar10', tmp_path), "'ve/cifar10'")
    assert all(name in message for name in PUBLISHED)
