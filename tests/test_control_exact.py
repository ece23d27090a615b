"""`--mode control` with exact networks, for which the right results are known."""

import functools

import numpy as np
import pytest
import torch

import score_model
import sde_lib
from commands import control_job
from commands.sample import sample
from control import measurements
from control_runs import CONFIGS, IMAGES, RESULTS, SIZE, blocks, pictures, run, tiles, written
from models import utils as mutils
from oracles import ExactClassifier, ExactConditionalNetwork, ExactNetwork, GaussianMixture

# Colour pictures with 256 grey levels, drawn from a Gaussian around middle grey and far from black
# and white, so that no value is clipped. The networks work on values in [-1, 1] for the VP SDE and
# in [0, 1] for the VE SDE.

SPREAD = 0.12  # standard deviation of a pixel with black at -1 and white at 1: 15 grey levels
SHAPE, D = (3, SIZE, SIZE), 3 * SIZE * SIZE


def independent(mean=0.0, scale=1.0):
    """Return a Gaussian of images with independent pixels.

    Pixels have the mean `mean` and the standard deviation `scale` * SPREAD.
    """
    return GaussianMixture(
        [1.0], torch.full((1, D), mean), (scale * SPREAD) ** 2 * torch.eye(D)[None], SHAPE
    )


def mirrored(noise):
    """Return a Gaussian of images whose right half is the mirror image of the left half.

    Pixels have the variance (1 + `noise`) SPREAD^2, and the covariance SPREAD^2 with their mirror
    image.
    """
    unit, flip = torch.eye(D, dtype=torch.float64), torch.arange(D).reshape(SHAPE).flip(2).flatten()
    return GaussianMixture(
        [1.0], torch.zeros(1, D), SPREAD**2 * ((1 + noise) * unit + unit[flip])[None], SHAPE
    )


def shades(levels):
    """Return a mixture of Gaussians of images; the mean of each Gaussian is one grey level."""
    k = len(levels)
    return GaussianMixture(
        [1.0] * k,
        torch.tensor(levels)[:, None].expand(k, D),
        SPREAD**2 * torch.eye(D).expand(k, D, D),
    )


def exact_config(place, steps=60, sde='vpsde', **settings):
    """Return the config for colour pictures, with more steps and more accurate codes."""
    config = CONFIGS['colour'](place)
    config.control.update(dict(rtol=1e-5, atol=1e-5) | settings)
    config.sampling.steps, config.training.sde, config.data.centered = steps, sde, sde != 'vesde'
    return config


@pytest.fixture
def exact(monkeypatch):
    """`exact(config, target, network)` replaces the network of the checkpoint by an exact one."""

    def use(config, target, network=ExactNetwork):
        sde, target.component = sde_lib.get_sde(config), functools.cache(target.component)
        monkeypatch.setattr(
            score_model, 'load_averaged_model', lambda config, path: network(sde, target)
        )
        config.force_config = True  # the network is replaced, so it differs from the trained one
        return sde

    return use


@pytest.mark.parametrize('dequantized, sde', [(False, 'vpsde'), (True, 'vpsde'), (False, 'vesde')])
@pytest.mark.parametrize('task', ['upscale2', 'upscale4', 'colorize', 'deblur'])
def test_results_agree_with_the_measurement_up_to_a_grey_level(
    place, tmp_path, exact, task, dequantized, sde
):
    """Samples agree with the measurement of their picture, up to the truncation to 8 bits.

    Truncation lowers each pixel, and so each mean, by up to one grey level. Dequantization adds up
    to one level to the picture, but not to the means that are compared. A blur also measures
    components that it almost removes. They add 3 % of the deviations, which are up to 40 levels.
    """
    config = exact_config(place, sde=sde)
    exact(config, independent() if sde == 'vpsde' else independent(0.5, 0.5))
    config.data.uniform_dequantization = dequantized
    found, _ = run(place, tmp_path, task, 'colour', config)
    inputs, samples = found['inputs'], found['samples']
    assert samples.min() > 0 and samples.max() < 255  # no value was clipped
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
    # apart from the measurement, samples differ from the picture and from each other
    assert np.abs(samples.astype(float) - inputs[:, None]).mean() > 3
    assert np.abs(samples[:, 0].astype(float) - samples[:, 1]).mean() > 3


