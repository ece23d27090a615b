"""The engineering check of checkpoints from end to end: read, checked, sampled from and measured,
beside the paper's numbers.

Each checkpoint gets a work directory of its own below `output/models`, whose evaluation is that of
`--mode eval`; it goes on where it stopped. A part that cannot be done here (no data set, no network
to fetch one, no weights of Inception) is left out, with the reason in the report.
"""

import math
import pathlib
import re
import time
from typing import NamedTuple

import numpy as np
from absl import logging

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

from . import checks, environment, report
from .fetch import fetch_published, fetch_statistics
from .published import PUBLISHED, Published, published

# instead of the configs'
DEFAULTS = {
    'eval.num_samples': 500,
    'eval.most_images': 100,
    'eval.batch_size': 100,
    'eval.bpd_repeats': 1,
}
PARTS = dict(loss='loss', bpd='bits/dim', sampling='metrics of samples')  # of an evaluation


class Model(NamedTuple):
    """A checkpoint to be validated. `source`: a file or folder of any dialect."""

    name: str
    config_path: str
    source: pathlib.Path
    paper: Published | None = None


class Result(NamedTuple):
    """All that was found. `numbers`: `reports.Number`s; `left_out`: {part: reason}; `costs`:
    {'sample' or 'likelihood': (seconds an image, evaluations of the network, images)}; `images`:
    samples, 8 bits; `real`: as many real images.
    """

    model: Model
    config: object
    workdir: pathlib.Path
    number: int  # of the checkpoint
    about: dict
    checks: list
    numbers: list
    denoising: checks.Denoising | None
    left_out: dict
    costs: dict
    images: np.ndarray | None
    real: np.ndarray | None


def load_config(path: str, settings: dict):
    """The config of a file (with :argument, as for --config), with `settings` {'section.key':
    value}.
    """
    file = rules.expanded(str(path).partition(':')[0])
    if not pathlib.Path(file).is_file():
        raise UserError(f'there is no config {file}')
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
            raise UserError(f'--set {key}={value}: {str(error).splitlines()[0]}') from error
    rules.expand_paths(config)
    return complete(config)


def find(text: str, folder) -> Model:
    """The model that a command's argument names: one that was published, fetched into `folder`, or
    CONFIG=CHECKPOINT.
    """
    if text in PUBLISHED:
        return Model(text, published(text).config, fetch_published(text, folder), published(text))
    config, equals, source = text.partition('=')
    source = rules.expanded(source)
    if not equals:
        published(text)  # tells the known names
    if not pathlib.Path(source).exists():
        raise UserError(f'there is no checkpoint {source}')
    name = re.sub(r'^configs/|\.py(:.*)?$', '', config)
    paper = next((model for model in PUBLISHED.values() if model.config == config), None)
    return Model(name, config, pathlib.Path(source), paper)


def validate(models: list[Model], output, settings: dict) -> tuple[pathlib.Path, bool]:
    """Validates the models, writes REPORT.md, summary.csv, RUN_ENV.txt and pictures to `output`;
    the report, and whether all checks passed.

    `settings`: values for every config, in front of `DEFAULTS`.
    """
    output, names = pathlib.Path(output), [model.name for model in models]
    models = [
        model
        if names.count(model.name) == 1
        else model._replace(name=f'{model.name}, {model.source.stem} ({i})')
        for i, model in enumerate(models, 1)
    ]
    configs = [load_config(model.config_path, DEFAULTS | settings) for model in models]
    output.mkdir(parents=True, exist_ok=True)
    (output / 'RUN_ENV.txt').write_text(environment.snapshot())
    found = []
    for model, config in zip(models, configs):
        try:
            found.append(_one(model, config, output / 'models' / report.slug(model.name)))
        except CheckpointError as error:
            if len(models) == 1:
                raise
            logging.warning('%s', error)
            found.append(_unread(model, config, error))
    if not any(result.checks[0].passed for result in found):
        raise UserError(
            'not one of the checkpoints could be read: '
            + '; '.join(result.checks[0].detail for result in found)
        )
    return report.write(found, output), all(
        check.passed is not False for result in found for check in result.checks
    )


def _unread(model: Model, config, error) -> Result:
    """What is left where a checkpoint does not fit its config."""
    about = dict(
        source=model.source.name,
        dialect='',
        digest=results.digest(model.source),
        step='',
        parameters=math.nan,
    )
    return Result(
        model,
        config,
        None,
        0,
        about,
        [checks.Check('is read, every name and shape', False, _sentence(error))],
        [],
        None,
        {},
        {},
        np.empty(0),
        None,
    )


