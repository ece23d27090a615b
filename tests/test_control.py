"""`--mode control` with small trained networks: tasks, inputs and results."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import score_model
from commands import control
from conftest import run_main
from control import measurements
from control_runs import (
    CONFIGS,
    IMAGES,
    RESULTS,
    SIZE,
    TASKS,
    TINY,
    blocks,
    error_of,
    pictures,
    run,
    tiles,
    written,
)
from score_model import ScoreModel

# Small trained networks ---------------------------------------------------------------------------


@pytest.mark.parametrize('task', TASKS)
def test_every_task(place, tmp_path, task):
    """The result arrays have the right keys, shapes and types, and the gallery shows them."""
    name = {'classes': 'classes', 'colorize': 'colour'}.get(task, 'plain')
    channels = 3 if name == 'colour' else 1
    config = CONFIGS[name](place)
    config.control.update(resample=2, consistency=0.5)
    config.eval.batch_size = 5  # results come in more than one batch
    found, gallery = run(place, tmp_path, task, name, config)
    image, n = (SIZE, SIZE, channels), IMAGES
    shapes = dict(inputs=(n, *image), samples=(n, RESULTS, *image), known=(n, *image), nfe=())
    shapes = {
        'inpaint': shapes | dict(mask=(SIZE, SIZE)),
        'classes': dict(samples=(3, RESULTS, *image), nfe=(), labels=(3,)),
        'reconstruct': dict(
            inputs=(n, *image),
            codes=(n, channels, SIZE, SIZE),
            samples=(n, *image),
            mean_error=(n,),
            largest_error=(n,),
        ),
        'interpolate': dict(inputs=(n, *image), samples=(n // 2, 5, *image)),
        'temper': dict(inputs=(n, *image), samples=(n, 2, *image)),
        'mix': dict(inputs=(n, *image), samples=(n // 2, 3, *image)),
    }.get(task, shapes)
    assert {key: array.shape for key, array in found.items()} == shapes
    types = dict(
        inputs=np.uint8,
        samples=np.uint8,
        known=np.uint8,
        codes=np.float32,
        mask=np.bool_,
        labels=np.int64,
    )
    assert all(found[key].dtype == kind for key, kind in types.items() if key in found)
    assert all(np.isfinite(array).all() for array in found.values())
    rows, columns = {
        'classes': (3, RESULTS),
        'reconstruct': (n, 3),
        'interpolate': (n // 2, 7),
        'temper': (n, 3),
        'mix': (n // 2, 5),
    }.get(task, (n, 2 + RESULTS))
    shown = tiles(gallery, rows, columns)
    if 'known' in found:
        assert (
            shown
            == np.concatenate(
                [found['inputs'][:, None], found['known'][:, None], found['samples']], 1
            )
        ).all()
    if 'nfe' in found:  # 25 steps; with a measurement, all but the last are repeated
        assert found['nfe'] == (25 if task == 'classes' else 49)


def test_all_tasks_are_tested_and_their_names_are_reserved():
    assert sorted(control.TASKS) == sorted(TASKS) == sorted(measurements.RESERVED)


def test_inputs_are_test_images_of_the_data_set(place, tmp_path):
    """Inputs are different test images, chosen by the seed, with 17 grey levels spread over 256."""
    config = CONFIGS['plain'](place)
    images = datasets.get_split(config, 'test').images
    first = run(place, tmp_path, 'inpaint', config=config)[0]['inputs']
    positions = [
        np.flatnonzero((np.round(images * (255 / 16)) == image).all((1, 2, 3))) for image in first
    ]
    assert (
        all(len(found) for found in positions) and len({found[0] for found in positions}) == IMAGES
    )
    assert (first == run(place, tmp_path, 'upscale2', config=config)[0]['inputs']).all()
    config.seed += 1
    assert not (first == run(place, tmp_path, 'inpaint', config=config)[0]['inputs']).all()


def test_reconstruction_errors_are_in_8_bit_grey_levels(place, tmp_path):
    """Errors are in 8-bit grey levels, also for data with 17 grey levels."""
    config = CONFIGS['plain'](place)
    config.data.uniform_dequantization = False
    found = run(place, tmp_path, 'reconstruct', config=config)[0]
    x = torch.from_numpy(found['inputs']).permute(0, 3, 1, 2) / 255  # rounding to 8 bits: 0.5
    decoded = ScoreModel.load(place / 'plain', device='cpu').decode(
        found['codes'], rtol=0.1, atol=0.1
    )
    difference = 255 * (x - decoded).abs().flatten(1).numpy()
    np.testing.assert_allclose(found['mean_error'], difference.mean(1), atol=0.5)
    np.testing.assert_allclose(found['largest_error'], difference.max(1), atol=0.5)
    assert found['mean_error'].min() > 5


def test_results_depend_only_on_the_seed(place, tmp_path):
    """The same seed gives the same results, regardless of earlier draws; another seed does not."""
    folder = written(tmp_path / 'pictures', pictures(3)[..., 0])
    for name, task, key, settings in (
        ('plain', 'inpaint', 'samples', dict(input=folder)),
        ('classes', 'classes', 'samples', {}),
        # this task dequantizes randomly
        ('plain', 'reconstruct', 'codes', dict(input=folder / '0.png')),
    ):
        found = []
        for seed in (1, 1, 2):
            config = CONFIGS[name](place)
            config.seed = seed
            found.append(run(place, tmp_path, task, name, config, **settings)[0][key])
        assert (found[0] == found[1]).all() and not (found[0] == found[2]).all()
        assert task == 'reconstruct' or not (found[0][:, 0] == found[0][:, 1]).all()


MASKS = (*measurements.MASKS, 'half', 'most')


@pytest.mark.parametrize(
    'mask, source',
    [
        *((mask, 'pictures') for mask in (*MASKS, 'picture', 'large picture', 'grey picture')),
        ('left', 'data set'),
        ('picture', 'data set'),
    ],
)
def test_known_pixels_do_not_change(place, tmp_path, mask, source):
    """Known pixels do not change, although the data of the network have only 17 grey levels."""
    drawn = np.zeros((SIZE, SIZE), bool)
    drawn[1:3, 2:7] = True
    expected = measurements.named_mask(mask, SIZE, SIZE).bool().numpy() if mask in MASKS else drawn
    if mask not in MASKS:  # white is known; any size, threshold middle grey
        values = {'picture': (255, 0), 'large picture': (255, 0), 'grey picture': (140, 110)}[mask]
        image = np.where(drawn, *values).astype(np.uint8)
        image = image.repeat(4, 0).repeat(4, 1) if mask == 'large picture' else image
        mask = written(tmp_path / 'mask', [image]) / '0.png'
    images = pictures(3, low=0, high=256)[..., 0]
    found, _ = run(
        place,
        tmp_path,
        'inpaint',
        mask=mask,
        input=written(tmp_path / 'in', images) if source == 'pictures' else '',
    )
    assert (found['mask'] == expected).all()
    assert (found['samples'][:, :, expected] == found['inputs'][:, None, expected]).all()
    assert not (found['samples'][:, :, ~expected] == found['inputs'][:, None, ~expected]).all()
    assert (found['known'][:, ~expected] == found['known'][0, ~expected][0]).all()  # one grey
    if source == 'pictures':
        assert (found['inputs'][..., 0] == images).all()


@pytest.mark.parametrize(
    'guide, labels, expected',
    [
        ('network', '7', [7] * IMAGES),
        ('network', '7, 0,9,3', [7, 0, 9, 3]),
        ('classifier', '7,0,9,3', [7, 0, 9, 3]),
        ('classifier file', '7', [7] * IMAGES),
        ('both', '7,0,9,3', [7, 0, 9, 3]),
    ],
)
def test_labels_guide_inpainting(place, tmp_path, guide, labels, expected):
    """Labels guide inpainting: one label for all pictures, or one label for each."""
    name = 'classes' if guide in ('network', 'both') else 'plain'
    classifier = {
        'classifier': place / 'classifier',
        'both': place / 'classifier',
        'classifier file': place / 'classifier' / 'checkpoints' / 'checkpoint_1.pth',
    }.get(guide, '')
    config = CONFIGS[name](place)
    config.sampling.guidance = 5.0
    found = run(place, tmp_path, 'inpaint', name, config, labels=labels, classifier=classifier)[0]
    assert found['labels'].tolist() == expected and found['labels'].dtype == np.int64
    assert (found['samples'][:, :, found['mask']] == found['inputs'][:, None, found['mask']]).all()
    without = run(place, tmp_path, 'inpaint', name, config)[0]
    assert 'labels' not in without and (without['inputs'] == found['inputs']).all()
    assert not (without['samples'] == found['samples']).all()


@pytest.mark.parametrize('guide', ['network', 'classifier'])
def test_the_weight_of_the_guidance(place, tmp_path, guide):
    """With weight 0 the samples do not depend on the labels; with weight 5 they do."""
    name, classifier = ('classes', '') if guide == 'network' else ('plain', place / 'classifier')

    def samples(labels, weight):
        config = CONFIGS[name](place)
        config.sampling.guidance = weight
        return run(place, tmp_path, 'classes', name, config, labels=labels, classifier=classifier)[
            0
        ]['samples']

    assert (samples('1,2,3', 0.0) == samples('4,4,4', 0.0)).all()
    assert not (samples('1,2,3', 5.0) == samples('4,4,4', 5.0)).all()


def test_pictures_from_a_file_a_folder_and_a_zip_file(place, tmp_path):
    """Pictures (also in sub-folders) are sorted by name and cropped to the central square."""
    images = pictures(3)
    folder = written(tmp_path / 'some', images[:2])
    written(folder / 'deeper', [images[2]])  # some/deeper/0.png, after 0.png and 1.png
    (folder / 'notes.txt').write_text('no picture')
    archive = shutil.make_archive(str(tmp_path / 'archive'), 'zip', folder)
    for path, expected in ((folder / '1.png', images[1:2]), (folder, images), (archive, images)):
        assert (
            run(place, tmp_path, 'upscale2', 'colour', input=path)[0]['inputs'] == expected
        ).all()

    wide = np.zeros((16, 24, 3), np.uint8)
    wide[:, 4:20] = images[0].repeat(2, 0).repeat(2, 1)
    found = run(
        place, tmp_path, 'upscale2', 'colour', input=written(tmp_path / 'wide', [wide]) / '0.png'
    )[0]['inputs'][0]
    assert (
        found
        == np.asarray(Image.fromarray(wide).resize((SIZE, SIZE), Image.BICUBIC, box=(4, 0, 20, 16)))
    ).all()

    config = CONFIGS['colour'](place)
    config.data.fit = 'exact'
    assert (
        run(place, tmp_path, 'upscale2', 'colour', config, input=folder)[0]['inputs'] == images
    ).all()
    message = error_of(config, place / 'colour', 'upscale2', input=tmp_path / 'wide')
    assert all(word in message for word in ('0.png', '24x16', '8'))
    grey = run(place, tmp_path, 'upscale2', input=folder)[0]['inputs']
    assert (
        grey
        == np.stack([np.asarray(Image.fromarray(image).convert('L')) for image in images])[
            ..., None
        ]
    ).all()


def test_the_last_of_an_odd_number_of_pictures_is_left_out(place, tmp_path):
    """Pairs are neighbouring pictures, so the last of an odd number is left out."""
    folder = written(tmp_path / 'five', pictures(5))
    assert (
        run(place, tmp_path, 'mix', 'colour', input=folder)[0]['inputs'] == pictures(5)[:4]
    ).all()


def test_small_pictures_as_measurements(place, tmp_path):
    """Pictures of 4x4 pixels are used as block means of results with 8x8 pixels.

    The network has 17 grey levels, and results are truncated to them. Unless values were clipped,
    the means differ by at most two of the 17 levels.
    """
    small = pictures(3, (4, 4), low=100, high=150)
    config = CONFIGS['plain'](place)
    found, gallery = run(
        place,
        tmp_path,
        'upscale2',
        config=config,
        input=written(tmp_path / 'small', small),
        measured=True,
    )
    assert found.keys() == {'samples', 'known', 'nfe'} and found['samples'].shape == (
        3,
        RESULTS,
        SIZE,
        SIZE,
        1,
    )
    tiles(gallery, 3, 1 + RESULTS)
    clipped = blocks((found['samples'] == 0) | (found['samples'] == 255), 2) > 0
    grey = np.stack([np.asarray(Image.fromarray(image).convert('L')) for image in small])[
        :, None, ..., None
    ]
    assert np.abs(blocks(found['samples'], 2) - grey)[~clipped].max(initial=0) < 2 * 255 / 16


# The command line ---------------------------------------------------------------------------------


def test_control_by_command_line(place, tmp_path):
    """Two tasks use all flags, and results are written to the default folder."""
    folder = written(tmp_path / 'in', pictures(3))
    shutil.copytree(place / 'plain', tmp_path / 'w')
    done = run_main(
        tmp_path / 'w',
        'control',
        *TINY,
        '--task=inpaint',
        '--mask=top',
        f'--input={folder}',
        '--labels=3',
        f'--classifier={place / "classifier"}',
        f'--checkpoint={place / "plain" / "checkpoints" / "checkpoint_1.pth"}',
    )
    assert done.returncode == 0, done.stderr
    assert (
        '(columns: picture, known, sample 1, sample 2)' in done.stderr and '\r' not in done.stderr
    )
    assert 'Wrote gallery.png' in (tmp_path / 'w' / 'stdout.txt').read_text()
    found = np.load(tmp_path / 'w' / 'control_inpaint' / 'results.npz')
    assert found['samples'].shape == (3, 2, SIZE, SIZE, 1) and found['labels'].tolist() == [3, 3, 3]

    done = run_main(
        place / 'plain',
        'control',
        *TINY,
        '--task=upscale4',
        '--measured',
        f'--input={folder}',
        f'--output={tmp_path / "out"}',
    )
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / 'out' / 'results.npz')['samples'].shape == (3, 2, SIZE, SIZE, 1)


def test_the_sampler_gets_the_guidance_of_the_config(place, tmp_path, monkeypatch):
    """The sampler gets the weight of the config and, in every batch, the label of each result."""
    seen = []
    original = score_model.classifier_free_guidance
    monkeypatch.setattr(
        score_model,
        'classifier_free_guidance',
        lambda labels, weight: seen.append((labels.tolist(), weight)) or original(labels, weight),
    )
    config = CONFIGS['classes'](place)
    config.sampling.guidance, config.eval.batch_size = 1.5, 5
    run(place, tmp_path, 'classes', 'classes', config)
    assert seen == [([3, 3, 5, 5, 8], 1.5), ([8], 1.5)]
