"""How fast feature maps are resampled by [1, 3, 3, 1]: by `op.upfirdn2d`, and by other compositions
of PyTorch's operations; and on a processor the gradients of 3x3 convolutions, by `op.conv3x3` and
by PyTorch.

    python benchmarks/ops.py                       # on the CPU: two minutes on one core
    python benchmarks/ops.py --device cuda --json ops.json
    # registers and spills of the CUDA kernels only; needs no GPU
    python benchmarks/ops.py --kernels

Each time is the least of `--repeats` rounds over all ways, one after another in each round, so that
a busy machine slows all of them alike. Percentages are of the speed at which memory is copied: the
time of `copy_` that reads and writes as many bytes as input and output have (twice that for forward
and backward), over the time taken. All ways are first checked to agree to 1e-6 of the largest value
(float64).
"""

import argparse
import functools
import importlib
import json
import pathlib
import time

import torch
import torch.nn.functional as F

from machine import machine
from op import nvrtc, upfirdn2d
from timing import parse_args, print_table

library, winograd = (importlib.import_module(f'op.{name}') for name in ('upfirdn2d', 'conv3x3'))
LINE = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
SETTINGS = {'up': dict(up=2, pad=(2, 1)), 'down': dict(down=2, pad=(1, 1))}
FORMATS = {'NCHW': torch.contiguous_format, 'NHWC': torch.channels_last}
CONVOLUTIONS = [
    (32, 32, 8),
    (32, 32, 32),
    (64, 64, 8),
    (64, 64, 32),
    (128, 128, 32),
    (256, 256, 16),
    (512, 256, 16),
    (256, 256, 8),
    (256, 256, 4),
]  # channels in and out, size
TARGETS = ('sm_75', 'sm_80', 'sm_90', 'sm_100')  # generations of GPUs
SHAPES = {
    'cpu': [(8, 128, 32, 32), (8, 256, 16, 16), (8, 256, 8, 8)],
    'cuda': [(64, 256, 128, 128), (64, 256, 32, 32), (64, 256, 8, 8)],
}


# Ways up: x (B, C, H, W) -> (B, C, 2 H, 2 W) ------------------------------------------------------


def up_composed(x):
    """A transposed convolution per channel: what `upfirdn2d` uses without kernels of its own."""
    return library._composed(x, taps(x, 4), 2, 1, (2, 2), (2 * x.shape[2], 2 * x.shape[3]))


def up_separable(x):
    """The same, one axis after the other."""
    h = (2 * LINE).to(x).expand(x.shape[1], 1, 1, 4)
    x = F.conv_transpose2d(x, h, stride=(1, 2), padding=(0, 1), groups=x.shape[1])
    return F.conv_transpose2d(
        x, h.transpose(2, 3), stride=(2, 1), padding=(1, 0), groups=x.shape[1]
    )


def up_cut_later(x):
    """The same with a full border, which is then cut off."""
    return F.pad(
        F.conv_transpose2d(x, taps(x, 4).expand(x.shape[1], 1, 4, 4), stride=2, groups=x.shape[1]),
        (-1, -1, -1, -1),
    )


def up_phases(x):
    """Four 3x3 filters per channel, one for each of the output's phases, whose results are then
    shuffled into place.
    """
    # out[2 i] = h[0] x[i - 1] + h[2] x[i], out[2 i + 1] = h[1] x[i] + h[3] x[i + 1]
    phases = x.new_zeros(2, 3)
    phases[0, :2], phases[1, 1:] = (2 * LINE[::2]).to(x), (2 * LINE[1::2]).to(x)
    kernels = (
        (phases[:, None, :, None] * phases[None, :, None, :])
        .reshape(4, 1, 3, 3)
        .repeat(x.shape[1], 1, 1, 1)
    )
    return F.pixel_shuffle(F.conv2d(x, kernels, padding=1, groups=x.shape[1]), 2)


def up_slices(x):
    """Sums of shifted images, interleaved; one axis after the other."""
    h = (2 * LINE).tolist()
    for axis in (3, 2):
        length = x.shape[axis]
        padded = F.pad(x, (1, 1) if axis == 3 else (0, 0, 1, 1))
        before, behind = padded.narrow(axis, 0, length), padded.narrow(axis, 2, length)
        x = torch.stack([h[0] * before + h[2] * x, h[1] * x + h[3] * behind], axis + 1).flatten(
            axis, axis + 1
        )
    return x


# Ways down: x (B, C, 2 H, 2 W) -> (B, C, H, W) ----------------------------------------------------


