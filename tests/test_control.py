"""`--mode control`: on exact networks, what its pictures must be; on small trained ones, that all
runs; and what it says to bad input.

Also the training that it rests on: of networks that know classes, and of classifiers.
"""

import functools
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import checkpoints
import datasets
import run_lib
import score_model
import sde_lib
from checkpoints import loading
from commands import control, control_job
from commands.sample import sample
from conftest import ROOT, load_config
from control import measurements
from models import utils as mutils
from oracles import ExactClassifier, ExactConditionalNetwork, ExactNetwork, GaussianMixture
from runtime.errors import UserError

SIZE, IMAGES, RESULTS = 8, 4, 2
TASKS = (
    'inpaint',
    'colorize',
    'upscale2',
    'upscale4',
    'deblur',
    'classes',
    'reconstruct',
    'interpolate',
    'temper',
    'mix',
)
# arguments that a task cannot do without
NEEDED = {'inpaint': dict(mask='left'), 'classes': dict(labels='3,5,8')}


def config_for(module='configs.vp.digits_ddpmpp_continuous', data=(), **model):
    """The config of a small network and a short training, with control that takes less than a
    second: no repeated steps, no gradient of the measurement, one batch. Last layers do not begin
    at zero, so that five steps make a network that depends on what it is told.
    """
    config = load_config(
        module,
        data,
        **dict(nf=8, num_res_blocks=1, num_scales=25, dropout=0.1, init_scale=0.5) | model,
    )
    config.training.update(
        batch_size=16,
        n_iters=5,
        snapshot_freq=4,
        snapshot_freq_for_preemption=2,
        log_freq=1,
        eval_freq=2,
        snapshot_sampling=False,
    )
    config.optim.warmup = 0
    config.sampling.corrector = 'none'
    config.eval.update(batch_size=360, num_samples=7)
    config.control.update(
        images=IMAGES,
        results=RESULTS,
        resample=1,
        consistency=0.0,
        steps=5,
        temperatures=(0.5, 1.0),
        rtol=0.1,
        atol=0.1,
    )
    return config


CONFIGS = {
    'plain': lambda path: config_for(),
    'classes': lambda path: config_for('configs.vp.digits_ddpmpp_classes'),
    'classifier': lambda path: config_for('configs.vp.digits_wideresnet', widen=1),
    'colour': lambda path: config_for(
        data=dict(
            dataset='FOLDER',
            path=str(path / 'pictures'),
            num_channels=3,
            test_fraction=0.25,
            uniform_dequantization=False,
            random_flip=True,
        )
    ),
}


def pictures(n, size=(SIZE, SIZE), seed=0, low=100, high=156):
    """Pictures (n, height, width, 3) of random pixels, neither dark nor bright."""
    return np.random.default_rng(seed).integers(low, high, (n, *size, 3), np.uint8)


def written(folder, images):
    """The folder, with images (n, H, W, 3) or (n, H, W) as 0.png, 1.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f'{i}.png')
    return folder


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with pictures in colour, and with work directories of networks after five steps of
    training, by name.
    """
    place = tmp_path_factory.mktemp('runs')
    written(place / 'pictures', pictures(40))
    for name, make in CONFIGS.items():
        (run_lib.train_classifier if name == 'classifier' else run_lib.train)(
            make(place), place / name
        )
    return place


def run(place, tmp_path, task, name='plain', config=None, **settings):
    """The arrays and the gallery, (height, width, 3), of a task; what it cannot do without is
    added.
    """
    folder = control.control(
        config or CONFIGS[name](place),
        place / name,
        task,
        output=str(tmp_path / 'out'),
        **NEEDED.get(task, {})
        | {key: str(v) if key != 'measured' else v for key, v in settings.items()},
    )
    assert folder == tmp_path / 'out' and {path.name for path in folder.iterdir()} == {
        'gallery.png',
        'results.npz',
    }
    return dict(np.load(folder / 'results.npz')), np.asarray(Image.open(folder / 'gallery.png'))


