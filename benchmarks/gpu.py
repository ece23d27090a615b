"""Check and measure the library on a GPU: one command of at most nine minutes.

    # kernels, agreement, speed; then trains until the time is up
    python benchmarks/gpu.py --npz cifar10.npz
    python benchmarks/gpu.py --dry-run  # the same on a CPU with tiny networks, under a minute

It needs PyTorch, ml_collections, absl-py and the other packages that `import run_lib` needs, but no
TensorFlow, internet connection or compiler. `--npz` is a file with the arrays x_train and x_test of
CIFAR-10; without it, training uses random images. The report (gpu.md, gpu.json) is written to
--folder after every section. If a section fails, its traceback is reported, the other sections
still run, and the exit status is 1.

Times are the minimum over interleaved rounds. "Of products" is the rate of the network's
convolutions and matrix products, divided by the rate of 8192^3 matrix products in the same
precision. "Of copy" is the bandwidth of an operation that reads its input once and writes its
output once, divided by the bandwidth of a large device-to-device copy.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
import traceback

import torch
from gpu_checks import agreement, kernels
from gpu_networks import networks, samplers
from gpu_resampling import resampling
from gpu_training import training
from machine import machine
from sections import Failed, Run, Table

from configs.vp import digits_ddpmpp_continuous

ROOT = pathlib.Path(__file__).parents[1]
PUBLISHED = 'configs/ve/cifar10_ncsnpp_continuous.py'
SECTIONS = {
    section.__name__: section
    for section in (kernels, agreement, networks, samplers, resampling, training)
}


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--dry-run', action='store_true', help='run with tiny sizes on the CPU, under a minute'
    )
    parser.add_argument(
        '--folder',
        default='runs/gpu',
        help='folder for the report and the checkpoint (default: %(default)s)',
    )
    parser.add_argument(
        '--minutes', type=float, default=9, help='total time limit (default: %(default)s)'
    )
    parser.add_argument('--npz', default='', help='CIFAR-10 as an NPZ file with x_train and x_test')
    parser.add_argument(
        '--config', help='config to train (default: NCSN++, continuous VE; digits in a dry run)'
    )
    parser.add_argument(
        '--sections', default=','.join(SECTIONS), help='sections to run (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0, help='random seed (default: %(default)s)')
    args = parser.parse_args(arguments)
    if not args.dry_run and not torch.cuda.is_available():
        parser.error('no CUDA device is available: add --dry-run to try the command on a CPU')
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    digits = str(pathlib.Path(digits_ddpmpp_continuous.__file__).relative_to(ROOT))
    run = Run(
        device='cpu' if args.dry_run else 'cuda',
        quick=args.dry_run,
        seed=args.seed,
        folder=pathlib.Path(args.folder).resolve(),
        npz=args.npz and str(pathlib.Path(args.npz).resolve()),
        config=args.config or (digits if args.dry_run else PUBLISHED),
        until=time.monotonic() + 60 * args.minutes,
    )
    run.folder.mkdir(parents=True, exist_ok=True)
    report = Report(run)
    for name in args.sections.split(','):
        print(f'\n== {name}, {run.left():.0f} s left\n', flush=True)
        report.add(name, *section(SECTIONS[name], run))
        report.write()
    sys.exit(f'failed: {", ".join(report.failed)}' if report.failed else 0)


def section(measure, run: Run) -> tuple[float, list[Table], str]:
    """Run a section and return its seconds, its tables, and the traceback of its error, if any.

    An error is only reported, so that the other sections still run.
    """
    start, error = time.monotonic(), ''
    try:
        tables = measure(run)
    except Exception as problem:
        tables = problem.args[1] if isinstance(problem, Failed) else []
        error = traceback.format_exc()
    return time.monotonic() - start, tables, error


class Report:
    """The results of all sections so far, as JSON and Markdown; `failed` lists failed sections."""

    def __init__(self, run: Run):
        self.folder = run.folder
        self.failed = []
        self.numbers = dict(
            machine=machine(), seed=run.seed, repeats=run.repeats, dry_run=run.quick, sections={}
        )
        title = 'Dry run: ignore the measured numbers' if run.quick else 'On a GPU'
        self.text = [f'# {title}', f'{machine()}; seed {run.seed}']

    def add(self, name: str, seconds: float, tables: list[Table], error: str) -> None:
        """Print the results of a section and add them to the report."""
        parts = [table.markdown() for table in tables]
        print('\n\n'.join([*parts, error]), flush=True)
        self.text += [f'## {name} ({seconds:.0f} s)', *parts]
        if error:
            self.failed.append(name)
            self.text.append(f'**Failed.**\n\n```\n{error}```')
        self.numbers['sections'][name] = dict(
            seconds=seconds, error=error, tables=[dataclasses.asdict(table) for table in tables]
        )

    def write(self) -> None:
        (self.folder / 'gpu.json').write_text(json.dumps(self.numbers, indent=1) + '\n')
        (self.folder / 'gpu.md').write_text('\n\n'.join(self.text) + '\n')


if __name__ == '__main__':
    main()
