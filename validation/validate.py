"""Validate checkpoints: load, check, evaluate, and compare with the paper.

Every checkpoint gets a work directory in `output/models`, which is evaluated as with `--mode eval`.
Another call resumes an interrupted evaluation. Parts that cannot be measured (without a data set,
an internet connection or the weights of Inception) are left out, and the report states why.
"""

import math
import os
import pathlib
import re
import time
from collections.abc import Sequence

import numpy as np
from absl import logging
from ml_collections import ConfigDict

import checkpoints
import convert
import datasets
import reports
import run_lib
from checkpoints import formats
from commands import command_line
from configs import rules
from configs.defaults import complete
from data.images import at_most
from data.levels import to_8_bits
from reports import results
from runtime.errors import CheckpointError, UserError
from score_model import ScoreModel

from . import environment, invariants, report
from .fetch import fetch_published, fetch_statistics
from .invariants import Check
from .published import PUBLISHED, published
from .result import Model, Result

# These replace the values of the configs.
DEFAULTS = {
    'eval.num_samples': 500,
    'eval.most_images': 100,
    'eval.batch_size': 100,
    'eval.bpd_repeats': 1,
}
PARTS = dict(loss='loss', bpd='bits/dim', sampling='metrics of samples')  # parts of an evaluation
READ = 'loads with matching names and shapes'
MOST_IMAGES = 1000  # maximum number of samples and of real images to check and show


def load_config(path: str, settings: dict) -> ConfigDict:
    """Load a config file and replace values by `settings`, {'section.key': value}.

    Args:
        path: path of the file, with :argument as for --config.
        settings: values that replace those of the file.

    Raises:
        UserError: if the file does not exist, or has no key of a setting.
    """
    file = rules.expanded(str(path).partition(':')[0])
    if not pathlib.Path(file).is_file():
        raise UserError(f'config {file} does not exist')
    config = command_line.load_config(str(path))
    if faults := rules.faults(config, own=('',)) or rules.missing(
        config, config.model.name, config.training.sde
    ):
        raise UserError('\n'.join(faults.values()))
    for key, value in settings.items():
        try:
            config.lock().update_from_flattened_dict({key: value})
        except KeyError as error:
            raise UserError(f'--set {key}={value}: {file} has no such key') from error
        except TypeError as error:
            raise UserError(f'--set {key}={value}: {_first_line(error)}') from error
    rules.expand_paths(config)
    return complete(config)


def find(text: str, folder: str | os.PathLike) -> Model:
    """Return the model of a command-line argument.

    Args:
        text: name of a published model, or CONFIG=CHECKPOINT.
        folder: folder for downloaded models.

    Raises:
        UserError: if the model or the checkpoint does not exist.
    """
    config, equals, source = text.partition('=')
    if not equals:
        paper = published(text)
        return Model(text, paper.config, fetch_published(text, folder), paper)
    source = rules.expanded(source)
    if not pathlib.Path(source).exists():
        raise UserError(f'checkpoint {source} does not exist')
    name = re.sub(r'^configs/|\.py(:.*)?$', '', config)
    paper = next((model for model in PUBLISHED.values() if model.config == config), None)
    return Model(name, config, pathlib.Path(source), paper)


def validate(
    models: Sequence[Model], output: str | os.PathLike, settings: dict
) -> tuple[pathlib.Path, bool]:
    """Validate models and write REPORT.md, summary.csv, RUN_ENV.txt and pictures.

    Args:
        models: the checkpoints.
        output: folder of the report.
        settings: values that replace those of every config and of `DEFAULTS`.

    Returns:
        The path of the report, and whether all checks passed.

    Raises:
        UserError: if none of the checkpoints could be read.
    """
    output = pathlib.Path(output)
    models = _distinct(models)
    configs = [load_config(model.config_path, DEFAULTS | settings) for model in models]
    output.mkdir(parents=True, exist_ok=True)
    (output / 'RUN_ENV.txt').write_text(environment.snapshot())
    found = []
    for model, config in zip(models, configs):
        try:
            found.append(_validated(model, config, output / 'models' / model.slug))
        except CheckpointError as error:
            if len(models) == 1:
                raise
            logging.warning('%s', error)
            found.append(_unread(model, config, error))
    if all(result.workdir is None for result in found):
        reasons = '; '.join(result.checks[0].detail for result in found)
        raise UserError(f'none of the checkpoints could be loaded: {reasons}')
    passed = all(check.passed is not False for result in found for check in result.checks)
    return report.write(found, output), passed


