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

import torch
from ml_collections import ConfigDict

import checkpoints
import datasets
import evaluation
import losses
import sampling
import sde_lib
import solvers
from configs import rules, stored
from configs.defaults import complete
from models import utils as mutils
from models.score import Score
from models.unet import UNet
from runtime import distributed
from runtime.errors import UserError
from solvers import ode

# of this library, where registered classes are
OWN_PARTS = ('models', 'sampling', 'solvers', 'sde_lib')
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
                f'the config is missing the section {section}: see configs/defaults.py'
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


def _is_unet(config) -> bool:
    network = mutils.get_model(config.model.name)
    return isinstance(network, type) and issubclass(network, UNet)


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


def _scaling(config):
    """Where a network divides by sigma it can tell sigma from its label."""
    model = config.model
    if not model.scale_by_sigma:
        return
    if not sde_lib.get_sde(config).labels_are_sigmas:
        raise UserError(
            "config.model.scale_by_sigma=True needs config.training.sde='vesde': it "
            'divides by the sigma of that SDE'
        )
    name = model.name.lower()
    by_index = (
        name == 'ddpm' or name in ('ncsnpp', 'ddpmpp') and model.embedding_type == 'positional'
    )
    if config.training.continuous and by_index:
        raise UserError(
            'config.model.scale_by_sigma=True needs config.training.continuous=False, '
            'or NCSN++ with '
            "config.model.embedding_type='fourier': other networks look sigma up by an "
            'index, which continuous time lacks'
        )


def _network(config):
    """Build a network of this library without storage for its numbers, and run the shapes of one
    image through it.
    """
    network = _build(config)
    try:
        _run_shapes(config, network)
    except (
        RuntimeError,
        ValueError,
    ) as error:  # ValueError: for example a group of one value, which has no variance
        reason = str(error).partition('\n')[0]
        raise UserError(
            'the network cannot take images of '
            f'config.data.image_size={config.data.image_size}: {reason}'
        ) from error
    _memory(config, network)


def _own_network(config):
    """As `_network` for a network of the user's own, whose errors keep their tracebacks."""
    try:
        network = _build(config)
        _run_shapes(config, network)
    except RuntimeError as error:
        if 'meta' not in str(error):  # else it reads numbers, which are not there
            raise
    else:
        _memory(config, network)


def _build(config):
    with torch.device('meta'):
        return mutils.get_model(config.model.name)(config)


def _run_shapes(config, network):
    shape = 1, config.data.num_channels, config.data.image_size, config.data.image_size
    with torch.device('meta'):
        network(
            torch.zeros(shape),
            torch.ones(1, dtype=torch.float32 if config.training.continuous else torch.long),
        )


def _memory(config, network):
    """The parameters and their average fit on the device."""
    device, parameters = torch.device(config.device), sum(p.numel() for p in network.parameters())
    if device.type == 'cuda':
        there = torch.cuda.get_device_properties(device).total_memory
    elif device.type == 'cpu':
        there = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    else:
        return
    if 8 * parameters > there:
        raise UserError(
            f'the network has {parameters:,} parameters and needs '
            f'{8 * parameters / 2**30:.1f} GiB with their average, but '
            f'config.device={str(device)!r} has {there / 2**30:.1f} GiB: make '
            'config.model.nf, ch_mult or num_res_blocks '
            'smaller'
        )


def _kind(config, mode):
    """A classifier for --mode classifier and a score network for all others; settings that its kind
    of network has.
    """
    classifies = getattr(mutils.get_model(config.model.name), 'is_classifier', False)
    if mode == 'classifier' and not classifies:
        raise UserError(
            "config.model.name must be a classifier such as 'wideresnet' for --mode "
            f'classifier, got {config.model.name!r}'
        )
    if mode != 'classifier' and classifies:
        raise UserError(
            'config.model.name must be a score network, got the classifier '
            f'{config.model.name!r}: train it with '
            '--mode classifier'
        )
    if config.training.recompute and not _is_unet(config):
        raise UserError(
            'config.training.recompute=True is for U-Nets only, got '
            f'config.model.name={config.model.name!r}'
        )
    if (
        config.model.num_classes
        and not classifies
        and config.model.label_dropout == 0
        and config.sampling.guidance != 1
    ):
        raise UserError(
            f'config.sampling.guidance={config.sampling.guidance} needs the score '
            'without a class as well: train with '
            'config.model.label_dropout greater than 0'
        )


def _sampler(config):
    score = Score(None, sde_lib.get_sde(config), config.training.continuous)
    sampling.check(score, sampling.Options.of(config.sampling))


def _batches(config):
    training, processes = config.training, distributed.size()
    if training.batch_size % (training.accumulation * processes):
        raise UserError(
            'config.training.batch_size must be a multiple of '
            f'config.training.accumulation={training.accumulation}'
            + f' times {processes} processes' * (processes > 1)
            + f', got {training.batch_size}'
        )


def _optimizer(config):
    losses.get_optimizer(config, [torch.zeros(1, requires_grad=True)])


def _objective(config):
    training = config.training
    losses.get_step_fn(
        sde_lib.get_sde(config),
        True,
        None,
        training.reduce_mean,
        training.continuous,
        training.likelihood_weighting,
    )


def _evaluation(config):
    settings = config.eval
    if settings.bpd_dataset.lower() not in ('train', 'test'):
        raise UserError(
            f"config.eval.bpd_dataset must be 'train' or 'test', got {settings.bpd_dataset!r}"
        )
    if settings.begin_ckpt > settings.end_ckpt:
        raise UserError(
            f'config.eval.begin_ckpt={settings.begin_ckpt} is greater than '
            f'config.eval.end_ckpt={settings.end_ckpt}'
        )
    if settings.enable_sampling:
        _metrics(config, with_none=True)
    elif not settings.enable_loss and not settings.enable_bpd:
        raise UserError(
            'config.eval.enable_loss, enable_bpd and enable_sampling are all False: '
            'there is nothing to evaluate'
        )


def _metrics(config, with_none: bool):
    settings, known = config.eval, evaluation.METRICS_BACKENDS[0 if with_none else 1 :]
    if settings.metrics_backend not in known:
        raise UserError(
            'config.eval.metrics_backend must be one of '
            f'{", ".join(map(repr, known))}, got {settings.metrics_backend!r}'
        )
    if settings.stats_split not in ('train', 'test'):
        raise UserError(
            f"config.eval.stats_split must be 'train' or 'test', got {settings.stats_split!r}"
        )
    for key in ('stats_samples', *['num_samples'] * with_none):
        if settings.metrics_backend != 'none' and settings[key] < 4:
            raise UserError(f'config.eval.{key} must be >= 4 for metrics, got {settings[key]}')
    if with_none and settings.is_splits > settings.num_samples:
        raise UserError(
            f'config.eval.is_splits={settings.is_splits} is greater than '
            f'config.eval.num_samples={settings.num_samples}'
        )
    if with_none:
        evaluation.check_size(config, settings.num_samples)
    if with_none and settings.metrics_floor and not datasets.has_held_out(config):
        raise UserError(
            f'config.eval.metrics_floor=True needs a test set: {config.data.dataset} '
            'has one set for both splits'
        )


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
