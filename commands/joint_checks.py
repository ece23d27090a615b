"""Checks of combinations of config keys, and of the network that the config describes.

Each check gets a `Job` and raises UserError (or NotImplementedError for a combination that is not
defined). `commands.preflight.CHECKS` lists the keys that each check reads, and its modes.
"""

import os
from typing import NamedTuple

import torch
from ml_collections import ConfigDict

import datasets
import evaluation
import losses
import sampling
import sde_lib
from commands.key_checks import is_ours, value_of
from models import utils as mutils
from models.score import Score
from models.unet import UNet
from runtime import distributed
from runtime.errors import UserError


class Job(NamedTuple):
    """A config with its defaults, the work directory ('' for none) and the mode."""

    config: ConfigDict
    workdir: str | os.PathLike
    mode: str


# Data, SDE and sampler ----------------------------------------------------------------------------


def check_levels(job: Job) -> None:
    datasets.get_levels(job.config)


def check_source(job: Job) -> None:
    datasets.get_source(job.config)


def check_sde(job: Job) -> None:
    sde_lib.get_sde(job.config)


def check_sampler(job: Job) -> None:
    """Check the sampler with the SDE, unless the config asks for no samples in this mode."""
    switches = {'train': 'training.snapshot_sampling', 'eval': 'eval.enable_sampling'}
    if job.mode in switches and not value_of(job.config, switches[job.mode]):
        return
    config = job.config
    score = Score(None, sde_lib.get_sde(config), config.training.continuous)
    sampling.check(score, sampling.Options.of(config.sampling))


# Network ------------------------------------------------------------------------------------------


def is_unet(config: ConfigDict) -> bool:
    """Whether the network of a config is a U-Net."""
    network = mutils.get_model(config.model.name)
    return isinstance(network, type) and issubclass(network, UNet)


def check_kind(job: Job) -> None:
    """Check that the network suits the mode, and that it supports the settings of the config.

    --mode classifier needs a classifier, all other modes need a score network.
    """
    config, name = job.config, job.config.model.name
    classifies = getattr(mutils.get_model(name), 'is_classifier', False)
    if job.mode == 'classifier' and not classifies:
        raise UserError(
            "config.model.name must be a classifier such as 'wideresnet' for --mode "
            f'classifier, got {name!r}'
        )
    if job.mode != 'classifier' and classifies:
        raise UserError(
            f'config.model.name must be a score network, got the classifier {name!r}: train it '
            'with --mode classifier'
        )
    if config.training.recompute and not is_unet(config):
        raise UserError(
            f'config.training.recompute=True is for U-Nets only, got config.model.name={name!r}'
        )
    has_classes = config.model.num_classes and not classifies
    if has_classes and config.model.label_dropout == 0 and config.sampling.guidance != 1:
        raise UserError(
            f'config.sampling.guidance={config.sampling.guidance} needs the score '
            'without a class as well: train with '
            'config.model.label_dropout greater than 0'
        )


def check_scaling(job: Job) -> None:
    """Check that a network that divides its output by sigma can compute sigma from its label."""
    config, model = job.config, job.config.model
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
            "config.model.embedding_type='fourier': other networks look up sigma by an "
            'index, which does not exist in continuous time'
        )


def check_network(job: Job) -> None:
    """Build a network of this library and run it for one image, on the device 'meta' (shapes only).

    A user's own network is checked by `check_own_network`, after everything else.
    """
    config = job.config
    if not is_ours(config):
        return
    network = _build(config)
    try:
        _run_shapes(config, network)
    except (RuntimeError, ValueError) as error:  # ValueError: for example a group of one value
        reason = str(error).partition('\n')[0]
        raise UserError(
            'the network does not accept images of '
            f'config.data.image_size={config.data.image_size}: {reason}'
        ) from error
    _check_memory(config, network)


def check_own_network(config: ConfigDict) -> None:
    """Check a user's own network like `check_network`, but show errors with their traceback."""
    try:
        network = _build(config)
        _run_shapes(config, network)
    except RuntimeError as error:
        if 'meta' not in str(error):  # errors about 'meta': the network reads values
            raise
    else:
        _check_memory(config, network)


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


def _check_memory(config, network):
    """Check that the parameters and their EMA fit into the memory of the device."""
    device = torch.device(config.device)
    parameters = sum(p.numel() for p in network.parameters())
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


# Training -----------------------------------------------------------------------------------------


def check_batches(job: Job) -> None:
    """Check that a batch can be split evenly among processes and micro-batches."""
    training, processes = job.config.training, distributed.size()
    if training.batch_size % (training.accumulation * processes):
        times = f' times {processes} processes' if processes > 1 else ''
        raise UserError(
            'config.training.batch_size must be a multiple of '
            f'config.training.accumulation={training.accumulation}{times}, '
            f'got {training.batch_size}'
        )


def check_optimizer(job: Job) -> None:
    losses.get_optimizer(job.config, [torch.zeros(1, requires_grad=True)])


def check_objective(job: Job) -> None:
    training = job.config.training
    losses.get_step_fn(
        sde_lib.get_sde(job.config),
        True,
        None,
        training.reduce_mean,
        training.continuous,
        training.likelihood_weighting,
    )


# Evaluation ---------------------------------------------------------------------------------------


def check_evaluation(job: Job) -> None:
    settings = job.config.eval
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
        _check_metrics_of_samples(job.config)
    elif not settings.enable_loss and not settings.enable_bpd:
        raise UserError(
            'config.eval.enable_loss, enable_bpd and enable_sampling are all False: '
            'there is nothing to evaluate'
        )


def check_reference(job: Job) -> None:
    """Check the settings of features and of the images that samples are compared with."""
    backends = [name for name in evaluation.METRICS_BACKENDS if name != 'none']
    _check_features(job.config.eval, backends, ['stats_samples'])


def _check_metrics_of_samples(config):
    settings = config.eval
    _check_features(settings, evaluation.METRICS_BACKENDS, ['stats_samples', 'num_samples'])
    if settings.is_splits > settings.num_samples:
        raise UserError(
            f'config.eval.is_splits={settings.is_splits} is greater than '
            f'config.eval.num_samples={settings.num_samples}'
        )
    evaluation.check_size(config, settings.num_samples)
    if settings.metrics_floor and not datasets.has_held_out(config):
        raise UserError(
            f'config.eval.metrics_floor=True needs a test set: {config.data.dataset} '
            'has one set for both splits'
        )


def _check_features(settings, backends, sizes):
    """Check the backend of the metrics, the split, and the numbers of images in keys `sizes`."""
    if settings.metrics_backend not in backends:
        raise UserError(
            'config.eval.metrics_backend must be one of '
            f'{", ".join(map(repr, backends))}, got {settings.metrics_backend!r}'
        )
    if settings.stats_split not in ('train', 'test'):
        raise UserError(
            f"config.eval.stats_split must be 'train' or 'test', got {settings.stats_split!r}"
        )
    for key in sizes:
        if settings.metrics_backend != 'none' and settings[key] < 4:
            raise UserError(f'config.eval.{key} must be >= 4 for metrics, got {settings[key]}')
