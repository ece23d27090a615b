"""Tasks of `--mode control` that draw samples: given a measurement, or given classes."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
import torch
from absl import logging
from ml_collections import ConfigDict

import datasets
import sampling
import sde_lib
from commands import drawing
from commands.control_job import Job, Request, Result, Task
from control import Grey, Mask, Measurement, blur, downsampling, named_mask, sample_measured
from control.measurements import MASKS
from data.folders import read_pictures
from models.score import Score
from runtime.errors import UserError


def measured_task(make: Callable, **properties) -> Task:
    """Return a task that draws images consistent with a measurement.

    Args:
        make: function `make(config, request) -> Measurement`.
        **properties: further fields of `Task`.
    """

    def make_measurement(config, request):
        _check_sampler(config)
        return make(config, request)

    return Task(draw_measured, labelled=True, make_measurement=make_measurement, **properties)


def _check_sampler(config: ConfigDict):
    """Raise UserError if the sampler of the config cannot be combined with a measurement."""
    score = Score(None, sde_lib.get_sde(config), config.training.continuous)
    loop = dataclasses.replace(_loop(config), project=lambda x, t: x)
    try:
        sampling.check(score, sampling.Options.of(config.sampling), loop)
    except (UserError, NotImplementedError) as fault:
        raise UserError(
            f'config.sampling and config.control do not fit together: {fault}'
        ) from fault


def _loop(config: ConfigDict) -> sampling.Loop:
    return sampling.Loop(resample=config.control.resample, jump=config.control.jump)


def draw_measured(job: Job) -> Result:
    """Draw `control.results` images for each picture, consistent with its measurement."""
    measurement, settings, options = job.measurement, job.config.control, job.model.options()
    times = sampling.times_of(job.model.sde, options)
    parts, nfe = [], 0
    y = job.inputs() if job.measured else measurement(job.inputs())
    for rows in job.batches(len(y)):
        with drawing.shown_evaluations(job.model, f'drawing {len(rows)} images', times):
            images, nfe = sample_measured(
                job.guided(rows),
                measurement,
                y[rows],
                options,
                _loop(job.config),
                settings.consistency,
            )
        parts.append(job.to_8_bits(images))
    known = job.to_8_bits(_as_pictures(job.config, measurement, y))
    samples = np.concatenate(parts).reshape(len(y), -1, *known.shape[1:])
    arrays = dict(known=known, nfe=nfe)
    if isinstance(measurement, Mask):  # known pixels keep the exact values of the input
        mask = measurement.mask.numpy()
        samples = np.where(mask[..., None], job.pictures[:, None], samples)
        arrays['mask'] = mask
    logging.info(
        'Drew %d images with %d network evaluations each.', len(samples) * samples.shape[1], nfe
    )
    titles, columns = ('known', *_numbered(samples)), [known[:, None], samples]
    if not job.measured:
        arrays['inputs'] = job.pictures
        titles, columns = ('picture', *titles), [job.pictures[:, None], *columns]
    return Result(titles, np.concatenate(columns, 1), arrays | dict(samples=samples))


def _numbered(samples: np.ndarray) -> list[str]:
    """Return the titles of the columns of samples (rows, columns, H, W, C)."""
    return [f'sample {i + 1}' for i in range(samples.shape[1])]


def _as_pictures(config: ConfigDict, measurement: Measurement, y: torch.Tensor) -> torch.Tensor:
    """Return measured values as pictures (n, C, H, W).

    Unknown pixels are grey, and means over blocks of pixels are shown as squares. Measured values
    that are not smaller images are shown as A^+ y.
    """
    size, channels = config.data.image_size, config.data.num_channels
    if isinstance(measurement, Mask):
        grey = datasets.get_data_scaler(config)(torch.tensor(0.5))
        return torch.where(measurement.mask.to(y.device), y, grey.to(y))
    if y.ndim != 4 or y.shape[1] not in (1, channels) or size % y.shape[2] or size % y.shape[3]:
        return measurement.pinv(y)
    y = y.expand(-1, channels, -1, -1)
    return y.repeat_interleave(size // y.shape[2], 2).repeat_interleave(size // y.shape[3], 3)


def draw_classes(job: Job) -> Result:
    """Draw `control.results` samples of each class."""
    times = sampling.times_of(job.model.sde, job.model.options())
    parts, nfe = [], 0
    for rows in job.batches(len(job.labels)):
        with drawing.shown_evaluations(job.model, f'drawing {len(rows)} images', times):
            images, nfe = job.guided(rows).draw(len(rows))
        parts.append(drawing.to_images(images, job.config))
    samples = np.concatenate(parts)
    samples = samples.reshape(len(job.labels), -1, *samples.shape[1:])
    return Result(tuple(_numbered(samples)), samples, dict(samples=samples, nfe=nfe))


# Measurements of the library ----------------------------------------------------------------------


def _mask(config: ConfigDict, request: Request) -> Mask:
    """Return the mask that `--mask` names, or the one in a picture."""
    name = request.mask
    if not name:
        raise UserError(
            f'--task=inpaint needs --mask: the missing region ({", ".join(MASKS)}, half or most), '
            'or a picture that is white where pixels are known'
        )
    if pathlib.Path(name).expanduser().is_file():
        mask = _mask_in_picture(config, name)
    elif pathlib.Path(name).suffix:
        raise UserError(f'--mask={name}: not found')
    else:
        mask = named_mask(name, config.data.image_size, config.data.image_size)
    if mask.all():
        raise UserError(f'--mask={name} is white everywhere: no pixels are missing')
    if not mask.any():
        raise UserError(f'--mask={name} is black everywhere: no pixels are known')
    return Mask(mask)


def _mask_in_picture(config: ConfigDict, path: str) -> torch.Tensor:
    """Return the mask (H, W) in a picture: 1 where the picture is white, 0 where it is black."""
    data = ConfigDict(config.data.to_dict())
    data.num_channels = 1
    return torch.from_numpy(read_pictures(path, data)[1][0, ..., 0] >= 128).float()


def _grey(config: ConfigDict, request: Request) -> Grey:
    if config.data.num_channels == 1:
        raise UserError(
            f'--task=colorize needs colour images, but those of {config.data.dataset} have one '
            'channel'
        )
    return Grey(config.data.num_channels)


def _blocks(factor: int) -> Callable:
    return lambda config, request: downsampling(
        config.data.image_size, config.data.image_size, factor
    )


def _blur(config: ConfigDict, request: Request) -> Measurement:
    return blur(config.data.image_size, config.data.image_size, config.control.blur)


TASKS = {
    'inpaint': measured_task(_mask, masked=True),
    'colorize': measured_task(_grey),
    'upscale2': measured_task(_blocks(2), measurable=True, reduced=2),
    'upscale4': measured_task(_blocks(4), measurable=True, reduced=4),
    'deblur': measured_task(_blur, measurable=True),
    'classes': Task(draw_classes, pictures=0, labelled=True),
}
