"""Pictures from pictures, for `--mode control`: what is missing filled in, classes asked for, codes
taken between and around.

A task reads pictures, makes rows of a gallery from them, and arrays for a file. The mathematics is
in controllable_generation.py, measurements.py and latents.py.
"""

import dataclasses
import functools
import pathlib
import types
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from absl import logging
from ml_collections import ConfigDict

import checkpoints
import controllable_generation as control_lib
import datasets
import reports
import sampling
import score_model
import sde_lib
from commands import drawing, preflight
from control import latents, measurements
from data.folders import read_pictures
from data.levels import to_8_bits
from models.score import Score
from runtime import interruption
from runtime.errors import UserError
from runtime.randomness import own_randomness


class Task(NamedTuple):
    """`run(job)` -> (what a row shows, rows (n, columns, H, W, C) of 8-bit images, arrays to keep);
    how many pictures make a row (0: none is needed); whether the pictures may be the measurements
    themselves, smaller by `reduced`; whether labels have a meaning; the function of the job that
    makes the measurement, before the checkpoint is loaded.
    """

    run: Callable
    pictures: int = 1
    measurable: bool = False
    reduced: int = 1
    labelled: bool = False
    measurement: Callable | None = None


class Request(NamedTuple):
    """What a task is asked for, besides the config: the values of the flags of `--mode control`.

    `input`: a picture, a folder or a zip file of pictures; '' is `control.images` test images of
    the data set, drawn by the seed. `mask`: a name of `measurements.named_mask`, or a picture,
    white where the image is known. `labels`: numbers of classes, '3,5,8'. `classifier`: a
    checkpoint of --mode classifier, or its work directory, for networks that are not conditioned on
    classes. `measured`: the input is what was measured. `checkpoint`: a file; '' is the latest of
    the work directory. `output`: the folder of the results; '' is `workdir/control_{task}`.
    """

    input: str = ''
    mask: str = ''
    labels: str = ''
    classifier: str = ''
    checkpoint: str = ''
    output: str = ''
    measured: bool = False


@interruption.interruptible('No results were written.')
def control(config, workdir, task, **request):
    """Do `task`, one of TASKS, with a trained model, and write `gallery.png` and `results.npz` into
    a folder, which is returned.

    `request`: see `Request`.
    """
    if task not in TASKS:
        raise UserError(f'--task={task} is unknown: known are {", ".join(TASKS)}')
    kind, request = TASKS[task], Request(**request)
    config = preflight.check(config, workdir, 'control', request.checkpoint)
    folder = pathlib.Path(request.output or pathlib.Path(workdir, f'control_{task}'))
    for flag, takes in dict(
        mask=task == 'inpaint',
        measured=kind.measurable,
        input=kind.pictures,
        labels=kind.labelled,
        classifier=kind.labelled,
    ).items():
        if getattr(request, flag) and not takes:
            raise UserError(f'--{flag} has no meaning for --task={task}')
    config.sampling.round = False  # results have 8 bits in any case
    job = types.SimpleNamespace(
        config=config,
        settings=config.control,
        task=task,
        mask=request.mask,
        measured=request.measured,
        size=config.data.image_size,
    )
    job.measurement = kind.measurement and kind.measurement(job)
    job.labels = _labels(job, request.labels, request.classifier)
    job.images = _inputs(job, kind, request.input) if kind.pictures else None
    if kind.pictures and job.labels is not None:
        job.labels = _labels_of(len(job.images), job.labels)
    job.model = score_model.ScoreModel.load(
        request.checkpoint or checkpoints.latest(workdir), config
    )
    job.guide = _guide(job, request.classifier)
    with own_randomness(config.seed):
        job.x = _scaled(job) if kind.pictures else None
        columns, rows, arrays = kind.run(job)
    folder.mkdir(parents=True, exist_ok=True)
    reports.save_grid(folder / 'gallery.png', rows.reshape(-1, *rows.shape[2:]), rows.shape[1])
    np.savez_compressed(
        folder / 'results.npz',
        **arrays,
        **({'labels': job.labels.numpy()} if job.labels is not None else {}),
    )
    logging.info('Wrote gallery.png (in each row: %s) and results.npz to %s.', columns, folder)
    return folder


# What a job starts from ---------------------------------------------------------------------------


