"""Every entry point completes configs, and reports missing keys before it writes files."""

import copy
import logging
import pathlib

import numpy as np
import pytest
import torch
from absl import flags
from absl.testing import flagsaver
from ml_collections import ConfigDict

import checkpoints
import main
import run_lib
import sampling
from checkpoints.trained import load_averaged_model
from commands import command_line, control, preflight, sample_metrics
from commands.data import describe_data
from commands.sample import sample
from commands.stats import statistics
from configs import defaults, rules
from conftest import load_config
from models import utils as mutils
from runtime.errors import UserError
from validation import validate

MODULES = (
    've.cifar10_ncsnpp_continuous',
    'vp.cifar10_ddpmpp',
    'vp.ddpm.cifar10',
    've.ncsn.cifar10',
    've.ncsnv2.cifar10',
    'vp.digits_wideresnet',
)


def without(config, *keys) -> ConfigDict:
    """Return a copy of the config without the keys ('section.name')."""
    content = copy.deepcopy(config.to_dict())
    for key in keys:
        section, _, name = key.rpartition('.')
        del (content[section] if section else content)[name]
    return ConfigDict(content)


def lean(config) -> ConfigDict:
    """Return a copy of the config with only the required keys."""
    needed = {
        f'model.{key}'
        for name in (config.model.name, config.training.sde)
        for key in rules.needed(name)
    }
    needed |= {
        f'{section}.{key}'.lstrip('.')
        for section, keys in rules.REQUIRED.items()
        for key in keys.split()
    }
    found = {
        f'{section}.{key}'
        for section, content in config.items()
        if isinstance(content, ConfigDict)
        for key in content
    }
    base = {
        f'{section}.{key}'
        for section, content in defaults.base().items()
        if isinstance(content, ConfigDict)
        for key in content
    }
    return without(config, 'timeout_minutes', *((found & base) - needed))


def shapes(config) -> dict:
    with torch.device('meta'):
        network = mutils.get_model(config.model.name)(config)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


@pytest.mark.parametrize('module', MODULES)
def test_a_network_without_one_key_is_built_or_names_the_key(module):
    config = load_config(f'configs.{module}')
    if 'num_res_blocks' in config.model:
        config.model.num_res_blocks = 1
    needed, required = rules.needed(config.model.name), rules.REQUIRED['model'].split()
    assert set(needed) <= set(config.model)
    for key in set(config.model) - set(required):
        partial = without(config, f'model.{key}')
        if key in needed:
            with pytest.raises(
                UserError,
                match=f'^the config is missing the key model.{key}: see configs/keys.py$',
            ):
                shapes(partial)
        else:
            assert shapes(partial) == shapes(config), key


@pytest.mark.parametrize('name', sorted([*rules.NEEDED, 'vesde', 'vpsde', 'subvpsde']))
def test_needed_keys_have_rules(name):
    assert rules.needed(name) and set(rules.needed(name)) <= rules.RULES['model'].keys()


def test_a_minimal_config_gives_the_network_of_the_complete_one():
    for module in MODULES:
        config = load_config(f'configs.{module}')
        with config.ignore_type():
            config.model.update(nf=32 if config.model.name == 'ddpm' else 8)
            if config.model.name == 'wideresnet':
                config.model.widen = 1
        states = []
        for given in (config, lean(config)):
            given.model.dropout, given.training.channels_last = config.model.dropout, False
            torch.manual_seed(0)
            states.append(mutils.create_model(given).state_dict())
        assert states[0].keys() == states[1].keys() and all(
            torch.equal(states[0][key], states[1][key]) for key in states[0]
        ), module
        assert len(lean(config).model) < len(config.model)


def small(n_iters=3) -> ConfigDict:
    config = load_config('configs.vp.digits_ddpmpp_continuous')
    config.model.update(nf=8, num_res_blocks=1, num_scales=25)
    config.training.update(batch_size=8, n_iters=n_iters, snapshot_freq=2, snapshot_sampling=False)
    config.optim.warmup = 0
    config.eval.update(enable_bpd=False, num_samples=8, batch_size=8, end_ckpt=1, enable_loss=False)
    config.sampling.update(method='dpmpp_2m', n_steps_each=1)
    return config


