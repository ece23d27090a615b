"""A config allows a step of training and sampling, or raises an error that names its keys.

Configs are changed at random, to values that are nearly right, of a wrong type, or absurd. The
environment variable CONFIGS is the number of tested configs (default: 300).
"""

import copy
import functools
import os
import re

import pytest
import torch
from hypothesis import HealthCheck, event, given, seed, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

import losses
import run_lib
import sampling
import sde_lib
from commands import preflight
from commands.joint_checks import check_network
from configs import defaults, rules
from conftest import load_config
from models import utils as mutils
from models.score import Score
from runtime.errors import UserError
from solvers import predictor_corrector

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
WORDS = """
none pc ode adaptive ddim heun dpm_solver dpmpp_2m dpmpp_2m_sde unipc RK45 dopri5 vesde vpsde
subvpsde VPSDE euler_maruyama reverse_diffusion ancestral_sampling langevin ald
predictor_corrector karras logSNR time_uniform swish elu relu fourier positional biggan ddpm
residual output_skip input_skip sum cat GroupNorm InstanceNorm++ VarianceNorm block level
bilinear nearest bfloat16 float32 Adam DIGITS train test pixels crop exact raise skip NHWC NCHW
x None true
"""
NAMES = ('', *WORDS.split(), *NETWORKS)
WHOLE = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 20, 24, 30, 32, 64, 100, -1, -2, 2**31, 2**63, 10**30)
REAL = (
    *(0.0, 1e-30, 1e-9, 1e-4, 0.01, 0.1, 0.3, 0.5, 0.999, 1.0, 1.5, 2.0, 16.0, 50.0, 299.0),
    *(1e4, 1e12, 1e30, -1e-9, -1.0, -1e30, float('nan'), float('inf'), float('-inf')),
)
TUPLES = (
    *((), (1,), (4,), (8,), (0,), (1.0, 2.0), ('a',), (None,), ((1, 2),), (float('nan'), 1.0)),
    *((1, 2), (2, 1), (1, 1), (16, 8), (-1, 2), (1, -1), (0, 0), (3, 10**9), (10**30, 1)),
    *((1, 1, 2), (1, 2, 1), (1, 2, 2, 2), (1, 3, 3, 1)),
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
    """Return a small config of a module for images of 8 or 16 pixels, so that a step is fast."""
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
    """Return those of the tested values that the key accepts."""
    section, _, name = key.rpartition('.')
    return [value for value in ANYTHING if rules.RULES[section][name].accepts(value)]


@st.composite
def mutations(draw):
    """Draw (module, {key: value}): changes to a config.

    Either the rules accept every value, so that only the combination is tested, or some keys have a
    wrong value or type, are missing, or have another name.
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
    """Return the config as {'model.nf': 8, ...}."""
    return {
        f'{section}.{name}' if name else section: value
        for section, content in config.items()
        for name, value in (content.items() if isinstance(content, ConfigDict) else [('', content)])
    }


def take_a_step(config, classifies: bool):
    """Run a step of training and the start of a sampler; all numbers must be finite."""
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
    """Run a step of the sampler from the prior."""
    score = Score(model, sde_lib.get_sde(config), config.training.continuous)
    options = sampling.Options.of(config.sampling)
    sampling.check(score, options)
    sde, times = score.sde, sampling.times_of(score.sde, options)
    x = sde.prior_sampling(x.shape)
    if options.solver():
        return options.build_solver(sde, score.score, times).step(x, 0)
    if options.method.lower() in ('ode', 'adaptive'):
        return sde.reverse(score.score, probability_flow=True).sde(x, torch.ones(len(x)))[0]
    predictor, corrector = predictor_corrector.classes(options)
    chain = sde.with_steps(len(times) - 1)
    predictor = predictor(chain, score.score, options.probability_flow)
    corrector = corrector(chain, score.score, options.snr, min(options.n_steps_each, 2))
    if options.skip_type:
        return predictor.step(corrector.step(x, *times[:2].tolist())[0], *times[:2].tolist())[0]
    return predictor.update_fn(corrector.update_fn(x, torch.ones(len(x)))[0], torch.ones(len(x)))[0]


def names_a_key(line: str, keys) -> bool:
    """Return whether a line contains a key with its section, or a key that is no common word."""
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


REGISTERED = {
    'model.name': mutils.MODELS.names(),
    'training.sde': sde_lib.SDES.names(),
    'sampling.method': sampling.methods(),
    'sampling.predictor': sampling.PREDICTORS.names(),
    'sampling.corrector': sampling.CORRECTORS.names(),
}


def wrong_alone(changes: dict, mode: str) -> dict[str, str]:
    """Return {key: start of its message} for changed keys that are wrong by themselves."""
    found, trains = {}, mode in ('train', 'classifier')
    has_network = trains or mode in ('eval', 'sample', 'control')
    for key, value in changes.items():
        section, _, name = key.rpartition('.')
        if value is GONE:
            in_use = section != 'eval' and (section != 'optim' or trains)
            if in_use and name in rules.REQUIRED.get(section, '').split():
                found[key] = f'the config is missing the key {key}: '
        elif rules.of(key) is None:
            found[key] = f'config.{key} is not a known key: '
        elif not rules.of(key).accepts(value):
            found[key] = f'config.{key} must be {rules.of(key).text}, got '
        elif (
            key in REGISTERED
            and (has_network or section == 'sampling')
            and value.lower() not in REGISTERED[key]
        ):
            found[key] = f'config.{key} must be one of '
    return found


def raises_error(config, changes, workdir, mode) -> bool:
    """Return whether the config raises an error; check its messages.

    Each key that is wrong by itself has a message. Every message names a key; a message about a
    single key names a key that was changed.
    """
    wrong = wrong_alone(changes, mode)
    try:
        preflight.check(config, workdir, mode)
    except UserError as error:
        lines = str(error).splitlines()
        for line in lines:
            assert names_a_key(line, flatten(config)), f'{line!r} names no key'
        for key, beginning in wrong.items():
            assert any(line.startswith(beginning) for line in lines), (key, lines)
        for section, known in rules.RULES.items():
            for name, rule in known.items():
                key = f'{section}.{name}'.lstrip('.')
                beginning = f'config.{key} must be {rule.text}, got '
                assert key in wrong or not any(line.startswith(beginning) for line in lines), lines
        return True
    assert not wrong, f'{wrong.keys()} were accepted'
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
def test_a_config_trains_or_raises_an_error_with_the_key(workdir, mutation):
    config, changes = mutated(*mutation), mutation[1]
    torch.manual_seed(0)
    classifies = config.model.get('name') == 'wideresnet'
    failed = raises_error(config, changes, workdir, 'classifier' if classifies else 'train')
    with pytest.MonkeyPatch.context() as patch:
        # building the network takes most of the time, so it is built only once
        others = [check for check in preflight.CHECKS if check.run is not check_network]
        patch.setattr(preflight, 'CHECKS', others)
        others = [mode for mode in MODES if raises_error(config, changes, workdir, mode)]
    if failed or not classifies and 'sample' in others:
        event('raised an error')
        return
    config = defaults.complete(config)
    with torch.device('meta'):
        parameters = [p.numel() for p in mutils.get_model(config.model.name)(config).parameters()]
    small = sum(parameters) < 2e7 and len(parameters) < 2000
    event('took a step' if small else 'too large to take a step here')
    if small:
        take_a_step(config, classifies)
