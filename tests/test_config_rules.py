"""Rules of config keys: every error is reported, every key has a rule and a default."""

import ast
import inspect
import re

import pytest
import torch
from ml_collections import ConfigDict

import datasets
import solvers
from commands import preflight
from configs import defaults, keys, rules
from conftest import ROOT
from models import utils as mutils
from runtime.errors import UserError
from test_configs import base, flatten


def test_all_faults_of_a_config_are_reported_at_once(tmp_path):
    config = base('vp.digits_ddpmpp_continuous').copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        config.model.update(dropot=0.5, dropout=1.5, conditional='yes', beta_max=200.0)
        config.training.update(batch_size='8', n_iters=True, recompute=True, precision='half')
        config.optim.lr = float('nan')
        config.sampling.update(predictor='eulr', ode_method='rk')
        config.evl = ConfigDict({})
        del config.seed
    with pytest.raises(UserError) as caught:
        preflight.check(config, tmp_path, 'train')
    lines = str(caught.value).splitlines()
    assert lines[:9] == [
        'the config is missing the key seed: see configs/keys.py',
        'config.evl is not a known key: did you mean config.eval?',
        "config.training.batch_size must be an integer >= 1, got '8'",
        'config.training.n_iters must be an integer >= 1, got True',
        'config.optim.lr must be a number in (0, 1], got nan',
        "config.model.conditional must be True or False, got 'yes'",
        'config.model.dropot is not a known key: did you mean config.model.dropout?',
        'config.model.dropout must be a number in [0, 1), got 1.5',
        "config.sampling.predictor must be one of 'ancestral_sampling', 'euler_maruyama', 'none', "
        "'reverse_diffusion', got 'eulr'",
    ]
    for beginning in (
        "config.sampling.ode_method must be one of 'dopri5'",
        'a VP chain of N=100 steps',
        "config.training.precision must be one of 'float32', 'bfloat16', got 'half'",
    ):
        assert sum(line.startswith(beginning) for line in lines[9:]) == 1, (beginning, lines)
    assert len(lines) == 12, lines


def test_keys_of_a_custom_network_or_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(mutils.MODELS, '_classes', dict(mutils.MODELS._classes))

    @mutils.register_model(name='of_my_own')
    class Mine(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            self.layer = torch.nn.Conv2d(
                config.data.num_channels,
                config.data.num_channels,
                config.model.my_kernel,
                padding='same',
            )

        def forward(self, x, labels):
            return self.layer(x)

    monkeypatch.setitem(
        datasets.SOURCES, 'MINE', datasets.SOURCES['FOLDER']._replace(keys=('path', 'my_part'))
    )
    config = base('vp.digits_ddpmpp_continuous').copy_and_resolve_references()
    with config.unlocked():
        config.model.update(name='of_my_own', my_kernel=3)
        config.data.update(dataset='mine', my_part=1)
    preflight.check(config, tmp_path, 'sample')
    with config.unlocked():
        config.data.update(dataset='FOLDER')
    with pytest.raises(UserError, match='config.data.my_part is not a known key'):
        preflight.check(config, tmp_path, 'sample')


def test_every_key_has_a_rule_and_is_explained():
    for key in flatten(defaults.base()):
        section, _, name = key.rpartition('.')
        assert name in rules.RULES[section], key
    for section, known in rules.RULES.items():
        for name in known.keys() - {'loss', 'continuouse', 'sigma_begin'}:
            assert re.search(rf'\b{name}\b', keys.__doc__), f'{section}.{name}'
        assert set(rules.REQUIRED.get(section, '').split()) <= known.keys()


def test_groups_with_a_single_value_raise_an_error(tmp_path):
    config = base('vp.ddpm.cifar10').copy_and_resolve_references()
    config.data.image_size = 2
    with pytest.raises(
        UserError,
        match='does not accept images of config.data.image_size=2: Expected '
        'more than 1 value per channel',
    ):
        preflight.check(config, tmp_path, 'sample')


def reads_with_a_default() -> list[str]:
    """Find every `section.get('key', ...)` of a config key, as 'file:line'."""
    found, keys = [], {name for section in rules.RULES.values() for name in section}
    # names of the sections in the code
    sections = {'config', 'settings', 'chosen', *rules.RULES}
    for path in [
        *ROOT.glob('*.py'),
        *(path for room in ROOT.glob('*/__init__.py') for path in room.parent.glob('**/*.py')),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'get' and node.args:
                receiver, key = (
                    ast.unparse(node.func.value).rpartition('.')[2],
                    getattr(node.args[0], 'value', None),
                )
                if key in keys and receiver in sections:
                    found.append(f'{path.name}:{node.lineno}')
    return found


def test_a_default_is_written_in_one_place():
    """Defaults are not repeated in the code, because configs are completed before they are read.

    Only reports may have defaults, because they read protocols of results.
    """
    assert {place.partition(':')[0] for place in reads_with_a_default()} <= {'reader.py'}
    shared = defaults.base().sampling
    for name in solvers.SOLVERS.names():
        for key, parameter in inspect.signature(solvers.get_solver(name)).parameters.items():
            if key in shared and parameter.default is not None:
                assert parameter.default == shared[key], f'{name}: {key}'