def test_every_entry_point_accepts_a_minimal_config(tmp_path):
    """Results with a minimal config equal those with the complete one; it is not changed."""
    config = small()
    for key, value in (
        ('eval.metrics_backend', 'pixels'),
        ('eval.stats_dir', str(tmp_path / 'stats')),
        ('sampling.steps', 2),
    ):
        section, name = key.split('.')
        config[section][name] = value
    few = lean(config)
    few.eval.update(metrics_backend='pixels', stats_dir=str(tmp_path / 'stats'))
    few.sampling.steps = 2
    before = few.to_dict()
    for name, given in (('whole', config), ('lean', few)):
        run_lib.train(given, tmp_path / name)
        run_lib.evaluate(given, tmp_path / name)
        sample(given, tmp_path / name, num_samples=4)
        statistics(given)
        describe_data(given)
        control.control(given, tmp_path / name, 'inpaint', mask='right')
        sample_metrics.measure(
            given, tmp_path / name, str(tmp_path / name / 'generated' / 'samples.npz')
        )
    assert few.to_dict() == before
    states = [
        checkpoints.load(tmp_path / name / 'checkpoints' / 'checkpoint_1.pth')['model']
        for name in ('whole', 'lean')
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    for file in ('generated/samples.npz', 'control_inpaint/results.npz'):
        samples = [np.load(tmp_path / name / file)['samples'] for name in ('whole', 'lean')]
        assert np.array_equal(*samples), file


def test_a_device_object_in_the_config_is_accepted(tmp_path):
    config = small(n_iters=1)
    with config.ignore_type():
        config.device = torch.device('cpu')
    run_lib.train(config, tmp_path)
    assert '"device": "cpu"' in (tmp_path / 'config.json').read_text()


@pytest.mark.parametrize(
    'key',
    ['model.nf', 'model.sigma_max', 'model.beta_max', 'training.batch_size', 'eval.batch_size'],
)
def test_a_needed_key_is_reported_and_nothing_is_written(tmp_path, key):
    config = without(small(), key)
    with pytest.raises(
        UserError, match=f'^the config is missing the key {key}: see configs/keys.py$'
    ):
        (sample if key.startswith('eval') else run_lib.train)(config, tmp_path / 'w')
    assert not list((tmp_path / 'w').glob('*'))


def test_a_needed_key_is_never_assumed_when_a_checkpoint_is_loaded(tmp_path):
    with pytest.raises(
        UserError, match='^the config is missing the key model.nf: see configs/keys.py$'
    ):
        load_averaged_model(without(small(), 'model.nf'), tmp_path / 'checkpoint.pth')
    (tmp_path / 'mine.py').write_text(
        'from configs.vp import digits_ddpmpp_continuous\ndef get_config():\n    config = '
        'digits_ddpmpp_continuous.get_config()\n'
        '    del config.model.beta_max\n    return config\n'
    )
    with pytest.raises(
        UserError, match='^the config is missing the key model.beta_max: see configs/keys.py$'
    ):
        validate.load_config(tmp_path / 'mine.py', {})


# A user's own network -----------------------------------------------------------------------------


class Own(torch.nn.Module):
    """A network that reads its own key and may reject the inputs of the checks.

    It accepts images of one size only. With `my_way` 'values' it raises an error for large values.
    """

    def __init__(self, config):
        super().__init__()
        self.size, self.how = config.model.my_size, config.model.get('my_way', '')
        self.layer = torch.nn.Linear(self.size, self.size)

    def forward(self, x, labels):
        if self.how == 'values' and x.abs().max() > 1e9:
            raise ValueError('too large')
        return self.layer(x)


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setattr(mutils.MODELS, '_classes', dict(mutils.MODELS._classes))
    mutils.register_model(Own, name='own')
    config = small()
    config.model.update(name='own')
    return config


def test_errors_of_a_users_own_network_keep_their_traceback(tmp_path, own):
    with pytest.raises(AttributeError, match='my_size') as caught:
        run_lib.train(own, tmp_path / 'w')
    assert pathlib.Path(__file__).name in [entry.path.name for entry in caught.traceback]
    own.model.my_size = 5
    with pytest.raises(RuntimeError, match='reduction dim') as caught:
        run_lib.train(own, tmp_path / 'w')
    assert not isinstance(caught.value, UserError)
    assert pathlib.Path(__file__).name in [entry.path.name for entry in caught.traceback][1:]
    assert not list((tmp_path / 'w').glob('*'))


def test_an_error_without_a_message_is_reported(tmp_path, monkeypatch):
    class Unfinished(sampling.Predictor):
        def __init__(self, sde, score_fn, probability_flow=False):
            raise NotImplementedError

        def update_fn(self, x, t):
            return x, x

    monkeypatch.setattr(
        sampling.PREDICTORS, '_classes', dict(sampling.PREDICTORS._classes, unfinished=Unfinished)
    )
    config = small()
    config.sampling.update(method='pc', predictor='unfinished')
    with pytest.raises(UserError, match=r'^NotImplementedError\(\)$'):
        sample(config, tmp_path)


def test_other_faults_are_reported_before_errors_of_an_own_network(tmp_path, own):
    own.optim.optimizer = 'SGD'
    with pytest.raises(UserError, match="^config.optim.optimizer must be 'Adam', got 'SGD'$"):
        run_lib.train(own, tmp_path)


def test_an_own_network_may_read_values(tmp_path, own):
    own.model.update(my_size=8, my_way='values')
    preflight.check(own, tmp_path, 'train')


# Checks, sentences and the log --------------------------------------------------------------------


@pytest.mark.parametrize(
    'sentence, expected',
    [
        (
            "skip_type must be one of '', 'karras', got 'x'",
            "config.sampling.skip_type must be one of '', 'karras', got 'x'",
        ),
        (
            'likelihood_weighting=True is only defined for continuous=True',
            'config.training.likelihood_weighting=True is only defined for '
            'config.training.continuous=True',
        ),
        (
            'channels must be divisible by groups=32, got 30',
            'channels (config.model.nf times config.model.ch_mult) must be divisible by '
            'config.model.groups=32, got 30',
        ),
        (
            'n_steps must be at least 1, got 0',
            'config.sampling.n_steps_each must be at least 1, got 0',
        ),
        (
            'config.model.nf=3 and training.sde=x, in any order',
            'config.model.nf=3 and training.sde=x, in any order',
        ),
    ],
)
def test_arguments_become_keys_of_the_config(sentence, expected):
    assert preflight._in_terms_of_config(sentence) == expected


def test_a_network_by_image_size_is_checked_and_trained(tmp_path):
    """The network 'ncsnv2', which is registered as a function, not a class, can be trained."""
    config = load_config(
        'configs.ve.ncsnv2.cifar10',
        dict(image_size=8, dataset='DIGITS', num_channels=1),
        name='ncsnv2',
        nf=8,
    )
    assert not preflight.warnings(preflight.check(config, tmp_path, 'train'))


def checked(monkeypatch, *arguments) -> list[str]:
    """Run the main program with these arguments and return the mode of each check."""
    modes, check = [], preflight.check
    monkeypatch.setattr(
        preflight,
        'check',
        lambda config, workdir, mode: modes.append(mode) or check(config, workdir, mode),
    )
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        command_line.parse_flags(
            [
                'main.py',
                f'--config={command_line.ROOT}/configs/vp/digits_ddpmpp_continuous.py',
                '--config.device=cpu',
                *arguments,
            ]
        )
        main.main(['main.py'])
    return modes


def test_the_main_program_checks_once_and_logs_what_was_accepted(tmp_path, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, 'handlers', list(root.handlers))
    assert checked(monkeypatch, f'--workdir={tmp_path / "w"}', '--mode=data') == ['data']
    assert 'train set' in (tmp_path / 'w' / 'stdout.txt').read_text()
    with pytest.raises(SystemExit, match='config.data.num_channels'):
        checked(
            monkeypatch,
            f'--workdir={tmp_path / "refused"}',
            '--mode=data',
            '--config.data.num_channels=3',
        )
    assert not list((tmp_path / 'refused').glob('*'))
