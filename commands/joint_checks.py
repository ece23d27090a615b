"""Checks of keys of a config that go together, and of the network that they describe."""

import os

import torch

import datasets
import evaluation
import losses
import sampling
import sde_lib
from models import utils as mutils
from models.score import Score
from models.unet import UNet
from runtime import distributed
from runtime.errors import UserError


def _is_unet(config) -> bool:
    network = mutils.get_model(config.model.name)
    return isinstance(network, type) and issubclass(network, UNet)


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
