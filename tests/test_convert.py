"""Conversion of checkpoints keeps all values, and replaces files only if asked."""

import json
import pathlib
import pickle
import subprocess
import sys

import pytest
import safetensors.torch

import checkpoints
import convert
import run_lib
from checkpoints import formats
from configs import stored
from conftest import DATA, ROOT, load_config
from example_states import JAX, OFFICIAL, SMALL, randomized, same, small_ve, weights
from runtime.errors import CheckpointError, UserError


def test_safetensors_contain_the_weights_and_a_json_file_the_config(tmp_path):
    state, config = randomized(small_ve()), small_ve()
    checkpoints.save(tmp_path / 'a.pth', state)
    for kind in ('ema', 'raw'):
        convert.convert(tmp_path / 'a.pth', tmp_path / f'{kind}.safetensors', config, kind)
        same(
            safetensors.torch.load_file(tmp_path / f'{kind}.safetensors'),
            weights(state, kind == 'ema'),
        )
        found = stored.get_config(tmp_path / f'{kind}.json')
        assert json.loads(found.model.to_json()) == json.loads(config.model.to_json())
    with safetensors.safe_open(str(tmp_path / 'ema.safetensors'), 'pt') as file:
        assert file.metadata() == dict(format='pt', step='11', weights='averaged')


def test_missing_parts_of_a_training_state_are_logged(tmp_path, caplog):
    """Converting from safetensors logs that EMA weights and Adam moments are missing.

    Safetensors files contain one set of weights only; training states contain everything.
    """
    caplog.set_level('WARNING')
    convert.convert(DATA / OFFICIAL[0], tmp_path / 'a.pth', small_ve())
    convert.convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', small_ve())
    assert not caplog.messages
    convert.convert(tmp_path / 'b.safetensors', tmp_path / 'c' / 'c.pth')
    assert caplog.messages == [
        f'Wrote {tmp_path}/c/c.pth without Adam moments and with raw '
        'weights equal to the averaged ones: '
        f'{tmp_path}/b.safetensors (safetensors) does not contain them.'
    ]


def test_a_stored_config_that_cannot_be_read(tmp_path):
    for content in ('', '[]', '{"data": 3}', '{"data": {"dataset": "CIFAR10"}}'):
        (tmp_path / 'a.json').write_text(content)
        with pytest.raises(UserError, match='a.json is not a config'):
            stored.get_config(tmp_path / 'a.json')


