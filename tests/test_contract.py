"""What code written for the 2021 release relies on: names and signatures, a notebook's calls, a
user's own SDE; and what imports cost.
"""

import ast
import graphlib
import importlib.util
import inspect
import math
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

import checkpoints
import datasets
import likelihood
import losses
import sampling
import utils
from conftest import ROOT, load_config
from models import utils as mutils
from models.ema import ExponentialMovingAverage
from oracles import MEAN, STD, ExactNoise, OrnsteinUhlenbeck, identity, marginal
from sde_lib import SDE, VPSDE, get_sde

# Names and signatures -----------------------------------------------------------------------------

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
    """The object that a dotted name means, importing as much of it as is a module."""
    first, *rest = dotted.split('.')
    found, path = importlib.import_module(first), first
    for part in rest:
        path = f'{path}.{part}'
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(path)
    return found


@pytest.mark.parametrize('published', SIGNATURES, ids=lambda line: line.partition('(')[0])
def test_signature(published):
    """The same names in the same places with the same defaults; what we added has defaults."""
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
        if parameter.default is not ...:  # a device: any default will do
            assert ours.parameters[key].default == parameter.default, key


def test_abstract_members():
    assert SDE.__abstractmethods__ == {'T', 'sde', 'marginal_prob', 'prior_sampling', 'prior_logp'}
    assert (
        sampling.Predictor.__abstractmethods__
        == sampling.Corrector.__abstractmethods__
        == {'update_fn'}
    )


def test_attributes_of_sdes():
    """The tables that forks read: of N values, and consistent with each other."""
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
def test_registering_ones_own(kind, monkeypatch):
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
    # what this test registers goes with it
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


# What imports cost --------------------------------------------------------------------------------

ROOMS = sorted(path.parent.name for path in ROOT.glob('*/__init__.py'))
TABLE = (
    (ROOT / 'docs' / 'architecture.md')
    .read_text()
    .partition('<!-- table: layers -->')[2]
    .partition('<!-- end -->')[0]
)
LAYERS = {
    name: int(layer)
    for layer, name in re.findall(r'^\| (\d+) \| `(\w+)/?` \|', TABLE, re.MULTILINE)
}


def imported_parts(path) -> set[str]:
    """The parts of this library ('losses', 'models', ...) that a file imports, be it at its top or
    within a function.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition('.')[0])
    return {
        name
        for name in names
        if (ROOT / f'{name}.py').is_file() or (ROOT / name / '__init__.py').is_file()
    }


FILES = {path: path.stem for path in ROOT.glob('*.py')} | {
    path: part for part in ROOMS for path in ROOT.glob(f'{part}/**/*.py')
}


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path):
    part = FILES[path]
    assert part in LAYERS, f'give {part} a layer in docs/architecture.md'
    for imported in imported_parts(path):
        assert imported in LAYERS, f'give {imported} a layer in docs/architecture.md'
        assert imported == part or LAYERS[imported] < LAYERS[part], (
            f'{part} (layer {LAYERS[part]}) imports {imported} (layer {LAYERS[imported]})'
        )
        assert not (part == 'models' and imported == 'sde_lib'), (
            'networks get their SDE as an object'
        )


def test_no_two_parts_import_each_other():
    graph = {}
    for path, part in FILES.items():
        graph.setdefault(part, set()).update(imported_parts(path) - {part})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def in_fresh_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FORBIDDEN = (
    'tensorflow',
    'tensorflow_datasets',
    'tensorflow_gan',
    'jax',
    'torch.utils.cpp_extension',
)


@pytest.mark.skipif(importlib.util.find_spec('tensorflow') is None, reason='needs TensorFlow')
@pytest.mark.parametrize(
    'code',
    [
        'import torch; from runtime.tensorflow import tensorflow; tensorflow()',
        'import sampling, tensorflow',
    ],
)
def test_tensorflow_and_the_compiler_of_pytorch_live_in_one_process(code):
    """TensorFlow first, by a data set or a notebook, then an optimizer, which imports the compiler
    and with it Triton.
    """
    code += (
        '; import torch; torch.optim.Adam([torch.zeros(1, requires_grad=True)])'
        '; import torch._dynamo; print("both")'
    )
    assert in_fresh_process(code) == 'both\n'


def test_imports_bring_no_tensorflow_and_no_compiler():
    """In a notebook that wants a sampler; and nowhere until a data set or a metric of TensorFlow is
    asked for.
    """
    modules = [part for part in LAYERS if (ROOT / f'{part}.py').is_file()] + [
        'models.ncsnpp',
        'models.ddpm',
        'models.ncsnv2',
        'op',
    ]
    found = in_fresh_process(
        f'import sys, {", ".join(modules)}; print([m for m in {FORBIDDEN} if m in sys.modules])'
    )
    assert found.strip() == '[]'


def test_imports_are_as_fast_as_torch():
    """After torch they take at most 0.3 s of the processor, without PyTorch's compiler; the least
    of three, as a busy machine slows all.
    """
    code = (
        'import sys, time, torch; start = time.process_time(); import sampling, likelihood, '
        'losses, controllable_generation; '
        'print(time.process_time() - start); assert "torch._dynamo" not in sys.modules'
    )
    assert min(float(in_fresh_process(code)) for _ in range(3)) <= 0.3


def test_a_wrong_key_is_reported_within_a_second_of_importing_torch(tmp_path):
    """Of the processor's time."""

    def seconds(*command, rc=0):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == rc, done.stderr
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stderr

    wrong = (
        'main.py',
        '--config=configs/vp/digits_ddpmpp_continuous.py',
        f'--workdir={tmp_path}',
        '--mode=train',
        '--config.model.wrong=1',
    )
    taken, message = seconds(*wrong, rc=1)
    assert 'model.wrong' in message and taken < 1 + seconds('-c', 'import torch')[0]


