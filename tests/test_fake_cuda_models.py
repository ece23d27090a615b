"""Measurements, guidance, likelihoods and `ScoreModel` on a GPU of fake tensors."""

import numpy as np
import pytest
import torch

import control
import controllable_generation
import likelihood
import solvers
from control import latents
from control.measurements import Grey, Mask, blur, downsampling
from fake_devices import SHAPE, Pointwise, check
from metrics import precision_recall
from published_samplers import made
from sampling import Loop, Options, sample
from score_model import ScoreModel
from test_fake_cuda import ADAPTIVE, STEPS, network, score_on
from test_modes import SDES

# Measurements and guidance ------------------------------------------------------------------------

MEASUREMENTS = {
    'mask': Mask(torch.arange(64).reshape(8, 8) % 2),
    'mask of each image': Mask(torch.arange(2).reshape(2, 1, 1, 1)),
    'grey': Grey(3),
    'downsampling': downsampling(8, 8, 2),
    'blur': blur(8, 8, 1.0),
}


@pytest.mark.parametrize('place', ['cpu', 'cuda'])
@pytest.mark.parametrize('name', MEASUREMENTS)
def test_measurements(name, place, fake_gpu):
    """The measured values come from either device."""
    measurement = MEASUREMENTS[name]
    with fake_gpu():
        y = measurement(torch.rand(SHAPE, device=place))
        check(control.sample_measured(score_on('cuda'), measurement, y, STEPS, Loop(resample=2))[0])


@pytest.mark.parametrize('method', ['adaptive', *solvers.SOLVERS.names()])
def test_inpainting_with_every_method(method, fake_gpu):
    mask, options = MEASUREMENTS['mask'], Options(method=method, steps=3)
    with fake_gpu(answers=ADAPTIVE if method == 'adaptive' else ()):
        y = mask(torch.rand(SHAPE))
        check(control.sample_measured(score_on('cuda'), mask, y, options)[0])


def test_samplers_of_the_2021_release(fake_gpu):
    with fake_gpu(answers=[True]):  # the mask has zeros and ones alone
        network, data = Pointwise().to('cuda'), torch.rand(SHAPE, device='cuda')
        check(made(controllable_generation.get_pc_inpainter, SDES['ve'])(network, data, data > 2))
        check(made(controllable_generation.get_pc_colorizer, SDES['ve'])(network, data))


@pytest.mark.parametrize('weight', [0.0, 1.0, 2.0])
@pytest.mark.parametrize('place', ['cpu', 'cuda'])
def test_classifier_free_guidance(weight, place, fake_gpu):
    with fake_gpu():
        labels = torch.arange(2, device=place)
        score = score_on('cuda').guided_by(control.classifier_free_guidance(labels, weight))
        check(sample(score, SHAPE, STEPS)[0])


@pytest.mark.parametrize('kind', SDES)
def test_guidance_by_gradients(kind, fake_gpu):
    """On 'meta': by a classifier with its labels on the CPU, and by a measurement."""
    classifier, measurement = network('classifier'), MEASUREMENTS['downsampling']
    with fake_gpu():
        score, labels = score_on('meta', kind), torch.arange(2)
        guidance = control.classifier_guidance(SDES[kind], classifier.to('meta'), labels, 2.0)
        check(sample(score.guided_by(guidance), SHAPE, STEPS)[0], device='meta')
        y = measurement(torch.rand(SHAPE))
        x = control.sample_measured(score, measurement, y, STEPS, consistency=1.0)[0]
        check(x, device='meta')
        make = controllable_generation.get_pc_conditional_sampler
        sampler = made(make, SDES[kind], classifier=classifier, shape=SHAPE[1:])
        check(sampler(score.network, labels)[0], device='meta')


# Likelihoods and latent codes ---------------------------------------------------------------------


@pytest.mark.parametrize('kind', SDES)
@pytest.mark.parametrize('probes', ['Rademacher', 'Gaussian', 'exact'])
def test_likelihood(kind, probes, fake_gpu):
    """On 'meta', because the divergence is a gradient."""
    options = likelihood.Options(hutchinson_type=probes, probes=2)
    with fake_gpu():
        x = torch.rand(2, 3, 2, 2, device='meta')
        found = likelihood.log_likelihood(score_on('meta', kind), x, options=options)
        for value in (found.nats, found.nats_stderr, found.bpd, found.bpd_stderr):
            check(value, (2,), 'meta')
        check(found.z, x.shape, 'meta')


