"""Write reports on work directories: python -m reports WORKDIR ... --output DIR."""

import argparse
import sys
from collections.abc import Sequence

from configs import rules
from reports import write
from runtime.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the report."""
    parser = argparse.ArgumentParser(
        'python -m reports',
        description='Write report.md, summary.csv, protocols.json and pictures from the evaluation '
        'files of work directories.',
        epilog='To compare several runs in one report: '
        'python -m reports runs/vp runs/subvp --output comparison',
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
        help='folder for the report, created if it does not exist',
    )
    parser.add_argument(
        '--eval_folder',
        default='eval',
        metavar='NAME',
        help='folder of the results in each WORKDIR (default: %(default)s)',
    )
    given = parser.parse_args(arguments)
    try:
        print(write(given.workdirs, given.output, given.eval_folder))
    except UserError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