def down_composed(x):
    """A strided convolution per channel: what `upfirdn2d` uses without kernels of its own."""
    return library._composed(x, taps(x, 1), 1, 2, (1, 1), (x.shape[2] // 2, x.shape[3] // 2))


def down_padded_before(x):
    """The same, the border put around before."""
    return F.conv2d(
        F.pad(x, (1, 1, 1, 1)), taps(x, 1).expand(x.shape[1], 1, 4, 4), stride=2, groups=x.shape[1]
    )


def down_separable(x):
    """The same, one axis after the other."""
    h = LINE.to(x).expand(x.shape[1], 1, 1, 4)
    x = F.conv2d(x, h, stride=(1, 2), padding=(0, 1), groups=x.shape[1])
    return F.conv2d(x, h.transpose(2, 3), stride=(2, 1), padding=(1, 0), groups=x.shape[1])


def down_phases(x):
    """The four phases of the image as channels, and 2x2 filters on each."""
    x = F.pixel_unshuffle(F.pad(x, (1, 1, 1, 1)), 2)
    h = LINE.to(x).reshape(2, 2).T  # phase, tap
    kernels = (
        (h[:, None, :, None] * h[None, :, None, :])
        .reshape(1, 4, 2, 2)
        .expand(x.shape[1] // 4, 4, 2, 2)
    )
    return F.conv2d(x, kernels, groups=x.shape[1] // 4)


def down_slices(x):
    """Sums of every second pixel from four places on; one axis after the other."""
    h = LINE.tolist()
    padded = F.pad(x, (1, 1, 1, 1))
    x = sum(h[k] * padded[..., k : k + x.shape[3] - 1 : 2] for k in range(4))
    return sum(h[k] * x[..., k : k + x.shape[2] - 3 : 2, :] for k in range(4))


def taps(x, gain):
    return (torch.outer(LINE, LINE) * gain).to(x)


def ways(direction: str) -> dict:
    kernel = torch.outer(LINE, LINE) * (4 if direction == 'up' else 1)
    kernels = {}  # as the networks do, the filter is kept on the device

    def own(x):
        if x.device not in kernels:
            kernels[x.device] = kernel.to(x.device)
        return upfirdn2d(x, kernels[x.device], **SETTINGS[direction])

    found = {
        name.partition('_')[2].replace('_', ' '): way
        for name, way in globals().items()
        if name.startswith(f'{direction}_')
    }
    return {'upfirdn2d': own, **found}


# Measuring ----------------------------------------------------------------------------------------


def seconds(work, device: str, calls: int) -> float:
    """Per call of `work`, of `calls` in a row."""
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    if device == 'cuda':
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def measure(shape, direction, dtype, layout, args) -> list[dict]:
    """Rows, one for each way, of one kind of input."""
    for name, way in ways(direction).items():
        x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
        exact = upfirdn2d(
            x, (torch.outer(LINE, LINE) * (4 if direction == 'up' else 1)), **SETTINGS[direction]
        )
        assert (way(x) - exact).abs().max() < 1e-6 * exact.abs().max(), name
    x = torch.randn(shape, device=args.device, dtype=dtype).contiguous(
        memory_format=FORMATS[layout]
    )
    watched = x.detach().requires_grad_()
    grad = torch.randn_like(upfirdn2d(x, taps(x, 1), **SETTINGS[direction]))
    # to read and to write it is to move as much as input and output have
    source = torch.cat([x.flatten(), grad.flatten()])[::2].clone()
    target = torch.empty_like(source)

    def both(way):
        return lambda: torch.autograd.grad(way(watched), watched, grad)

    works = {('copy', 'forward'): lambda: target.copy_(source)}
    for name, way in ways(direction).items():
        works[name, 'forward'] = lambda way=way: way(x)
        works[name, 'both'] = both(way)
    least = dict.fromkeys(works, float('inf'))
    for work in works.values():
        work()
    calls = {
        key: max(1, min(100, int(0.003 / seconds(work, args.device, 1))))
        for key, work in works.items()
    }
    for _ in range(args.repeats):
        for key, work in works.items():
            least[key] = min(least[key], seconds(work, args.device, calls[key]))
    copy = least['copy', 'forward']
    return [
        dict(
            direction=direction,
            shape=list(shape),
            dtype=str(dtype).removeprefix('torch.'),
            layout=layout,
            way=name,
            forward_ms=1e3 * least[name, 'forward'],
            both_ms=1e3 * least[name, 'both'],
            copy_ms=1e3 * copy,
            forward_of_copy=copy / least[name, 'forward'],
            both_of_copy=2 * copy / least[name, 'both'],
            output_layout='NHWC'
            if library._memory_format(way(x)) == torch.channels_last
            else 'NCHW',
        )
        for name, way in ways(direction).items()
    ]


def measure_convolution(channels, out_channels, size, batch, repeats) -> dict:
    """The row of a 3x3 convolution, channels last: its seconds forward, and both gradients, of
    input and weights, in forward passes.
    """
    x, weight, grad = (
        torch.randn(shape).contiguous(memory_format=torch.channels_last)
        for shape in (
            (batch, channels, size, size),
            (out_channels, channels, 3, 3),
            (batch, out_channels, size, size),
        )
    )
    pytorch = functools.partial(winograd._plain_gradients, for_x=True, for_weight=True)
    few = x[:2], weight, grad[:2]
    for value, exact in zip(
        winograd.gradients(*few), pytorch(*(values.double() for values in few)), strict=True
    ):
        assert (value - exact).abs().max() < 1e-5 * exact.abs().max()
    ways = dict(
        forward=lambda: F.conv2d(x, weight, padding=1),
        winograd=lambda: winograd.gradients(x, weight, grad),
        pytorch=lambda: pytorch(x, weight, grad),
    )
    least = {name: min(seconds(way, 'cpu', 1) for _ in range(2)) for name, way in ways.items()}
    for _ in range(repeats):
        for name, way in ways.items():
            least[name] = min(least[name], seconds(way, 'cpu', max(1, int(0.003 / least[name]))))
    return dict(
        channels=channels,
        out_channels=out_channels,
        size=size,
        batch=batch,
        forward_ms=1e3 * least['forward'],
        **{name: least[name] / least['forward'] for name in ('pytorch', 'winograd')},
    )


def kernels(args) -> list[dict]:
    """What the CUDA kernels take, for GPUs of several generations."""
    source, rows = library.SOURCE.read_text(), []
    for scalar in args.scalars:
        for target in args.targets:
            found = nvrtc.resources(nvrtc.compile(source, target, SCALAR=scalar)[1])
            rows += [
                dict(kernel=name, scalar=scalar, target=target, **found[name])
                for name in sorted(found)
            ]
    return rows


def kernel_table(rows) -> list[tuple]:
    """Rows of text: registers of each kernel, by type and GPU; shared memory and spills where there
    are any.
    """
    targets = list(dict.fromkeys(row['target'] for row in rows))
    cells = {}
    for row in rows:
        extra = ''.join(f' +{row[key]} {key}' for key in ('shared', 'spills') if row[key])
        cells.setdefault((row['kernel'], row['scalar']), []).append(f'{row["registers"]}{extra}')
    return [('kernel', 'type', *targets), *((*key, *values) for key, values in cells.items())]


def main():
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
        help='rounds, of which the best counts (default: %(default)s)',
    )
    parser.add_argument('--threads', type=int, help="of PyTorch on the CPU (default: PyTorch's)")
    parser.add_argument('--seed', type=int, default=0, help='of the images (default: %(default)s)')
    parser.add_argument('--kernels', action='store_true', help='only what the CUDA kernels take')
    parser.add_argument(
        '--json', metavar='PATH', help='write the rows, the machine and the arguments to this file'
    )
    parser.set_defaults(
        shapes=None, convolutions=CONVOLUTIONS, scalars=library.SCALARS.values(), targets=TARGETS
    )
    args = parse_args(
        parser,
        repeats=1,
        shapes=[(2, 8, 8, 8)],
        convolutions=[(32, 32, 8)],
        scalars=['float'],
        targets=['sm_80'],
    )
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    report = dict(
        machine=machine(),
        seed=args.seed,
        repeats=args.repeats,
        quick=args.quick,
        rows=[],
        kernels=[],
    )
    print(report['machine'])
    if not args.kernels:
        for shape in args.shapes or SHAPES[args.device]:
            for dtype in [torch.float32] + [torch.bfloat16] * (args.device == 'cuda'):
                for direction in SETTINGS:
                    for layout in FORMATS:
                        report['rows'] += measure(shape, direction, dtype, layout, args)
        print(
            f'{args.device}, seed {args.seed}, best of {args.repeats} interleaved repeats; of '
            'copy: share of the speed of copying\n'
        )
        print_table(
            args,
            [
                (
                    'input',
                    'type',
                    'layout',
                    '',
                    'way',
                    'forward ms',
                    'of copy',
                    'and backward ms',
                    'of copy',
                ),
                *(
                    (
                        'x'.join(map(str, row['shape'])),
                        row['dtype'],
                        row['layout'],
                        row['direction'],
                        row['way']
                        + (
                            f', gives {row["output_layout"]}'
                            if row['output_layout'] != row['layout']
                            else ''
                        ),
                        f'{row["forward_ms"]:.3f}',
                        f'{row["forward_of_copy"]:.0%}',
                        f'{row["both_ms"]:.3f}',
                        f'{row["both_of_copy"]:.0%}',
                    )
                    for row in report['rows']
                ),
            ],
        )
        print()
    if not args.kernels and args.device == 'cpu':
        report['convolutions'] = [
            measure_convolution(*shape, batch, args.repeats)
            for shape in args.convolutions
            for batch in (8, 32)
        ]
        print('Both gradients of 3x3 convolutions, in forward passes of the same\n')
        print_table(
            args,
            [
                ('channels', 'size', 'batch', 'forward ms', 'PyTorch', 'Winograd'),
                *(
                    (
                        f'{row["channels"]} to {row["out_channels"]}',
                        str(row['size']),
                        str(row['batch']),
                        f'{row["forward_ms"]:.3f}',
                        f'{row["pytorch"]:.2f}',
                        f'{row["winograd"]:.2f}',
                    )
                    for row in report['convolutions']
                ),
            ],
        )
        print()
    try:
        report['kernels'] = kernels(args)
        print(
            'Registers per thread of the CUDA kernels, and bytes of shared memory or spills if '
            'any, as NVRTC compiles them\n'
        )
        print_table(args, kernel_table(report['kernels']))
    except (ImportError, RuntimeError) as error:
        print(f'Nothing on the CUDA kernels: {error}')
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