def _one(model: Model, config, workdir: pathlib.Path) -> Result:
    logging.info('%s: %s', model.name, model.source)
    named = re.search(r'checkpoint_(\d+)', model.source.name)
    number = int(named[1]) if named else 1
    config.eval.update(begin_ckpt=number, end_ckpt=number)
    snapshot = checkpoints.snapshot_path(workdir, number)
    if model.source.resolve() != snapshot.resolve():
        convert.convert(model.source, snapshot, config, overwrite=True)
    state = checkpoints.restore(
        snapshot, run_lib.create_state(config), config.device, optional=('rng', 'optimizer')
    )
    for path in (workdir / 'eval').rglob('*.npz'):  # of another checkpoint that lay here before
        file = results.load(path)
        if file is None or file['protocol'].get('weights') != results.digest(snapshot):
            path.unlink()
    about = dict(
        source=model.source.name,
        dialect=formats.guess(model.source),
        digest=results.digest(model.source),
        step=state['step'],
        parameters=sum(p.numel() for p in state['model'].parameters()),
    )
    found = [
        checks.Check(
            'is read, every name and shape',
            True,
            f'{about["dialect"]}, step {about["step"]}, {about["parameters"]:,} parameters',
        ),
        *checks.weights(state),
    ]

    left_out, profile, real = {}, None, None
    try:
        split = datasets.get_split(config, 'test')
        trained, started = ScoreModel.load(snapshot, config), time.monotonic()
        profile = checks.denoising(trained, split, config.seed)
        _tell_the_time(config, (time.monotonic() - started) / (len(profile.t) * profile.n))
    except UserError as error:
        split, left_out['denoising'] = None, _sentence(error)
    found += [checks.of_denoising(profile)] if profile else []
    if found[1].passed:  # from weights that are not finite comes nothing
        found += _evaluate(config, workdir, left_out, with_data=split is not None)
    numbers, (images, costs) = reports.numbers_of(workdir / 'eval', number), _costs(workdir, number)
    if split is not None:
        some = at_most(split, 1000, config.seed)
        real = to_8_bits(some.read(np.arange(len(some)))[0], split.levels)
    found += [
        *checks.of_numbers(numbers),
        *([checks.of_samples(images, real)] if len(images) else []),
        *(checks.Check(part, None, f'left out: {reason}') for part, reason in left_out.items()),
    ]
    return Result(
        model,
        config,
        workdir,
        number,
        about,
        found,
        numbers,
        profile,
        left_out,
        costs,
        images,
        real,
    )


def _tell_the_time(config, seconds: float):
    """Logs how long the samples will take, where that is long, from the seconds of one evaluation
    of the network for an image.
    """
    settings = config.sampling
    evaluations = (settings.steps or config.model.num_scales) * (
        1 + settings.n_steps_each * (settings.corrector != 'none')
    )
    hours = config.eval.num_samples * evaluations * seconds / 3600
    if settings.method.lower() == 'pc' and hours > 0.5:
        logging.warning(
            '%d samples of %d evaluations will take about %.1f hours on this device: '
            '--samples=%d takes half an hour.',
            config.eval.num_samples,
            evaluations,
            hours,
            max(4, int(config.eval.num_samples * 0.5 / hours)),
        )


def _sentence(error) -> str:
    return str(error).splitlines()[0]


def _evaluate(config, workdir, left_out: dict, with_data: bool) -> list[checks.Check]:
    """Loss, likelihood and samples, each by itself, so that what cannot be done leaves the others;
    the parts that broke down.
    """
    wanted, broken = dict(loss=with_data, bpd=with_data, sampling=True), []
    if (
        config.data.dataset == 'CIFAR10'
        and config.eval.metrics_backend == 'tfgan'
        and not config.eval.stats_dir
    ):
        try:
            fetch_statistics()
        except UserError as error:
            logging.info('Without the published statistics: %s', _sentence(error))
    backend = config.eval.metrics_backend
    for part, metrics in (
        ('loss', backend),
        ('bpd', backend),
        ('sampling', backend),
        ('samples alone', 'none'),
    ):
        if part == 'samples alone' and PARTS['sampling'] in left_out:
            part = 'sampling'
        if not wanted.get(part):
            continue
        config.eval.metrics_backend = metrics
        for key in wanted:
            config.eval[f'enable_{key}'] = key == part
        try:
            run_lib.evaluate(config, workdir)
        except (UserError, NotImplementedError) as error:
            left_out[PARTS[part]] = _sentence(error)
            logging.warning('%s', error)
        except RuntimeError as error:  # of the ODE solver, where the network has no smooth flow
            broken.append(checks.Check(PARTS[part], False, _sentence(error)))
    config.eval.metrics_backend = backend
    return broken


def _costs(workdir, number):
    """Up to 1000 of the samples, and the costs of a `Result`."""
    costs, samples = {}, []
    parts = {
        'sample': (workdir / 'eval' / f'ckpt_{number}', 'samples_*.npz', 'samples'),
        'likelihood': (workdir / 'eval', f'test_ckpt_{number}_bpd_*.npz', 'bpd'),
    }
    for what, (folder, pattern, key) in parts.items():
        paths = sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))
        files = [file for file in map(results.load, paths) if file is not None]
        n = sum(len(file[key]) for file in files)
        if n and all('seconds' in file for file in files):
            costs[what] = (
                sum(float(file['seconds']) for file in files) / n,
                np.mean([int(file['nfe']) for file in files]),
                n,
            )
        if key == 'samples' and files:
            samples = np.concatenate([file[key] for file in files])[:1000]
    return samples, costs
