"""What can be told before any work starts: every fault of a config, a mode and a work directory, each in one sentence."""
import os
import pathlib
import tempfile

import torch
from ml_collections import ConfigDict

import checkpoints
import datasets
import distributed
import evaluation
import fast_sampling
import losses
import ode_lib
import sampling
import sde_lib
from configs import rules, stored
from errors import UserError
from models import utils as mutils
from models.unet import UNet

OWN_MODULES = ('models.ddpm', 'models.ncsnpp', 'models.ncsnv2', 'models.wideresnet', 'sampling', 'fast_sampling')
SECTIONS = ('data', 'training', 'optim', 'model', 'sampling', 'eval')


def check(config: ConfigDict, workdir, mode: str, numbers=(), checkpoint=''):
    """Raise UserError, with one line for each fault, if the mode cannot do its work.

    Args:
        config: The config, complete or not.
        workdir: The work directory, or '' for the modes that need none.
        mode: 'train', 'classifier', 'eval', 'sample', 'control', 'stats', 'metrics' or 'data'.
        numbers: The snapshots to evaluate.
        checkpoint: The checkpoint file to sample from, if it is not one of the work directory.
    """
    missing = [section for section in SECTIONS + ('control',) * (mode == 'control') if not hasattr(config.get(section), 'items')]
    if missing:
        raise UserError('\n'.join(f'the config has no section {section!r}: start from configs/defaults.py' for section in missing))
    unused = {'optim'} if mode not in ('train', 'classifier') else set()
    refused = rules.faults(config, _own_keys(config), unused | ({'eval'} if mode not in ('eval', 'metrics') else set()))
    if 'device' not in refused:
        refused |= _device(config)
    if refused:  # what follows is told of the other keys only: one that was refused is as if it were missing
        config = _without(config, refused)
    checks = [_names] if mode == 'metrics' else [datasets.get_levels, _names]  # metrics may be of other data
    if mode not in ('stats', 'data', 'metrics'):
        checks += [lambda config: _kind(config, mode), _scaling, _network, sde_lib.get_sde]
    if workdir and mode not in ('stats', 'data', 'metrics') and not checkpoint and not refused:
        _trained(config, workdir, mode)
    if workdir or mode not in ('stats', 'data'):
        checks += [lambda config: _workdir(workdir)]
    if {'train': config.training.get('snapshot_sampling'), 'eval': config.eval.get('enable_sampling'), 'sample': True,
            'control': True}.get(mode):
        checks += [_sampler]
    if mode in ('train', 'classifier'):
        checks += [datasets.get_source, _batches, _optimizer, _objective]
    if mode == 'eval':
        checks += [datasets.get_source, _evaluation, lambda config: _snapshots(config, workdir, numbers)]
    if mode in ('stats', 'data'):
        checks += [datasets.get_source]
    if mode in ('stats', 'metrics'):
        checks += [lambda config: _metrics(config, with_none=False)]
    faults = list(refused.values())
    for run in checks:
        try:
            run(config)
        except (UserError, NotImplementedError) as fault:
            faults += [line for line in str(fault).splitlines() if line not in faults]
        except (AttributeError, KeyError) as fault:
            if not _is_missing_key(fault):
                raise
            key = str(fault).partition('\\n')[0].strip('\'"\\')
            if key not in {name.rpartition('.')[2] for name in refused}:
                faults.append(f'the config lacks the key {key!r}: configs/defaults.py tells what it means')
    if faults:
        raise UserError('\n'.join(dict.fromkeys(faults)))


