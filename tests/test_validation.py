"""Validation of checkpoints: the report lists measurements, missing ones and failed checks."""

import csv
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import checkpoints
import convert
import run_lib
import sde_lib
from conftest import DATA, ROOT, load_config
from data import tensorflow_sets
from data.images import Images
from models.utils import create_model
from runtime.errors import CheckpointError, UserError
from score_model import ScoreModel
from validation import invariants, report, validate
from validation.__main__ import main, setting

VE, VP = 'configs/ve/digits_ncsnpp_continuous.py', 'configs/vp/digits_ddpmpp_continuous.py'
TINY = {
    'device': 'cpu',
    'model.nf': 8,
    'sampling.steps': 25,
    'eval.num_samples': 20,
    'eval.most_images': 12,
    'eval.batch_size': 10,
    'eval.bpd_rtol': 0.1,
    'eval.bpd_atol': 0.1,
    'model.num_scales': 30,
}


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    """Two tiny untrained networks, with the statistics of their data.

    One is stored as a training state, the other as safetensors.
    """
    folder = tmp_path_factory.mktemp('pair')
    paths = []
    for path, name in ((VE, 've.pth'), (VP, 'vp.safetensors')):
        torch.manual_seed(0)
        config = validate.load_config(path, TINY)
        state = run_lib.create_state(config)
        checkpoints.save(folder / 'state.pth', state | dict(step=5))
        if name.endswith('.pth'):
            (folder / 'state.pth').rename(folder / name)
        else:
            convert.convert(folder / 'state.pth', folder / name, config)
        paths.append(f'{path}={folder / name}')
    return folder, paths


def options(folder, **settings):
    given = TINY | {'eval.stats_dir': str(folder / 'stats')} | settings
    return [part for key, value in given.items() for part in ('--set', f'{key}={value}')]


def test_a_report_of_two_models(pair, tmp_path, capsys):
    folder, models = pair
    status = main([*models, '--output', str(tmp_path), *options(folder)])
    assert capsys.readouterr().out.strip() == str(tmp_path / 'REPORT.md')
    text = (tmp_path / 'REPORT.md').read_text()
    with open(tmp_path / 'summary.csv') as file:
        rows = list(csv.DictReader(file))
    names = {
        've/digits_ncsnpp_continuous': ('pytorch', '12 images'),
        'vp/digits_ddpmpp_continuous': ('safetensors', '12 images'),
    }
    assert {row['checkpoint']: row['format'] for row in rows} == {
        name: format for name, (format, _) in names.items()
    }
    for name in names:
        quantities = {row['quantity']: row for row in rows if row['checkpoint'] == name}
        for quantity, n in (
            ('loss', '12'),
            ('bits/dim', '12'),
            ('Frechet distance, pixels', '20'),
            ('kernel distance, pixels', '20'),
        ):
            assert (
                np.isfinite(float(quantities[quantity]['value'])) and quantities[quantity]['n'] == n
            )
            assert f'| {name} | {quantity} |' in text
        assert (
            float(quantities['kernel distance, pixels']['seconds_per_sample']) > 0
            and quantities['bits/dim']['seed'] == '42'
        )
        assert (
            f'| {name} | loads with matching names and shapes | yes |' in text
            and '| config is not in the paper |' in text
        )
        # an untrained network must not pass
        assert f'| {name} | denoises | **NO** |' in text
    assert status == 1 and '**' in text.split('\n')[2]
    for name in (
        'side_by_side.png',
        'denoising.png',
        'samples_ve_digits_ncsnpp_continuous.png',
        'details/report.md',
        'RUN_ENV.txt',
    ):
        assert (
            (tmp_path / name).stat().st_size > 500
            and name in text
            or name == 'details/report.md'
            and f']({name})' in text
        )
    snapshot = (tmp_path / 'RUN_ENV.txt').read_text()
    assert (
        f'torch {torch.__version__}'.partition('+')[0] in snapshot
        and 'command: python -m validation' in snapshot
    )

    once = (tmp_path / 'summary.csv').read_bytes()  # the next run computes nothing again
    main([*models, '--output', str(tmp_path), *options(folder)])
    assert (tmp_path / 'summary.csv').read_bytes() == once


def test_failures_are_reported(pair, tmp_path, capsys):
    """A NaN weight and a file that does not fit its config fail; a config may appear twice."""
    folder, models = pair
    content = torch.load(folder / 've.pth', weights_only=True)
    content['ema']['shadow_params'][3][0] = float('nan')
    torch.save(content, tmp_path / 'nan.pth')
    status = main(
        [
            f'{VE}={tmp_path / "nan.pth"}',
            f'{VP}={folder / "ve.pth"}',
            f'{VE}={folder / "ve.pth"}',
            '--output',
            str(tmp_path),
            *options(folder),
        ]
    )
    text = (tmp_path / 'REPORT.md').read_text()
    assert status == 1
    assert '| ve/digits_ncsnpp_continuous, nan (1) | weights are finite | **NO** | 1 of ' in text
    assert '| ve/digits_ncsnpp_continuous, ve (3) | weights are finite | yes |' in text
    assert (
        '| vp/digits_ddpmpp_continuous | loads with matching names and shapes | **NO** |' in text
        and 'does not match the network' in text
    )
    assert 'failed**' in text.splitlines()[2]


