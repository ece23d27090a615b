"""The library in `torch.inference_mode`, and with networks cast to half precision."""

import functools

import pytest
import torch

import control
import likelihood
import losses
import sampling
import solvers
from conftest import relative_error
from control import latents
from control.measurements import Mask, downsampling
from models import utils as mutils
from models.score import Score
from sampling import Options
from sde_lib import VESDE, VPSDE, subVPSDE
from test_networks import build, tiny_config

SDES = {'ve': VESDE(0.01, 2, N=4), 'vp': VPSDE(0.1, 3, N=4), 'subvp': subVPSDE(0.1, 3, N=4)}
SHAPE = 2, 3, 8, 8
PC = functools.partial(Options, method='pc', snr=0.1, eps=1e-2)


def network(kind='ve', **model):
    return build(tiny_config('ncsnpp' if kind == 've' else 'ddpmpp', **model)).requires_grad_(False)


def samplers() -> dict:
    """Return {name: options} for every predictor, corrector and solver."""
    predictors = sampling.PREDICTORS.names()
    made = {name: PC(predictor=name) for name in predictors if name != 'none'}
    made |= {
        name: PC(predictor='reverse_diffusion', corrector=name)
        for name in sampling.CORRECTORS.names()
        if name != 'none'
    }
    made |= {
        f'{name} on a grid': PC(predictor=name, corrector='langevin', skip_type='logSNR')
        for name in predictors
    }
    made |= {
        name: Options(method=name, steps=4, eps=1e-2, eta=0.5, churn=2.0)
        for name in solvers.SOLVERS.names()
    }
    made |= {
        method: Options(method='ode', ode_method=method, rtol=1.0, atol=1.0, eps=1e-2)
        for method in ('RK45', 'dopri5')
    }
    return made | {'adaptive': Options(method='adaptive', rtol=0.2, atol=0.05, eps=1e-2)}


SAMPLERS = samplers()
CASES = [
    (kind, name)
    for kind in SDES
    for name in SAMPLERS
    if (kind, name) != ('subvp', 'ancestral_sampling')
]


def sampled(kind, name, network):
    return sampling.sample(Score(network, SDES[kind]), SHAPE, SAMPLERS[name])[0]


# torch.inference_mode -----------------------------------------------------------------------------


@pytest.mark.parametrize('kind', SDES)
@pytest.mark.parametrize(
    'task', ['likelihood', 'divergence', 'classifier', 'measurement', 'inpainting']
)
def test_gradients_under_inference_mode(kind, task):
    """Code that needs gradients enables them itself; its results do not depend on the mode."""
    sde = SDES[kind]
    classifier = build(tiny_config('wideresnet', module='configs.ve.cifar10_wideresnet', widen=1))
    score = Score(network(kind), sde)

    def run():
        torch.manual_seed(0)
        x = torch.rand(SHAPE)
        if task == 'likelihood':
            options = likelihood.Options(rtol=1.0, atol=1.0, probes=2, method='dopri5')
            return likelihood.log_likelihood(score, x, lambda y: (y + 1) / 2, options=options).nats
        if task == 'divergence':
            return likelihood.get_div_fn(score.score)(x, torch.full((2,), 0.5), torch.randn(SHAPE))
        if task == 'inpainting':
            mask = Mask(torch.rand(8, 8) < 0.5)
            options = Options(method='pc', predictor='reverse_diffusion', eps=1e-5)
            return control.sample_measured(score, mask, mask(x), options, consistency=1.0)[0]
        guidance = (
            control.classifier_guidance(sde, classifier, torch.tensor([0, 1]))
            if task == 'classifier'
            else control.measurement_guidance(sde, downsampling(8, 8, 2), torch.zeros(2, 3, 4, 4))
        )
        return sampling.sample(
            score.guided_by(guidance),
            SHAPE,
            PC(predictor='reverse_diffusion', corrector='langevin'),
        )[0]

    expected = run()
    with torch.inference_mode():
        assert torch.equal(run(), expected)
    with torch.no_grad():
        assert torch.equal(run(), expected)


