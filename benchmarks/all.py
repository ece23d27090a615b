"""Run all speed benchmarks, print their tables and write their rows as JSON.

    python benchmarks/all.py --folder benchmarks/results     # under eight minutes on two cores

Run it on an idle machine: two busy processes on two cores can slow each other down by far more
than a factor of two.
"""

import argparse
import pathlib
import subprocess
import sys
import time

BENCHMARKS = ('ops', 'forward', 'train_step', 'sampling', 'likelihood', 'data')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--folder',
        help='folder for the JSON files (default: runs/benchmarks, or '
        'runs/benchmarks_quick with --quick)',
    )
    parser.add_argument(
        '--only', nargs='+', default=BENCHMARKS, choices=BENCHMARKS, help='run only these'
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='run the same code on tiny sizes, in seconds; ignore the measured numbers',
    )
    args = parser.parse_args()
    here = pathlib.Path(__file__).parent
    default = 'runs/benchmarks_quick' if args.quick else 'runs/benchmarks'
    folder = pathlib.Path(args.folder or default)
    failed = []
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        print(f'\n== {name}\n', flush=True)
        start = time.monotonic()
        command = [
            sys.executable,
            here / f'{name}.py',
            '--json',
            folder / f'{name}.json',
            *(['--quick'] if args.quick else []),
        ]
        if subprocess.run(command).returncode:
            failed.append(name)
        print(f'\n{time.monotonic() - start:.0f} s', flush=True)
    sys.exit(f'failed: {", ".join(failed)}' if failed else 0)


if __name__ == '__main__':
    main()
