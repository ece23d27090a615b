"""Run all benchmarks of speed; print their tables and write their rows as JSON.

    python benchmarks/all.py --folder benchmarks/results     # under eight minutes on two cores

On a busy machine the times mean little, and two busy processes on two cores slow each other far
more than twofold.
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
        help='where the JSON files go (default: runs/benchmarks, and '
        'runs/benchmarks_quick with --quick)',
    )
    parser.add_argument(
        '--only', nargs='+', default=BENCHMARKS, choices=BENCHMARKS, help='run these alone'
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='run the same code on tiny sizes, in seconds; the figures mean nothing',
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