def _distinct(models: Sequence[Model]) -> list[Model]:
    """Return the models; append file name and number to names that occur more than once."""
    names = [model.name for model in models]
    return [
        model
        if names.count(model.name) == 1
        else model._replace(name=f'{model.name}, {model.source.stem} ({i})')
        for i, model in enumerate(models, 1)
    ]


# One checkpoint -----------------------------------------------------------------------------------


def _unread(model: Model, config: ConfigDict, error: Exception) -> Result:
    """Return the result of a checkpoint that does not fit its config."""
    about = dict(
        source=model.source.name,
        format='',
        digest=results.digest(model.source),
        step='',
        parameters=math.nan,
    )
    return Result(model, config, about, checks=[Check(READ, False, _first_line(error))])


def _validated(model: Model, config: ConfigDict, workdir: pathlib.Path) -> Result:
    """Load, check and evaluate a checkpoint; return all results."""
    logging.info('Started validation of %s: %s', model.name, model.source)
    named = re.search(r'checkpoint_(\d+)', model.source.name)
    number = int(named[1]) if named else 1
    config.eval.update(begin_ckpt=number, end_ckpt=number)
    snapshot = checkpoints.snapshot_path(workdir, number)
    if model.source.resolve() != snapshot.resolve():
        convert.convert(model.source, snapshot, config, overwrite=True)
    state = checkpoints.restore(
        snapshot, run_lib.create_state(config), config.device, optional=('rng', 'optimizer')
    )
    _remove_others(workdir, snapshot)
    about = _about(model, state)
    result = Result(model, config, about, workdir, number)
    read = f'{about["format"]}, step {about["step"]}, {about["parameters"]:,} parameters'
    finite, *others = invariants.weights(state)
    result.checks = [Check(READ, True, read), finite, *others]
    split = _check_denoising(result, snapshot)
    if finite.passed:
        _evaluate(result, with_data=split is not None)
    result.numbers = reports.numbers_of(workdir / 'eval', number)
    result.images = _samples(workdir, number)
    result.costs = _costs(workdir, number)
    if split is not None:
        some = at_most(split, MOST_IMAGES, config.seed)
        result.real = to_8_bits(some.read(np.arange(len(some)))[0], split.levels)
    result.checks += invariants.of_numbers(result.numbers)
    if len(result.images):
        result.checks.append(invariants.of_samples(result.images, result.real))
    for part, reason in result.left_out.items():
        result.checks.append(Check(part, None, f'left out: {reason}'))
    return result


def _about(model: Model, state: dict) -> dict:
    return dict(
        source=model.source.name,
        format=formats.guess(model.source),
        digest=results.digest(model.source),
        step=state['step'],
        parameters=sum(p.numel() for p in state['model'].parameters()),
    )


def _remove_others(workdir: pathlib.Path, snapshot: pathlib.Path):
    """Delete the results of another checkpoint that this work directory had before."""
    for path in (workdir / 'eval').rglob('*.npz'):
        file = results.load(path)
        if file is None or file['protocol'].get('weights') != results.digest(snapshot):
            path.unlink()


