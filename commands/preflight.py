"""Checks before any work starts: every fault of a config for a mode and a work directory, each in
one sentence.

First come rules for each key on its own (configs/rules.py, names in registries), then checks of
keys that go together.
"""

import os
import pathlib
import re
import tempfile
from collections.abc import Callable

from ml_collections import ConfigDict

import checkpoints
import datasets
import sde_lib
from commands.joint_checks import (
    _batches,
    _evaluation,
    _is_unet,
    _kind,
    _metrics,
    _network,
    _objective,
    _optimizer,
    _own_network,
    _sampler,
    _scaling,
)
from commands.key_checks import (
    _check_registered,
    _is_ours,
    _refused,
    _unknown_names,
    _value,
    _without,
)
from configs import rules, stored
from configs.defaults import complete
from runtime.errors import UserError

SECTIONS = ('data', 'training', 'optim', 'model', 'sampling', 'eval')
WITHOUT_NETWORK = ('stats', 'data', 'metrics')  # modes

# What the arguments of library functions are called in a config, for sentences such as "skip_type
# must be one of ..., got 'x'".
ARGUMENTS = {
    name: f'config.{section}.{name}'
    for section in ('eval', 'control', 'data', 'optim', 'training', 'model', 'sampling')
    for name in rules.RULES[section]
} | dict(
    n_steps='config.sampling.n_steps_each',
    denoise='config.sampling.noise_removal',
    head_dim='config.model.attn_head_dim',
    channels='channels (config.model.nf times config.model.ch_mult)',
)


def check(config: ConfigDict, workdir, mode: str, checkpoint='') -> ConfigDict:
    """Check everything that can be checked before any work starts, and complete the config.

    Args:
        config: As it was given. Optional keys may be missing.
        workdir: Work directory; created if it does not exist. '' for none.
        mode: 'train', 'classifier', 'eval', 'sample', 'control', 'stats', 'metrics' or 'data'.
        checkpoint: Checkpoint file to sample from, if it is not one of the work directory.

    Returns:
        A copy of the config in which missing optional keys have their defaults.

    Raises:
        UserError: with one line for each fault.
    """
    missing = [
        section
        for section in SECTIONS + ('control',) * (mode == 'control')
        if section not in config or not hasattr(config[section], 'items')
    ]
    if missing:
        raise UserError(
            '\n'.join(
                f'the config is missing the section {section}: see configs/keys.py'
                for section in missing
            )
        )
    _check_registered(config, workdir)
    has_network = mode not in WITHOUT_NETWORK
    refused = _refused(config, mode, has_network)
    config = complete(_without(config, refused))
    refused |= _unknown_names(config, has_network)
    known, own_network = (
        [key for key in refused if rules.of(key)],
        has_network and not _is_ours(config),
    )
    if workdir and has_network and not checkpoint and not refused:
        _trained(config, workdir, mode)
    faults = list(refused.values())
    for run, keys in _checks(config, workdir, mode):
        if (run is _network and own_network) or any(key.startswith(keys) for key in known):
            continue
        try:
            run(config)
        except (UserError, NotImplementedError) as error:
            faults += [
                _in_terms_of_config(line) for line in (str(error) or repr(error)).splitlines()
            ]
    if faults:
        raise UserError('\n'.join(dict.fromkeys(faults)))
    if own_network:
        _own_network(config)
    return config


