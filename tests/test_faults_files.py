"""Corrupt and hostile files: corruption is always detected, and no code is executed."""

import builtins
import errno
import functools
import io
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch

import checkpoints
from checkpoints import files
from checkpoints.formats import torch_zip
from conftest import ROOT
from runtime.errors import CheckpointError

KEYS = dict(
    model={'module.w': torch.arange(300.0)},
    ema=dict(decay=0.9, num_updates=3, shadow_params=[torch.arange(300.0)]),
    step=7,
)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp('whole') / 'a.pth'
    checkpoints.save(path, KEYS)
    return path.read_bytes()


def test_a_file_with_checksum_is_a_valid_zip_archive(whole, tmp_path):
    (tmp_path / 'a.pth').write_bytes(whole)
    # readable like a file of the 2021 release, and by any zip program
    assert torch.load(tmp_path / 'a.pth', weights_only=True)['step'] == 7
    with zipfile.ZipFile(tmp_path / 'a.pth') as archive:
        assert archive.testzip() is None and archive.comment.startswith(b'sha256:')


def test_every_flipped_byte_is_noticed(whole, tmp_path):
    """A flipped bit is detected in 200 random bytes, and in each of the last 100, with the seal."""
    places = [
        *np.random.default_rng(0).integers(0, len(whole), 200),
        *range(len(whole) - 100, len(whole)),
    ]
    for place in places:
        corrupt = bytearray(whole)
        corrupt[place] ^= 1 << int(place % 8)
        (tmp_path / 'a.pth').write_bytes(corrupt)
        with pytest.raises(CheckpointError, match='a.pth'):
            checkpoints.load(tmp_path / 'a.pth')