def _check_denoising(result: Result, snapshot: pathlib.Path):
    """Check the errors of denoising; return the test images, or None without a data set."""
    config = result.config
    try:
        split = datasets.get_split(config, 'test')
        trained = ScoreModel.load(snapshot, config)
        started = time.monotonic()
        result.denoising = invariants.denoising(trained, split, config.seed)
    except UserError as error:
        result.left_out['denoising'] = _first_line(error)
        return None
    seconds = time.monotonic() - started
    _log_duration(config, seconds / (len(result.denoising.t) * result.denoising.n))
    result.checks.append(invariants.of_denoising(result.denoising))
    return split


def _log_duration(config: ConfigDict, seconds: float):
    """Log a warning with the expected time of sampling if it is more than half an hour.

    Args:
        config: config with the sampler and the number of samples.
        seconds: seconds of one network evaluation for one image.
    """
    settings = config.sampling
    evaluations = settings.steps or config.model.num_scales
    if settings.corrector != 'none':
        evaluations *= 1 + settings.n_steps_each
    hours = config.eval.num_samples * evaluations * seconds / 3600
    if settings.method.lower() == 'pc' and hours > 0.5:
        logging.warning(
            'Sampling %d images with %d network evaluations will take about %.1f hours on this '
            'device; --samples=%d would take half an hour.',
            config.eval.num_samples,
            evaluations,
            hours,
            max(4, int(config.eval.num_samples * 0.5 / hours)),
        )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


# Its evaluation -----------------------------------------------------------------------------------


def _evaluate(result: Result, with_data: bool):
    """Evaluate loss, likelihood and samples separately, so that one can fail alone."""
    settings = result.config.eval
    backend = settings.metrics_backend
    if result.config.data.dataset == 'CIFAR10' and backend == 'tfgan' and not settings.stats_dir:
        try:
            fetch_statistics()
        except UserError as error:
            logging.info('Skipped the published statistics: %s', _first_line(error))
    for part in ('loss', 'bpd', 'sampling') if with_data else ('sampling',):
        _evaluate_part(result, part)
    if PARTS['sampling'] in result.left_out:  # samples without their metrics
        settings.metrics_backend = 'none'
        _evaluate_part(result, 'sampling')
        settings.metrics_backend = backend


def _evaluate_part(result: Result, part: str):
    """Evaluate one of the `PARTS`; on error, add a failed check or why it is left out."""
    for key in PARTS:
        result.config.eval[f'enable_{key}'] = key == part
    try:
        run_lib.evaluate(result.config, result.workdir)
    except (UserError, NotImplementedError) as error:
        result.left_out[PARTS[part]] = _first_line(error)
        logging.warning('%s', error)
    except RuntimeError as error:  # from the ODE solver if the network has no smooth flow
        result.checks.append(Check(PARTS[part], False, _first_line(error)))


def _files(folder: pathlib.Path, pattern: str) -> list[dict]:
    """Load the files of an evaluation, in the order of their numbers."""
    paths = sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))
    return [file for file in map(results.load, paths) if file is not None]


def _samples(workdir: pathlib.Path, number: int) -> np.ndarray:
    """Return at most 1000 of the samples, shape (n, H, W, C)."""
    files = _files(workdir / 'eval' / f'ckpt_{number}', 'samples_*.npz')
    if not files:
        return np.empty(0)
    return np.concatenate([file['samples'] for file in files])[:MOST_IMAGES]


def _costs(workdir: pathlib.Path, number: int) -> dict[str, tuple[float, float, int]]:
    """Return the costs of a sample and of a likelihood, as in `Result.costs`."""
    folder = workdir / 'eval'
    parts = {
        'sample': (_files(folder / f'ckpt_{number}', 'samples_*.npz'), 'samples'),
        'likelihood': (_files(folder, f'test_ckpt_{number}_bpd_*.npz'), 'bpd'),
    }
    costs = {}
    for what, (files, key) in parts.items():
        n = sum(len(file[key]) for file in files)
        if n and all('seconds' in file for file in files):
            seconds = sum(float(file['seconds']) for file in files) / n
            costs[what] = (seconds, np.mean([int(file['nfe']) for file in files]), n)
    return costs