def test_paths_between_codes(fake_gpu):
    with fake_gpu(answers=[False, True]):  # no codes are opposite, and no weights all zero
        z = torch.rand(2, *SHAPE, device='cuda')
        check(latents.interpolate(*z, torch.linspace(0, 1, 5)), (5, *SHAPE))
        check(latents.mix(z, torch.ones(2)))


# ScoreModel ---------------------------------------------------------------------------------------


def model_on(device, kind):
    """A model of images in [-1, 1] with three classes and 256 grey levels."""
    settings = dict(shape=SHAPE[1:], centered=True, levels=256)
    return ScoreModel(Pointwise().to(device), SDES[kind], **settings)


@pytest.mark.parametrize('kind', SDES)
def test_model_samples(kind, fake_gpu):
    with fake_gpu() as device:
        model = model_on('cuda', kind)
        check(model.sample(2, steps=5))
        check(
            model.sample(3, seed=1, batch_size=2, steps=3, round=True, guidance=2.0),
            (3, *SHAPE[1:]),
        )
        check(model.sample(2, seed_per_image=True, method='ddim', eta=1.0, steps=3))
        for place in ('cpu', 'cuda'):
            classes = torch.arange(2, device=place)
            device.answers += [True] * (3 * (place == 'cuda'))  # they are in their range
            check(model.sample(2, classes=classes, thresholding=True, steps=3))


@pytest.mark.parametrize('kind', SDES)
def test_model_estimates(kind, fake_gpu):
    with fake_gpu():
        model = model_on('cuda', kind)
        x = torch.rand(SHAPE, device='cuda')
        for t in (0.5, torch.tensor(0.5), torch.rand(2), torch.rand(2, device='cuda')):
            for method in (model.score, model.noise, model.denoise, model.perturb):
                check(method(x, t))
        check(model.loss(torch.rand(SHAPE)), ())
        check(model.denoise(x, 0.5, classes=torch.arange(2, device='cuda')))


@pytest.mark.parametrize('place', ['cpu', 'cuda'])
@pytest.mark.parametrize('kind', SDES)
def test_model_restores_images(kind, place, fake_gpu):
    with fake_gpu(answers=[True] * (place == 'cuda')):  # the mask has zeros and ones alone
        model, x = model_on('cuda', kind), torch.rand(SHAPE, device=place)
        settings = dict(consistency=0.0, steps=3)
        check(model.inpaint(x, torch.arange(8, device=place) < 4, **settings))
        check(model.inpaint(x, 'center', seed=1, **settings))
        half = MEASUREMENTS['downsampling']
        check(model.restore(half, half(x), **settings))
    with fake_gpu():
        model, x = model_on('meta', kind), torch.rand(SHAPE, device=place)
        check(model.inpaint(x, 'center', steps=3), device='meta')


@pytest.mark.parametrize('place', ['cpu', 'cuda'])
@pytest.mark.parametrize('kind', SDES)
def test_model_encodes_and_decodes(kind, place, fake_gpu):
    with fake_gpu():
        model, x = model_on('cuda', kind), torch.rand(SHAPE, device=place)
        for settings in ({}, dict(method='heun', steps=3), dict(method='ode', ode_method='RK45')):
            check(model.encode(x, **settings))
            check(model.decode(x, **settings))


@pytest.mark.parametrize('place', ['cpu', 'meta'])
def test_model_likelihood(place, fake_gpu):
    with fake_gpu(answers=[0, 255] * (place == 'meta')):  # the range of the grey levels
        model, x = model_on('meta', 'vp'), torch.rand(SHAPE, device=place)
        check(model.log_likelihood(x).bpd, (2,), 'meta')
        check(model.log_likelihood((255 * x).to(torch.uint8)).bpd, (2,), 'meta')


def test_precision_and_recall(fake_gpu):
    with fake_gpu(answers=[0.25, 0.5]):
        features = np.random.default_rng(0).normal(size=(2, 9, 4))
        assert precision_recall(*features, device='cuda') == (0.25, 0.5)
