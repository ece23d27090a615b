"""Names and signatures that are needed by code written for the 2021 release."""

import importlib.util
import inspect

import numpy as np
import pytest
import torch

import sampling
from models import utils as mutils
from sde_lib import SDE

SIGNATURES = """
sde_lib.SDE(N)
sde_lib.SDE.sde(self, x, t)
sde_lib.SDE.marginal_prob(self, x, t)
sde_lib.SDE.prior_sampling(self, shape)
sde_lib.SDE.prior_logp(self, z)
sde_lib.SDE.discretize(self, x, t)
sde_lib.SDE.reverse(self, score_fn, probability_flow=False)
sde_lib.VPSDE(beta_min=0.1, beta_max=20, N=1000)
sde_lib.subVPSDE(beta_min=0.1, beta_max=20, N=1000)
sde_lib.VESDE(sigma_min=0.01, sigma_max=50, N=1000)
losses.get_optimizer(config, params)
losses.optimization_manager(config)
losses.get_sde_loss_fn(sde, train, reduce_mean=True, continuous=True, likelihood_weighting=True, eps=1e-5)
losses.get_smld_loss_fn(vesde, train, reduce_mean=False)
losses.get_ddpm_loss_fn(vpsde, train, reduce_mean=True)
losses.get_step_fn(sde, train, optimize_fn=None, reduce_mean=False, continuous=True, likelihood_weighting=False)
sampling.register_predictor(cls=None, *, name=None)
sampling.register_corrector(cls=None, *, name=None)
sampling.get_predictor(name)
sampling.get_corrector(name)
sampling.Predictor(sde, score_fn, probability_flow=False)
sampling.Predictor.update_fn(self, x, t)
sampling.Corrector(sde, score_fn, snr, n_steps)
sampling.Corrector.update_fn(self, x, t)
sampling.EulerMaruyamaPredictor(sde, score_fn, probability_flow=False)
sampling.ReverseDiffusionPredictor(sde, score_fn, probability_flow=False)
sampling.AncestralSamplingPredictor(sde, score_fn, probability_flow=False)
sampling.NonePredictor(sde, score_fn, probability_flow=False)
sampling.LangevinCorrector(sde, score_fn, snr, n_steps)
sampling.AnnealedLangevinDynamics(sde, score_fn, snr, n_steps)
sampling.NoneCorrector(sde, score_fn, snr, n_steps)
sampling.shared_predictor_update_fn(x, t, sde, model, predictor, probability_flow, continuous)
sampling.shared_corrector_update_fn(x, t, sde, model, corrector, continuous, snr, n_steps)
sampling.get_sampling_fn(config, sde, shape, inverse_scaler, eps)
sampling.get_pc_sampler(sde, shape, predictor, corrector, inverse_scaler, snr, n_steps=1, probability_flow=False, continuous=False, \
denoise=True, eps=1e-3, device=...)
sampling.get_ode_sampler(sde, shape, inverse_scaler, denoise=False, rtol=1e-5, atol=1e-5, method='RK45', eps=1e-3, device=...)
controllable_generation.get_pc_inpainter(sde, predictor, corrector, inverse_scaler, snr, n_steps=1, probability_flow=False, \
continuous=False, denoise=True, eps=1e-5)
controllable_generation.get_pc_colorizer(sde, predictor, corrector, inverse_scaler, snr, n_steps=1, probability_flow=False, \
continuous=False, denoise=True, eps=1e-5)
controllable_generation.get_pc_conditional_sampler(sde, classifier, predictor, corrector, inverse_scaler, snr, n_steps=1, \
probability_flow=False, continuous=False, denoise=True, eps=1e-5)
likelihood.get_div_fn(fn)
likelihood.get_likelihood_fn(sde, inverse_scaler, hutchinson_type='Rademacher', rtol=1e-5, atol=1e-5, method='RK45', eps=1e-5)
datasets.get_data_scaler(config)
datasets.get_data_inverse_scaler(config)
datasets.get_dataset(config, uniform_dequantization=False, evaluation=False)
datasets.crop_resize(image, resolution)
datasets.resize_small(image, resolution)
datasets.central_crop(image, size)
evaluation.get_inception_model(inceptionv3=False)
evaluation.load_dataset_stats(config)
evaluation.run_inception_distributed(input_tensor, inception_model, num_batches=1, inceptionv3=False)
utils.restore_checkpoint(ckpt_dir, state, device)
utils.save_checkpoint(ckpt_dir, state)
run_lib.train(config, workdir)
run_lib.evaluate(config, workdir, eval_folder='eval')
models.utils.register_model(cls=None, *, name=None)
models.utils.get_model(name)
models.utils.get_sigmas(config)
models.utils.get_ddpm_params(config)
models.utils.create_model(config)
models.utils.get_model_fn(model, train=False)
models.utils.get_score_fn(sde, model, train=False, continuous=False)
models.utils.to_flattened_numpy(x)
models.utils.from_flattened_numpy(x, shape)
models.ema.ExponentialMovingAverage(parameters, decay, use_num_updates=True)
models.ema.ExponentialMovingAverage.update(self, parameters)
models.ema.ExponentialMovingAverage.copy_to(self, parameters)
models.ema.ExponentialMovingAverage.store(self, parameters)
models.ema.ExponentialMovingAverage.restore(self, parameters)
models.ema.ExponentialMovingAverage.state_dict(self)
models.ema.ExponentialMovingAverage.load_state_dict(self, state_dict)
models.ncsnpp.NCSNpp(config)
models.ddpm.DDPM(config)
models.ncsnv2.NCSN(config)
models.ncsnv2.NCSNv2(config)
models.ncsnv2.NCSNv2_128(config)
models.ncsnv2.NCSNv2_256(config)
models.ncsnv2.get_network(config)
models.up_or_down_sampling.upsample_2d(x, k=None, factor=2, gain=1)
models.up_or_down_sampling.downsample_2d(x, k=None, factor=2, gain=1)
models.up_or_down_sampling.naive_upsample_2d(x, factor=2)
models.up_or_down_sampling.naive_downsample_2d(x, factor=2)
models.up_or_down_sampling.upsample_conv_2d(x, w, k=None, factor=2, gain=1)
models.up_or_down_sampling.conv_downsample_2d(x, w, k=None, factor=2, gain=1)
models.layers.get_timestep_embedding(timesteps, embedding_dim, max_positions=10000)
op.upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0))
op.fused_leaky_relu(input, bias, negative_slope=0.2, scale=2 ** 0.5)
op.FusedLeakyReLU(channel, negative_slope=0.2, scale=2 ** 0.5)
""".strip().splitlines()