# A user's own SDE ---------------------------------------------------------------------------------


# 8000 independent values: their mean is known to 0.006, their standard deviation to 0.004
SHAPE = (500, 1, 4, 4)


def own_sampler(predictor, corrector, **settings):
    sde = OrnsteinUhlenbeck(N=400)
    predictor, corrector = sampling.get_predictor(predictor), sampling.get_corrector(corrector)
    sampler = sampling.get_pc_sampler(
        sde, SHAPE, predictor, corrector, identity, 0.1, continuous=True, device='cpu', **settings
    )
    return sampler(ExactNoise(sde))


@pytest.mark.parametrize('corrector', ['langevin', 'ald', 'none'])
@pytest.mark.parametrize('predictor', ['euler_maruyama', 'reverse_diffusion', 'none'])
def test_own_sde_with_predictor_corrector(predictor, corrector):
    if predictor == corrector == 'none':
        with pytest.raises(ValueError, match="^predictor='none' and corrector='none' would"):
            own_sampler(predictor, corrector)
        return
    samples, nfe = own_sampler(predictor, corrector)
    assert samples.shape == SHAPE
    assert nfe == 400 * ((predictor != 'none') + (corrector != 'none'))
    if predictor == 'none':
        # Langevin dynamics alone follows the noise levels, but only so far
        assert samples.isfinite().all()
        assert (samples - MEAN).square().mean() < 1.05 + MEAN**2
    else:
        # noise, and the error of steps of 1/200
        assert samples.mean().item() == pytest.approx(MEAN, abs=0.02)
        assert samples.std().item() == pytest.approx(STD, abs=0.02)


@pytest.mark.parametrize('predictor', ['euler_maruyama', 'reverse_diffusion'])
def test_own_sde_along_the_probability_flow(predictor):
    """The flow remembers that the prior N(0, 1) is not quite the marginal at the end time."""
    samples, _ = own_sampler(predictor, 'none', probability_flow=True)
    end, end_std = marginal(OrnsteinUhlenbeck(N=400), 2)
    assert samples.mean().item() == pytest.approx(MEAN - end / end_std * STD, abs=0.02)
    assert samples.std().item() == pytest.approx(STD / end_std, abs=0.02)


def test_own_sde_has_no_ancestral_sampling():
    with pytest.raises(
        NotImplementedError, match='ancestral sampling is not defined for OrnsteinUhlenbeck'
    ):
        own_sampler('ancestral_sampling', 'none')