def test_missing_results_are_left_out_with_a_reason(tmp_path, monkeypatch):
    """The report of a published config without data set and network connection is incomplete.

    It has the paper's numbers, and the reason why ours are missing.
    """

    def offline():
        raise OSError('no network')

    monkeypatch.setattr(tensorflow_sets, 'require_network', offline)
    for name in ('fetch_statistics',):
        monkeypatch.setattr(
            validate, name, lambda: (_ for _ in ()).throw(UserError('no network either'))
        )
    status = main(
        [
            f'configs/ve/cifar10_ncsnpp_continuous.py={DATA / "jax_ve_checkpoint_12"}',
            '--output',
            str(tmp_path),
            '--samples',
            '4',
            '--set',
            'model.nf=8',
            '--set',
            'model.ch_mult=(1,2,2)',
            '--set',
            'model.num_res_blocks=1',
            '--set',
            'sampling.steps=2',
            '--set',
            'model.attn_resolutions=(16,)',
            '--set',
            f'data.tfds_dir={tmp_path}/tfds',
            '--set',
            'device=cpu',
            '--set',
            f'eval.inception_path={tmp_path}/none',
            '--set',
            f'eval.stats_dir={tmp_path}/stats',
        ]
    )
    text = (tmp_path / 'REPORT.md').read_text()
    assert (
        '| FID | not measured | - | - | 2.38 | left out: see the checks |' in text
        and '| 9.83 |' in text
    )
    assert (
        '| denoising | - | left out: ' in text
        and 'is not prepared' in text
        and 'no network' in text
    )
    assert '| metrics of samples | - | left out: ' in text and '| samples vary |' in text
    assert status == 0 and 'flax' in text and '2 could not be made' in text


def test_the_report_compares_with_the_numbers_of_the_paper():
    """The report has the paper's number and the difference, or why they are not comparable.

    Numbers are not comparable if n is too small. The number is missing if the paper has none.
    """
    from reports import Number
    from validation.published import published

    def compared(n, quantity='FID', method='pc', name='vp/cifar10_ddpmpp_continuous', value=2.6):
        number = Number(
            {'FID': 'frechet', 'IS': 'IS'}.get(quantity, quantity),
            quantity,
            value,
            {'seed': 1},
            n,
            'samples',
            'images',
            50000,
        )
        config = load_config('configs.vp.cifar10_ddpmpp_continuous')
        config.sampling.method = method
        model = validate.Model(name, '', None, published(name))
        return report.compared(validate.Result(model, config, about={}), number)

    assert compared(50000) == ('2.55', '+0.05 from the paper') and compared(
        50000, method='ode'
    ) == (
        '3.93',
        '-1.33 from the paper',
    )
    theirs, reason = compared(500)
    assert theirs == '2.55' and reason.startswith('not comparable: 500 samples (< 50000)')
    assert (
        compared(50000, 'IS', value=9.6) == ('9.58', '+0.02 from the paper')
        and compared(50000, 'IS', 'ode')[0] == ''
    )
    assert compared(50000, 'FID', name='ve/church_ncsnpp_continuous') == (
        '',
        'not in the paper',
    )


