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
import losses
import ode_lib
import sampling
import sde_lib
from errors import UserError
from models import utils as mutils
from models.unet import UNet

POSITIVE = ('data.image_size', 'training.batch_size', 'training.n_iters', 'training.snapshot_freq',
            'training.snapshot_freq_for_preemption', 'training.log_freq', 'training.eval_freq', 'eval.batch_size', 'eval.num_samples',
            'optim.lr', 'model.num_scales', 'model.nf')
TOLERANCES = ('sampling.rtol', 'sampling.atol', 'eval.bpd_rtol', 'eval.bpd_atol', 'control.rtol', 'control.atol')
SECTIONS = ('data', 'training', 'optim', 'model', 'sampling', 'eval')


def check(config: ConfigDict, workdir, mode: str, numbers=()):
    """Passes, or raises UserError with one line for each fault.

    `mode`: 'train', 'classifier', 'eval', 'sample', 'control', 'stats' or 'data'; `numbers`: the snapshots to evaluate.
    """
    for section in SECTIONS + ('control',) * (mode == 'control'):
        if section not in config:
            raise UserError(f'the config has no section {section!r}: start from configs/defaults.py')
    checks = [lambda: _device(config), lambda: _numbers(config), lambda: datasets.get_levels(config)]
    if mode not in ('stats', 'data'):
        checks += [lambda: (_kind(config, mode), _network(config)), lambda: sde_lib.get_sde(config)]
    if workdir or mode not in ('stats', 'data'):
        checks += [lambda: _workdir(workdir)]
    if {'train': config.training.snapshot_sampling, 'eval': config.eval.enable_sampling, 'sample': True, 'control': True}.get(mode):
        checks += [lambda: _sampler(config)]
    if mode in ('train', 'classifier'):
        checks += [lambda: datasets.get_source(config), lambda: _training(config)]
    if mode == 'eval':
        checks += [lambda: datasets.get_source(config), lambda: _evaluation(config), lambda: _snapshots(config, workdir, numbers)]
    if mode in ('stats', 'data'):
        checks += [lambda: datasets.get_source(config)]
    if mode == 'stats':
        checks += [lambda: _metrics(config, with_none=False)]
    faults = []
    for run in checks:
        try:
            run()
        except (UserError, NotImplementedError) as fault:
            faults += [line for line in str(fault).splitlines() if line not in faults]
        except (AttributeError, KeyError) as fault:
            if not _is_missing_key(fault):
                raise
            faults.append(f'the config lacks a key: {str(fault).splitlines()[0]}')
    if faults:
        raise UserError('\n'.join(faults))


def _is_missing_key(fault) -> bool:
    """Whether the error was raised by a ConfigDict."""
    trace = fault.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    return 'ml_collections' in trace.tb_frame.f_code.co_filename


def _device(config):
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise UserError(f"config.device is {config.device!r}: expected a device such as 'cpu', 'cuda' or 'cuda:0'") from error
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise UserError(f"config.device is {str(config.device)!r}, but PyTorch finds no CUDA device here: use --config.device=cpu")
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f'config.device is {str(config.device)!r}, but there are only {torch.cuda.device_count()} CUDA devices, from 0')


def _numbers(config):
    faults = []
    for key in POSITIVE:
        section, name = key.split('.')
        if not config[section][name] > 0:
            faults.append(f'config.{key} is {config[section][name]!r}: it must be above 0')
    for section, name in (key.split('.') for key in TOLERANCES):
        if not config.get(section, {}).get(name, 1e-5) > 0:
            faults.append(f'config.{section}.{name} is {config[section][name]!r}: it must be above 0')
    if config.seed < 0:
        faults.append(f'config.seed is {config.seed}: it must not be negative')
    if not 0 <= config.model.ema_rate <= 1:
        faults.append(f'config.model.ema_rate is {config.model.ema_rate!r}: it must lie in [0, 1]')
    if config.optim.grad_clip == 0:
        faults.append('config.optim.grad_clip is 0, which makes every gradient 0: for no clipping it is negative')
    if not 0 <= config.model.dropout < 1:
        faults.append(f'config.model.dropout is {config.model.dropout!r}: it must lie in [0, 1)')
    if faults:
        raise UserError('\n'.join(faults))


