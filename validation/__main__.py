"""Checks checkpoints from end to end and writes a report: what they are, what they give, and the
paper's numbers beside.

  python -m validation                                    # the published VE NCSN++ and VP DDPM++ of
  CIFAR-10, fetched python -m validation vp/cifar10_ddpmpp_deep_continuous --samples 5000 --set
  data.tfds_dir=/data/tfds python -m validation
  configs/vp/digits_ddpmpp_continuous.py=runs/quickstart/checkpoints/checkpoint_1.pth --samples 500
  python -m validation --digits                           # small ones of handwritten digits,
  trained if need be: no network

A MODEL is the name of a published one, or CONFIG=CHECKPOINT, of any kind that convert.py reads.
Without a network, and without models, it is --digits. The report is OUTPUT/REPORT.md, with
summary.csv, RUN_ENV.txt and pictures beside it. Parts that cannot be measured here are left out,
with the reason. Exit status 1: a check has failed; 2: nothing could be checked.
"""

import argparse
import ast
import logging
import os
import pathlib
import subprocess
import sys

from absl import logging as absl_logging

from commands.command_line import log_to
from configs import rules
from runtime.errors import UserError

DIGITS = {
    'configs/ve/digits_ncsnpp_continuous.py': 'runs/digits_ve',
    'configs/vp/digits_ddpmpp_continuous.py': 'runs/digits_vp',
}

# small: all test images, as their own evaluation has them
SETTINGS_OF_DIGITS = {'eval.most_images': 0, 'eval.batch_size': 500}
SHORTER = (
    '--config.training.n_iters=2001',
    '--config.training.snapshot_freq=2000',
    '--config.training.snapshot_sampling=False',
)


def digits() -> list[str]:
    """VE NCSN++ and VP DDPM++ of digits, as arguments; those that are not there yet are trained
    first, side by side.
    """
    from checkpoints import snapshot_path

    training = {}
    for config, workdir in DIGITS.items():
        if not snapshot_path(workdir, 1).is_file():
            absl_logging.info(
                'Training %s in %s, with its log in stdout.txt there.', config, workdir
            )
            training[workdir] = subprocess.Popen(
                [
                    sys.executable,
                    'main.py',
                    '--config',
                    config,
                    '--workdir',
                    workdir,
                    '--mode',
                    'train',
                    '--config.device=cpu',
                    *SHORTER,
                ],
                cwd=pathlib.Path(__file__).parents[1],
                env=os.environ | dict(OMP_NUM_THREADS='1'),
                stderr=subprocess.DEVNULL,
            )
    failed = [workdir for workdir, process in training.items() if process.wait() != 0]
    if failed:
        raise UserError(f'the training in {", ".join(failed)} failed: its stdout.txt tells')
    return [f'{config}={snapshot_path(workdir, 1)}' for config, workdir in DIGITS.items()]


def setting(text: str) -> tuple:
    """'eval.num_samples=50' -> ('eval.num_samples', 50)."""
    key, equals, value = text.partition('=')
    if not equals or '.' not in key and key not in ('seed', 'device'):
        raise argparse.ArgumentTypeError(f'expected section.key=value, got {text!r}')
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        'python -m validation',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'models', nargs='*', metavar='MODEL', help='published name, or CONFIG=CHECKPOINT'
    )
    parser.add_argument('--digits', action='store_true', help='the pair of handwritten digits')
    parser.add_argument(
        '--output',
        type=rules.expanded,
        default='runs/validation',
        metavar='DIR',
        help='folder of the report (%(default)s)',
    )
    parser.add_argument(
        '--checkpoints',
        type=rules.expanded,
        default='runs/published',
        metavar='DIR',
        help='folder of what is fetched (%(default)s)',
    )
    parser.add_argument('--samples', type=int, metavar='N', help='samples of each model (500)')
    parser.add_argument(
        '--images',
        type=int,
        metavar='N',
        help='test images of losses and likelihoods; 0: all (100)',
    )
    parser.add_argument('--batch', type=int, metavar='N', help='images at a time (100)')
    parser.add_argument(
        '--set',
        type=setting,
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='of every config; may be repeated',
    )
    given = parser.parse_args(arguments)
    log_to(None)
    logging.getLogger('matplotlib').setLevel(logging.WARNING)
    from . import published, validate

    settings = {
        key: value
        for key, value in {
            'eval.num_samples': given.samples,
            'eval.most_images': given.images,
            'eval.batch_size': given.batch,
        }.items()
        if value is not None
    } | dict(given.set)
    try:
        try:
            names = [] if given.digits else given.models or list(published.DEFAULT)
            models = [validate.find(name, given.checkpoints) for name in names]
        except UserError as error:
            if given.models:
                raise
            absl_logging.warning('%s\nGoing on with --digits instead.', error)
            models = []
        if not models:
            models, settings = (
                [validate.find(name, given.checkpoints) for name in digits()],
                SETTINGS_OF_DIGITS | settings,
            )
        report, passed = validate.validate(models, given.output, settings)
    except UserError as error:
        print('\n'.join(f'error: {line}' for line in str(error).splitlines()), file=sys.stderr)
        return 2
    print(report)
    return 0 if passed else 1


if __name__ == '__main__':
    sys.exit(main())