@pytest.mark.parametrize(
    'module',
    [
        'configs.ve.digits_ncsnpp_continuous',
        'configs.vp.digits_ddpmpp_continuous',
        'configs.vp.ddpm.cifar10',
    ],
)
def test_the_best_linear_estimate(module):
    """The linear estimate of the denoising check has the smallest error on Gaussian data.

    The exact network has the same error.
    """
    config = load_config(module)
    config.data.update(
        num_channels=1, image_size=8, random_flip=False, uniform_dequantization=False
    )
    values = np.random.default_rng(0).normal(128, 20, (600, 8, 8, 1)).clip(0, 255).astype(np.uint8)
    images = Images(values, np.zeros(600, np.int64))
    sde, scaled = (
        sde_lib.get_sde(config),
        values / 255 * (1 + config.data.centered) - config.data.centered,
    )
    mean, variance = scaled.mean(), scaled.var()

    class Exact(torch.nn.Module):
        def forward(self, x, labels):
            t = labels / (999 if config.training.continuous else sde.N - 1)
            if config.training.sde == 'vesde':
                return -(x - mean) / (variance + labels[:, None, None, None] ** 2)
            if config.training.continuous:
                scale, std = sde.marginal_prob(torch.ones(len(x), 1, 1, 1), t)
                std = std[:, None, None, None]
            else:
                scale = sde.sqrt_alphas_cumprod[labels.long()][:, None, None, None]
                std = sde.sqrt_1m_alphas_cumprod[labels.long()][:, None, None, None]
            return std * (x - scale * mean) / (scale**2 * variance + std**2)

    found = invariants.denoising(ScoreModel.from_config(config, Exact()), images, seed=0, most=600)
    assert found.n == 600 and found.variance == pytest.approx(variance, rel=1e-3)
    # the noise levels of the chain differ from those of the SDE by up to a step
    middle = slice(1, -1) if config.training.continuous else slice(3, -1)
    assert found.network[middle] == pytest.approx(
        found.linear[middle], rel=1e-3 if config.training.continuous else 0.02
    )
    assert invariants.of_denoising(found._replace(network=0.9 * found.linear)).passed
    assert not invariants.of_denoising(found._replace(network=1.1 * found.linear)).passed
    assert not invariants.of_denoising(found._replace(network=found.linear * np.nan)).passed


def test_checks_of_samples_and_numbers():
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (50, 8, 8, 3)).astype(np.uint8)
    assert (
        invariants.of_samples(real[:20], real).passed and invariants.of_samples(real, None).passed
    )
    assert (
        not invariants.of_samples(np.repeat(real[:1], 20, 0), real).passed
        and not invariants.of_samples(np.repeat(real[:1], 20, 0), None).passed
    )
    network = create_model(validate.load_config(VP, TINY))
    assert sum(p.numel() for p in network.parameters()) > 1000


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['ve/nonsense'], 'expected one of ve/cifar10_ncsnpp'),
        (['configs/none.py=x'], 'checkpoint x does not exist'),
        ([f'configs/none.py={ROOT / "README.md"}'], 'config configs/none.py does not exist'),
        ([f'{VP}={ROOT / "README.md"}'], 'not a checkpoint of a known format'),
        (
            [f'{VP}={ROOT / "README.md"}', '--set', 'model.nff=3'],
            '--set model.nff=3: .* no such key',
        ),
        ([f'{VP}={ROOT / "README.md"}', '--set', 'model.nf=many'], '--set model.nf=many: '),
    ],
)
def test_wrong_arguments_raise_a_one_line_error(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main([*arguments, '--output', str(tmp_path / 'out')]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error:')]
    assert len(said) == 1 and re.search(words, said[0]), said


def test_settings_of_the_command():
    assert setting('eval.num_samples=50') == ('eval.num_samples', 50) and setting(
        'model.ch_mult=(1,2)'
    ) == ('model.ch_mult', (1, 2))
    assert setting('data.tfds_dir=/data/tfds') == ('data.tfds_dir', '/data/tfds') and setting(
        'device=cuda:0'
    ) == ('device', 'cuda:0')
    with pytest.raises(Exception, match='section.key=value'):
        setting('samples')


def test_help_describes_the_command():
    done = subprocess.run(
        [sys.executable, '-m', 'validation', '--help'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {'PYTHONPATH': ''},
    )
    assert done.returncode == 0 and 'REPORT.md' in done.stdout and '--digits' in done.stdout


@pytest.mark.parametrize('which', ['raw', 'averaged'])
def test_numbers_of_another_checkpoint_are_not_reported(pair, tmp_path, which):
    """Validate a good checkpoint, then one without results, with the same output folder."""
    folder, _ = pair
    assert (
        main([f'{VE}={folder / "ve.pth"}', '--output', str(tmp_path / 'out'), *options(folder)])
        == 1
    )
    content = torch.load(folder / 've.pth', weights_only=True)
    (
        content['ema']['shadow_params'][3]
        if which == 'averaged'
        else content['model']['module.all_modules.3.weight']
    )[0] = float('nan')
    torch.save(content, tmp_path / 'nan.pth')
    assert (
        main([f'{VE}={tmp_path / "nan.pth"}', '--output', str(tmp_path / 'out'), *options(folder)])
        == 1
    )
    text = (tmp_path / 'out' / 'REPORT.md').read_text()
    assert (
        '| weights are finite | **NO** | 1 of ' in text
        and '| bits/dim |' not in text
        and '| samples vary |' not in text
    )
    assert len((tmp_path / 'out' / 'summary.csv').read_text().splitlines()) == 1


def test_a_checkpoint_that_does_not_match_raises_an_error(pair, tmp_path):
    folder, _ = pair
    with pytest.raises(CheckpointError, match='does not match'):
        validate.validate([validate.Model('a', VP, folder / 've.pth')], tmp_path, TINY)
