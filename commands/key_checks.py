"""Checks of single config keys: the rule of each key, registered names, the device."""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

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

OUR_PARTS = ('models', 'solvers', 'sde_lib')  # where this library registers classes


def value_of(config: ConfigDict, key: str) -> Any:
    """Return the value of a key such as 'model.name', or None if it is missing."""
    section, _, name = key.partition('.')
    return config[section].get(name)


def _is_own(registered) -> bool:
    """Whether a registered class or function is not one of this library."""
    return registered is not None and registered.__module__.partition('.')[0] not in OUR_PARTS


def is_ours(config: ConfigDict) -> bool:
    """Whether the network of a config is one of this library, or not registered."""
    return not _is_own(mutils.MODELS.find(config.model.name) if 'name' in config.model else None)


def _own_keys(config) -> list[str]:
    """Return prefixes of the keys that a user's own networks, samplers and data sets may have."""

    def find(key, registry):
        name = value_of(config, key)
        return registry.find(name) if isinstance(name, str) else None

    registries = {
        'model.name': mutils.MODELS,
        'sampling.predictor': sampling.PREDICTORS,
        'sampling.corrector': sampling.CORRECTORS,
        'sampling.method': solvers.SOLVERS,
    }
    own = [
        key.partition('.')[0] + '.'
        for key, registry in registries.items()
        if _is_own(find(key, registry))
    ]
    sde = find('training.sde', sde_lib.SDES)
    if _is_own(sde):
        own += [f'model.{key}' for key in sde.config_keys()]
    dataset = value_of(config, 'data.dataset')
    source = datasets.SOURCES.get(dataset.upper()) if isinstance(dataset, str) else None
    return own + [f'data.{key}' for key in (source.keys if source else ())]


def faulty_keys(config: ConfigDict, mode: str, has_network: bool) -> dict[str, str]:
    """Return {key: sentence} for each key that is missing, is unknown or has a wrong value.

    These faults do not depend on the values of other keys.
    """
    unused = set()
    if mode not in ('train', 'classifier'):
        unused.add('optim')
    if mode not in ('eval', 'metrics'):
        unused.add('eval')
    faulty = rules.faults(config, _own_keys(config), unused)
    if 'device' not in faulty:
        faulty |= _device(config)
    if mode in ('classifier', 'sample', 'control') and 'batch_size' not in config.eval:
        faulty['eval.batch_size'] = rules.is_missing('eval.batch_size')
    names = [
        value_of(config, key)
        for key in ('model.name', 'training.sde')
        if has_network and key not in faulty
    ]
    return faulty | rules.missing(config, *names)


def _registered() -> dict[str, list[str]]:
    """Return {key: known names} for the keys that name a registered class; case is ignored."""
    return {
        'model.name': mutils.MODELS.names(),
        'training.sde': sde_lib.SDES.names(),
        'sampling.method': sampling.methods(),
        'sampling.predictor': sampling.PREDICTORS.names(),
        'sampling.corrector': sampling.CORRECTORS.names(),
    }


def check_registered(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Raise UserError if a name was registered when `workdir/config.json` was written, but not now.

    Such a name belongs to a user's own network, SDE, sampler or data set. The user must pass the
    file that registers it again.
    """
    known = _registered() | {'data.dataset': datasets.SOURCES}
    named = {key: value_of(config, key) for key in known}
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
        if before and value_of(before, key) == name
    ]
    if forgotten:
        raise UserError(
            f'{workdir} was trained with {", ".join(forgotten)}, not registered here: '
            'pass --config FILE, the Python file that registers them'
        )


def without(config: ConfigDict, keys: Iterable[str]) -> ConfigDict:
    """Return a copy of the config that lacks the keys."""
    content = config.to_dict()
    for key in keys:
        section, _, name = key.rpartition('.')
        (content[section] if section else content).pop(name, None)
    return ConfigDict(content)


def unknown_names(config: ConfigDict, has_network: bool) -> dict[str, str]:
    """Return {key: sentence} for each key whose name is not registered.

    Names are checked even if other settings make them unused.
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
        value = value_of(config, key)
        accepted = {*known, *map(str.lower, known)} if key in any_case else known
        if value is None or value in accepted or (key in any_case and value.lower() in accepted):
            continue
        found[key] = f'config.{key} must be one of {", ".join(map(repr, known))}, got {value!r}'
    return found


def _device(config) -> dict[str, str]:
    """Return {} for a device that PyTorch finds, otherwise {'device': sentence}."""
    name = config.device
    try:
        device = torch.device(name)
    except RuntimeError:
        expected = "config.device must be a device such as 'cpu', 'cuda' or 'cuda:0'"
        return {'device': f'{expected}, got {name!r}'}
    absent = {
        'cuda': not torch.cuda.is_available(),
        'mps': not torch.backends.mps.is_available(),
    }
    if absent.get(device.type):
        return {
            'device': f'config.device is {str(name)!r}, but PyTorch finds no {device.type.upper()} '
            'device here: use --config.device=cpu'
        }
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        return {
            'device': f'config.device is {str(name)!r}, but PyTorch finds only '
            f'{torch.cuda.device_count()} CUDA devices (numbered from 0)'
        }
    return {}
