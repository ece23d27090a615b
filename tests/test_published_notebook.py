"""The calls of a notebook for the 2021 release, from loading a checkpoint to training."""

import math

import numpy as np
import pytest
import torch

import checkpoints
import datasets
import likelihood
import losses
import sampling
import utils
from conftest import load_config
from models import utils as mutils
from models.ema import ExponentialMovingAverage
from sde_lib import VPSDE, get_sde


@pytest.fixture(scope='module')
def notebook(tmp_path_factory):
    """A config, its SDE and a network with EMA weights from a checkpoint, as in notebooks."""
    torch.manual_seed(0)
    config = load_config('configs.vp.digits_ddpmpp_continuous', nf=8, num_res_blocks=1)
    config.training.batch_size = config.eval.batch_size = 4
    config.model.num_scales = 30

    def fresh_state():
        score_model = mutils.create_model(config)
        optimizer = losses.get_optimizer(config, score_model.parameters())
        ema = ExponentialMovingAverage(score_model.parameters(), decay=config.model.ema_rate)
        return dict(step=0, optimizer=optimizer, model=score_model, ema=ema)

    trained = fresh_state()
    # imitate training: the averages differ from the weights, and the output is smooth but not zero
    with torch.no_grad():
        for p, average in zip(
            (p for p in trained['model'].parameters() if p.requires_grad),
            trained['ema'].shadow_params,
        ):
            p.add_(0.01 * torch.randn_like(p))
            average.copy_(p + 0.01 * torch.randn_like(p))
    trained['step'] = 7
    ckpt_filename = str(tmp_path_factory.mktemp('run') / 'checkpoint_7.pth')
    utils.save_checkpoint(ckpt_filename, trained)

    state = fresh_state()
    score_model, ema = state['model'], state['ema']
    state = utils.restore_checkpoint(ckpt_filename, state, config.device)
    ema.copy_to(score_model.parameters())
    return dict(
        config=config,
        sde=get_sde(config),
        score_model=score_model,
        state=state,
        trained=trained,
        file=ckpt_filename,
    )


def test_notebook_has_the_averaged_weights(notebook):
    state, trained = notebook['state'], notebook['trained']
    assert state['step'] == 7
    parameters = [p for p in notebook['score_model'].parameters() if p.requires_grad]
    assert all(map(torch.equal, parameters, trained['ema'].shadow_params))
    fixed = [
        (p, q)
        for p, q in zip(notebook['score_model'].parameters(), trained['model'].parameters())
        if not p.requires_grad
    ]
    assert all(torch.equal(p, q) for p, q in fixed)


def test_a_checkpoint_has_the_form_of_the_2021_release(notebook):
    content = checkpoints.load(notebook['file'])
    assert content.keys() == {'optimizer', 'model', 'ema', 'step'}
    assert all(key.startswith('module.') for key in content['model'])
    assert content['ema'].keys() == {'decay', 'num_updates', 'shadow_params'}
    assert content['optimizer'].keys() == {'state', 'param_groups'}


@pytest.mark.parametrize(
    'predictor, corrector',
    [
        (predictor, corrector)
        for predictor in (
            'EulerMaruyamaPredictor',
            'ReverseDiffusionPredictor',
            'AncestralSamplingPredictor',
            'NonePredictor',
        )
        for corrector in ('LangevinCorrector', 'AnnealedLangevinDynamics', 'NoneCorrector', None)
        if predictor != 'NonePredictor' or corrector not in ('NoneCorrector', None)
    ],
)
def test_notebook_draws_samples(notebook, predictor, corrector):
    config, sde, n_steps = notebook['config'], notebook['sde'], 1
    shape, inverse_scaler = (4, 1, 8, 8), datasets.get_data_inverse_scaler(config)
    predictor_cls, corrector_cls, snr = (
        getattr(sampling, predictor),
        corrector and getattr(sampling, corrector),
        0.16,
    )
    sampling_fn = sampling.get_pc_sampler(
        sde,
        shape,
        predictor_cls,
        corrector_cls,
        inverse_scaler,
        snr,
        n_steps=n_steps,
        probability_flow=False,
        continuous=config.training.continuous,
        eps=1e-5,
        device=config.device,
    )
    x, n = sampling_fn(notebook['score_model'])
    assert (
        x.shape == shape and x.dtype == torch.float32 and x.isfinite().all() and not x.requires_grad
    )
    assert n == sde.N * (
        (predictor != 'NonePredictor')
        + (corrector in ('LangevinCorrector', 'AnnealedLangevinDynamics'))
    )


