"""Checks before any work: bad configs raise errors, odd ones log warnings, published ones pass."""

import importlib
import pathlib

import pytest
import torch

import run_lib
from commands import preflight
from configs.vp import digits_ddpmpp_continuous
from runtime.errors import UserError
from test_cli import config_for

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'sampling.predictor': 'eulr'}, ['config.sampling.predictor', 'eulr', 'euler_maruyama']),
        ({'sampling.corrector': 'x'}, ['config.sampling.corrector', 'langevin']),
        ({'sampling.method': 'x'}, ['config.sampling.method', 'ode']),
        (
            {'sampling.predictor': 'none', 'sampling.corrector': 'none'},
            ['sampling.predictor', 'sampling.corrector', 'none'],
        ),
        (
            {'sampling.predictor': 'ancestral_sampling', 'sampling.probability_flow': True},
            ['ancestral', 'sampling.probability_flow'],
        ),
        ({'model.name': 'unet'}, ['config.model.name', 'unet', 'ncsnpp']),
        ({'model.normalization': 'BatchNorm'}, ['config.model.normalization', 'GroupNorm']),
        ({'model.nonlinearity': 'gelu'}, ['config.model.nonlinearity', 'swish']),
        ({'model.nf': 30}, ['channels', 'model.nf']),
        ({'model.ch_mult': (1, 1, 1, 1, 1)}, ['multiples of 16']),
        ({'model.num_scales': 10}, ['N must be at least 21']),
        (
            {'model.embedding_type': 'fourier', 'training.continuous': False},
            ['config.training.continuous', 'fourier'],
        ),
        ({'model.scale_by_sigma': True}, ['config.model.scale_by_sigma', "training.sde='vesde'"]),
        (
            {'training.sde': 'vesde', 'model.scale_by_sigma': True},
            ['config.model.scale_by_sigma', 'training.continuous=False'],
        ),
        (
            {
                'training.sde': 'vesde',
                'model.scale_by_sigma': True,
                'model.name': 'ddpm',
                'model.nf': 32,
            },
            ['config.model.scale_by_sigma', 'training.continuous=False'],
        ),
        ({'optim.grad_clip': 0.0}, ['config.optim.grad_clip', 'negative']),
        ({'data.dataset': 'IMAGENET'}, ['config.data.dataset', 'DIGITS']),
        ({'data.image_size': 16}, ['config.data.image_size', '8x8']),
        ({'training.sde': 'xsde'}, ['config.training.sde', 'subvpsde']),
        (
            {'training.sde': 'subvpsde', 'training.continuous': False},
            ['subVPSDE', 'training.continuous=True'],
        ),
        ({'training.continuous': False, 'training.likelihood_weighting': True}, ['likelihood']),
        ({'training.batch_size': 0}, ['config.training.batch_size', '>= 1']),
        ({'model.ema_rate': 2.0}, ['config.model.ema_rate', '[0, 1]']),
        ({'optim.optimizer': 'SGD'}, ['config.optim.optimizer', 'Adam']),
        ({'device': 'gpu9'}, ['config.device', 'gpu9']),
        pytest.param(
            {'device': 'cuda'},
            ['config.device', '--config.device=cpu'],
            marks=pytest.mark.skipif(
                torch.cuda.is_available(), reason='there is a CUDA device here'
            ),
        ),
    ],
)
def test_a_bad_config_raises_a_one_line_error_with_the_key(tmp_path, changes, words):
    config = digits_ddpmpp_continuous.get_config()
    config.device = 'cpu'
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as caught:
        run_lib.train(config, tmp_path / 'w')
    complaint = str(caught.value)
    assert '\n' not in complaint and all(word in complaint for word in words), complaint
    assert not list((tmp_path / 'w').glob('*'))


@pytest.mark.parametrize(
    'path',
    sorted((ROOT / 'configs').glob('*/**/[a-z]*.py')),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_config_passes_the_checks_and_states_its_result(tmp_path, path):
    module = importlib.import_module('.'.join(path.relative_to(ROOT).with_suffix('').parts))
    config = module.get_config()
    config.device = 'cpu'
    preflight.check(
        config, tmp_path, 'classifier' if config.model.name == 'wideresnet' else 'sample'
    )
    assert not preflight.warnings(config)
    assert f'--config {path.relative_to(ROOT)}' in module.__doc__ and 'Expect' in module.__doc__


@pytest.mark.parametrize(
    'changes, sentence',
    [
        (
            {'optim.warmup': 4},
            'config.training.n_iters=3 is less than config.optim.warmup=4: the '
            'learning rate never reaches '
            'config.optim.lr=0.002',
        ),
        (
            {'training.snapshot_freq': 4},
            'config.training.snapshot_freq=4 is greater than '
            'config.training.n_iters=3: the only numbered '
            'checkpoint will be that of the last step',
        ),
        (
            {'model.attn_resolutions': (4, 16, 2)},
            'config.model.attn_resolutions=(4, 16, 2) includes '
            '16, 2, but the network only has the '
            'resolutions 8, 4: it has no attention at the missing ones',
        ),
    ],
)
def test_unusual_settings_cause_a_warning_before_training(tmp_path, caplog, changes, sentence):
    config = config_for(3)
    config.update_from_flattened_dict({'optim.warmup': 3, 'training.snapshot_freq': 3} | changes)
    with caplog.at_level('WARNING'):
        run_lib.train(config, tmp_path)
    assert caplog.messages == [f'{sentence}.']
