"""Errors of `--mode control`: one line that names the cause, and no results."""

import zipfile

import numpy as np
import pytest
from PIL import Image

import checkpoints
import run_lib
import score_model
from control_runs import CONFIGS, SIZE, error_of, pictures, written


@pytest.fixture(scope='module')
def files(place):
    """Return a folder of pictures, checkpoints and untrained classifiers, some of them faulty."""
    folder = place / 'files'
    written(folder / 'one', pictures(1))
    written(folder / 'four', pictures(4))
    (folder / 'empty').mkdir()
    (folder / 'text.png').write_text('not a picture')
    content = (folder / 'one' / '0.png').read_bytes()
    (folder / 'cut.png').write_bytes(content[: len(content) // 2])
    (folder / 'broken').mkdir()
    (folder / 'broken' / 'a.png').write_bytes(content)
    (folder / 'broken' / 'b.png').write_bytes(content[:60])
    for name, value in (('white', 255), ('black', 0), ('dark', 127)):
        Image.fromarray(np.full((SIZE, SIZE), value, np.uint8)).save(folder / f'{name}.png')
    with zipfile.ZipFile(folder / 'no_pictures.zip', 'w') as archive:
        archive.writestr('notes.txt', 'nothing')
    changes = {
        'sde': ('training', 'sde', 'subvpsde'),
        'beta': ('model', 'beta_max', 15.0),
        'scaling': ('data', 'centered', False),
    }
    for name, (section, key, value) in changes.items():
        config = CONFIGS['classifier'](place)
        config[section][key] = value
        checkpoints.save(
            folder / f'other_{name}.pth',
            run_lib.create_state(config) | dict(config=config.to_json()),
        )
    config = CONFIGS['classifier'](place)
    config.data.image_size = 16
    checkpoints.save(
        folder / 'other_size.pth', run_lib.create_state(config) | dict(config=config.to_json())
    )
    return folder


FAULTS = {
    'no task': ('', {}, ['--task must be one of inpaint, ', "mix, got ''"]),
    'unknown task': ('paint', {}, ['--task must be one of inpaint, ', "mix, got 'paint'"]),
    'no mask': ('inpaint', dict(mask=''), ['--mask', 'center', 'most']),
    'unknown mask': ('inpaint', dict(mask='middle'), ["'middle'", 'center', 'most']),
    'no such mask file': (
        'inpaint',
        dict(mask='{files}/none.png'),
        ['--mask={files}/none.png: not found'],
    ),
    'mask that is not a picture': ('inpaint', dict(mask='{files}/text.png'), ['{files}/text.png']),
    'white mask': (
        'inpaint',
        dict(mask='{files}/white.png'),
        ['--mask', '{files}/white.png', 'white'],
    ),
    'black mask': (
        'inpaint',
        dict(mask='{files}/black.png'),
        ['--mask', '{files}/black.png', 'black'],
    ),
    'dark mask': (
        'inpaint',
        dict(mask='{files}/dark.png'),
        ['--mask', '{files}/dark.png', 'black'],
    ),
    'mask for classes': ('classes', dict(mask='left'), ['--mask', '--task=classes']),
    'mask for upscale2': ('upscale2', dict(mask='left'), ['--mask', '--task=upscale2']),
    'labels not numbers': ('inpaint', dict(labels='three'), ['--labels=three', '3,5,8']),
    'labels with a gap': ('inpaint', dict(labels='3,,8'), ['--labels=3,,8', '3,5,8']),
    'labels too large': ('inpaint', dict(labels='9' * 30), ['--labels=9999', '3,5,8']),
    'label out of range': (
        'classes',
        dict(labels='3,10', name='classes'),
        ['--labels', '0 .. 9', 'network'],
    ),
    'negative label': (
        'classes',
        dict(labels='-1', name='classes'),
        ['--labels', '0 .. 9', 'network'],
    ),
    'label out of range of a classifier': (
        'classes',
        dict(labels='10', classifier='{place}/classifier'),
        ['--labels', '0 .. 9', 'classifier'],
    ),
    'labels for reconstruct': (
        'reconstruct',
        dict(labels='3', name='classes'),
        ['--labels', '--task=reconstruct'],
    ),
    'labels for mix': ('mix', dict(labels='3', name='classes'), ['--labels', '--task=mix']),
    'labels without a guide': (
        'inpaint',
        dict(labels='3'),
        ['--labels', 'config.model.num_classes', '--classifier'],
    ),
    'classes without labels': ('classes', dict(labels='', name='classes'), ['--labels', '3,5,8']),
    'wrong number of labels': (
        'inpaint',
        dict(labels='3,5', name='classes'),
        ['--labels=3,5', '4'],
    ),
    'classifier without labels': (
        'inpaint',
        dict(classifier='{place}/classifier'),
        ['--classifier', '--labels'],
    ),
    'classifier for reconstruct': (
        'reconstruct',
        dict(classifier='{place}/classifier'),
        ['--classifier', '--task=reconstruct'],
    ),
    'classifier of another SDE': (
        'inpaint',
        dict(labels='3', classifier='{files}/other_sde.pth'),
        ['other_sde.pth', 'training.sde', 'subvpsde', 'vpsde'],
    ),
    'classifier of other noise levels': (
        'inpaint',
        dict(labels='3', classifier='{files}/other_beta.pth'),
        ['other_beta.pth', 'model.beta_max', '15.0', '20'],
    ),
    'classifier of another size': (
        'inpaint',
        dict(labels='3', classifier='{files}/other_size.pth'),
        ['other_size.pth', 'data.image_size', '16', '8'],
    ),
    'classifier of another scaling': (
        'inpaint',
        dict(labels='3', classifier='{files}/other_scaling.pth'),
        ['other_scaling.pth', 'data.centered', 'False'],
    ),
    'no classifier': (
        'inpaint',
        dict(labels='3', classifier='{place}/plain'),
        ['checkpoint_1.pth', '--mode classifier'],
    ),
    'no classifier at the path': (
        'inpaint',
        dict(labels='3', classifier='{files}/none.pth'),
        ['{files}/none.pth'],
    ),
    'no classifier in a folder': (
        'inpaint',
        dict(labels='3', classifier='{files}/empty'),
        ['{files}/empty'],
    ),
    'measured without input': ('upscale2', dict(measured=True), ['--measured', '--input']),
    'measured for inpaint': (
        'inpaint',
        dict(measured=True, input='{files}/four'),
        ['--measured', '--task=inpaint'],
    ),
    'measured for colorize': (
        'colorize',
        dict(measured=True, input='{files}/four', name='colour'),
        ['--measured', '--task=colorize'],
    ),
    'input for classes': (
        'classes',
        dict(input='{files}/four', name='classes'),
        ['--input', '--task=classes'],
    ),
    'interpolate with one': (
        'interpolate',
        dict(input='{files}/one'),
        ['--task=interpolate', '2 pictures'],
    ),
    'mix with one': ('mix', dict(input='{files}/one'), ['--task=mix', '2 pictures']),
    'no such input': ('inpaint', dict(input='{files}/none'), ['{files}/none']),
    'no such input file': ('inpaint', dict(input='{files}/none.png'), ['{files}/none.png']),
    'empty folder': ('inpaint', dict(input='{files}/empty'), ['{files}/empty', 'no pictures']),
    'zip file without pictures': (
        'inpaint',
        dict(input='{files}/no_pictures.zip'),
        ['no_pictures.zip', 'no pictures'],
    ),
    'no picture': (
        'inpaint',
        dict(input='{files}/text.png'),
        ['{files}/text.png', 'not a picture'],
    ),
    'broken picture': ('inpaint', dict(input='{files}/cut.png'), ['{files}/cut.png', 'decoded']),
    'broken picture among others': (
        'inpaint',
        dict(input='{files}/broken'),
        ['{files}/broken', 'b.png'],
    ),
    'ode for a measurement': (
        'inpaint',
        {'sampling.method': 'ode'},
        ['config.sampling', "method='ode' does not support", 'heun'],
    ),
    'grey for colorize': ('colorize', {}, ['--task=colorize', 'one channel']),
    'blur of size zero': (
        'deblur',
        {'control.blur': 0.0},
        ['config.control.blur must be a number in (0, 1000], got 0.0'],
    ),
    'zero resampling steps': (
        'inpaint',
        {'control.resample': 0},
        ['config.control.resample must be an integer >= 1, got 0'],
    ),
    'guidance without its training': (
        'classes',
        {'name': 'classes', 'sampling.guidance': 2.0, 'model.label_dropout': 0.0},
        ['config.sampling.guidance=2.0', 'config.model.label_dropout'],
    ),
    'no such checkpoint': ('inpaint', dict(checkpoint='{files}/none.pth'), ['{files}/none.pth']),
    'checkpoint of another network': (
        'inpaint',
        dict(checkpoint='{place}/classes/checkpoints/checkpoint_1.pth'),
        ['checkpoint_1.pth', 'config.model.num_classes=0 differs from 10'],
    ),
    'checkpoint of a classifier': (
        'inpaint',
        dict(checkpoint='{place}/classifier/checkpoints/checkpoint_1.pth'),
        ['checkpoint_1.pth', "config.model.name='ncsnpp' differs from 'wideresnet'"],
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_faults_raise_a_one_line_error(place, files, fault):
    task, settings, words = FAULTS[fault]
    settings = {
        key: value.format(place=place, files=files) if isinstance(value, str) else value
        for key, value in settings.items()
    }
    name = settings.pop('name', 'plain')
    config = CONFIGS[name](place)
    with config.unlocked():
        config.update_from_flattened_dict(
            {key: settings.pop(key) for key in list(settings) if '.' in key}
        )
    message = error_of(config, place / name, task, **settings)
    assert all(word.format(place=place, files=files) in message for word in words), message


@pytest.mark.parametrize(
    'fault',
    [
        'no mask',
        'unknown mask',
        'no such mask file',
        'white mask',
        'labels not numbers',
        'labels without a guide',
        'classes without labels',
        'label out of range',
        'classifier without labels',
        'wrong number of labels',
        'grey for colorize',
        'ode for a measurement',
    ],
)
def test_faults_are_reported_before_the_checkpoint_is_loaded(
    place, files, fault, tmp_path, monkeypatch
):
    monkeypatch.setattr(score_model, 'load_averaged_model', None)
    test_faults_raise_a_one_line_error(place, files, fault)


def test_control_without_a_score_network_raises_an_error(place, tmp_path):
    assert 'train first' in error_of(CONFIGS['plain'](place), tmp_path / 'w', 'inpaint')
    message = error_of(CONFIGS['classifier'](place), place / 'classifier', 'inpaint')
    assert "config.model.name must be a score network, got the classifier 'wideresnet'" in message
