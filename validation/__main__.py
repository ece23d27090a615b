"""Validate checkpoints from end to end and write a report that compares them with the paper.

    # the published VE NCSN++ and VP DDPM++ of CIFAR-10, downloaded
    python -m validation

    # another published model, with more samples and its data set
    python -m validation vp/cifar10_ddpmpp_deep_continuous --samples 5000 \\
        --set data.tfds_dir=/data/tfds

    # your own checkpoint
    python -m validation --samples 500 \\
        configs/vp/digits_ddpmpp_continuous.py=runs/quickstart/checkpoints/checkpoint_1.pth

    # small models of handwritten digits, trained first if missing; needs no internet connection
    python -m validation --digits

A MODEL is the name of a published model, or CONFIG=CHECKPOINT with a checkpoint in any format that
convert.py reads. Without a MODEL, the two published models above are validated, or --digits if they
cannot be downloaded. The report is OUTPUT/REPORT.md; summary.csv, RUN_ENV.txt and pictures are in
the same folder. If a part cannot be measured, the report states why. The exit status is 1 if a
check failed, and 2 if nothing could be checked.
"""

import argparse
import ast
import logging
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from absl import logging as absl_logging

from commands.command_line import log_to
from configs import rules
from runtime.errors import UserError

DIGITS = {
    'configs/ve/digits_ncsnpp_continuous.py': 'runs/digits_ve',
    'configs/vp/digits_ddpmpp_continuous.py': 'runs/digits_vp',
}

# The data set is small, so all test images are used, as in the evaluation of its configs.
SETTINGS_OF_DIGITS = {'eval.most_images': 0, 'eval.batch_size': 500}
SHORTER = (
    '--config.training.n_iters=2001',
    '--config.training.snapshot_freq=2000',
    '--config.training.snapshot_sampling=False',
)


def digits() -> list[str]:
    """Return VE NCSN++ and VP DDPM++ of digits, as arguments of the command line.

    Missing models are trained first, in parallel.

    Raises:
        UserError: if training failed.
    """
    from checkpoints import snapshot_path

    training = {
        workdir: _start_training(config, workdir)
        for config, workdir in DIGITS.items()
        if not snapshot_path(workdir, 1).is_file()
    }
    failed = [workdir for workdir, process in training.items() if process.wait() != 0]
    if failed:
        raise UserError(f'training in {", ".join(failed)} failed: see stdout.txt in that folder')
    return [f'{config}={snapshot_path(workdir, 1)}' for config, workdir in DIGITS.items()]


def _start_training(config: str, workdir: str) -> subprocess.Popen:
    absl_logging.info('Started training of %s in %s (log in its stdout.txt).', config, workdir)
    where = ['--config', config, '--workdir', workdir, '--mode', 'train', '--config.device=cpu']
    return subprocess.Popen(
        [sys.executable, 'main.py', *where, *SHORTER],
        cwd=pathlib.Path(__file__).parents[1],
        env=os.environ | dict(OMP_NUM_THREADS='1'),
        stderr=subprocess.DEVNULL,
    )


def setting(text: str) -> tuple[str, object]:
    """Parse an override: 'eval.num_samples=50' becomes ('eval.num_samples', 50)."""
    key, equals, value = text.partition('=')
    if not equals or '.' not in key and key not in ('seed', 'device'):
        raise argparse.ArgumentTypeError(f'expected section.key=value, got {text!r}')
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, or `arguments` instead if given."""
    parser = argparse.ArgumentParser(
        'python -m validation',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('models', nargs='*', metavar='MODEL', help='published name, or CONFIG=CHECKPOINT')
    add('--digits', action='store_true', help='validate the two models of handwritten digits')
    folder = dict(type=rules.expanded, metavar='DIR')
    add(
        '--output',
        default='runs/validation',
        help='folder of the report (default: %(default)s)',
        **folder,
    )
    add(
        '--checkpoints',
        default='runs/published',
        help='folder of downloads (default: %(default)s)',
        **folder,
    )
    count = dict(type=int, metavar='N')
    add('--samples', help='samples of each model (default: 500)', **count)
    add('--images', help='test images for loss and likelihood; 0 means all (default: 100)', **count)
    add('--batch', help='batch size (default: 100)', **count)
    add(
        '--set',
        type=setting,
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='config override for every model; may be repeated',
    )
    return parser.parse_args(arguments)


def _settings(given: argparse.Namespace) -> dict:
    """Return the config overrides of the command line."""
    counts = {
        'eval.num_samples': given.samples,
        'eval.most_images': given.images,
        'eval.batch_size': given.batch,
    }
    return {key: value for key, value in counts.items() if value is not None} | dict(given.set)


def _models(given: argparse.Namespace) -> list:
    """Return the models to validate, downloaded if necessary; empty for --digits.

    Raises:
        UserError: if a model of the command line cannot be found.
    """
    from . import published, validate

    names = [] if given.digits else given.models or published.DEFAULT
    try:
        return [validate.find(name, given.checkpoints) for name in names]
    except UserError as error:
        if given.models:
            raise
        absl_logging.warning('%s\nUsing --digits instead.', error)
        return []


def main(arguments: Sequence[str] | None = None) -> int:
    """Validate the models of the command line and return the exit status."""
    given = parse(arguments)
    log_to(None)
    logging.getLogger('matplotlib').setLevel(logging.WARNING)
    from . import validate

    settings = _settings(given)
    try:
        models = _models(given)
        if not models:
            models = [validate.find(name, given.checkpoints) for name in digits()]
            settings = SETTINGS_OF_DIGITS | settings
        report, passed = validate.validate(models, given.output, settings)
    except UserError as error:
        print('\n'.join(f'error: {line}' for line in str(error).splitlines()), file=sys.stderr)
        return 2
    print(report)
    return 0 if passed else 1


if __name__ == '__main__':
    sys.exit(main())
