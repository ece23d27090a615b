"""The example file: its SDE compared with exact results, its commands, and its own keys."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import checkpoints
import run_lib
import sampling
import sde_lib
from checkpoints import trained
from commands import command_line, preflight
from configs import stored
from conftest import ROOT, load_config
from oracles import MEAN, STD, ExactNoise, marginal
from runtime.errors import UserError
from score_model import ScoreModel

EXAMPLE = ROOT / 'examples' / 'own_process.py'


# The cosine SDE of the example --------------------------------------------------------------------


@pytest.mark.parametrize('s', [0.008, 0.05])
def test_the_marginal_solves_the_moment_equations(example, s):
    """`marginal_prob` agrees with numerical solutions of dm/dt = -beta/2 m, dv/dt = beta (1 - v).

    beta is taken from the drift and agrees with the diffusion.
    """
    sde = sde_lib.SDES.get('cosinevp')(cosine_s=s)

    def rates(t, moments):
        drift, diffusion = sde.sde(
            torch.ones(1, 1, dtype=torch.float64), torch.tensor([t], dtype=torch.float64)
        )
        return [float(drift) * moments[0], 2 * float(drift) * moments[1] + float(diffusion) ** 2]

    times = np.array([1e-3, 0.1, 0.5, 0.9, sde.T])
    found = solve_ivp(rates, (0, sde.T), [1.0, 0.0], 'LSODA', times, rtol=1e-10, atol=1e-12)
    t = torch.tensor(times)
    mean, std = sde.marginal_prob(torch.ones(5, 1, dtype=torch.float64), t)
    np.testing.assert_allclose(mean[:, 0], found.y[0], rtol=1e-6)
    np.testing.assert_allclose(std**2, found.y[1], rtol=1e-6)
    drift, diffusion = sde.sde(torch.ones(5, 1, dtype=torch.float64), t)
    # a variance of 1 does not change
    np.testing.assert_allclose(diffusion**2, -2 * drift[:, 0], rtol=1e-12)


def test_the_schedule_equals_that_of_the_paper(example):
    """The schedule is Eq. 17 of Nichol & Dhariwal 2021 with s = 0.008.

    In float32 the standard deviation is accurate down to the smallest times.
    """
    sde, t = sde_lib.get_sde(example), np.array([1e-5, 1e-3, 0.3, 0.99])
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    mean, std = sde.marginal_prob(torch.ones(4, 1), torch.tensor(t, dtype=torch.float32))
    np.testing.assert_allclose(mean[:, 0] ** 2, f, rtol=2e-5)
    np.testing.assert_allclose(std, np.sqrt(1 - f), rtol=2e-6)
    assert repr(sde) == 'CosineVPSDE(cosine_s=0.008, N=100)'


def exact_model(sde):
    return ScoreModel(ExactNoise(sde), sde, shape=(1, 4, 4))


@pytest.mark.parametrize(
    'settings',
    [
        dict(predictor='posterior'),
        dict(predictor='reverse_diffusion'),
        dict(predictor='posterior', skip_type='logSNR'),
    ],
    ids=lambda settings: '-'.join(settings.values()),
)
def test_sampling_with_the_exact_score_reaches_the_data(example, settings):
    """Mean and standard deviation of the samples equal those of the data.

    For 8000 values the standard error of the mean is 0.006, and that of the standard deviation
    0.004. Steps of T/N add errors of order 1/N.
    """
    samples, nfe = exact_model(sde_lib.get_sde(example)).draw(
        500, method='pc', steps=400, **settings
    )
    assert nfe == 400
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert samples.std().item() == pytest.approx(STD, abs=0.02)


@pytest.mark.parametrize('method', ['heun', 'dpmpp_2m', 'unipc'])
def test_solvers_follow_the_flow_of_the_cosine_sde(example, method):
    """For Gaussian data, (x - mean) / std is constant along the flow."""
    sde, z = sde_lib.get_sde(example), torch.randn(100, 1, 4, 4)
    samples, _ = sampling.sample(
        exact_model(sde),
        z.shape,
        sampling.Options(method=method, steps=100, noise_removal=False),
        z=z,
    )
    (start, start_std), (end, end_std) = marginal(sde, sde.T), marginal(sde, 1e-3)
    torch.testing.assert_close(samples, end + end_std * (z - start) / start_std, atol=0.01, rtol=0)


def test_likelihoods_of_gaussian_data_are_exact(example):
    sde, data = sde_lib.get_sde(example), MEAN + STD * torch.randn(50, 1, 4, 4)
    result = exact_model(sde).log_likelihood(data, rtol=1e-6, atol=1e-6)
    (start, start_std), (end, end_std) = marginal(sde, 1e-5), marginal(sde, sde.T)
    code = end + end_std * (data - start) / start_std
    torch.testing.assert_close(result.z, code, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        result.nats, sde.prior_logp(code) + 16 * math.log(end_std / start_std), atol=2e-3, rtol=0
    )
    # exact except for the prior, which is almost p_T
    exact = torch.distributions.Normal(MEAN, STD).log_prob(data).flatten(1).sum(1)
    torch.testing.assert_close(result.nats, exact, atol=0.05, rtol=0)


# Real commands ------------------------------------------------------------------------------------

SHORT = (
    '--config.device=cpu',
    '--config.model.cnn_width=16',
    '--config.training.n_iters=6',
    '--config.training.snapshot_freq=5',
    '--config.training.snapshot_sampling=False',
    '--config.model.num_scales=5',
    '--config.eval.num_samples=8',
    '--config.eval.metrics_backend=none',
    '--config.eval.metrics_floor=False',
    '--config.eval.most_images=8',
    '--config.eval.bpd_rtol=0.1',
    '--config.eval.bpd_atol=0.1',
)


def command(folder, *flags):
    """Run main.py in `folder`."""
    return subprocess.run(
        [sys.executable, ROOT / 'main.py', *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_example_runs_from_any_folder_and_must_be_passed_again(tmp_path, example):
    elsewhere, workdir = tmp_path / 'elsewhere', tmp_path / 'own'
    elsewhere.mkdir()
    (elsewhere / 'beside.py').write_text('')
    (elsewhere / 'mine.py').write_text('import beside\n' + EXAMPLE.read_text())
    for mode in ('train', 'eval', 'sample'):
        done = command(
            tmp_path,
            '--config=elsewhere/mine.py',
            f'--workdir={workdir}',
            f'--mode={mode}',
            '--num_samples=4',
            *SHORT,
        )
        assert done.returncode == 0, done.stderr
    log = (workdir / 'stdout.txt').read_text()
    assert (
        'CosineVPSDE(cosine_s=0.008, N=5), continuous time' in log
        and 'small_cnn, 10,801 parameters' in log
    )
    assert (workdir / 'checkpoints' / 'checkpoint_1.pth').is_file() and (
        workdir / 'generated' / '00003.png'
    ).is_file()
    assert (
        'bits/dim' in (workdir / 'eval' / 'report.md').read_text()
        and np.load(workdir / 'eval/ckpt_1/samples_0.npz')['samples'].any()
    )
    done = command(tmp_path, f'--workdir={workdir}', '--mode=sample')
    assert done.returncode == 1 and done.stderr == (
        f"error: {workdir} was trained with config.model.name='small_cnn', "
        "config.training.sde='cosinevp', "
        "config.sampling.predictor='posterior', config.data.dataset='shapes', not registered here: "
        'pass --config FILE, the Python file that registers them\n'
    )
    example.model.update(cosine_s=0.02, num_scales=5, cnn_width=16)
    with pytest.raises(
        UserError,
        match=r'^config.model.cosine_s=0.02 differs from 0.008, with '
        r'which .*checkpoint_1.pth was trained',
    ):
        trained.load_averaged_model(example, workdir / 'checkpoints' / 'checkpoint_1.pth')


def test_a_config_file_can_be_loaded_again(unregistered):
    """As in a notebook, the new classes replace the earlier ones."""
    for _ in range(3):
        config = command_line.load_config(str(EXAMPLE))
    assert type(sde_lib.get_sde(config)) is sys.modules['own_process'].CosineVPSDE


# What the library asks an SDE ---------------------------------------------------------------------


def test_the_sdes_of_this_library_are_built_from_their_own_keys():
    config = load_config(
        'configs.vp.digits_ddpmpp_continuous',
        beta_min=0.2,
        beta_max=8.0,
        sigma_min=0.1,
        sigma_max=3.0,
        num_scales=30,
    )
    for name, shown in (
        ('vpsde', 'VPSDE(beta_min=0.2, beta_max=8.0, N=30)'),
        ('subVPSDE', 'subVPSDE(beta_min=0.2, beta_max=8.0, N=30)'),
        ('VESDE', 'VESDE(sigma_min=0.1, sigma_max=3.0, N=30)'),
    ):
        config.training.sde = name
        assert repr(sde_lib.get_sde(config)) == shown
    config.training.sde = 'cosine'
    with pytest.raises(
        UserError,
        match="^config.training.sde must be one of .*'subvpsde', 'vesde', 'vpsde', got 'cosine'$",
    ):
        sde_lib.get_sde(config)


def test_the_keys_that_define_a_model_follow_from_its_sde(example):
    """A key that belongs to an unused SDE (also a registered one) does not define the model."""
    unused = {
        'vpsde': {'sigma_min', 'sigma_max', 'cosine_s'},
        'subvpsde': {'sigma_min', 'sigma_max', 'cosine_s'},
        'vesde': {'beta_min', 'beta_max', 'cosine_s'},
        'cosinevp': {'beta_min', 'beta_max', 'sigma_min', 'sigma_max'},
        'unheard_of': set(),
    }
    for name, absent in unused.items():
        example.training.sde = name
        keys = (
            'beta_min',
            'beta_max',
            'sigma_min',
            'sigma_max',
            'cosine_s',
            'num_scales',
            'cnn_width',
        )
        assert {
            key for key in keys if not stored.defines_model(f'model.{key}', example)
        } == absent, name
        assert not stored.defines_model('sampling.snr', example) and stored.defines_model(
            'data.centered', example
        )


def test_keys_of_a_custom_sde_are_accepted_by_name(example, tmp_path):
    """Arguments of the constructor are config keys, also with a network of the library."""
    config = load_config('configs.vp.digits_ddpmpp_continuous')
    config.training.sde = 'cosinevp'
    config.model.cosine_s = 0.02
    preflight.check(config, tmp_path, 'train')
    config.model.cosine_s_too = 0.1
    with pytest.raises(UserError, match='^config.model.cosine_s_too is not a known key'):
        preflight.check(config, tmp_path, 'train')
    del config.model['cosine_s_too']
    config.training.sde = 'vpsde'
    with pytest.raises(UserError, match='^config.model.cosine_s is not a known key'):
        preflight.check(config, tmp_path, 'train')
    config.training.sde = 'cosinevp'
    config.model.update(scale_by_sigma=True, embedding_type='fourier')
    with pytest.raises(UserError, match='config.model.scale_by_sigma=True needs'):
        preflight.check(config, tmp_path, 'train')


def test_scale_by_sigma_with_a_custom_ve_sde(unregistered, tmp_path):
    @sde_lib.register_sde(name='my_ve')
    class MyVE(sde_lib.VESDE):
        pass

    config = load_config('configs.ve.digits_ncsnpp_continuous')
    config.training.sde = 'my_ve'
    preflight.check(config, tmp_path, 'train')
    assert type(sde_lib.get_sde(config)) is MyVE and config.model.scale_by_sigma


@pytest.mark.parametrize('key, value', [('cosine_s', 0.02), (None, None)])
def test_a_classifier_must_have_the_same_custom_sde(example, tmp_path, key, value):
    config = load_config('configs.vp.digits_wideresnet')
    config.training.sde = 'cosinevp'
    config.model.update(nf=4, widen=1, num_res_blocks=1, cosine_s=0.008)
    checkpoints.save(
        tmp_path / 'classifier.pth', run_lib.create_state(config) | dict(config=config.to_json())
    )
    if key is None:
        assert (
            trained.load_classifier(tmp_path / 'classifier.pth', example).module.num_classes == 10
        )
        return
    example.model[key] = value
    with pytest.raises(
        UserError,
        match='was trained with config.model.cosine_s=0.008, but this config has 0.02: they must '
        'be equal',
    ):
        trained.load_classifier(tmp_path / 'classifier.pth', example)


def test_only_unknown_names_of_a_work_directory_raise_an_error(unregistered, tmp_path):
    """An unknown name that the work directory does not use gives an error with the known names."""
    config = load_config('configs.vp.digits_ddpmpp_continuous')
    config.sampling.predictor = 'mine'
    config.sampling.my_step = 3  # a key of the registered predictor
    stored.write(config, tmp_path)
    with pytest.raises(UserError) as caught:
        preflight.check(config, tmp_path, 'sample')
    assert str(caught.value) == (
        f"{tmp_path} was trained with config.sampling.predictor='mine', "
        'not registered here: '
        'pass --config FILE, the Python file that registers them'
    )
    del config.sampling['my_step']
    config.sampling.predictor = 'eulr'
    with pytest.raises(
        UserError, match="^config.sampling.predictor must be one of 'ancestral_sampling', "
    ):
        preflight.check(config, tmp_path, 'sample')