def _network(config):
    """Builds the network without its numbers, and runs one image through its shapes."""
    size, channels = config.data.image_size, config.data.num_channels
    name, scaled = config.model.name.lower(), config.model.get('scale_by_sigma')
    if scaled and config.training.sde.lower() != 'vesde':
        raise UserError("config.model.scale_by_sigma=True needs training.sde='vesde': it divides by the sigma of that SDE")
    by_index = name == 'ddpm' or name in ('ncsnpp', 'ddpmpp') and config.model.get('embedding_type') == 'positional'
    if scaled and config.training.continuous and by_index:
        raise UserError("config.model.scale_by_sigma=True needs training.continuous=False, or NCSN++ with "
                        "model.embedding_type='fourier': other networks look sigma up by an index, which continuous time does not have")
    if config.training.get('precision', 'float32') not in mutils.PRECISIONS:
        raise UserError(f'config.training.precision is {config.training.precision!r}: known are {", ".join(mutils.PRECISIONS)}')
    if config.training.get('recompute', False) and not issubclass(mutils.get_model(config.model.name), UNet):
        raise UserError(f'config.training.recompute=True is for U-Nets, which {config.model.name!r} is not')
    with torch.device('meta'):
        network = mutils.get_model(config.model.name)(config)
        try:
            network(torch.zeros(1, channels, size, size), torch.ones(1, dtype=torch.float32 if config.training.continuous else torch.long))
        except RuntimeError as error:
            reason = str(error).partition('\n')[0]
            raise UserError(f'the network cannot take images of config.data.image_size={size}: {reason}') from error


def _kind(config, mode):
    """A classifier for --mode classifier, a score network for all else; classes that make sense."""
    classifies = getattr(mutils.get_model(config.model.name), 'is_classifier', False)
    if mode == 'classifier' and not classifies:
        raise UserError(f"--mode classifier trains a classifier, such as config.model.name='wideresnet': {config.model.name!r} is none")
    if mode != 'classifier' and classifies:
        raise UserError(f'config.model.name={config.model.name!r} is a classifier: --mode classifier trains it')
    classes, dropout = config.model.get('num_classes', 0), config.model.get('label_dropout', 0.1)
    if classes < 0 or not 0 <= dropout <= 1:
        raise UserError(f'config.model.num_classes={classes} and label_dropout={dropout}: a number of classes, and a share of images')
    if classes and not classifies and dropout == 0 and config.sampling.get('guidance', 1.0) != 1:
        raise UserError(f'config.sampling.guidance={config.sampling.guidance} needs the score without a class as well: it must be trained '
                        'with config.model.label_dropout above 0')


def _sampler(config):
    shape = (1, config.data.num_channels, config.data.image_size, config.data.image_size)
    sde = sampling.get_sampling_sde(config)
    sampling.get_sampling_fn(config, sde, shape, lambda x: x, sde.sampling_eps)


def _training(config):
    training, parts, processes = config.training, config.training.get('accumulation', 1), distributed.size()
    if parts < 1:
        raise UserError(f'config.training.accumulation is {parts}: it must be above 0')
    if training.batch_size % (parts * processes):
        raise UserError(f'config.training.batch_size is {training.batch_size}: it must be a multiple of '
                        f'config.training.accumulation={parts}' + f' times the {processes} processes' * (processes > 1))
    losses.get_optimizer(config, [torch.zeros(1, requires_grad=True)])
    losses.get_step_fn(sde_lib.get_sde(config), True, None, training.reduce_mean, training.continuous, training.likelihood_weighting)


def _evaluation(config):
    settings = config.eval
    if settings.bpd_dataset.lower() not in ('train', 'test'):
        raise UserError(f"config.eval.bpd_dataset is {settings.bpd_dataset!r}: known are 'train' and 'test'")
    if settings.enable_bpd:
        ode_lib.check_method(settings.get('bpd_method', 'RK45'))
    if settings.begin_ckpt > settings.end_ckpt:
        raise UserError(f'config.eval.begin_ckpt={settings.begin_ckpt} lies behind end_ckpt={settings.end_ckpt}')
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
    if with_none and settings.get('metrics_floor') and not datasets.has_held_out(config):
        raise UserError(f'config.eval.metrics_floor=True needs a test set: {config.data.dataset} has one set for both splits')


def _snapshots(config, workdir, numbers):
    if config.eval.get('wait_minutes', 0.0) > 0:
        return
    missing = [str(path) for path in (checkpoints.snapshot_path(workdir, k) for k in numbers) if not path.is_file()]
    if missing:
        raise UserError(f'{len(missing)} of the checkpoints config.eval.begin_ckpt to end_ckpt are missing, first {missing[0]}: '
                        '--config.eval.wait_minutes=... waits for a training under way')


def _workdir(workdir):
    try:
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(f'--workdir={os.fspath(workdir)} cannot be written: {error.strerror}') from error
