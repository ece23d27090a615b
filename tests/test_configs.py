"""Configs from tired people: whatever its values, a config gives a network, a loss and a sampler
that take a step, or it is refused before any work by sentences that name its keys.

Configs are mutated at random, with values that are nearly right, of a wrong type, or absurd. How
many: CONFIGS, 300 by default.
"""

import ast
import copy
import functools
import inspect
import os
import re

import pytest
import torch
from hypothesis import HealthCheck, event, given, seed, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

import datasets
import losses
import run_lib
import sampling
import sde_lib
import solvers
from commands import preflight
from configs import defaults, rules
from conftest import ROOT, load_config
from models import utils as mutils
from models.score import Score
from runtime.errors import UserError

MODULES = (
    've.digits_ncsnpp_continuous',
    'vp.digits_ddpmpp_continuous',
    'subvp.digits_ddpmpp_continuous',
    'vp.digits_ddpmpp_classes',
    'vp.digits_wideresnet',
    've.cifar10_ncsnpp',
    'vp.ddpm.cifar10',
    've.ncsn.cifar10',
    've.ncsnv2.cifar10',
)
NETWORKS = (*mutils.MODELS.names(), 'unet')
NAMES = (
    'none',
    'pc',
    'ode',
    'vesde',
    'vpsde',
    'subvpsde',
    'VPSDE',
    'swish',
    'elu',
    'relu',
    'fourier',
    'positional',
    'biggan',
    'ddpm',
    'residual',
    'output_skip',
    'input_skip',
    'sum',
    'cat',
    'GroupNorm',
    'InstanceNorm++',
    'VarianceNorm',
    'euler_maruyama',
    'reverse_diffusion',
    'ancestral_sampling',
    'langevin',
    'ald',
    'block',
    'level',
    'bilinear',
    'nearest',
    'bfloat16',
    'float32',
    'RK45',
    'dopri5',
    'Adam',
    'DIGITS',
    'train',
    'test',
    'pixels',
    '',
    'x',
    'None',
    'true',
    'crop',
    'exact',
    'raise',
    'skip',
    'NHWC',
    'NCHW',
    'karras',
    'logSNR',
    'time_uniform',
    'predictor_corrector',
    'adaptive',
    'ddim',
    'heun',
    'dpm_solver',
    'dpmpp_2m',
    'dpmpp_2m_sde',
    'unipc',
    *NETWORKS,
)
WHOLE = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 20, 24, 30, 32, 64, 100, -1, -2, 2**31, 2**63, 10**30)
REAL = (
    0.0,
    1e-30,
    1e-9,
    1e-4,
    0.01,
    0.1,
    0.3,
    0.5,
    0.999,
    1.0,
    1.5,
    2.0,
    16.0,
    50.0,
    299.0,
    1e4,
    1e12,
    1e30,
    -1e-9,
    -1.0,
    -1e30,
    float('nan'),
    float('inf'),
    float('-inf'),
)
TUPLES = (
    (),
    (1,),
    (1, 2),
    (2, 1),
    (1, 1, 2),
    (1, 2, 2, 2),
    (4,),
    (8,),
    (16, 8),
    (0,),
    (-1, 2),
    (1.0, 2.0),
    ('a',),
    (None,),
    ((1, 2),),
    (1, 3, 3, 1),
    (1, 1),
    (1, 2, 1),
    (1, -1),
    (0, 0),
    (3, 10**9),
    (10**30, 1),
    (float('nan'), 1.0),
)
KINDS = {bool: (True, False), int: WHOLE, float: REAL, str: NAMES, tuple: TUPLES, list: TUPLES}
ANYTHING = (
    None,
    b'1',
    object(),
    {},
    {'a': 1},
    [],
    1j,
    torch.ones(2),
    *(value for values in KINDS.values() for value in values),
)
GONE = 'gone'
MODES = ('train', 'classifier', 'sample', 'eval', 'control', 'stats', 'metrics', 'data')
MISSPELT = ('nff', 'sigma_mx', 'Name', 'dropOut', 'lr', 'x')


@functools.cache
def base(module: str) -> ConfigDict:
    """The config of a module for images of 8 or 16 pixels, and so small that a step of it takes no
    time.
    """
    config = load_config(f'configs.{module}')
    config.data.update(
        dataset='FOLDER',
        path='pictures',
        num_channels=1,
        image_size=16 if 'ncsnv2' in module else 8,
    )
    config.model.update(nf=32 if config.model.name == 'ddpm' else 8)
    with config.ignore_type():
        if 'ch_mult' in config.model:
            config.model.update(ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,))
        if 'widen' in config.model:
            config.model.widen = 1
    config.training.compile = False
    return config