def _inputs(job, kind, path) -> np.ndarray:
    """The pictures (n, H, W, C), 8 bits."""
    data = ConfigDict(job.config.data.to_dict())
    if job.measured:
        data.image_size //= kind.reduced
    if path:
        images, job.levels = read_pictures(path, data)[1], 256
    else:
        if job.measured:
            raise UserError('--measured needs --input: the images of the data set are whole')
        found = datasets.get_split(job.config, 'test')
        chosen = np.random.default_rng(job.config.seed).permutation(len(found))[
            : job.settings.images
        ]
        images, job.levels = found.read(chosen)[0], found.levels
    images = images[: len(images) // kind.pictures * kind.pictures]
    if not len(images):
        raise UserError(f'--task={job.task} needs {kind.pictures} pictures or more')
    return images


def _scaled(job) -> torch.Tensor:
    """The pictures as the network sees them (n, C, H, W): dequantised if it was trained so."""
    x = torch.from_numpy(job.images).permute(0, 3, 1, 2).float()
    x = (
        (x + torch.rand_like(x)) / job.levels
        if job.config.data.uniform_dequantization
        else x / (job.levels - 1)
    )
    return datasets.get_data_scaler(job.config)(x).contiguous().to(job.config.device)


def _labels(job, text: str, classifier) -> torch.Tensor | None:
    """The classes in `text`, where something here knows classes; a classifier's number of them is
    known once it is loaded.
    """
    try:
        labels = torch.tensor([int(part) for part in text.split(',')]) if text else None
    except (ValueError, RuntimeError, OverflowError) as error:  # the last two: more than 64 bits
        raise UserError(
            f'--labels={text}: expected numbers of classes with commas between them, such as 3,5,8'
        ) from error
    if classifier and labels is None:
        raise UserError('--classifier needs --labels: the classes to guide to')
    if job.task == 'classes' and labels is None:
        raise UserError('--task=classes needs --labels, such as 3,5,8')
    known = job.config.model.num_classes
    if labels is not None and not known and not classifier:
        raise UserError(
            '--labels need a network that knows classes (config.model.num_classes), or '
            'a --classifier'
        )
    if labels is not None and not classifier:
        _in_range(labels, known, 'network')
    return labels


def _in_range(labels: torch.Tensor, known: int, what: str):
    if not 0 <= labels.min() <= labels.max() < known:
        raise UserError(f'--labels must lie in 0 .. {known - 1}, the classes that the {what} knows')


def _labels_of(number: int, labels: torch.Tensor) -> torch.Tensor:
    """One label for each of `number` pictures."""
    if len(labels) not in (1, number):
        text = ','.join(map(str, labels.tolist()))
        raise UserError(
            f'--labels={text} are {len(labels)}: expected one for all {number} '
            'pictures, or one for each'
        )
    return labels.expand(number)


def _guide(job, classifier) -> Callable:
    """labels (B,) or None -> the guidance towards them, with the weight `sampling.guidance`."""
    if job.labels is None:
        return lambda labels: None
    weight = job.config.sampling.guidance
    if not classifier:
        return lambda labels: control_lib.classifier_free_guidance(labels, weight)
    network = score_model.load_classifier(classifier, job.config)
    _in_range(job.labels, network.module.num_classes, 'classifier')
    return lambda labels: control_lib.classifier_guidance(job.model.sde, network, labels, weight)


def _to_8_bits(job, x) -> np.ndarray:
    """(n, C, H, W), as the network sees them -> (n, H, W, C)."""
    return drawing.to_images(job.model.unscale(x), job.config)


def _repeated(job, rows: int):
    """Of rows with `control.results` results each, the indices of batches of at most
    `eval.batch_size` results.
    """
    return (
        torch.arange(rows).repeat_interleave(job.settings.results).split(job.config.eval.batch_size)
    )


# Measurements -------------------------------------------------------------------------------------


def _measured(
    make_measurement: Callable, columns: str = 'picture, what is known of it, results', **task
) -> Task:
    """The task of drawing images that agree with a measurement, which `make_measurement(job)`
    makes.
    """

    def run(job):
        measurement, options = job.measurement, job.model.options()
        y = job.x if job.measured else measurement(job.x)
        samples, nfe, times = [], 0, sampling.times_of(job.model.sde, options)
        for part in _repeated(job, len(y)):
            model = job.model.guided_by(job.guide(None if job.labels is None else job.labels[part]))
            with drawing.shown_evaluations(job.model, f'drawing {len(part)} images', times):
                found, nfe = control_lib.sample_measured(
                    model, measurement, y[part], options, _loop(job), job.settings.consistency
                )
            samples.append(_to_8_bits(job, found))
        known = _to_8_bits(job, _as_pictures(job, measurement, y))
        pictures = known if job.measured else to_8_bits(job.images, job.levels)
        samples = np.concatenate(samples).reshape(len(y), -1, *pictures.shape[1:])
        arrays = dict(samples=samples, known=known, nfe=nfe)
        if isinstance(measurement, measurements.Mask):  # what is known comes back as it was read
            mask = measurement.mask.numpy()[..., None]
            arrays = dict(
                samples=np.where(mask, pictures[:, None], samples),
                known=known,
                nfe=nfe,
                mask=mask[..., 0],
            )
        logging.info(
            'Drew %d images with %d network evaluations each.',
            samples.shape[0] * samples.shape[1],
            nfe,
        )
        rows = np.concatenate(
            [*([] if job.measured else [pictures[:, None]]), known[:, None], arrays['samples']], 1
        )
        return (
            columns.partition(', ')[2] if job.measured else columns,
            rows,
            arrays | ({} if job.measured else {'inputs': pictures}),
        )

    def measurement(job):
        score = Score(None, sde_lib.get_sde(job.config), job.config.training.continuous)
        try:
            sampling.check(
                score,
                sampling.Options.of(job.config.sampling),
                dataclasses.replace(_loop(job), project=lambda x, t: x),
            )
        except (UserError, NotImplementedError) as fault:
            raise UserError(f'config.sampling and config.control do not fit: {fault}') from fault
        return make_measurement(job)

    return Task(run, labelled=True, measurement=measurement, **task)


def _loop(job) -> sampling.Loop:
    return sampling.Loop(resample=job.settings.resample, jump=job.settings.jump)


def _as_pictures(job, measurement, y) -> torch.Tensor:
    """What is known, as pictures (n, C, H, W): unknown pixels in grey, means over pixels as
    squares, anything else as A^+ y.
    """
    if isinstance(measurement, measurements.Mask):
        grey = datasets.get_data_scaler(job.config)(torch.tensor(0.5))
        return torch.where(measurement.mask.to(y.device), y, grey.to(y))
    if (
        y.ndim != 4
        or job.size % y.shape[2]
        or job.size % y.shape[3]
        or y.shape[1] not in (1, job.config.data.num_channels)
    ):
        return measurement.pinv(y)
    y = y.expand(-1, job.config.data.num_channels, -1, -1)
    return y.repeat_interleave(job.size // y.shape[2], 2).repeat_interleave(
        job.size // y.shape[3], 3
    )


def _mask(job):
    """The mask that --mask names, or the picture of one."""
    if not job.mask:
        raise UserError(
            '--task=inpaint needs --mask: a picture, white where the image is known, '
            'or one of '
            f'{", ".join(measurements.MASKS)}, half, most, which say what is missing'
        )
    if pathlib.Path(job.mask).expanduser().is_file():
        data = ConfigDict(job.config.data.to_dict())
        data.num_channels = 1
        mask = torch.from_numpy(read_pictures(job.mask, data)[1][0, ..., 0] >= 128).float()
    elif pathlib.Path(job.mask).suffix:
        raise UserError(f'--mask={job.mask}: not found')
    else:
        mask = measurements.named_mask(job.mask, job.size, job.size)
    if mask.all() or not mask.any():
        raise UserError(
            f'--mask={job.mask} leaves nothing to '
            + (
                'fill in: it is white all over'
                if mask.all()
                else 'start from: it is black all over'
            )
        )
    return measurements.Mask(mask)


def _grey(job):
    if job.config.data.num_channels == 1:
        raise UserError(
            '--task=colorize needs images in colour: those of '
            f'{job.config.data.dataset} have one channel'
        )
    return measurements.Grey(job.config.data.num_channels)


# Classes ------------------------------------------------------------------------------------------


def _classes(job):
    parts, nfe = [], 0
    for part in _repeated(job, len(job.labels)):
        with drawing.shown_evaluations(
            job.model,
            f'drawing {len(part)} images',
            sampling.times_of(job.model.sde, job.model.options()),
        ):
            images, nfe = job.model.guided_by(job.guide(job.labels[part])).draw(len(part))
        parts.append(drawing.to_images(images, job.config))
    samples = np.concatenate(parts)
    samples = samples.reshape(len(job.labels), -1, *samples.shape[1:])
    return 'samples of one class', samples, dict(samples=samples, nfe=nfe)


# Latent codes -------------------------------------------------------------------------------------


def _coded(job):
    """The codes (n, C, H, W) of the pictures, and the function that decodes (..., C, H, W) to 8-bit
    images (..., H, W, C).
    """
    options = job.model.options(rtol=job.settings.rtol, atol=job.settings.atol)
    times = latents.encoding_times(job.model.sde, options)

    def in_batches(fn, x, what, times, forward=False):
        parts, found = x.split(job.config.eval.batch_size), []
        for i, part in enumerate(parts, 1):
            with drawing.shown_evaluations(
                job.model, f'{what} {len(part)} images, batch {i} of {len(parts)}', times, forward
            ):
                found.append(fn(job.model, part, options)[0])
        return torch.cat(found)

    def decoded(z):
        x = in_batches(
            latents.decode, z.flatten(0, -4), 'decoding', times if times is None else times.flip(0)
        )
        images = _to_8_bits(job, x)
        return images.reshape(*z.shape[:-3], *images.shape[1:]), x

    return in_batches(latents.encode, job.x, 'encoding', times, forward=True), decoded


def _reconstruct(job):
    z, decode = _coded(job)
    images, x = decode(z)
    mean, largest = latents.reconstruction_error(
        job.model.unscale(job.x), job.model.unscale(x), datasets.get_levels(job.config)
    )
    logging.info(
        'Reconstruction error of %d images: %.4f grey levels of %d on average, %.4f at most.',
        len(x),
        mean.mean(),
        datasets.get_levels(job.config),
        largest.max(),
    )
    inputs, scale = (
        to_8_bits(job.images, job.levels),
        job.model.sde.prior_sampling((10000,)).std(),
    )
    codes = ((z / scale / 6 + 0.5).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return (
        'picture, its code, what that decodes to',
        np.stack([inputs, codes, images], 1),
        dict(
            inputs=inputs,
            codes=z.cpu().numpy(),
            samples=images,
            mean_error=mean.cpu().numpy(),
            largest_error=largest.cpu().numpy(),
        ),
    )


def _interpolate(job):
    z, decode = _coded(job)
    steps = latents.interpolate(
        z[0::2], z[1::2], torch.linspace(0, 1, job.settings.steps)
    ).transpose(0, 1)
    return _beside_pictures(
        job, decode(steps)[0], 2, 'picture, the way from its code to that of the next, the next'
    )


def _temper(job):
    z, decode = _coded(job)
    scales = [float(t) for t in job.settings.temperatures]
    images = decode(torch.stack([latents.temper(z, t) for t in scales], 1))[0]
    return _beside_pictures(
        job,
        images,
        1,
        f'picture, its code decoded at the temperatures {", ".join(f"{t:g}" for t in scales)}',
    )


def _mix(job):
    z, decode = _coded(job)
    left, top = (measurements.named_mask(name, job.size, job.size) for name in ('right', 'bottom'))
    weights = (
        torch.tensor([1.0, 1.0]),
        torch.stack([left, 1 - left])[:, None, None],
        torch.stack([top, 1 - top])[:, None, None],
    )
    images = decode(
        torch.stack([latents.mix(torch.stack([z[0::2], z[1::2]]), w) for w in weights], 1)
    )[0]
    return _beside_pictures(
        job,
        images,
        2,
        'picture, its code mixed with that of the next '
        '(evenly; left half and right half; upper and '
        'lower half), the next',
    )


def _beside_pictures(job, images, pictures: int, columns: str):
    """Rows of results between, or behind, the pictures that they are from."""
    inputs = to_8_bits(job.images, job.levels)
    sources = inputs.reshape(-1, pictures, *inputs.shape[1:])
    return (
        columns,
        np.concatenate([sources[:, :1], images, sources[:, 1:]], 1),
        dict(inputs=inputs, samples=images),
    )


TASKS = {
    'inpaint': _measured(_mask),
    'colorize': _measured(_grey),
    'upscale2': _measured(
        lambda job: measurements.downsampling(job.size, job.size, 2), measurable=True, reduced=2
    ),
    'upscale4': _measured(
        lambda job: measurements.downsampling(job.size, job.size, 4), measurable=True, reduced=4
    ),
    'deblur': _measured(
        lambda job: measurements.blur(job.size, job.size, job.settings.blur), measurable=True
    ),
    'classes': Task(_classes, pictures=0, labelled=True),
    'reconstruct': Task(_reconstruct),
    'interpolate': Task(_interpolate, pictures=2),
    'temper': Task(_temper),
    'mix': Task(_mix, pictures=2),
}
BUILT_IN = tuple(TASKS)


def register_measurement(make=None, *, name: str | None = None):
    """Register `make(config) -> measurements.Measurement` as a task that `--task` can name; usable
    as a decorator.

    The task draws images that agree with what is measured of each input picture.

    Args:
        make: the function; it may read `config.data` and `config.control`.
        name: the name of the task; that of the function by default.

    Raises:
        UserError: if this library has a task of that name.
    """
    if make is None:
        return functools.partial(register_measurement, name=name)
    name = name or make.__name__
    if name in BUILT_IN:
        raise UserError(f'the task name {name!r} is taken by this library: choose another')
    TASKS[name] = _measured(lambda job: make(job.config))
    return make