def find(dotted: str):
    """Return the object with a dotted name; import the part of the name that is a module."""
    first, *rest = dotted.split('.')
    found, path = importlib.import_module(first), first
    for part in rest:
        path = f'{path}.{part}'
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(path)
    return found


@pytest.mark.parametrize('published', SIGNATURES, ids=lambda line: line.partition('(')[0])
def test_signature(published):
    """Arguments have the same names, order and defaults; additional arguments have defaults."""
    name, _, arguments = published.partition('(')
    expected = inspect.signature(eval(f'lambda {arguments.removesuffix(")")}: None')).parameters
    ours = inspect.signature(find(name))
    ours.bind(**dict.fromkeys(expected))
    ours.bind(
        *[
            key
            for key, parameter in expected.items()
            if parameter.kind is not parameter.KEYWORD_ONLY
        ]
    )
    ours.bind(*[key for key, parameter in expected.items() if parameter.default is parameter.empty])
    assert list(ours.parameters)[: len(expected)] == list(expected)
    for key, parameter in expected.items():
        if parameter.default is not ...:  # the default device may differ
            assert ours.parameters[key].default == parameter.default, key


def test_abstract_members():
    assert SDE.__abstractmethods__ == {'T', 'sde', 'marginal_prob', 'prior_sampling', 'prior_logp'}
    assert (
        sampling.Predictor.__abstractmethods__
        == sampling.Corrector.__abstractmethods__
        == {'update_fn'}
    )