@pytest.mark.parametrize('task', ['upscale2', 'upscale4', 'deblur'])
def test_results_agree_with_a_measured_picture(place, tmp_path, exact, task):
    """Small or blurred pictures are used unchanged; the gallery shows their pixels as squares."""
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
    assert np.abs(found['known'].astype(int) - squares).max() <= 1  # because of truncation
    assert (
        tiles(gallery, 3, 1 + RESULTS)
        == np.concatenate([found['known'][:, None], found['samples']], 1)
    ).all()
    if task != 'deblur':  # deblurring amplifies the noise of a picture that was never blurred
        difference = blocks(found['samples'], factor) - smooth[:, None]
        assert difference.min() > -1.001 and difference.max() < 1e-3


def test_missing_pixels_follow_from_the_known_pixels(place, tmp_path, exact):
    """The missing half is the mirror image of the known half, up to the noise of the target.

    With variances 1 + e and covariances 1, the variance of a pixel given its mirror image is
    1 + e - 1 / (1 + e). Over 768 pixels, the standard deviation is known to 3 %; 15 % is allowed.
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
def test_samples_have_the_requested_classes(place, tmp_path, exact, monkeypatch, how, task, method):
    """The mean of every sample is that of its class (dark, middle or bright)."""
    config, levels = exact_config(place), [-0.5, 0.0, 0.5]
    config.model.num_classes, config.sampling.method = 3 * (how == 'network'), method
    sde = exact(
        config, shades(levels), ExactConditionalNetwork if how == 'network' else ExactNetwork
    )
    judge = mutils.Undivided(ExactClassifier(sde, shades(levels)))
    judge.module.num_classes = 3
    monkeypatch.setattr(control_job, 'load_classifier', lambda path, config: judge)
    settings = dict(labels='2,0,1,2') | (dict(classifier='exact') if how == 'classifier' else {})
    if task == 'inpaint':  # all pixels but one are missing, so the label determines the result
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
    # the means of the classes differ by 64
    assert np.abs(found['samples'].mean((2, 3, 4)) - expected[:, None]).max() < 10


@pytest.mark.parametrize('name', ['vpsde', 'subvpsde', 'vesde'])
def test_codes_decode_to_the_encoded_pictures(place, tmp_path, exact, name):
    """Codes equal the closed form and decode to the pictures, truncated to 8 bits."""
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
    # a hundred times the tolerance of the solver
    np.testing.assert_allclose(found['codes'], expected, atol=1e-3 * spread1.item())
    # errors in grey levels
    assert (
        found['mean_error'].max() <= found['largest_error'].max() < 0.1
        and (found['mean_error'] > 0).all()
    )
    shown = tiles(gallery, IMAGES, 3)
    assert (shown[:, 0] == found['inputs']).all() and (shown[:, 2] == found['samples']).all()
    # codes are shown with 0 as middle grey and 3 standard deviations as black or white
    prior = found['codes'].transpose(0, 2, 3, 1) / (50 if name == 'vesde' else 1)
    # the standard deviation of the prior is measured to 1 %
    assert np.abs(shown[:, 1] - np.clip(127.5 + 255 / 6 * prior, 0, 255)).max() < 4


def test_interpolated_perturbed_and_mixed_codes(place, tmp_path, exact):
    """Interpolated, perturbed and mixed codes decode to the expected pictures.

    The pixels are independent, so the flow acts on each pixel separately. Halves of codes decode to
    halves of pictures, and half the temperature halves the distance from the mean. The tolerance is
    one or two grey levels, because values are rounded to 8 bits twice.
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
    # interpolation is along a circle; a straight line would pass at 0.7
    assert (lengths.min(1) > 0.9 * lengths[:, [0, -1]].min(1)).all()
    assert (
        tiles(gallery, IMAGES // 2, 7)
        == np.concatenate([first[:, None], found['samples'], second[:, None]], 1)
    ).all()


def test_samples_have_the_classes_of_their_labels(place, tmp_path, exact):
    """With --mode sample, images are dark or bright according to their labels."""
    config = exact_config(place)
    config.model.num_classes = 2
    exact(config, shades([-0.5, 0.5]), ExactConditionalNetwork)
    found = np.load(
        sample(config, place / 'colour', num_samples=12, output=str(tmp_path / 'out'))
        / 'samples.npz'
    )
    assert 0 < found['labels'].sum() < 12
    assert ((found['samples'].mean((1, 2, 3)) > 127) == found['labels']).all()
