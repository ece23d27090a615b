"""Every sampling method in every use: plain, with classes, inpainting, latent codes, rounding."""

import pytest
import torch
from torch import nn

import solvers
from conftest import digits_config
from control import classifier_free_guidance, latents, sample_measured
from control.measurements import Mask
from models.score import Score
from oracles import (
    FEW_STEP_SDES,
    ExactConditionalNetwork,
    ExactNetwork,
    GaussianMixture,
    distance_from,
    gaussian,
    identity,
    planar_mixture,
)
from runtime.errors import UserError
from sampling import Loop, Options, get_sampling_fn
from sde_lib import VPSDE, get_sde
from solvers import SOLVERS

METHODS = ['pc', 'adaptive', *SOLVERS.names()]


@pytest.mark.parametrize('name', FEW_STEP_SDES)
@pytest.mark.parametrize('method', ['adaptive', *SOLVERS.names()])
def test_plain_samples(name, method):
    """Samples have the right distribution and NFE; 'pc' is tested elsewhere."""
    config, target = digits_config(name, method), planar_mixture()
    sde = get_sde(config)
    x, nfe = get_sampling_fn(config, sde, (4000, 2), identity, sde.sampling_eps)(
        ExactNetwork(sde, target)
    )
    assert distance_from(target, x) < (0.3 if method in ('ddim', 'dpm_solver') else 0.2)
    if method == 'adaptive':
        assert 40 < nfe < 1000
    else:
        assert nfe == (39 if method == 'heun' else 21)


@pytest.mark.parametrize('name', FEW_STEP_SDES)
@pytest.mark.parametrize('method', METHODS)
def test_samples_of_classes(name, method):
    config, target = digits_config(name, method), planar_mixture()
    sde, labels = get_sde(config), torch.arange(3).repeat_interleave(1000)
    sampler = get_sampling_fn(
        config, sde, (3000, 2), identity, sde.sampling_eps, classifier_free_guidance(labels, 1.0)
    )
    x, _ = sampler(ExactConditionalNetwork(sde, target))
    for k, part in enumerate(x.split(1000)):
        assert (part.double().mean(0) - target.component(k).mean).abs().max() < 0.1


@pytest.mark.parametrize('name', FEW_STEP_SDES)
@pytest.mark.parametrize('method', ['ode', *METHODS])
def test_inpainting(name, method):
    """A known coordinate is kept, and the other moves towards its conditional mean."""
    config = digits_config(name, method)
    sde = get_sde(config)
    mean = torch.tensor([[0.2, -0.3]])
    covariance = torch.tensor([[[1.0, 0.8], [0.8, 1.0]]])
    model = Score(ExactNetwork(sde, GaussianMixture([1.0], mean, covariance)), sde)
    options = Options.of(config.sampling)
    mask, known = Mask(torch.tensor([1.0, 0.0])), torch.full((1500, 2), 1.2)
    if method == 'ode':
        with pytest.raises(UserError, match="method='ode' does not support inpainting .*heun"):
            sample_measured(model, mask, known, options)
        return
    x, _ = sample_measured(
        model, mask, known, options, Loop(resample=1 if method == 'adaptive' else 3)
    )
    assert torch.allclose(x[:, 0], known[:, 0], atol=1e-6)
    assert 0.1 < x[:, 1].mean() < 0.75  # the mean is -0.3 without and 0.5 with the known coordinate


@pytest.mark.parametrize('name', FEW_STEP_SDES)
@pytest.mark.parametrize('method', ['heun', 'ddim', 'dpm_solver', 'dpmpp_2m', 'unipc'])
def test_codes(name, method):
    """Decoding returns the encoded point; the error decreases with more steps."""
    sde, target = FEW_STEP_SDES[name](), planar_mixture()
    model, x, errors = Score(ExactNetwork(sde, target), sde), target.sample(200).double(), []
    for steps in (30, 120):
        options = Options(method=method, eps=0.01, steps=steps)
        code, _ = latents.encode(model, x, options)
        errors.append((latents.decode(model, code, options)[0] - x).abs().mean())
    assert errors[1] < errors[0] / 2 and errors[1] < 0.1


def test_codes_of_solvers_with_noise_raise_an_error():
    with pytest.raises(UserError, match='need a method without noise'):
        latents.encode(Score(None, VPSDE()), torch.zeros(1, 2), Options(method='dpmpp_2m_sde'))


class Still(nn.Module):
    """A network that predicts zero noise, so that VP samples stay close to their start."""

    def forward(self, x, labels):
        return torch.zeros_like(x)


@pytest.mark.parametrize('method', ['ode', *METHODS])
def test_prior_mean_and_rounding(method):
    config = digits_config('vp', method, prior_mean=50.0, corrector='none')
    sde = get_sde(config)
    torch.manual_seed(1)
    far = get_sampling_fn(config, sde, (3, 1, 2, 2), identity, 0.1)(Still())[0]
    config.sampling.prior_mean = 0.0
    torch.manual_seed(1)
    near = get_sampling_fn(config, sde, (3, 1, 2, 2), identity, 0.1)(Still())[0]
    assert (far - near).min() > 10
    config.sampling.round = True
    torch.manual_seed(1)
    levels = (
        255 * get_sampling_fn(config, sde, (3, 1, 2, 2), lambda x: x / 20 + 0.5, 0.1)(Still())[0]
    )
    assert (
        torch.allclose(levels, levels.round(), atol=1e-4)
        and levels.min() >= 0
        and levels.max() <= 255
    )


def test_thresholding_keeps_images_within_their_range():
    x = torch.tensor([[0.5, -1.0], [4.0, -2.0]])
    assert torch.equal(solvers.threshold(x, share=1.0), torch.tensor([[0.5, -1.0], [1.0, -0.5]]))
    assert torch.equal(
        solvers.threshold((x + 1) / 2, centered=False, share=1.0),
        torch.tensor([[0.75, 0.0], [1.0, 0.25]]),
    )
    config = digits_config('vp', 'dpmpp_2m', thresholding=True)
    sde = VPSDE()
    labels = torch.zeros(500, dtype=torch.long)
    target = gaussian([0.5, 0.5], [0.1, 0.1])
    guidance = classifier_free_guidance(labels, 30.0)
    sampler = get_sampling_fn(config, sde, (500, 2), identity, 1e-3, guidance)
    assert sampler(ExactConditionalNetwork(sde, target))[0].abs().max() <= 1
    config.sampling.method = 'pc'
    with pytest.raises(
        UserError, match="thresholding=True is not supported by method='pc': use one of ddim"
    ):
        get_sampling_fn(config, sde, (500, 2), identity, 1e-3)