@functools.cache
def accepted(key: str) -> list:
    """The values that the key may have, of all that are tried."""
    section, _, name = key.rpartition('.')
    return [value for value in ANYTHING if rules.RULES[section][name].accepts(value)]


@st.composite
def mutations(draw):
    """(module, {key: value}): some keys, with values that each may have, so that it is their
    combination that is tried; or with some of a wrong value or type, or gone, or with another name.
    """
    module, tidy = draw(st.sampled_from(MODULES)), draw(st.booleans())
    found = flatten(base(module))
    keys = sorted(found.keys() - {'training.compile', 'device'})
    changes = {}
    for key in draw(
        st.lists(st.sampled_from(keys), min_size=1, max_size=8 if tidy else 4, unique=True)
    ):
        what = 20 if tidy else draw(st.integers(0, 19))
        if what == 0:
            changes[key] = GONE
        elif what == 1:
            changes |= {
                key: GONE,
                f'{key.rpartition(".")[0]}.{draw(st.sampled_from(MISSPELT))}'.lstrip('.'): found[
                    key
                ],
            }
        elif what < 5:
            changes[key] = draw(st.sampled_from(ANYTHING))
        else:
            changes[key] = draw(
                st.sampled_from(accepted(key) if tidy else KINDS.get(type(found[key]), ANYTHING))
            )
    return module, changes


def mutated(module: str, changes: dict) -> ConfigDict:
    content = copy.deepcopy(base(module).to_dict())
    for key, value in changes.items():
        section, _, name = key.rpartition('.')
        place = content[section] if section else content
        place[name] = value
        if value is GONE:
            del place[name]
    return ConfigDict(content)


def flatten(config) -> dict:
    """{'model.nf': 8, ...}"""
    return {
        f'{section}.{name}' if name else section: value
        for section, content in config.items()
        for name, value in (content.items() if isinstance(content, ConfigDict) else [('', content)])
    }


def take_a_step(config, classifies: bool):
    """Everything that a training and a sampler begin with; all numbers must be finite."""
    device, settings = torch.device(config.device), config.training
    state, sde, known = (
        run_lib.create_state(config),
        sde_lib.get_sde(config),
        config.model.num_classes,
    )
    parts = settings.accumulation
    x = torch.rand(
        2 * parts,
        config.data.num_channels,
        config.data.image_size,
        config.data.image_size,
        device=device,
    )
    classes = {'classes': torch.arange(2 * parts) % known} if known else {}
    optimize_fn = losses.optimization_manager(config)
    if classifies:
        step_fn = losses.get_classifier_step_fn(sde, True, optimize_fn, accumulation=parts)
    else:
        step_fn = losses.get_step_fn(
            sde,
            True,
            optimize_fn,
            settings.reduce_mean,
            settings.continuous,
            settings.likelihood_weighting,
            accumulation=parts,
        )
    drawn = [] if classifies else [begin_sampling(config, state['model'], x[:2])]
    loss = step_fn(state, x, **classes)
    numbers = [loss, *state['model'].parameters(), *state['ema'].shadow_params, *drawn]
    assert all(torch.isfinite(tensor).all() for tensor in numbers)


@torch.no_grad()
def begin_sampling(config, model, x):
    """A step of the sampler from the prior."""
    score, options = (
        Score(model, sde_lib.get_sde(config), config.training.continuous),
        sampling.Options.of(config.sampling),
    )
    sampling.check(score, options)
    sde, times, x = (
        score.sde,
        sampling.times_of(score.sde, options),
        score.sde.prior_sampling(x.shape),
    )
    if options.solver():
        return options.solver()(sde, score.score, times, **options.solver_settings()).step(x, 0)
    if options.method.lower() in ('ode', 'adaptive'):
        return sde.reverse(score.score, probability_flow=True).sde(x, torch.ones(len(x)))[0]
    (predictor, corrector), chain = options.pair(), sde.with_steps(len(times) - 1)
    predictor = predictor(chain, score.score, options.probability_flow)
    corrector = corrector(chain, score.score, options.snr, min(options.n_steps_each, 2))
    if options.skip_type:
        return predictor.step(corrector.step(x, *times[:2].tolist())[0], *times[:2].tolist())[0]
    return predictor.update_fn(corrector.update_fn(x, torch.ones(len(x)))[0], torch.ones(len(x)))[0]