def warnings(config) -> list[str]:
    """Return one sentence for each setting of a training that is allowed but hardly intended; the config has passed `check`."""
    training, found = config.training, []
    if training.n_iters < config.optim.warmup:
        found.append(f'config.training.n_iters={training.n_iters} is less than config.optim.warmup={config.optim.warmup}: '
                     f'the learning rate never reaches config.optim.lr={config.optim.lr:g}')
    if training.snapshot_freq > training.n_iters:
        found.append(f'config.training.snapshot_freq={training.snapshot_freq} is greater than config.training.n_iters={training.n_iters}: '
                     'the only numbered checkpoint will be that of the last step')
    if issubclass(mutils.get_model(config.model.name), UNet):
        wanted = tuple(config.model.attn_resolutions)
        sides = [config.data.image_size // 2 ** i for i in range(len(config.model.ch_mult))]
        absent = [side for side in wanted if side not in sides]
        if absent:
            found.append(f'config.model.attn_resolutions={wanted} includes {", ".join(map(str, absent))}, but the network only has the '
                         f'resolutions {", ".join(map(str, sides))}: there will be no attention there')
    return found


def _own_keys(config) -> list[str]:
    """The keys that networks, samplers and data sets which are not of this library may have for themselves."""
    settings, dataset = config.sampling, config.data.get('dataset')
    own = []
    for section, registry, name in (('model.', mutils.MODELS, config.model.get('name')),
                                    ('sampling.', sampling.PREDICTORS, settings.get('predictor')),
                                    ('sampling.', sampling.CORRECTORS, settings.get('corrector')),
                                    ('sampling.', fast_sampling.SOLVERS, settings.get('method'))):
        found = registry.find(name) if isinstance(name, str) else None
        if found is not None and found.__module__ not in OWN_MODULES:
            own.append(section)
    source = datasets.SOURCES.get(dataset.upper()) if isinstance(dataset, str) else None
    return own + [f'data.{key}' for key in (source.keys if source else ())]


def _without(config, keys) -> ConfigDict:
    """A copy of the config that lacks the keys."""
    content = config.to_dict()
    for key in keys:
        section, _, name = key.rpartition('.')
        (content[section] if section else content).pop(name, None)
    return ConfigDict(content)


def _is_missing_key(fault) -> bool:
    """Whether the error was raised by a ConfigDict."""
    trace = fault.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    return 'ml_collections' in trace.tb_frame.f_code.co_filename


def _device(config) -> dict[str, str]:
    """{} for a device that is there, else {'device': one sentence}."""
    try:
        device = torch.device(config.device)
    except RuntimeError:
        return {'device': f"config.device is {config.device!r}: expected a device such as 'cpu', 'cuda' or 'cuda:0'"}
    if device.type == 'cuda' and not torch.cuda.is_available():
        return {'device': f'config.device is {str(config.device)!r}, but PyTorch finds no CUDA device here: use --config.device=cpu'}
    if device.type == 'mps' and not torch.backends.mps.is_available():
        return {'device': f'config.device is {str(config.device)!r}, but PyTorch finds no MPS device here: use --config.device=cpu'}
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        return {'device': f'config.device is {str(config.device)!r}, but there are only {torch.cuda.device_count()} CUDA devices, from 0'}
    return {}


def _names(config):
    """The names of samplers and solvers are known, those too that another setting leaves unused."""
    settings, faults = config.sampling, []
    if settings.method.lower() not in map(str.lower, sampling.methods()):
        faults.append(f'config.sampling.method is {settings.method!r}: known are {", ".join(sampling.methods())}')
    skip_type = settings.get('skip_type')
    if skip_type and skip_type.lower() not in [known.lower() for known in fast_sampling.SKIP_TYPES]:
        faults.append(f'config.sampling.skip_type is {skip_type!r}: known are {", ".join(fast_sampling.SKIP_TYPES)}')
    for registry, name in ((sampling.PREDICTORS, settings.predictor), (sampling.CORRECTORS, settings.corrector)):
        if registry.find(name) is None:
            faults.append(f'unknown {registry.kind} {name!r}: known are {", ".join(registry.names())}')
    for key, method in (('sampling.ode_method', settings.get('ode_method')), ('eval.bpd_method', config.eval.get('bpd_method'))):
        if method is not None and method not in ode_lib.METHODS:
            faults.append(f'config.{key} is {method!r}: known are {", ".join(ode_lib.METHODS)}')
    if faults:
        raise UserError('\n'.join(faults))


def _scaling(config):
    """Where a network divides by sigma it can tell sigma from its label."""
    model = config.model
    if not model.get('scale_by_sigma'):
        return
    if config.training.sde.lower() != 'vesde':
        raise UserError("config.model.scale_by_sigma=True needs training.sde='vesde': it divides by the sigma of that SDE")
    name = model.name.lower()
    by_index = name == 'ddpm' or name in ('ncsnpp', 'ddpmpp') and model.get('embedding_type') == 'positional'
    if config.training.continuous and by_index:
        raise UserError("config.model.scale_by_sigma=True needs training.continuous=False, or NCSN++ with "
                        "model.embedding_type='fourier': other networks look sigma up by an index, which continuous time does not have")


def _network(config):
    """Builds the network without its numbers, and runs one image through its shapes."""
    size, channels = config.data.image_size, config.data.num_channels
    if config.training.get('precision', 'float32') not in mutils.PRECISIONS:
        raise UserError(f'config.training.precision is {config.training.precision!r}: known are {", ".join(mutils.PRECISIONS)}')
    if config.training.get('recompute', False) and not issubclass(mutils.get_model(config.model.name), UNet):
        raise UserError(f'config.training.recompute=True is for U-Nets, which {config.model.name!r} is not')
    with torch.device('meta'):
        network = mutils.get_model(config.model.name)(config)
        try:
            network(torch.zeros(1, channels, size, size), torch.ones(1, dtype=torch.float32 if config.training.continuous else torch.long))
        except (RuntimeError, ValueError) as error:  # ValueError: among others for a group of one value, which has no variance
            reason = str(error).partition('\n')[0]
            raise UserError(f'the network cannot take images of config.data.image_size={size}: {reason}') from error
    _memory(config, sum(p.numel() for p in network.parameters()))


def _memory(config, parameters: int):
    """The parameters and their average fit on the device."""
    device = torch.device(config.device)
    if device.type == 'cuda':
        there = torch.cuda.get_device_properties(device).total_memory
    elif device.type == 'cpu':
        there = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    else:
        return
    if 8 * parameters > there:
        raise UserError(f'a network of {parameters:,} parameters, which with their average take {8 * parameters / 2 ** 30:.1f} GiB, does '
                        f'not fit into the {there / 2 ** 30:.1f} GiB of config.device={str(device)!r}: make config.model.nf, ch_mult or '
                        'num_res_blocks smaller')


def _kind(config, mode):
    """A classifier for --mode classifier, a score network for all else; classes that make sense."""
    classifies = getattr(mutils.get_model(config.model.name), 'is_classifier', False)
    if mode == 'classifier' and not classifies:
        raise UserError(f"--mode classifier trains a classifier, such as config.model.name='wideresnet': {config.model.name!r} is none")
    if mode != 'classifier' and classifies:
        raise UserError(f'config.model.name={config.model.name!r} is a classifier: --mode classifier trains it')
    classes, dropout = config.model.get('num_classes', 0), config.model.get('label_dropout', 0.1)
    if classes and not classifies and dropout == 0 and config.sampling.get('guidance', 1.0) != 1:
        raise UserError(f'config.sampling.guidance={config.sampling.guidance} needs the score without a class as well: it must be trained '
                        'with config.model.label_dropout above 0')


def _sampler(config):
    shape = (1, config.data.num_channels, config.data.image_size, config.data.image_size)
    sde = sampling.get_sampling_sde(config)
    sampling.get_sampling_fn(config, sde, shape, lambda x: x, sde.sampling_eps)
    if config.sampling.method.lower() == 'pc':
        sde.discretize(torch.zeros(shape), torch.full((1,), float(sde.T)))  # refuses a chain of too few steps


def _batches(config):
    training, parts, processes = config.training, config.training.get('accumulation', 1), distributed.size()
    if training.batch_size % (parts * processes):
        raise UserError(f'config.training.batch_size is {training.batch_size}: it must be a multiple of '
                        f'config.training.accumulation={parts}' + f' times the {processes} processes' * (processes > 1))


def _optimizer(config):
    losses.get_optimizer(config, [torch.zeros(1, requires_grad=True)])


def _objective(config):
    training = config.training
    losses.get_step_fn(sde_lib.get_sde(config), True, None, training.reduce_mean, training.continuous, training.likelihood_weighting)


def _evaluation(config):
    settings = config.eval
    if settings.bpd_dataset.lower() not in ('train', 'test'):
        raise UserError(f"config.eval.bpd_dataset is {settings.bpd_dataset!r}: known are 'train' and 'test'")
    if settings.begin_ckpt > settings.end_ckpt:
        raise UserError(f'config.eval.begin_ckpt={settings.begin_ckpt} is greater than config.eval.end_ckpt={settings.end_ckpt}')
    if settings.enable_sampling:
        _metrics(config, with_none=True)
    elif not settings.enable_loss and not settings.enable_bpd:
        raise UserError('config.eval.enable_loss, enable_bpd and enable_sampling are all False: there is nothing to evaluate')


def _metrics(config, with_none: bool):
    settings, known = config.eval, evaluation.METRICS_BACKENDS[0 if with_none else 1:]
    if settings.metrics_backend not in known:
        raise UserError(f'config.eval.metrics_backend is {settings.metrics_backend!r}: known are {", ".join(known)}')
    if settings.get('stats_split', 'train') not in ('train', 'test'):
        raise UserError(f"config.eval.stats_split is {settings.stats_split!r}: known are 'train' and 'test'")
    for key, least in (('num_samples', 4), ('stats_samples', 4), ('is_splits', 1)):
        if settings.metrics_backend != 'none' and settings.get(key, least) < least:
            raise UserError(f'config.eval.{key} is {settings[key]}: metrics need {least} or more')
    if with_none and settings.get('is_splits', 1) > settings.num_samples:
        raise UserError(f'config.eval.is_splits={settings.is_splits} is more than num_samples={settings.num_samples}')
    if with_none:
        evaluation.check_size(config, settings.num_samples)
    if with_none and settings.get('metrics_floor') and not datasets.has_held_out(config):
        raise UserError(f'config.eval.metrics_floor=True needs a test set: {config.data.dataset} has one set for both splits')


def _snapshots(config, workdir, numbers):
    settings, folder = config.eval, checkpoints.snapshot_path(workdir, 0).parent
    if not numbers or settings.get('wait_minutes', 0.0) > 0 or any(checkpoints.snapshot_path(workdir, k).is_file() for k in numbers):
        return
    raise UserError(f'{folder} has no checkpoint from config.eval.begin_ckpt={settings.begin_ckpt} to '
                    f'config.eval.end_ckpt={settings.end_ckpt}, {_only(workdir)}: '
                    'change these keys, or wait for a running training with --config.eval.wait_minutes=60')


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
    """The config defines the model that was trained in the work directory. This is found before anything is written."""
    path, resume = pathlib.Path(workdir, 'config.json'), checkpoints.resume_path(workdir)
    if config.get('force_config', False) or not path.is_file() or not (resume.is_file() or checkpoints.snapshot_numbers(workdir)):
        return  # if it is forced, loading the checkpoint logs the warnings
    stored.check(config, stored.get_config(path), resume if mode in ('train', 'classifier') else checkpoints.latest(workdir))


def _workdir(workdir):
    try:
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(f'--workdir={os.fspath(workdir)} cannot be written: {error.strerror}') from error