def test_existing_files_are_replaced_only_with_overwrite(tmp_path):
    config = small_ve()
    for name in ('a.pth', 'a.safetensors'):
        (tmp_path / name).write_text('precious')
        with pytest.raises(UserError, match=f'{name} already exists: pass --overwrite'):
            convert.convert(DATA / JAX[0], tmp_path / name, config)
        assert (tmp_path / name).read_text() == 'precious'
        convert.convert(DATA / JAX[0], tmp_path / name, config, overwrite=True)
        assert (tmp_path / name).stat().st_size > 10**5
    with pytest.raises(UserError, match='a.json already exists'):
        (tmp_path / 'a.safetensors').unlink()
        convert.convert(DATA / JAX[0], tmp_path / 'a.safetensors', config)
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'precious.jpg').write_text('precious')
    with pytest.raises(UserError, match='exists and is not a diffusers checkpoint'):
        convert.convert(DATA / JAX[0], tmp_path / 'photos', config, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.json', 'a.pth', 'photos']


def test_other_files_of_an_existing_folder_are_kept(tmp_path):
    config = load_config('configs.vp.ddpm.cifar10', dict(image_size=16), **SMALL | dict(nf=32))
    checkpoints.save(tmp_path / 'folder' / 'raw.pth', randomized(config))
    (tmp_path / 'folder' / 'config.json').write_text('{}')
    (tmp_path / 'folder' / 'thesis.txt').write_text('precious')
    convert.convert(tmp_path / 'folder' / 'raw.pth', tmp_path / 'folder', config, overwrite=True)
    assert (tmp_path / 'folder' / 'thesis.txt').read_text() == 'precious' and (
        tmp_path / 'folder' / 'raw.pth'
    ).is_file()
    assert (tmp_path / 'folder' / 'model_index.json').is_file() and len(
        list(tmp_path.iterdir())
    ) == 1


def test_nan_weights_are_converted_unchanged(tmp_path):
    """Conversion does not check for NaN weights; the validation does."""
    state = randomized(small_ve())
    next(state['model'].parameters()).data[0] = float('nan')
    checkpoints.save(tmp_path / 'a.pth', state)
    convert.convert(tmp_path / 'a.pth', tmp_path / 'b.pth', small_ve())
    convert.convert(tmp_path / 'a.pth', tmp_path / 'c.safetensors', small_ve(), 'raw')
    assert any(
        value.isnan().any()
        for value in safetensors.torch.load_file(tmp_path / 'c.safetensors').values()
    )


def test_destinations_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be written'):
        convert.convert(DATA / OFFICIAL[0], tmp_path / 'file' / 'a.pth', small_ve())
    (tmp_path / 'b').write_text('')
    with pytest.raises(UserError, match='exists and is not a diffusers checkpoint'):
        convert.convert(DATA / JAX[0], tmp_path / 'b', small_ve(), overwrite=True)

    def denied(*_):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(pathlib.Path, 'is_dir', denied)
    with pytest.raises(CheckpointError, match='cannot be read: Permission denied'):
        formats.guess(DATA / OFFICIAL[0])


def test_missing_arguments_raise_an_error(tmp_path):
    with pytest.raises(UserError, match='contains no config: pass --config'):
        convert.convert(DATA / OFFICIAL[0], tmp_path / 'a.safetensors')
    with pytest.raises(UserError, match='must end in'):
        convert.convert(DATA / OFFICIAL[0], tmp_path / 'a.onnx', small_ve())
    with pytest.raises(CheckpointError, match='checkpoint .* does not exist'):
        convert.convert(tmp_path / 'none.pth', tmp_path / 'a.safetensors', small_ve())


class Trap:
    def __reduce__(self):
        return pathlib.Path.write_text, (pathlib.Path('sprung'), 'x')


def test_files_that_are_no_checkpoints_raise_an_error(tmp_path, monkeypatch):
    """Files that are no checkpoints raise a one-line error, and no code in them is executed."""
    monkeypatch.chdir(tmp_path)
    contents = {
        'empty.pth': b'',
        'text.pth': b'hello, world',
        'page.pth': b'<!doctype html>',
        'zeros.pth': bytes(1000),
        'pickle.pth': pickle.dumps([Trap()]),
        'map': b'\x81\xa1a\x01',
        'short.safetensors': b'\x10\0\0\0\0\0\0\0{"a":',
        'list.pth': pickle.dumps([1, 2]),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / 'folder').mkdir()
    for name in [*contents, 'folder']:
        with pytest.raises(CheckpointError) as caught:
            checkpoints.restore(tmp_path / name, run_lib.create_state(small_ve()))
        assert name in str(caught.value) and '\n' not in str(caught.value)
    assert not (tmp_path / 'sprung').exists()


def command(*arguments, script='convert.py'):
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


SIZE = [
    '--config',
    'configs/ve/cifar10_ncsnpp_continuous.py',
    '--config.data.image_size=16',
    '--config.model.nf=8',
    '--config.model.ch_mult=(1,2,2)',
    '--config.model.num_res_blocks=1',
    '--config.model.attn_resolutions=(8,)',
]


def test_the_command(tmp_path):
    """convert.py writes a checkpoint and its config, and main.py draws samples with them."""
    done = command(DATA / JAX[0], tmp_path / 'a.safetensors', *SIZE)
    assert done.returncode == 0 and '(flax, step 600000, 0.1 million parameters)' in done.stderr, (
        done.stderr
    )
    done = command(
        '--config',
        f'configs/stored.py:{tmp_path}/a.json',
        '--config.sampling.steps=2',
        '--config.device=cpu',
        '--checkpoint',
        tmp_path / 'a.safetensors',
        '--workdir',
        tmp_path,
        '--mode',
        'sample',
        '--num_samples',
        2,
        script='main.py',
    )
    assert done.returncode == 0 and (tmp_path / 'generated' / '00001.png').is_file(), done.stderr


def test_errors_of_the_command(tmp_path):
    """Tensors that do not fit are listed by key; every other error is one line."""
    (tmp_path / 'a.json').write_text('{}')
    (tmp_path / 'a.safetensors').write_text('')
    done = command(DATA / JAX[0], tmp_path / 'b.pth', *SIZE, '--config.model.num_res_blocks=2')
    lines = done.stderr.strip().splitlines()
    assert (
        done.returncode == 1
        and lines[0].startswith('error: ')
        and 'lacks' in lines[0]
        and len(lines) > 50
    )
    assert all(
        line.startswith(('  missing: ', '  unexpected: ', '  shape mismatch: '))
        for line in lines[1:]
    )
    for source, destination, config, words in (
        (DATA / JAX[0], '', (), 'SOURCE and DESTINATION'),
        (DATA / JAX[0], tmp_path / 'a.safetensors', SIZE, '--overwrite'),
        (tmp_path / 'a.json', tmp_path / 'c.pth', SIZE, 'not a checkpoint of a known format'),
        (
            DATA / JAX[0],
            tmp_path / 'd.pth',
            ['--config', f'configs/stored.py:{tmp_path}/none.json'],
            'is not a config',
        ),
    ):
        done = command(source, *([destination] if destination else []), *config)
        assert (
            done.returncode == 1
            and words in done.stderr
            and len(done.stderr.strip().splitlines()) == 1
        ), done.stderr
