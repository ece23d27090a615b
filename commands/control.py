"""`--mode control`: inpainting and other measurements, classes, latent codes.

A task converts pictures or labels to the rows of `gallery.png` and the arrays of `results.npz`. The
mathematics is in the folder control/.
"""

import os
import pathlib

import numpy as np
from absl import logging
from ml_collections import ConfigDict

import reports
from commands import control_codes, control_samples, preflight
from commands.control_job import Request, Task, prepare
from control.measurements import MEASUREMENTS
from runtime import interruption
from runtime.errors import UserError
from runtime.randomness import own_randomness

TASKS = control_samples.TASKS | control_codes.TASKS


@interruption.interruptible('No results were written.')
def control(config: ConfigDict, workdir: str | os.PathLike, task: str, **request) -> pathlib.Path:
    """Run a task with a trained model and write `gallery.png` and `results.npz`.

    Args:
        config: the config.
        workdir: the work directory of the model.
        task: a name in `TASKS`, or the name of a registered measurement.
        **request: see `Request`.

    Returns:
        The folder of the results.

    Raises:
        UserError: if the task is unknown, or does not fit the request, the config or the model.
    """
    kind, request = find_task(task), Request(**request)
    config = preflight.check(config, workdir, 'control', request.checkpoint)
    _check_flags(task, kind, request)
    config.sampling.round = False  # results are rounded to 8 bits anyway
    job = prepare(config, workdir, kind, request, task)
    with own_randomness(config.seed):
        titles, rows, arrays = kind.run(job)
    if job.labels is not None:
        arrays = arrays | dict(labels=job.labels.numpy())
    folder = pathlib.Path(request.output or pathlib.Path(workdir, f'control_{task}'))
    folder.mkdir(parents=True, exist_ok=True)
    images = rows.reshape(-1, *rows.shape[2:])
    reports.save_grid(folder / 'gallery.png', images, rows.shape[1], list(titles))
    np.savez_compressed(folder / 'results.npz', **arrays)
    logging.info(
        'Wrote gallery.png (columns: %s) and results.npz to %s.', ', '.join(titles), folder
    )
    return folder


def find_task(name: str) -> Task:
    """Return the task called `name` (case is ignored); raise UserError if there is none."""
    if name.lower() in TASKS:
        return TASKS[name.lower()]
    if make := MEASUREMENTS.find(name):
        return control_samples.measured_task(lambda config, request: make(config))
    known = ', '.join([*TASKS, *MEASUREMENTS.names()])
    raise UserError(f'--task must be one of {known}, got {name!r}')


def _check_flags(task: str, kind: Task, request: Request):
    """Raise UserError if a flag is given that the task does not use."""
    used = dict(
        input=kind.pictures > 0,
        mask=kind.masked,
        labels=kind.labelled,
        classifier=kind.labelled,
        measured=kind.measurable,
    )
    for flag, is_used in used.items():
        if getattr(request, flag) and not is_used:
            raise UserError(f'--task={task} does not use --{flag}')