def _checks(config, workdir, mode) -> list[tuple[Callable, tuple[str, ...]]]:
    """Return pairs (check, beginnings of the keys that it reads). It is left out if one of these
    keys was refused.
    """
    sde = ('training.sde', 'model.sigma_', 'model.beta_', 'model.num_scales')
    # metrics may be of other data
    found = [] if mode == 'metrics' else [(datasets.get_levels, ('data.',))]
    if mode not in WITHOUT_NETWORK:
        found += [
            (
                lambda config: _kind(config, mode),
                ('model.', 'training.recompute', 'sampling.guidance'),
            ),
            (_scaling, ('model.', 'training.')),
            (sde_lib.get_sde, sde),
        ]
    if workdir or mode not in ('stats', 'data'):
        found += [(lambda config: _workdir(workdir), ())]
    if {
        'train': _value(config, 'training.snapshot_sampling'),
        'eval': _value(config, 'eval.enable_sampling'),
        'sample': True,
        'control': True,
    }.get(mode):
        found += [(_sampler, ('sampling.', 'training.continuous', 'data.', 'device', *sde))]
    if mode in ('train', 'classifier', 'eval', 'stats', 'data'):
        found += [(datasets.get_source, ('data.',))]
    if mode in ('train', 'classifier'):
        found += [
            (_batches, ('training.batch_size', 'training.accumulation')),
            (_optimizer, ('optim.',)),
            (_objective, ('training.', *sde)),
        ]
    if mode == 'eval':
        found += [
            (_evaluation, ('eval.', 'data.')),
            (lambda config: _snapshots(config, workdir), ('eval.',)),
        ]
    if mode in ('stats', 'metrics'):
        found += [(lambda config: _metrics(config, with_none=False), ('eval.', 'data.'))]
    if mode not in WITHOUT_NETWORK:
        found += [
            (
                _network,
                (
                    'model.',
                    'data.',
                    'training.continuous',
                    'training.recompute',
                    'training.precision',
                    'device',
                ),
            )
        ]
    return found


def _in_terms_of_config(sentence: str) -> str:
    """Replace the names of arguments, where a sentence says what they must be or are, by the keys
    of the config.
    """
    return re.sub(
        r'(?<![\w.])(\w+)(?= must |=)', lambda name: ARGUMENTS.get(name[1], name[1]), sentence
    )


def warnings(config) -> list[str]:
    """Return one sentence for each setting of a training that is allowed but hardly intended; the
    config has passed `check`.
    """
    training, found = config.training, []
    if training.n_iters < config.optim.warmup:
        found.append(
            f'config.training.n_iters={training.n_iters} is less than '
            f'config.optim.warmup={config.optim.warmup}: '
            f'the learning rate never reaches config.optim.lr={config.optim.lr:g}'
        )
    if training.snapshot_freq > training.n_iters:
        found.append(
            f'config.training.snapshot_freq={training.snapshot_freq} is greater than '
            f'config.training.n_iters={training.n_iters}: '
            'the only numbered checkpoint will be that of the last step'
        )
    if _is_unet(config):
        wanted = tuple(config.model.attn_resolutions)
        sides = [config.data.image_size // 2**i for i in range(len(config.model.ch_mult))]
        absent = [side for side in wanted if side not in sides]
        if absent:
            found.append(
                f'config.model.attn_resolutions={wanted} includes '
                f'{", ".join(map(str, absent))}, but the network only has the '
                f'resolutions {", ".join(map(str, sides))}: there will be no attention '
                'there'
            )
    return found


def _snapshots(config, workdir):
    settings, folder = config.eval, checkpoints.snapshot_path(workdir, 0).parent
    numbers = range(settings.begin_ckpt, settings.end_ckpt + 1)
    if (
        not numbers
        or settings.wait_minutes > 0
        or any(checkpoints.snapshot_path(workdir, k).is_file() for k in numbers)
    ):
        return
    raise UserError(
        f'{folder} has no checkpoint from config.eval.begin_ckpt={settings.begin_ckpt} '
        'to '
        f'config.eval.end_ckpt={settings.end_ckpt}, {_only(workdir)}: '
        'change these keys, or wait for a running training with '
        '--config.eval.wait_minutes=60'
    )


def _only(workdir) -> str:
    numbers = checkpoints.snapshot_numbers(workdir)
    return f'only {ranges(numbers)}' if numbers else 'nor any other'


def ranges(numbers) -> str:
    """Whole numbers in increasing order in short: '1, 3-5'."""
    parts = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ', '.join(str(first) if first == last else f'{first}-{last}' for first, last in parts)


def _trained(config, workdir, mode):
    """The config defines the model that was trained in the work directory. This is found before
    anything is written.
    """
    path, resume = pathlib.Path(workdir, 'config.json'), checkpoints.resume_path(workdir)
    if (
        config.force_config
        or not path.is_file()
        or not (resume.is_file() or checkpoints.snapshot_numbers(workdir))
    ):
        return  # if it is forced, loading the checkpoint logs the warnings
    stored.check(
        config,
        stored.get_config(path),
        resume if mode in ('train', 'classifier') else checkpoints.latest(workdir),
    )


def _workdir(workdir):
    try:
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f'--workdir={os.fspath(workdir)} cannot be written: {error.strerror}'
        ) from error