def tiles(gallery, rows, columns):
    """The pictures (rows, columns, 8, 8, 3) in a gallery, whose pixels are squares of 8, and which
    has margins of 2.
    """
    assert gallery.shape == (66 * rows + 2, 66 * columns + 2, 3)
    parts = (
        gallery[2:, 2:].reshape(rows, 66, columns, 66, 3).transpose(0, 2, 1, 3, 4)[:, :, :64, :64]
    )
    assert (parts.reshape(rows, columns, 8, 8, 8, 8, 3) == parts[:, :, ::8, None, ::8, None]).all()
    return parts[:, :, ::8, ::8]


def blocks(images, factor):
    """Means over blocks of pixels (..., height, width, C)."""
    *rest, height, width, channels = images.shape
    return (
        images.astype(float)
        .reshape(*rest, height // factor, factor, width // factor, factor, channels)
        .mean((-4, -2))
    )


# Exact networks -----------------------------------------------------------------------------------
# Pictures in colour, of 256 levels, of a Gaussian about a middle grey whose values stay far from
# black and white: clipping would count. What a network sees lies in [-1, 1] for the VP SDE, in [0,
# 1] for the VE SDE.

SPREAD = 0.12  # standard deviation of a pixel where black is -1 and white 1: 15 grey levels
SHAPE, D = (3, SIZE, SIZE), 3 * SIZE * SIZE


def independent(mean=0.0, scale=1.0):
    """A Gaussian whose values are independent of each other, where white is at `mean` + `scale`
    when 0 means middle grey.
    """
    return GaussianMixture(
        [1.0], torch.full((1, D), mean), (scale * SPREAD) ** 2 * torch.eye(D)[None], SHAPE
    )


def mirrored(noise):
    """A Gaussian of images whose right half is the mirror image of the left one, but for a share of
    noise in the variance.
    """
    unit, flip = torch.eye(D, dtype=torch.float64), torch.arange(D).reshape(SHAPE).flip(2).flatten()
    return GaussianMixture(
        [1.0], torch.zeros(1, D), SPREAD**2 * ((1 + noise) * unit + unit[flip])[None], SHAPE
    )


def shades(levels):
    """A mixture of Gaussians of images, each about one grey."""
    k = len(levels)
    return GaussianMixture(
        [1.0] * k,
        torch.tensor(levels)[:, None].expand(k, D),
        SPREAD**2 * torch.eye(D).expand(k, D, D),
        SHAPE,
    )


@pytest.fixture
def exact(monkeypatch):
    """exact(config, target, network) puts the exact network of a target in the place of the one in
    a checkpoint.
    """

    def use(config, target, network=ExactNetwork):
        sde, target.component = sde_lib.get_sde(config), functools.cache(target.component)
        monkeypatch.setattr(
            score_model, 'load_averaged_model', lambda config, path: network(sde, target)
        )
        config.force_config = True  # the network is not the one that was trained
        return sde

    return use


def exact_config(place, steps=60, sde='vpsde', **settings):
    """The config for pictures in colour, with more steps and exacter codes."""
    config = CONFIGS['colour'](place)
    config.control.update(dict(rtol=1e-5, atol=1e-5) | settings)
    config.sampling.steps, config.training.sde, config.data.centered = steps, sde, sde != 'vesde'
    return config


@pytest.mark.parametrize('dequantized, sde', [(False, 'vpsde'), (True, 'vpsde'), (False, 'vesde')])
@pytest.mark.parametrize('task', ['upscale2', 'upscale4', 'colorize', 'deblur'])
def test_results_agree_with_the_measurement_to_a_grey_level(
    place, tmp_path, exact, task, dequantized, sde
):
    """Samples have the measurement of their picture, to the rounding of floats, until they become 8
    bits by truncation: that takes a fraction of a level from each pixel, and so from each mean.
    With dequantisation the picture got a fraction before, which the means of the picture lack: a
    level at most, the other way. A blur measures what it nearly extinguishes too: 3 % of the
    deviations, of up to 40 levels, in addition.
    """
    config = exact_config(place, sde=sde)
    exact(config, independent() if sde == 'vpsde' else independent(0.5, 0.5))
    config.data.uniform_dequantization = dequantized
    found, _ = run(place, tmp_path, task, 'colour', config)
    inputs, samples = found['inputs'], found['samples']
    assert samples.min() > 0 and samples.max() < 255  # none was clipped
    blur = measurements.blur(SIZE, SIZE, config.control.blur)
    measure = {
        'upscale2': lambda x: blocks(x, 2),
        'upscale4': lambda x: blocks(x, 4),
        'colorize': lambda x: x.astype(float).mean(-1),
        'deblur': lambda x: blur(torch.tensor(x).movedim(-1, -3).double()).numpy(),
    }[task]
    difference = measure(samples) - measure(inputs)[:, None]
    most = 1 + 1e-3 + (0.03 * 40 if task == 'deblur' else 0)
    assert difference.min() > -most and difference.max() < (
        most if dequantized or task == 'deblur' else 1e-3
    )
    # the rest of them is new, and differs
    assert np.abs(samples.astype(float) - inputs[:, None]).mean() > 3
    assert np.abs(samples[:, 0].astype(float) - samples[:, 1]).mean() > 3


@pytest.mark.parametrize('task', ['upscale2', 'upscale4', 'deblur'])
def test_a_measured_picture_is_what_the_results_agree_with(place, tmp_path, exact, task):
    """Small, or blurred, pictures as they are, of their own size: the gallery begins with them, as
    squares.
    """
    config = exact_config(place)
    exact(config, independent())
    factor = {'upscale2': 2, 'upscale4': 4, 'deblur': 1}[task]
    smooth = pictures(3, low=120, high=136)[:, ::factor, ::factor]
    folder = written(tmp_path / 'small', smooth)
    found, gallery = run(place, tmp_path, task, 'colour', config, input=folder, measured=True)
    assert found.keys() == {'samples', 'known', 'nfe'} and found['known'].shape == (
        3,
        SIZE,
        SIZE,
        3,
    )
    squares = smooth.repeat(factor, 1).repeat(factor, 2)
    assert np.abs(found['known'].astype(int) - squares).max() <= 1  # by truncation
    assert (
        tiles(gallery, 3, 1 + RESULTS)
        == np.concatenate([found['known'][:, None], found['samples']], 1)
    ).all()
    if task != 'deblur':  # which amplifies the noise of a picture that was never blurred
        difference = blocks(found['samples'], factor) - smooth[:, None]
        assert -1.001 < difference.min() and difference.max() < 1e-3


def test_what_is_missing_is_filled_in_by_what_is_known(place, tmp_path, exact):
    """Of pictures whose right half mirrors the left: the half that --mask names comes back as the
    mirror image of the other, but for the noise of the target. With variances 1 + e and covariances
    1 a pixel given its mirror image has the variance 1 + e - 1 / (1 + e); 768 of them tell the
    deviation to 3 %, and 15 % is allowed.
    """
    noise, config = 0.03, exact_config(place, steps=200, resample=2)
    exact(config, mirrored(noise))
    expected = 127.5 * SPREAD * np.sqrt(1 + noise - 1 / (1 + noise))
    for name, missing, known in (
        ('left', np.s_[:, :, :, :4], np.s_[:, :, :, 4:]),
        ('right', np.s_[:, :, :, 4:], np.s_[:, :, :, :4]),
    ):
        found, _ = run(place, tmp_path, 'inpaint', 'colour', config, mask=name)
        samples, inputs = (
            found['samples'].astype(float),
            found['inputs'][:, None].repeat(RESULTS, 1).astype(float),
        )
        assert (samples[known] == inputs[known]).all()
        error = samples[missing] - inputs[:, :, :, ::-1][missing]
        assert abs(np.sqrt(np.square(error).mean()) / expected - 1) < 0.15
        assert np.abs(samples - inputs)[missing].mean() > 4 * expected


@pytest.mark.parametrize(
    'how, task, method',
    [
        ('network', 'classes', 'pc'),
        ('network', 'classes', 'ode'),
        ('network', 'inpaint', 'pc'),
        ('classifier', 'classes', 'pc'),
        ('classifier', 'inpaint', 'pc'),
    ],
)
def test_classes_are_those_asked_for(place, tmp_path, exact, monkeypatch, how, task, method):
    """Of images that are dark, middling or bright: every sample is nearest to its class, in the
    order of the labels.
    """
    config, levels = exact_config(place), [-0.5, 0.0, 0.5]
    config.model.num_classes, config.sampling.method = 3 * (how == 'network'), method
    sde = exact(
        config, shades(levels), ExactConditionalNetwork if how == 'network' else ExactNetwork
    )
    judge = mutils.Undivided(ExactClassifier(sde, shades(levels)))
    judge.module.num_classes = 3
    monkeypatch.setattr(control_job, 'load_classifier', lambda path, config: judge)
    settings = dict(labels='2,0,1,2') | (dict(classifier='exact') if how == 'classifier' else {})
    if task == 'inpaint':  # all but one pixel are missing, of which the label says what to make
        corner = np.zeros((SIZE, SIZE), np.uint8)
        corner[0, 0] = 255
        settings |= dict(mask=written(tmp_path / 'mask', [corner]) / '0.png')
    found, _ = run(place, tmp_path, task, 'colour', config, **settings)
    assert found['labels'].tolist() == [2, 0, 1, 2] and found['samples'].shape == (
        4,
        RESULTS,
        SIZE,
        SIZE,
        3,
    )
    expected = 127.5 * (np.array(levels)[[2, 0, 1, 2]] + 1)
    # they are 64 apart
    assert np.abs(found['samples'].mean((2, 3, 4)) - expected[:, None]).max() < 10


@pytest.mark.parametrize('name', ['vpsde', 'subvpsde', 'vesde'])
def test_codes_decode_to_their_pictures(place, tmp_path, exact, name):
    """The codes are those of the closed form; what they decode to is the picture, to the truncation
    of 8 bits.
    """
    config = exact_config(place, sde=name)
    scale, mean = (0.5, 0.5) if name == 'vesde' else (1.0, 0.1)
    sde = exact(config, independent(mean, scale))
    found, gallery = run(place, tmp_path, 'reconstruct', 'colour', config)
    assert np.abs(found['samples'].astype(int) - found['inputs']).max() <= 1
    x = torch.tensor(found['inputs']).movedim(-1, 1).double() / 255
    x = 2 * x - 1 if config.data.centered else x
    times = torch.tensor([sde.sampling_eps, 1.0], dtype=torch.float64)
    (m0, m1), (std0, std1) = sde.marginal_prob(torch.ones(2, 1, dtype=torch.float64), times)
    spread0, spread1 = (
        (m**2 * (scale * SPREAD) ** 2 + std**2).sqrt() for m, std in ((m0, std0), (m1, std1))
    )
    expected = mean * m1 + spread1 * (x - mean * m0) / spread0
    # a hundred times the solver's tolerance
    np.testing.assert_allclose(found['codes'], expected, atol=1e-3 * spread1.item())
    # in grey levels
    assert (
        found['mean_error'].max() <= found['largest_error'].max() < 0.1
        and (found['mean_error'] > 0).all()
    )
    shown = tiles(gallery, IMAGES, 3)
    assert (shown[:, 0] == found['inputs']).all() and (shown[:, 2] == found['samples']).all()
    # whose middle is grey, and 3 deviations black and white
    prior = found['codes'].transpose(0, 2, 3, 1) / (50 if name == 'vesde' else 1)
    # the prior's deviation is measured, to 1 %
    assert np.abs(shown[:, 1] - np.clip(127.5 + 255 / 6 * prior, 0, 255)).max() < 4


def test_between_around_and_mixed(place, tmp_path, exact):
    """Where pixels are independent, the flow is one of each pixel: halves of codes are halves of
    pictures, and half the temperature half the distance from the mean. All to a level or two: two
    roundings to 8 bits.
    """
    config = exact_config(place, temperatures=(0.5, 1.0, 0.0))
    config.control.steps = 5
    exact(config, independent())
    found, gallery = run(place, tmp_path, 'mix', 'colour', config)
    first, second = found['inputs'][0::2].astype(int), found['inputs'][1::2].astype(int)
    even, sides, floors = (found['samples'][:, k].astype(int) for k in range(3))
    assert (
        np.abs(sides[:, :, :4] - first[:, :, :4]).max() <= 1
        and np.abs(sides[:, :, 4:] - second[:, :, 4:]).max() <= 1
    )
    assert (
        np.abs(floors[:, :4] - first[:, :4]).max() <= 1
        and np.abs(floors[:, 4:] - second[:, 4:]).max() <= 1
    )
    assert np.abs(even - 127.5 - (first + second - 255) / np.sqrt(2)).max() <= 2
    expected = np.concatenate([first[:, None], found['samples'], second[:, None]], 1)
    assert (tiles(gallery, IMAGES // 2, 5) == expected).all()

    found, gallery = run(place, tmp_path, 'temper', 'colour', config)
    half, whole, none = (found['samples'][:, k].astype(int) for k in range(3))
    assert np.abs(whole - found['inputs']).max() <= 1
    assert np.abs(half - 127.5 - (found['inputs'] - 127.5) / 2).max() <= 2
    assert np.abs(none - 127.5).max() <= 1
    assert (
        tiles(gallery, IMAGES, 4) == np.concatenate([found['inputs'][:, None], found['samples']], 1)
    ).all()

    found, gallery = run(place, tmp_path, 'interpolate', 'colour', config)
    first, second = found['inputs'][0::2].astype(int), found['inputs'][1::2].astype(int)
    assert (
        np.abs(found['samples'][:, 0] - first).max() <= 1
        and np.abs(found['samples'][:, -1] - second).max() <= 1
    )
    deviation = found['samples'] - 127.5
    lengths = np.sqrt(np.square(deviation).sum((2, 3, 4)))
    # along the circle: a straight way would pass at 0.7
    assert (lengths.min(1) > 0.9 * lengths[:, [0, -1]].min(1)).all()
    assert (
        tiles(gallery, IMAGES // 2, 7)
        == np.concatenate([first[:, None], found['samples'], second[:, None]], 1)
    ).all()


# Small trained networks ---------------------------------------------------------------------------


@pytest.mark.parametrize('task', TASKS)
def test_every_task(place, tmp_path, task):
    """From the images of the data set: arrays of the right keys, shapes and types, and a gallery of
    them.
    """
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
    if 'nfe' in found:  # 25 steps, and with a measurement all but the last twice
        assert found['nfe'] == (25 if task == 'classes' else 49)


def test_the_tasks_are_all_tested_and_their_names_reserved():
    assert sorted(control.TASKS) == sorted(TASKS) == sorted(measurements.RESERVED)


def test_inputs_are_test_images_of_the_data_set(place, tmp_path):
    """Each once, in their 17 levels spread over 256, drawn by the seed."""
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


def test_the_seed_decides(place, tmp_path):
    """All of the results, whatever was drawn before; another one, of the same pictures, gives
    others.
    """
    folder = written(tmp_path / 'pictures', pictures(3)[..., 0])
    for name, task, key, settings in (
        ('plain', 'inpaint', 'samples', dict(input=folder)),
        ('classes', 'classes', 'samples', {}),
        # which dequantises at random
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
def test_known_pixels_come_back_as_they_were(place, tmp_path, mask, source):
    """Bit for bit, though pictures have 256 levels and the network's data 17. What is missing is
    new.
    """
    drawn = np.zeros((SIZE, SIZE), bool)
    drawn[1:3, 2:7] = True
    expected = measurements.named_mask(mask, SIZE, SIZE).bool().numpy() if mask in MASKS else drawn
    if mask not in MASKS:  # white is known: of any size, and above middle grey
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
def test_labels_guide_what_is_filled_in(place, tmp_path, guide, labels, expected):
    """One for all pictures, or one each; by a classifier, from its folder or its file, or by a
    network that knows classes.
    """
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
    """Weight 0 makes the label nothing: the samples of other labels are the same, and those of a
    weight are not.
    """
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
    """Sorted by their names, those in sub-folders too; the middle square of each, in the size of
    the network.
    """
    images = pictures(3)
    folder = written(tmp_path / 'some', images[:2])
    written(folder / 'deeper', [images[2]])  # some/deeper/0.png, behind 0.png and 1.png
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
    message = refused(config, place / 'colour', 'upscale2', input=tmp_path / 'wide')
    assert all(word in message for word in ('0.png', '24x16', '8'))
    grey = run(place, tmp_path, 'upscale2', input=folder)[0]['inputs']
    assert (
        grey
        == np.stack([np.asarray(Image.fromarray(image).convert('L')) for image in images])[
            ..., None
        ]
    ).all()


def test_a_picture_too_few_is_left_out(place, tmp_path):
    """Pairs are made of neighbours."""
    folder = written(tmp_path / 'five', pictures(5))
    assert (
        run(place, tmp_path, 'mix', 'colour', input=folder)[0]['inputs'] == pictures(5)[:4]
    ).all()


def test_small_pictures_as_measurements(place, tmp_path):
    """Four by four pixels of 256 levels for a network of 17, as 8 by 8 ones whose blocks are
    truncated from them: two levels of 17 at most, where no value was clipped.
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


# What cannot be -----------------------------------------------------------------------------------


def refused(config, workdir, task, **settings):
    """What a task says to arguments that it refuses: one sentence, and nothing is written."""
    with pytest.raises((UserError, NotImplementedError)) as caught:
        control.control(
            config,
            workdir,
            task,
            **NEEDED.get(task, {})
            | {key: str(v) if key != 'measured' else v for key, v in settings.items()},
        )
    message = str(caught.value)
    assert '\n' not in message and not (workdir / f'control_{task}').exists()
    return message


@pytest.fixture(scope='module')
def files(place):
    """Pictures and checkpoints that something is wrong with, by name; classifiers in it have taken
    no step.
    """
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
    'mask that is no picture': ('inpaint', dict(mask='{files}/text.png'), ['{files}/text.png']),
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
    'labels beyond numbers': ('inpaint', dict(labels='9' * 30), ['--labels=9999', '3,5,8']),
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
    'classifier of other noise': (
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
    'no classifier there': (
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
    'no picture': ('inpaint', dict(input='{files}/text.png'), ['{files}/text.png', 'no picture']),
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
    'a blur of nothing': (
        'deblur',
        {'control.blur': 0.0},
        ['config.control.blur must be a number in (0, 1000], got 0.0'],
    ),
    'no resampling at all': (
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
def test_faults_are_one_sentence_that_names_them(place, files, fault):
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
    message = refused(config, place / name, task, **settings)
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
def test_faults_that_need_no_checkpoint_are_told_before_it_is_loaded(
    place, files, fault, tmp_path, monkeypatch
):
    monkeypatch.setattr(score_model, 'load_averaged_model', None)
    test_faults_are_one_sentence_that_names_them(place, files, fault)


def test_without_a_checkpoint_there_is_nothing_to_control(place, tmp_path):
    assert 'train first' in refused(CONFIGS['plain'](place), tmp_path / 'w', 'inpaint')
    message = refused(CONFIGS['classifier'](place), place / 'classifier', 'inpaint')
    assert "config.model.name must be a score network, got the classifier 'wideresnet'" in message


# Training with classes, and of classifiers --------------------------------------------------------


def test_each_mode_trains_what_it_is_for(place, tmp_path):
    for train, name, words in (
        (run_lib.train, 'classifier', ["'wideresnet'", '--mode classifier']),
        (run_lib.train_classifier, 'plain', ["'ncsnpp'", '--mode classifier', 'wideresnet']),
        (sample, 'classifier', ["'wideresnet'", '--mode classifier']),
        (run_lib.evaluate, 'classifier', ["'wideresnet'", '--mode classifier']),
    ):
        with pytest.raises(UserError) as caught:
            train(CONFIGS[name](place), tmp_path / 'w')
        first = str(caught.value).splitlines()[0]
        assert all(word in first for word in words), first
        assert not list((tmp_path / 'w').glob('*'))


@pytest.mark.parametrize('name', ['classes', 'classifier'])
def test_a_label_beyond_the_classes_is_told(place, tmp_path, name):
    config = CONFIGS[name](place)
    config.model.num_classes = 5
    with pytest.raises(
        UserError, match='has the label [5-9], but config.model.num_classes=5'
    ) as caught:
        (run_lib.train if name == 'classes' else run_lib.train_classifier)(config, tmp_path)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'changes, words',
    [
        (
            {'model.num_classes': -1},
            'config.model.num_classes must be an integer from 0 to 1000000, got -1',
        ),
        (
            {'model.label_dropout': 1.5},
            'config.model.label_dropout must be a number in [0, 1], got 1.5',
        ),
        (
            {'model.num_classes': 10, 'model.conditional': False},
            'config.model.conditional must be True for ncsnpp, got False',
        ),
        (
            {'model.num_classes': 10, 'model.label_dropout': 0.0, 'sampling.guidance': 1.5},
            'config.sampling.guidance=1.5',
        ),
    ],
)
def test_classes_without_a_meaning_are_refused_before_any_work(place, tmp_path, changes, words):
    config = CONFIGS['plain'](place)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        run_lib.train(config, tmp_path / 'w')
    assert '\n' not in str(caught.value) and not list((tmp_path / 'w').glob('*'))


def final_state(workdir):
    content = checkpoints.load(checkpoints.resume_path(workdir))
    return [
        *content['model'].values(),
        *content['ema']['shadow_params'],
        content['rng']['common'],
        torch.tensor(content['step']),
    ]


@pytest.mark.parametrize('name', ['classes', 'classifier'])
def test_interrupted_training_with_classes_ends_where_an_uninterrupted_one_does(
    place, tmp_path, name
):
    """Bit by bit: hidden labels, dropout and times of the batches behind the interruption too."""
    for folder, steps in (('whole', (7,)), ('parts', (3, 7))):
        for n in steps:
            config = CONFIGS[name](place)
            config.training.n_iters = n
            (run_lib.train if name == 'classes' else run_lib.train_classifier)(
                config, tmp_path / folder
            )
    whole, parts = (final_state(tmp_path / folder) for folder in ('whole', 'parts'))
    assert all(map(torch.equal, whole, parts)) and whole[-1] == 7


def test_a_classifier_loads_by_its_folder_and_its_file(place):
    """With its averaged weights, for the config of a network with the same SDE and data; it needs
    no config of its own.
    """
    file = place / 'classifier' / 'checkpoints' / 'checkpoint_1.pth'
    content = checkpoints.load(file)
    x, labels = torch.randn(3, 1, SIZE, SIZE), torch.tensor([1.0, 300.0, 999.0])
    for path in (
        place / 'classifier',
        str(place / 'classifier'),
        file,
        str(file),
        checkpoints.resume_path(place / 'classifier'),
    ):
        for config in (CONFIGS['plain'](place), CONFIGS['classes'](place)):
            network = loading.load_classifier(path, config)
            weights = [p for p in network.parameters() if p.requires_grad]
            assert (
                all(map(torch.equal, weights, content['ema']['shadow_params']))
                and not network.training
            )
            assert network(x, labels).shape == (3, 10) and network.module.shape == (1, SIZE, SIZE)


def test_a_classifier_learns_digits(place, tmp_path, caplog):
    """150 steps at their learning rate: most of what is nearly clean, a tenth by chance of what is
    noise; on all test images.
    """
    config = CONFIGS['classifier'](place)
    config.training.update(n_iters=151, snapshot_freq=75, batch_size=64, eval_freq=75, log_freq=75)
    config.model.ema_rate = 0.9
    config.optim.lr = 5e-3
    with caplog.at_level(logging.INFO, 'absl'):
        run_lib.train_classifier(config, tmp_path)
    lines = [
        record.getMessage()
        for record in caplog.records
        if 'accuracy on 359 test images' in record.getMessage()
    ]
    assert [line.partition(',')[0] for line in lines] == ['step: 75', 'step: 150']
    shares = {
        float(t): float(share) for t, share in re.findall(r'at t=([\d.]+): ([\d.]+)', lines[-1])
    }
    assert [*shares] == [0.001, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]
    # of 359, four standard errors
    assert shares[0.001] > 0.7 and shares[0.001] > shares[0.5] and shares[1.0] < 0.1 + 4 * 0.016
    network = loading.load_classifier(tmp_path, CONFIGS['plain'](place))
    test = datasets.get_split(config, 'test')
    x = torch.from_numpy(2 * (test.images + 0.5) / 17 - 1).permute(0, 3, 1, 2).float()
    right = (network(x, torch.full((359,), 1.0)).argmax(1).numpy() == test.labels).mean()
    assert abs(right - shares[0.001]) < 0.05  # other noise of dequantisation


def test_samples_of_a_network_that_knows_classes_have_labels(place, tmp_path):
    """Drawn uniformly, with those that they were made for; in an evaluation too, whose losses and
    likelihoods run.
    """
    config = CONFIGS['classes'](place)
    folder = sample(config, place / 'classes', num_samples=12, output=str(tmp_path / 'out'))
    found = dict(np.load(folder / 'samples.npz'))
    assert (
        found['samples'].shape == (12, SIZE, SIZE, 1)
        and found['labels'].shape == (12,)
        and found['labels'].dtype == np.int64
    )
    assert set(found['labels']) <= set(range(10)) and len(set(found['labels'])) > 3
    plain = sample(
        CONFIGS['plain'](place), place / 'plain', num_samples=2, output=str(tmp_path / 'plain')
    )
    assert set(np.load(plain / 'samples.npz').keys()) == {'samples'}

    config.eval.update(stats_dir=str(tmp_path / 'stats'), bpd_rtol=1.0, bpd_atol=1.0)
    run_lib.evaluate(config, place / 'classes', str(tmp_path / 'eval'))
    parts = np.load(tmp_path / 'eval' / 'ckpt_1' / 'samples_0.npz')
    assert parts['samples'].shape == (7, SIZE, SIZE, 1) and parts['labels'].shape == (7,)
    assert np.isfinite(np.load(tmp_path / 'eval' / 'ckpt_1_loss.npz')['mean_loss'])
    assert np.isfinite(np.load(tmp_path / 'eval' / 'test_ckpt_1_bpd_0.npz')['bpd']).all()


def test_samples_are_those_of_their_labels(place, tmp_path, exact):
    """In --mode sample, of images dark or bright, by the label."""
    config = exact_config(place)
    config.model.num_classes = 2
    exact(config, shades([-0.5, 0.5]), ExactConditionalNetwork)
    found = np.load(
        sample(config, place / 'colour', num_samples=12, output=str(tmp_path / 'out'))
        / 'samples.npz'
    )
    assert 0 < found['labels'].sum() < 12
    assert ((found['samples'].mean((1, 2, 3)) > 127) == found['labels']).all()


# The command line ---------------------------------------------------------------------------------

TINY = [
    '--config.model.nf=8',
    '--config.model.num_res_blocks=1',
    '--config.model.num_scales=25',
    '--config.control.images=2',
    '--config.control.results=2',
    '--config.control.resample=2',
    '--config.device=cpu',
]


def command(workdir, mode, *arguments, config='configs/vp/digits_ddpmpp_continuous.py'):
    return subprocess.run(
        [
            sys.executable,
            'main.py',
            '--config',
            config,
            '--workdir',
            str(workdir),
            '--mode',
            mode,
            *arguments,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
    )


def test_control_by_command_line(place, tmp_path):
    """All flags, in two tasks, and the place where results go by default."""
    folder = written(tmp_path / 'in', pictures(3))
    shutil.copytree(place / 'plain', tmp_path / 'w')
    done = command(
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

    done = command(
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


def test_classifier_by_command_line(tmp_path):
    done = command(
        tmp_path,
        'classifier',
        '--config.model.nf=8',
        '--config.model.widen=1',
        '--config.training.n_iters=3',
        '--config.training.snapshot_freq=2',
        '--config.device=cpu',
        config='configs/vp/digits_wideresnet.py',
    )
    assert done.returncode == 0, done.stderr
    assert 'accuracy on 359 test images' in done.stderr
    assert checkpoints.latest(tmp_path).name == 'checkpoint_1.pth'


def test_the_guidance_of_the_config_is_that_of_the_sampler(place, tmp_path, monkeypatch):
    """Its weight and its labels, in batches, each label with each of its results."""
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