@pytest.mark.parametrize('eps', [1e-3, 0.5])
def test_own_sde_with_the_ode_sampler(eps):
    """Of Gaussian data, the flow keeps every value at its distance from the mean in units of the
    standard deviation.
    """
    sde = OrnsteinUhlenbeck(N=100)
    z = torch.randn(*SHAPE)
    x, nfe = sampling.get_ode_sampler(sde, SHAPE, identity, eps=eps, device='cpu')(
        ExactNoise(sde), z
    )
    (start, start_std), (end, end_std) = marginal(sde, sde.T), marginal(sde, eps)
    torch.testing.assert_close(x, end + end_std * (z - start) / start_std, atol=1e-4, rtol=0)
    assert nfe > 0
    drawn, _ = sampling.get_ode_sampler(sde, SHAPE, identity, eps=eps, device='cpu')(
        ExactNoise(sde)
    )
    assert drawn.shape == SHAPE and drawn.std().item() == pytest.approx(
        end_std / start_std, abs=0.02
    )


@pytest.mark.parametrize('probe', ['Rademacher', 'Gaussian'])
def test_own_sde_with_likelihood(probe):
    """Of Gaussian data, the flow is linear, with one slope for all values: Rademacher probes are
    exact, Gaussian ones right on average.
    """
    sde = OrnsteinUhlenbeck(N=100)
    data = MEAN + STD * torch.randn(200, 1, 4, 4)
    bpd, z, _ = likelihood.get_likelihood_fn(sde, identity, probe, eps=1e-5)(ExactNoise(sde), data)
    (start, start_std), (end, end_std) = marginal(sde, 1e-5), marginal(sde, sde.T)
    code, slope = end + end_std * (data - start) / start_std, end_std / start_std
    torch.testing.assert_close(z, code, atol=1e-3, rtol=0)
    expected = 8 - (sde.prior_logp(code) / 16 + math.log(slope)) / math.log(2)
    if probe == 'Rademacher':
        torch.testing.assert_close(bpd, expected, atol=1e-3, rtol=0)
    else:
        assert bpd.mean().item() == pytest.approx(
            expected.mean().item(), abs=4 * (bpd - expected).std().item() / 200**0.5
        )
        assert (bpd - expected).abs().max() > 0.01


@pytest.mark.parametrize('likelihood_weighting', [False, True])
@pytest.mark.parametrize('reduce_mean', [False, True])
def test_own_sde_with_the_loss(likelihood_weighting, reduce_mean):
    """What is left of the loss at the exact score is the variance of the noise z given x_t, 1 -
    std^2 / var(x_t), suitably weighted.
    """
    sde, eps = OrnsteinUhlenbeck(N=100), 1e-2
    data = MEAN + STD * torch.randn(4000, 1, 4, 4)
    loss = losses.get_sde_loss_fn(
        sde,
        train=False,
        reduce_mean=reduce_mean,
        likelihood_weighting=likelihood_weighting,
        eps=eps,
    )(ExactNoise(sde), data)
    t = torch.linspace(eps, sde.T, 20001, dtype=torch.float64)
    m, std = sde.marginal_prob(torch.ones_like(t), t)
    left = 1 - std**2 / ((m * STD) ** 2 + std**2)
    expected = (
        (left * sde.sde(t, t)[1] ** 2 / std**2 if likelihood_weighting else left).mean().item()
    )
    assert loss.item() == pytest.approx(
        expected if reduce_mean else expected * 16 / 2, rel=0.1 if likelihood_weighting else 0.03
    )


@pytest.mark.parametrize('likelihood_weighting', [False, True])
def test_own_sde_trains(likelihood_weighting):
    """A step towards the exact network, from one that is off by a constant."""
    sde = OrnsteinUhlenbeck(N=100)
    model = ExactNoise(sde)
    with torch.no_grad():
        model.offset.fill_(0.5)
    config = load_config('configs.vp.digits_ddpmpp_continuous')
    config.optim.update(lr=0.1, warmup=0)
    state = dict(
        model=model,
        optimizer=losses.get_optimizer(config, model.parameters()),
        ema=ExponentialMovingAverage(model.parameters(), decay=0.9),
        step=0,
    )
    step_fn = losses.get_step_fn(
        sde,
        train=True,
        optimize_fn=losses.optimization_manager(config),
        reduce_mean=True,
        continuous=True,
        likelihood_weighting=likelihood_weighting,
    )
    step_fn(state, MEAN + STD * torch.randn(100, 1, 4, 4))
    assert state['step'] == 1 and model.offset.item() == pytest.approx(0.4, abs=1e-3)