def test_notebook_samples_by_the_config(notebook):
    config, sde = notebook['config'], notebook['sde']
    x, n = sampling.get_sampling_fn(
        config, sde, (4, 1, 8, 8), datasets.get_data_inverse_scaler(config), 1e-3
    )(notebook['score_model'])
    # every step has one corrector and one predictor evaluation
    assert x.shape == (4, 1, 8, 8) and x.isfinite().all() and n == 2 * sde.N


@pytest.mark.parametrize('denoise', [False, True])
def test_notebook_draws_samples_by_the_ode(notebook, denoise):
    config, shape = notebook['config'], (4, 1, 8, 8)
    sampling_fn = sampling.get_ode_sampler(
        notebook['sde'],
        shape,
        datasets.get_data_inverse_scaler(config),
        denoise=denoise,
        eps=1e-3,
        device=config.device,
    )
    x, nfe = sampling_fn(notebook['score_model'])
    assert x.shape == shape and x.dtype == torch.float32 and x.isfinite().all() and nfe > 0


def test_notebook_likelihood_and_latent_code(notebook):
    """A batch has finite bits/dim, and decoding the latent code of an image gives the image."""
    config, score_model = notebook['config'], notebook['score_model']
    # With an SDE that reaches its prior, an untrained network would let data shrink to the
    # tolerance of the solver.
    sde = VPSDE(beta_min=config.model.beta_min, beta_max=2.0, N=config.model.num_scales)
    scaler, inverse_scaler = (
        datasets.get_data_scaler(config),
        datasets.get_data_inverse_scaler(config),
    )
    train_ds, eval_ds, _ = datasets.get_dataset(
        config, uniform_dequantization=True, evaluation=True
    )
    eval_batch = next(iter(eval_ds))
    eval_images = eval_batch['image']._numpy()
    assert eval_images.shape == (4, 8, 8, 1) and eval_images.dtype == np.float32
    assert eval_images.min() >= 0 and eval_images.max() <= 1
    assert next(iter(train_ds))['image']._numpy().shape == (4, 8, 8, 1)

    data = scaler(torch.from_numpy(eval_images).permute(0, 3, 1, 2).to(config.device))
    likelihood_fn = likelihood.get_likelihood_fn(sde, inverse_scaler, eps=1e-5)
    bpd, z, nfe = likelihood_fn(score_model, data)
    assert bpd.shape == (4,) and bpd.isfinite().all() and z.shape == data.shape and nfe > 0
    assert not torch.allclose(z, data, atol=0.1)

    sampling_fn = sampling.get_ode_sampler(
        sde, tuple(data.shape), inverse_scaler, eps=1e-5, device=config.device
    )
    x, _ = sampling_fn(score_model, z)
    # the tolerance is a sixth of a grey level
    np.testing.assert_allclose(x.permute(0, 2, 3, 1).numpy(), eval_images, rtol=0, atol=0.01)


def test_notebook_trains(notebook):
    """A training step changes the weights, and the loss of the EMA weights can be evaluated.

    The loss is reproducible from a seed.
    """
    config, sde = notebook['config'], notebook['sde']
    score_model = mutils.create_model(config)
    state = dict(
        optimizer=losses.get_optimizer(config, score_model.parameters()),
        model=score_model,
        step=0,
        ema=ExponentialMovingAverage(score_model.parameters(), decay=config.model.ema_rate),
    )
    settings = dict(
        reduce_mean=config.training.reduce_mean,
        continuous=config.training.continuous,
        likelihood_weighting=config.training.likelihood_weighting,
    )
    train_step_fn = losses.get_step_fn(
        sde, train=True, optimize_fn=losses.optimization_manager(config), **settings
    )
    eval_step_fn = losses.get_step_fn(
        sde, train=False, optimize_fn=losses.optimization_manager(config), **settings
    )
    train_ds, eval_ds, _ = datasets.get_dataset(
        config, uniform_dequantization=config.data.uniform_dequantization
    )
    scaler = datasets.get_data_scaler(config)

    def batch(images):
        return scaler(
            torch.from_numpy(next(iter(images))['image']._numpy())
            .to(config.device)
            .float()
            .permute(0, 3, 1, 2)
        )

    before = [p.detach().clone() for p in score_model.parameters()]
    for _ in range(2):  # the first step has learning rate 0 because of the warm-up
        loss = train_step_fn(state, batch(train_ds))
    assert loss.isfinite() and state['step'] == 2
    assert any(not torch.equal(p, q) for p, q in zip(before, score_model.parameters()))

    own = [p.detach().clone() for p in score_model.parameters()]
    values = []
    for _ in range(2):
        torch.manual_seed(3)
        values.append(eval_step_fn(state, batch(eval_ds)).item())
    assert values[0] == values[1] and math.isfinite(values[0])
    assert all(map(torch.equal, own, score_model.parameters())) and state['step'] == 2