def test_every_truncation_is_noticed(whole, tmp_path):
    for size in [*(len(whole) * i // 16 for i in range(16)), *range(len(whole) - 100, len(whole))]:
        (tmp_path / 'a.pth').write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match='a.pth'):
            checkpoints.load(tmp_path / 'a.pth')


def test_flipped_bytes_in_files_without_checksum(tmp_path):
    """Without a seal, the CRCs of the zip archive detect a changed byte."""
    torch.save(KEYS, tmp_path / 'a.pth')
    content = (tmp_path / 'a.pth').read_bytes()
    assert checkpoints.load(tmp_path / 'a.pth')['step'] == 7
    place = content.index(struct.pack('<3f', 100, 101, 102))
    (tmp_path / 'a.pth').write_bytes(content[:place] + b'\x01' + content[place + 1 :])
    with pytest.raises(CheckpointError, match='is corrupt: CRC mismatch in'):
        checkpoints.load(tmp_path / 'a.pth')


class Limited(io.FileIO):
    """A file on a disk that is full or fails after a number of bytes."""

    left, fault = 2000, errno.ENOSPC

    def write(self, data):
        Limited.left -= len(data)
        if Limited.left < 0:
            raise OSError(Limited.fault, os.strerror(Limited.fault))
        return super().write(data)


@pytest.mark.parametrize('bytes_left', [0, 100, 2000, 3000])
@pytest.mark.parametrize('fault', [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails(whole, tmp_path, monkeypatch, fault, bytes_left):
    path = tmp_path / 'a.pth'
    path.write_bytes(whole)

    def limited(name, mode='r', **settings):
        return (
            Limited(name, mode)
            if '.partial' in str(name) and 'w' in mode
            else builtins.open(name, mode, **settings)
        )

    monkeypatch.setattr(files, 'open', limited, raising=False)
    monkeypatch.setattr(Limited, 'left', bytes_left)
    monkeypatch.setattr(Limited, 'fault', fault)
    with pytest.raises(
        CheckpointError, match='cannot be written.*Earlier checkpoints are unchanged'
    ) as caught:
        checkpoints.save(path, KEYS, keep_previous=True)
    assert os.strerror(fault) in str(caught.value) and '\n' not in str(caught.value)
    assert path.read_bytes() == whole and [file.name for file in tmp_path.iterdir()] == ['a.pth']


@pytest.mark.parametrize('name', ['replace', 'fsync', 'link'])
def test_a_call_that_fails(whole, tmp_path, monkeypatch, name):
    """If renaming or flushing fails, the old file remains.

    On a file system without hard links the old file is renamed instead.
    """
    path = tmp_path / 'a.pth'
    path.write_bytes(whole)

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, name, broken)
    if name == 'link':
        checkpoints.save(path, KEYS | dict(step=8), keep_previous=True)
        assert (
            checkpoints.load(path)['step'] == 8
            and checkpoints.load(checkpoints.previous(path))['step'] == 7
        )
        return
    with pytest.raises(CheckpointError, match=os.strerror(errno.EIO)):
        checkpoints.save(path, KEYS)
    assert path.read_bytes() == whole and [file.name for file in tmp_path.iterdir()] == ['a.pth']


def test_without_hard_links_one_of_the_two_files_always_exists(whole, tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    path.write_bytes(whole)
    replace, calls = os.replace, []

    def broken(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    def unsupported(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, 'replace', broken)
    monkeypatch.setattr(os, 'link', unsupported)
    with pytest.raises(CheckpointError, match='cannot be written'):
        checkpoints.save(path, KEYS, keep_previous=True)
    assert checkpoints.load(checkpoints.previous(path))['step'] == 7


def test_saving_does_not_wait_for_the_writer(tmp_path, monkeypatch):
    """A slow writer does not block training.

    The saved state is that of the call, and a failure is reported.
    """
    state = dict(model={'w': torch.zeros(3)})
    write = files._write

    def slow(*arguments):
        time.sleep(0.3)
        write(*arguments)

    monkeypatch.setattr(files, '_write', slow)
    with checkpoints.Saver() as saver:
        for i in range(2):
            started = time.monotonic()
            saver.save(tmp_path / f'checkpoint_{i}.pth', state)
            assert time.monotonic() - started < 0.1
            state['model']['w'] += 1
        saver.wait()
        assert [
            checkpoints.load(tmp_path / f'checkpoint_{i}.pth')['model']['w'][0].item()
            for i in range(2)
        ] == [0, 1]

    def broken(*_):
        raise CheckpointError('cannot be written')

    monkeypatch.setattr(files, '_write', broken)
    with pytest.raises(CheckpointError, match='cannot be written'), checkpoints.Saver() as saver:
        saver.save(tmp_path / 'checkpoint_9.pth', state)


class Trap:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


CODE = 'contains code, .* it imports'
UNREAD = 'contains code|not a training state|cannot be read'


def saved(content, **settings):
    return functools.partial(torch.save, content, **settings)


def pickled(content, protocol):
    return lambda path: path.write_bytes(pickle.dumps(content, protocol))


def written(content):
    return lambda path: path.write_bytes(content)


def archive(compression=zipfile.ZIP_STORED, version=b'3', **entries):
    def make(path):
        with zipfile.ZipFile(path, 'w', compression) as file:
            for name, content in dict(entries, version=version).items():
                file.writestr(f'a/{name.replace("_", ".")}', content)

    return make


def cut(count):
    def make(path):
        checkpoints.save(path, KEYS)
        path.write_bytes(path.read_bytes()[:-count])

    return make


def files_with_code(folder):
    """Return {file name: (function that writes it, words of the error)} of files with code.

    The code would create the file `folder`/sprung.
    """
    system = {'model': Trap(os.system, f'touch {folder}/sprung')}
    opening = f'open("{folder}/sprung", "w")'
    popen = Trap(subprocess.Popen, ['touch', f'{folder}/sprung'])
    old = dict(_use_new_zipfile_serialization=False)
    return {
        'system.pth': (saved(system), CODE),
        'eval.pth': (saved({'model': {}, 'x': Trap(eval, opening)}), f'{CODE} eval'),
        'exec.pth': (saved({'model': {}, 'x': [Trap(exec, opening)]}), f'{CODE} exec'),
        'popen.pth': (saved({'model': {}, 'x': popen}), f'{CODE} .*Popen'),
        'getattr.pth': (
            saved({'model': {}, 'x': Trap(getattr, 'x', 'upper')}),
            'contains code|cannot be read',
        ),
        'old_system.pth': (saved(system, **old), CODE),
        'pickle.pth': (pickled(system, 2), 'contains code|cannot be read'),
        'pickle4.pth': (pickled(system, 4), 'contains code|cannot be read'),
    }


def other_files():
    """Return {file name: (function that writes it, words of the error)} of other files.

    None of them is a checkpoint.
    """
    deep = b'\x80\x02' + b'(' * 100_000 + b'l' * 100_000 + b'.'
    bomb = archive(zipfile.ZIP_DEFLATED, data_pkl=bytes(50_000_000))
    found = {
        'numpy.pth': (saved({'model': np.arange(5)}), UNREAD),
        'bomb.pth': (bomb, 'compressed or overlap'),
        'no_pickle.pth': (archive(), 'cannot be read'),
        'bad_pickle.pth': (archive(data_pkl=b'\x80\x02garbage.'), 'contains code|cannot be read'),
        'deep.pth': (archive(data_pkl=deep), UNREAD),
        'list.pth': (saved([1, 2, 3]), 'not a training state'),
        'number.pth': (saved(3.0), 'not a training state'),
        'other.pth': (saved({'weights': {}}), "lacks the entry 'model'"),
        'text.pth': (written(b'hello'), 'cannot be read'),
        'html.pth': (written(b'<!doctype html>'), 'cannot be read'),
        'zeros.pth': (written(bytes(10_000)), 'cannot be read'),
        'empty.pth': (written(b''), 'cannot be read'),
    }
    for i in range(15):
        noise = b'PK' + np.random.default_rng(i).bytes(5000)
        found[f'cut_{i}.pth'] = (cut(500 * (i + 1)), 'corrupt|cannot be read')
        found[f'noise_{i}.pth'] = (written(noise), 'corrupt|cannot be read')
    for i in range(10):
        data = b'\x80\x02' + np.random.default_rng(i).bytes(300)
        found[f'random_{i}.pth'] = (archive(data_pkl=data), 'contains code|cannot be read')
    return found


def test_hostile_files_raise_an_error(tmp_path):
    """Each file raises a one-line error with its name; no code is executed."""
    hostile = files_with_code(tmp_path) | other_files()
    assert len(hostile) == 60
    for name, (make, words) in hostile.items():
        make(tmp_path / name)
        with pytest.raises(CheckpointError, match=words) as caught:
            checkpoints.load(tmp_path / name)
        assert name in str(caught.value) and '\n' not in str(caught.value), name
    assert not (tmp_path / 'sprung').exists()


@pytest.mark.parametrize('kind', ['compressed', 'sealed', 'bytearray', 'old'])
def test_memory_is_bounded(tmp_path, kind):
    """Small files that would need gigabytes raise an error without using that memory.

    Each file is loaded in a separate process, whose memory is measured.
    """
    path = tmp_path / 'bomb.pth'
    if kind == 'bytearray':
        torch.save({'model': {}, 'x': Trap(bytearray, 3_000_000_000)}, path)
    elif kind == 'old':
        torch.save(
            {'model': {}, 'x': Trap(bytearray, 3_000_000_000)},
            path,
            _use_new_zipfile_serialization=False,
        )
    else:
        with (
            zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive,
            archive.open('a/data.pkl', 'w', force_zip64=True) as file,
        ):
            for _ in range(60):
                file.write(bytes(2**24))
        if kind == 'sealed':
            with open(path, 'r+b') as file:
                torch_zip.seal(file)
    assert path.stat().st_size < 2_000_000
    code = (
        'import resource, torch, checkpoints\nfrom runtime.errors import CheckpointError\n'
        'before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
        f'try: checkpoints.load({str(path)!r})\nexcept CheckpointError as error: print(error)\n'
        'print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    message, grown = done.stdout.splitlines()
    assert 'bomb.pth' in message and int(grown) < 200_000, done.stdout  # KiB


def test_a_tensor_larger_than_its_file_raises_an_error(tmp_path):
    """A tensor that claims far more values than the file has bytes raises an error."""
    torch.save(
        {'model': {'w': torch.zeros(10)}}, tmp_path / 'a.pth', _use_new_zipfile_serialization=False
    )
    content = (tmp_path / 'a.pth').read_bytes()
    claims = content.replace(b'K\n', b'\x8a\x05\x00\x00\x00\x00\x10')  # 10 -> 2^36
    assert claims != content
    (tmp_path / 'a.pth').write_bytes(claims)
    with pytest.raises(CheckpointError):
        checkpoints.load(tmp_path / 'a.pth')


def test_scalars_of_the_2021_release_are_read(tmp_path):
    torch.save(
        {'model': {}, 'lr': np.float64(0.5), 'n': np.int64(3), 'x': np.float32(2)},
        tmp_path / 'a.pth',
    )
    assert torch_zip.load(tmp_path / 'a.pth')['lr'] == 0.5