def test_own_sde_has_no_discrete_training():
    with pytest.raises(
        NotImplementedError, match='OrnsteinUhlenbeck has no discrete-time training'
    ):
        losses.get_step_fn(OrnsteinUhlenbeck(N=100), train=True, continuous=False)


def test_shared_updates():
    """The two functions that old samplers call in their own loops, with None for no step."""
    sde = OrnsteinUhlenbeck(N=100)
    model, x, t = ExactNoise(sde), torch.randn(3, 1, 4, 4), torch.full((3,), 1.0)
    score_fn = mutils.get_score_fn(sde, model, continuous=True)
    for predictor in (sampling.ReverseDiffusionPredictor, None):
        torch.manual_seed(1)
        shared = sampling.shared_predictor_update_fn(x, t, sde, model, predictor, False, True)
        torch.manual_seed(1)
        expected = predictor(sde, score_fn, False).update_fn(x, t) if predictor else (x, x)
        assert all(map(torch.equal, shared, expected))
    for corrector in (sampling.LangevinCorrector, None):
        torch.manual_seed(1)
        shared = sampling.shared_corrector_update_fn(x, t, sde, model, corrector, True, 0.16, 2)
        torch.manual_seed(1)
        expected = corrector(sde, score_fn, 0.16, 2).update_fn(x, t) if corrector else (x, x)
        assert all(map(torch.equal, shared, expected))


def test_sde_without_an_abstract_method():
    class Incomplete(SDE):
        T = 1.0

    with pytest.raises(TypeError, match='abstract'):
        Incomplete(N=10)


def test_divergence():
    """Of a linear map with matrix A the estimate is e^T A e."""
    A, e = torch.randn(6, 6), torch.randn(4, 6)
    div_fn = likelihood.get_div_fn(lambda x, t: x @ A.T * t[:, None])
    t = torch.rand(4)
    torch.testing.assert_close(
        div_fn(torch.randn(4, 6), t, e), t * torch.einsum('bi,ij,bj->b', e, A, e)
    )


# A notebook ---------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def notebook(tmp_path_factory):
    """A config, its SDE and a network with averaged weights from a checkpoint, set up as notebooks
    do it.
    """
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
    # as if trained: averages that differ from the weights, and an output that is not zero, yet
    # smooth
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


def test_a_checkpoint_has_the_published_form(notebook):
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
    # a corrector and a predictor step each
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
    """Bits/dim of a batch of the data set; and the latent code of an image, decoded, is that
    image.
    """
    config, score_model = notebook['config'], notebook['score_model']
    # An untrained network does not hold against the decay of an SDE that reaches its prior: data
    # would shrink to the solver's tolerance.
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
    # a sixth of a grey level
    np.testing.assert_allclose(x.permute(0, 2, 3, 1).numpy(), eval_images, rtol=0, atol=0.01)


def test_notebook_trains(notebook):
    """A step of training and a loss of the averaged weights, from the data set's own batches; the
    loss is reproducible from a seed.
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
    for _ in range(2):  # the first has learning rate 0: the warm-up begins there
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


# Sizes --------------------------------------------------------------------------------------------

PUBLISHED = {
    'get_pc_sampler',
    'get_ode_sampler',
    'get_pc_inpainter',
    'get_pc_colorizer',
    'get_pc_conditional_sampler',
    'ResnetBlockBigGANpp',
}


def test_functions_have_at_most_eight_parameters():
    """But for those of the 2021 releases, whose signatures stay."""
    large = {}
    folders = *ROOMS, 'examples', 'benchmarks'
    for path in [
        *ROOT.glob('*.py'),
        *(path for folder in folders for path in (ROOT / folder).glob('**/*.py')),
    ]:
        tree = ast.parse(path.read_text())
        owner = {
            id(function): cls.name
            for cls in ast.walk(tree)
            if isinstance(cls, ast.ClassDef)
            for function in cls.body
        }
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            a = function.args
            arguments = filter(None, (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg))
            names = [argument.arg for argument in arguments if argument.arg not in ('self', 'cls')]
            name = (
                owner.get(id(function), function.name)
                if function.name == '__init__'
                else function.name
            )
            if len(names) > 8 and name not in PUBLISHED:
                large[f'{path.name}:{function.lineno} {name}'] = len(names)
    assert not large