def names_a_key(line: str, keys) -> bool:
    """A key with its section, or one whose name is no common word."""
    known = {name.rpartition('.')[2] for name in keys} | {
        name for section in rules.RULES.values() for name in section
    }
    common = {
        'name',
        'path',
        'steps',
        'images',
        'loss',
        'device',
        'seed',
        'order',
        'results',
        'round',
        'fit',
    }
    words = set(re.findall(r'\w+', line)) - common
    full = {f'{section}.{name}' for section in rules.RULES for name in rules.RULES[section]} | set(
        keys
    )
    return (
        bool(known & words)
        or any(key in line for key in full if '.' in key)
        or 'config.' in line
        or 'missing the key ' in line
    )


def is_refused(config, workdir, mode) -> bool:
    try:
        preflight.check(config, workdir, mode)
    except UserError as refusal:
        for line in str(refusal).splitlines():
            assert names_a_key(line, flatten(config)), f'{line!r} names no key'
        return True
    return False


@pytest.fixture(scope='session')
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp('workdir')


@seed(0)
@settings(
    max_examples=int(os.environ.get('CONFIGS', 300)),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(mutations())
def test_a_config_takes_a_step_or_is_refused_by_key(workdir, mutation):
    config = mutated(*mutation)
    torch.manual_seed(0)
    classifies = config.model.get('name') == 'wideresnet'
    refused = is_refused(config, workdir, 'classifier' if classifies else 'train')
    with pytest.MonkeyPatch.context() as patch:
        # the network was built once: that is what takes time
        patch.setattr(preflight, '_network', lambda config: None)
        others = [mode for mode in MODES if is_refused(config, workdir, mode)]
    if refused or not classifies and 'sample' in others:
        event('refused')
        return
    config = defaults.complete(config)
    with torch.device('meta'):
        parameters = [p.numel() for p in mutils.get_model(config.model.name)(config).parameters()]
    small = sum(parameters) < 2e7 and len(parameters) < 2000
    event('took a step' if small else 'too large to take a step here')
    if small:
        take_a_step(config, classifies)


def test_all_that_is_wrong_is_told_at_once(workdir):
    config = base('vp.digits_ddpmpp_continuous').copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        config.model.update(dropot=0.5, dropout=1.5, conditional='yes', beta_max=200.0)
        config.training.update(batch_size='8', n_iters=True, recompute=True, precision='half')
        config.optim.lr = float('nan')
        config.sampling.update(predictor='eulr', ode_method='rk')
        config.evl = ConfigDict({})
        del config.seed
    with pytest.raises(UserError) as caught:
        preflight.check(config, workdir, 'train')
    lines = str(caught.value).splitlines()
    assert lines[:9] == [
        'the config is missing the key seed: see configs/defaults.py',
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


def test_keys_of_a_network_or_data_set_of_ones_own(workdir, monkeypatch):
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
    preflight.check(config, workdir, 'sample')
    with config.unlocked():
        config.data.update(dataset='FOLDER')
    with pytest.raises(UserError, match='config.data.my_part is not a known key'):
        preflight.check(config, workdir, 'sample')


def test_every_key_has_a_rule_and_is_explained():
    for key in flatten(defaults.base()):
        section, _, name = key.rpartition('.')
        assert name in rules.RULES[section], key
    for section, known in rules.RULES.items():
        for name in known.keys() - {'loss', 'continuouse', 'sigma_begin'}:
            assert re.search(rf'\b{name}\b', defaults.__doc__), f'{section}.{name}'
        assert set(rules.REQUIRED.get(section, '').split()) <= known.keys()


def test_a_network_whose_groups_have_one_value_is_refused(workdir):
    config = base('vp.ddpm.cifar10').copy_and_resolve_references()
    config.data.image_size = 2
    with pytest.raises(
        UserError,
        match='cannot take images of config.data.image_size=2: Expected '
        'more than 1 value per channel',
    ):
        preflight.check(config, workdir, 'sample')


def reads_with_a_default() -> list[str]:
    """Every `section.get('key', ...)` of a key of the config, as 'file:line'."""
    found, keys = [], {name for section in rules.RULES.values() for name in section}
    # what they are called where they are read
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
    """Configs are completed before they are read; reports read protocols of results."""
    assert {place.partition(':')[0] for place in reads_with_a_default()} <= {'reader.py'}
    shared = defaults.base().sampling
    for name in solvers.SOLVERS.names():
        for key, parameter in inspect.signature(solvers.get_solver(name)).parameters.items():
            if key in shared and parameter.default is not None:
                assert parameter.default == shared[key], f'{name}: {key}'
