"""Reports of work directories: python -m reports WORKDIR ... --output DIR."""

import argparse
import sys

from configs import rules
from reports import write
from runtime.errors import UserError


def main(arguments=None):
    parser = argparse.ArgumentParser(
        'python -m reports',
        description='Writes report.md, summary.csv and pictures on the '
        'evaluations of work directories, from '
        'their files.',
        epilog='Several stand side by side: python -m reports runs/vp runs/subvp --output '
        'comparison',
    )
    parser.add_argument(
        'workdirs',
        nargs='+',
        metavar='WORKDIR',
        type=rules.expanded,
        help='work directory in which --mode eval has run',
    )
    parser.add_argument(
        '--output',
        required=True,
        metavar='DIR',
        type=rules.expanded,
        help='folder for the report; made if need be',
    )
    parser.add_argument(
        '--eval_folder',
        default='eval',
        metavar='NAME',
        help='folder of the results within each WORKDIR (%(default)s)',
    )
    given = parser.parse_args(arguments)
    try:
        print(write(given.workdirs, given.output, given.eval_folder))
    except UserError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
