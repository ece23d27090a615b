"""The speed of resampling feature maps with the filter [1, 3, 3, 1].

`op.upfirdn2d` is compared with other combinations of PyTorch operations.

    python benchmarks/ops.py                       # on the CPU: two minutes on one core
    python benchmarks/ops.py --device cuda --json ops.json
    # only registers and spills of the CUDA kernels; needs no GPU
    python benchmarks/ops.py --kernels

Each time is the minimum over `--repeats` rounds. Each round runs all ways one after another, so
that other load on the machine slows all of them equally. Percentages are relative to the speed of
copying memory: the time of a `copy_` that moves the bytes of input and output (twice these bytes
for forward and backward), divided by the measured time. Before they are timed, all ways are checked
to agree within 1e-6 of the largest value (float64).
"""

import argparse
import functools
import importlib
import json
import pathlib

import torch
from machine import machine
from resampling_ways import LINE, SETTINGS, taps, ways
from timing import parse_args, print_table, seconds

from op import nvrtc, upfirdn2d

library = importlib.import_module('op.upfirdn2d')
FORMATS = {'NCHW': torch.contiguous_format, 'NHWC': torch.channels_last}
TARGETS = ('sm_75', 'sm_80', 'sm_90', 'sm_100')  # generations of GPUs
SHAPES = {
    'cpu': [(8, 128, 32, 32), (8, 256, 16, 16), (8, 256, 8, 8)],
    'cuda': [(64, 256, 128, 128), (64, 256, 32, 32), (64, 256, 8, 8)],
}


# Measuring ----------------------------------------------------------------------------------------


def measure(shape, direction: str, dtype, layout: str, args) -> list[dict]:
    """Return a row for each way to resample one kind of input."""
    check_agreement(direction)
    x = torch.randn(shape, device=args.device, dtype=dtype)
    x = x.contiguous(memory_format=FORMATS[layout])
    least = fastest(works(x, direction), args)
    copy = least['copy', 'forward']
    rows = []
    for name, way in ways(direction).items():
        channels_last = library._memory_format(way(x)) == torch.channels_last
        forward, both = least[name, 'forward'], least[name, 'both']
        rows.append(
            dict(
                direction=direction,
                shape=list(shape),
                dtype=str(dtype).removeprefix('torch.'),
                layout=layout,
                way=name,
                forward_ms=1e3 * forward,
                both_ms=1e3 * both,
                copy_ms=1e3 * copy,
                forward_of_copy=copy / forward,
                both_of_copy=2 * copy / both,
                output_layout='NHWC' if channels_last else 'NCHW',
            )
        )
    return rows


def check_agreement(direction: str) -> None:
    kernel = torch.outer(LINE, LINE) * (4 if direction == 'up' else 1)
    for name, way in ways(direction).items():
        x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
        exact = upfirdn2d(x, kernel, **SETTINGS[direction])
        assert (way(x) - exact).abs().max() < 1e-6 * exact.abs().max(), name


def works(x: torch.Tensor, direction: str) -> dict:
    """Return the functions to time, by (way, 'forward' or 'both'): all ways, and a copy."""
    watched = x.detach().requires_grad_()
    grad = torch.randn_like(upfirdn2d(x, taps(x, 1), **SETTINGS[direction]))
    # half of input and output: copying it reads and writes as many bytes as both together have
    source = torch.cat([x.flatten(), grad.flatten()])[::2].clone()
    target = torch.empty_like(source)

    def both(way):
        return lambda: torch.autograd.grad(way(watched), watched, grad)

    found = {('copy', 'forward'): lambda: target.copy_(source)}
    for name, way in ways(direction).items():
        found[name, 'forward'] = functools.partial(way, x)
        found[name, 'both'] = both(way)
    return found


def fastest(works: dict, args) -> dict:
    """Return the minimum seconds per call of each function over --repeats interleaved rounds.

    Functions faster than 3 ms are called several times in a row.
    """
    for work in works.values():
        work()
    calls = {
        key: max(1, min(100, int(0.003 / seconds(work, args.device))))
        for key, work in works.items()
    }
    least = dict.fromkeys(works, float('inf'))
    for _ in range(args.repeats):
        for key, work in works.items():
            least[key] = min(least[key], seconds(work, args.device, calls[key]))
    return least


