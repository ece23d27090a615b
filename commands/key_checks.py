"""Checks of each key of a config on its own: rules, registered names, the device."""

import pathlib

import torch
from ml_collections import ConfigDict

import datasets
import sampling
import sde_lib
import solvers
from configs import rules, stored
from models import utils as mutils
from runtime.errors import UserError
from solvers import ode

# of this library, where registered classes are
OWN_PARTS = ('models', 'sampling', 'solvers', 'sde_lib')


def _value(config, key: str):
    """Return the value of a key such as 'model.name', or None if it is missing."""
    section, _, name = key.partition('.')
    return config[section][name] if name in config[section] else None


def _own_keys(config) -> list[str]:
    """Return beginnings of the keys that the user's own networks, samplers and data sets may
    have.
    """
    own, dataset = [], _value(config, 'data.dataset')
    for key, registry in (
        ('model.name', mutils.MODELS),
        ('sampling.predictor', sampling.PREDICTORS),
        ('sampling.corrector', sampling.CORRECTORS),
        ('sampling.method', solvers.SOLVERS),
    ):
        name = _value(config, key)
        found = registry.find(name) if isinstance(name, str) else None
        if found is not None and found.__module__.partition('.')[0] not in OWN_PARTS:
            own.append(key.partition('.')[0] + '.')
    sde = (
        sde_lib.SDES.find(_value(config, 'training.sde'))
        if isinstance(_value(config, 'training.sde'), str)
        else None
    )
    if sde is not None and sde.__module__.partition('.')[0] not in OWN_PARTS:
        own += [f'model.{key}' for key in sde.config_keys()]
    source = datasets.SOURCES.get(dataset.upper()) if isinstance(dataset, str) else None
    return own + [f'data.{key}' for key in (source.keys if source else ())]


def _refused(config, mode, has_network: bool) -> dict[str, str]:
    """Return {key: sentence} for each key of the config that is missing or unknown or has a wrong
    value, whatever the others are.
    """
    unused = {'optim'} if mode not in ('train', 'classifier') else set()
    refused = rules.faults(
        config, _own_keys(config), unused | ({'eval'} if mode not in ('eval', 'metrics') else set())
    )
    if 'device' not in refused:
        refused |= _device(config)
    names = [
        _value(config, key)
        for key in ('model.name', 'training.sde')
        if has_network and key not in refused
    ]
    if mode in ('classifier', 'sample', 'control') and 'batch_size' not in config.eval:
        refused['eval.batch_size'] = rules.is_missing('eval.batch_size')
    return refused | rules.missing(config, *names)


def _registered() -> dict[str, list[str]]:
    """Return {key: names} of what can be registered and named in a config, in any case."""
    return {
        'model.name': mutils.MODELS.names(),
        'training.sde': sde_lib.SDES.names(),
        'sampling.method': sampling.methods(),
        'sampling.predictor': sampling.PREDICTORS.names(),
        'sampling.corrector': sampling.CORRECTORS.names(),
    }


def _check_registered(config, workdir):
    """Raise UserError if nothing registers a name in `config` that was known when
    `workdir/config.json` was written.
    """
    known = _registered() | {'data.dataset': datasets.SOURCES}
    named = {key: _value(config, key) for key in known}
    unknown = {
        key: name
        for key, name in named.items()
        if isinstance(name, str)
        and name.lower() not in map(str.lower, known[key])
        and not (key == 'data.dataset' and name.lower().startswith('tfds:'))
    }
    path = pathlib.Path(workdir or '', 'config.json')
    before = stored.get_config(path) if unknown and workdir and path.is_file() else None
    forgotten = [
        f'config.{key}={name!r}'
        for key, name in unknown.items()
        if before and _value(before, key) == name
    ]
    if forgotten:
        raise UserError(
            f'{workdir} was trained with {", ".join(forgotten)}, not registered here: '
            'pass --config FILE, the Python file that registers them'
        )


def _without(config, keys) -> ConfigDict:
    """A copy of the config that lacks the keys."""
    content = config.to_dict()
    for key in keys:
        section, _, name = key.rpartition('.')
        (content[section] if section else content).pop(name, None)
    return ConfigDict(content)


def _unknown_names(config, has_network: bool) -> dict[str, str]:
    """Return {key: sentence} for each key that names what is not registered, even if another
    setting leaves it unused.
    """
    any_case = {
        key: names
        for key, names in _registered().items()
        if has_network or key.startswith('sampling.')
    }
    any_case['sampling.skip_type'] = '', *solvers.SKIP_TYPES
    exact = {'sampling.ode_method': ode.METHODS, 'eval.bpd_method': ode.METHODS}
    if has_network:
        exact['training.precision'] = mutils.PRECISIONS
    found = {}
    for key, known in (any_case | exact).items():
        value = _value(config, key)
        if (
            value is not None
            and value not in known
            and not (key in any_case and value.lower() in map(str.lower, known))
        ):
            found[key] = f'config.{key} must be one of {", ".join(map(repr, known))}, got {value!r}'
    return found


def _is_ours(config) -> bool:
    """Whether the network is one of this library."""
    found = mutils.MODELS.find(config.model.name) if 'name' in config.model else None
    return found is None or found.__module__.partition('.')[0] in OWN_PARTS


def _device(config) -> dict[str, str]:
    """{} for a device that is there, else {'device': one sentence}."""
    try:
        device = torch.device(config.device)
    except RuntimeError:
        return {
            'device': "config.device must be a device such as 'cpu', 'cuda' or 'cuda:0', got "
            f'{config.device!r}'
        }
    if device.type == 'cuda' and not torch.cuda.is_available():
        return {
            'device': f'config.device is {str(config.device)!r}, but PyTorch finds no CUDA '
            'device here: use --config.device=cpu'
        }
    if device.type == 'mps' and not torch.backends.mps.is_available():
        return {
            'device': f'config.device is {str(config.device)!r}, but PyTorch finds no MPS '
            'device here: use --config.device=cpu'
        }
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        return {
            'device': f'config.device is {str(config.device)!r}, but there are only '
            f'{torch.cuda.device_count()} CUDA devices, from 0'
        }
    return {}