def test_attributes_of_sdes():
    """The tables that forks read have N values and are consistent with each other."""
    import sde_lib

    for sde in (sde_lib.VPSDE(0.2, 10.0, N=50), sde_lib.subVPSDE(0.2, 10.0, N=50)):
        assert (sde.N, sde.T, sde.beta_0, sde.beta_1) == (50, 1, 0.2, 10.0)
        betas = np.linspace(0.2 / 50, 10 / 50, 50)
        products = np.cumprod(1 - betas)
        for name, expected in dict(
            discrete_betas=betas,
            alphas=1 - betas,
            alphas_cumprod=products,
            sqrt_alphas_cumprod=products**0.5,
            sqrt_1m_alphas_cumprod=(1 - products) ** 0.5,
        ).items():
            np.testing.assert_allclose(getattr(sde, name), expected, rtol=1e-5, err_msg=name)
    sde = sde_lib.VESDE(0.02, 30.0, N=50)
    assert (sde.N, sde.T, sde.sigma_min, sde.sigma_max) == (50, 1, 0.02, 30.0)
    np.testing.assert_allclose(sde.discrete_sigmas, np.geomspace(0.02, 30, 50), rtol=1e-5)


def test_registered_names():
    predictors = dict(
        euler_maruyama='EulerMaruyamaPredictor',
        reverse_diffusion='ReverseDiffusionPredictor',
        ancestral_sampling='AncestralSamplingPredictor',
        none='NonePredictor',
    )
    correctors = dict(
        langevin='LangevinCorrector', ald='AnnealedLangevinDynamics', none='NoneCorrector'
    )
    for get, names in ((sampling.get_predictor, predictors), (sampling.get_corrector, correctors)):
        for name, cls in names.items():
            assert get(name) is getattr(sampling, cls)
        with pytest.raises(ValueError, match="'unheard_of'") as error:
            get('unheard_of')
        assert all(name in str(error.value) for name in names)
    networks = {
        'ncsnpp': 'ncsnpp.NCSNpp',
        'ddpmpp': 'ncsnpp.NCSNpp',
        'ddpm': 'ddpm.DDPM',
        'ncsn': 'ncsnv2.NCSN',
        'ncsnv2_64': 'ncsnv2.NCSNv2',
        'ncsnv2_128': 'ncsnv2.NCSNv2_128',
        'ncsnv2_256': 'ncsnv2.NCSNv2_256',
    }
    for name, path in networks.items():
        assert mutils.get_model(name) is find(f'models.{path}')


@pytest.mark.parametrize('kind', ['predictor', 'corrector', 'model'])
def test_registering_custom_classes(kind, monkeypatch):
    registry = {
        'predictor': sampling.PREDICTORS,
        'corrector': sampling.CORRECTORS,
        'model': mutils.MODELS,
    }[kind]
    register, get = {
        'predictor': (sampling.register_predictor, sampling.get_predictor),
        'model': (mutils.register_model, mutils.get_model),
        'corrector': (sampling.register_corrector, sampling.get_corrector),
    }[kind]
    # registrations are undone after the test
    monkeypatch.setattr(registry, '_classes', dict(registry._classes))

    @register
    class Mine:
        pass

    @register(name='mine_by_name')
    class Other:
        pass

    assert get('Mine') is Mine and get('mine_by_name') is Other
    with pytest.raises(ValueError, match='mine_by_name'):
        register(Mine, name='mine_by_name')
    assert get('mine_by_name') is Other


def test_command_line():
    main = importlib.import_module('main')
    assert {'config', 'workdir', 'mode', 'eval_folder'} <= set(main.FLAGS)
    assert {'train', 'eval'} <= set(main.FLAGS['mode'].parser.enum_values)
    assert main.FLAGS['eval_folder'].default == 'eval'


def test_flattening():
    x = torch.rand(2, 3, 4, requires_grad=True)
    flat = mutils.to_flattened_numpy(x)
    assert isinstance(flat, np.ndarray) and flat.shape == (24,)
    assert torch.equal(mutils.from_flattened_numpy(flat, (2, 3, 4)), x)