def kernels(args) -> list[dict]:
    """Compile the CUDA kernels for GPUs of several generations and return their resources."""
    source, rows = library.SOURCE.read_text(), []
    for scalar in args.scalars:
        for target in args.targets:
            found = nvrtc.resources(nvrtc.compile(source, target, SCALAR=scalar)[1])
            rows += [
                dict(kernel=name, scalar=scalar, target=target, **found[name])
                for name in sorted(found)
            ]
    return rows


def kernel_table(rows: list[dict]) -> list[tuple]:
    """Make rows with the registers, shared memory and spills of each kernel by type and GPU."""
    targets = list(dict.fromkeys(row['target'] for row in rows))
    cells = {}
    for row in rows:
        extra = ''.join(f' +{row[key]} {key}' for key in ('shared', 'spills') if row[key])
        cells.setdefault((row['kernel'], row['scalar']), []).append(f'{row["registers"]}{extra}')
    return [('kernel', 'type', *targets), *((*key, *values) for key, values in cells.items())]


def resampling_table(rows: list[dict]) -> list[tuple]:
    heads = (
        *('input', 'type', 'layout', '', 'way'),
        *('forward ms', 'of copy', 'and backward ms', 'of copy'),
    )
    cells = []
    for row in rows:
        converts = row['output_layout'] != row['layout']
        cells.append(
            (
                'x'.join(map(str, row['shape'])),
                row['dtype'],
                row['layout'],
                row['direction'],
                row['way'] + (f', gives {row["output_layout"]}' if converts else ''),
                f'{row["forward_ms"]:.3f}',
                f'{row["forward_of_copy"]:.0%}',
                f'{row["both_ms"]:.3f}',
                f'{row["both_of_copy"]:.0%}',
            )
        )
    return [heads, *cells]


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=['cpu', 'cuda']
    )
    parser.add_argument(
        '--repeats',
        type=int,
        default=5,
        help='number of rounds; the best one is reported (default: %(default)s)',
    )
    parser.add_argument('--threads', type=int, help="PyTorch's threads on the CPU")
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of the images (default: %(default)s)'
    )
    parser.add_argument('--kernels', action='store_true', help='only compile the CUDA kernels')
    parser.add_argument(
        '--json', metavar='PATH', help='write the rows, the machine and the arguments to this file'
    )
    parser.set_defaults(shapes=None, scalars=library.SCALARS.values(), targets=TARGETS)
    return parse_args(
        parser,
        repeats=1,
        shapes=[(2, 8, 8, 8)],
        scalars=['float'],
        targets=['sm_80'],
    )


def main():
    args = command_line()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    report = dict(
        machine=machine(), seed=args.seed, repeats=args.repeats, quick=args.quick, rows=[]
    )
    print(report['machine'])
    if not args.kernels:
        report['rows'] = report_resampling(args)
    report['kernels'] = report_kernels(args)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(report, indent=1) + '\n')


def report_resampling(args) -> list[dict]:
    """Measure and print all ways to resample."""
    rows = []
    for shape in args.shapes or SHAPES[args.device]:
        for dtype in [torch.float32, torch.bfloat16] if args.device == 'cuda' else [torch.float32]:
            for direction in SETTINGS:
                for layout in FORMATS:
                    rows += measure(shape, direction, dtype, layout, args)
    print(
        f'{args.device}, seed {args.seed}, best of {args.repeats} interleaved repeats; '
        '"of copy": share of the speed of copying\n'
    )
    print_table(args, resampling_table(rows))
    print()
    return rows


def report_kernels(args) -> list[dict]:
    """Compile the CUDA kernels and print their resources; return no rows without NVRTC."""
    try:
        rows = kernels(args)
    except (ImportError, RuntimeError) as error:
        print(f'Skipped the CUDA kernels: {error}')
        return []
    print(
        'Registers per thread of the CUDA kernels compiled by NVRTC, and bytes of shared memory '
        'and spills if not zero\n'
    )
    print_table(args, kernel_table(rows))
    return rows


if __name__ == '__main__':
    main()