def test_tables_made_in_inference_mode_can_be_used_in_training():
    """Cached tables are also used in later calls, where autograd rejects inference tensors."""
    sde = VPSDE(0.1, 19.5, N=37)
    with torch.inference_mode():
        sampling.sample(
            Score(network('vp'), sde),
            SHAPE,
            PC(predictor='reverse_diffusion', corrector='langevin'),
        )
        mutils.get_score_fn(sde, network('vp'), continuous=False)(
            torch.rand(SHAPE), torch.full((2,), 0.5)
        )
        model = mutils.create_model(tiny_config('ddpmpp'))
    score = mutils.get_score_fn(sde, model, train=True, continuous=False)(
        torch.rand(SHAPE), torch.full((2,), 0.5)
    )
    score.square().mean().backward()
    losses.get_ddpm_loss_fn(sde, train=True)(model, torch.rand(SHAPE)).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


# Half precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('kind, name', CASES)
def test_cast_networks_in_every_sampler(kind, name, dtype):
    """The state remains float32; samples agree with those of a float32 network to a few digits."""
    results = []
    torch.manual_seed(1)
    model = network(kind)
    for cast in (model, model.to(dtype)):
        torch.manual_seed(2)
        results.append(sampled(kind, name, cast))
    assert results[1].dtype == torch.float32 and results[1].isfinite().all()
    assert relative_error(results[1], results[0]) < (0.1 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('name', ['ncsnpp', 'ddpmpp', 'ddpm', 'ncsn', 'ncsnv2_64', 'wideresnet'])
def test_outputs_of_cast_networks_are_close_to_float32(name, dtype):
    """This also holds at high noise, where embeddings need more digits than half precision has."""
    size = 16 if name.startswith('ncsn') and name != 'ncsnpp' else 8
    model = build(
        tiny_config(name, module='configs.ve.cifar10_wideresnet' if name == 'wideresnet' else None)
    ).requires_grad_(False)
    x, fn = torch.rand(4, 3, size, size), mutils.get_model_fn(model)
    labels = (
        torch.tensor([1, 2, 7, 9]) if size == 16 else torch.tensor([1.137, 7.137, 27.137, 49.137])
    )
    expected = fn(x, labels)
    model.to(dtype)
    assert fn(x, labels).dtype == torch.float32
    assert relative_error(fn(x, labels), expected) < (0.05 if dtype == torch.bfloat16 else 0.01)


@pytest.mark.parametrize('kind', SDES)
def test_cast_networks_in_likelihood_and_codes(kind):
    model, x = Score(network(kind).bfloat16(), SDES[kind]), torch.rand(SHAPE)
    result = likelihood.log_likelihood(
        model, x, lambda y: (y + 1) / 2, options=likelihood.Options(rtol=1.0, atol=1.0)
    )
    assert result.bpd.dtype == result.z.dtype == torch.float32 and result.bpd.isfinite().all()
    codes, _ = latents.encode(model, x, Options(method='heun', steps=3))
    assert codes.dtype == torch.float32 and codes.isfinite().all()


# Names --------------------------------------------------------------------------------------------


def test_an_sde_shows_its_parameters():
    assert repr(VESDE(0.02, 30, N=50)) == 'VESDE(sigma_min=0.02, sigma_max=30, N=50)'
    assert repr(VPSDE()) == 'VPSDE(beta_min=0.1, beta_max=20, N=1000)'
    assert repr(subVPSDE(N=30)) == 'subVPSDE(beta_min=0.1, beta_max=20, N=30)'
    assert (
        repr(VPSDE().reverse(None, True))
        == 'ReverseSDE(VPSDE(beta_min=0.1, beta_max=20, N=1000), probability_flow=True)'
    )
