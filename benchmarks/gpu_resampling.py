"""One section of gpu.py: the speed of `upfirdn2d`."""

import functools
import importlib

import torch
from formulation_2021 import plain_upfirdn2d
from gpu_networks import bandwidth
from sections import Run, Table
from timing import interleaved

from op import upfirdn2d

TAPS = torch.outer(*2 * [torch.tensor([1.0, 3, 3, 1]) / 8])
FORMATS = {'NCHW': torch.contiguous_format, 'NHWC': torch.channels_last}


def composed_upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)):
    """`upfirdn2d` with PyTorch's grouped convolutions, used where the CUDA kernels are missing."""
    size = [(length * up + sum(pad) - len(kernel)) // down + 1 for length in input.shape[2:]]
    return importlib.import_module('op.upfirdn2d')._composed(
        input, kernel, up, down, (pad[0], pad[0]), size
    )


def replayed(work, run: Run):
    """Record `work` as a CUDA graph, to replay without the overhead of Python; on a CPU, `work`."""
    if run.device != 'cuda':
        return work
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def milliseconds(ways: dict, run: Run, calls: int) -> dict[str, float]:
    """Return the minimum milliseconds per call of each way, for `calls` calls in a row."""
    repeated = {name: lambda way=way: [way() for _ in range(calls)] for name, way in ways.items()}
    return {
        name: 1e3 * min(times) / calls
        for name, times in interleaved(repeated, run.device, run.repeats).items()
    }


def resampling_row(run: Run, copied: float, shape, direction: str, layout: str, dtype) -> dict:
    """Time `upfirdn2d` and its alternatives on one kind of input.

    `copied` is the bandwidth of a copy in bytes/s.
    """
    setting = dict(up=2, pad=(2, 1)) if direction == 'up' else dict(down=2, pad=(1, 1))
    kernel = (TAPS * (4 if direction == 'up' else 1)).to(run.device)
    x = (
        torch.randn(shape, device=run.device)
        .to(dtype, memory_format=FORMATS[layout])
        .requires_grad_()
    )
    kinds = {'ours': upfirdn2d, 'composed': composed_upfirdn2d, 'plain': plain_upfirdn2d}
    if x.numel() > 2**24 and dtype != torch.float32:
        del kinds['plain']  # a third of a second per call
    grad = torch.randn_like(upfirdn2d(x, kernel, **setting))
    ways = {}

    def forward(kind):
        with torch.no_grad():
            kind(x, kernel, **setting)

    def both(kind):
        torch.autograd.grad(kind(x, kernel, **setting), x, grad)

    for name, kind in kinds.items():
        ways[name] = replayed(functools.partial(forward, kind), run)
        ways[f'{name}, gradient'] = replayed(functools.partial(both, kind), run)
    ways['called'] = functools.partial(forward, upfirdn2d)
    found = milliseconds(ways, run, 1 if run.quick else 20)
    least = 1e3 * (x.nbytes + grad.nbytes) / copied  # milliseconds
    return dict(
        shape='x'.join(map(str, shape)),
        direction=direction,
        layout=layout,
        dtype=str(dtype).removeprefix('torch.'),
        **found,
        of_copy=least / found['ours'],
        both_of_copy=2 * least / found['ours, gradient'],
        composed_ratio=found['composed'] / found['ours'],
        plain_ratio=found['plain'] / found['ours'] if 'plain' in kinds else None,
    )


def resampling(run: Run) -> list[Table]:
    """Time `upfirdn2d`, with and without gradient, relative to other ways and to copies."""
    shapes = (
        [(2, 8, 16, 16)]
        if run.quick
        else [(128, 128, 32, 32), (128, 256, 8, 8), (16, 128, 256, 256)]
    )
    dtypes = [torch.float32] if run.quick else [torch.float32, torch.bfloat16]
    copied = bandwidth(run)
    rows = [
        resampling_row(run, copied, shape, direction, layout, dtype)
        for shape in shapes
        for dtype in dtypes
        for layout in FORMATS
        for direction in ('up', 'down')
    ]
    return [
        Table(
            'Resampling by 2 with [1, 3, 3, 1]; milliseconds of a CUDA graph; "called" is '
            'called from Python',
            {
                'input': ('shape', '{}'),
                '': ('direction', '{}'),
                'type': ('dtype', '{}'),
                'layout': ('layout', '{}'),
                'ms': ('ours', '{:.4f}'),
                'of copy': ('of_copy', '{:.2f}'),
                'called, ms': ('called', '{:.4f}'),
                'grouped convolutions': ('composed_ratio', '{:.1f} x'),
                '2021 formulation': ('plain_ratio', '{:.1f} x'),
                'with gradient, ms': ('ours, gradient', '{:.4f}'),
                'of copy, gradient': ('both_of_copy', '{:.2f}'),
            },
            rows,
        )
    ]
