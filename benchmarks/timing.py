"""Shared by the benchmarks: command lines, timing, matrix products, the network, reports."""

import argparse
import atexit
import functools
import json
import pathlib
import shutil
import tempfile
import time

import torch
from machine import machine
from torch.utils import flop_counter

import reports
from configs.ve import cifar10_ncsnpp_continuous
from runtime.memory import keep_memory

QUICK = '(quick run: tiny sizes, untrained networks and few repeats; do not quote these numbers)'


def arguments(doc: str, **defaults) -> argparse.ArgumentParser:
    """Return a parser with the arguments that benchmarks share; `defaults` override theirs."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--repeats',
        type=int,
        default=5,
        help='number of rounds over all variants (default: %(default)s)',
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of weights and images (default: %(default)s)'
    )
    parser.add_argument(
        '--json', metavar='PATH', help='write the rows and the machine to this file'
    )
    parser.set_defaults(**defaults)
    return parser


def parse_args(
    parser: argparse.ArgumentParser, folder: str | None = None, **quick
) -> argparse.Namespace:
    """Parse the command line, with the flag `--quick` added.

    Args:
        parser: the parser of the benchmark.
        folder: name of the argument that holds the folder of intermediate files; a quick run uses a
            temporary folder instead.
        quick: defaults of a quick run. Arguments on the command line override them.
    """
    parser.add_argument(
        '--quick',
        action='store_true',
        help='run the same code on tiny sizes, in seconds; ignore the measured numbers',
    )
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**quick)
    args = parser.parse_args()
    if args.quick and folder:
        setattr(args, folder, tempfile.mkdtemp())
        atexit.register(shutil.rmtree, getattr(args, folder), ignore_errors=True)
    return args


def shrink(config):
    """Make network and training tiny (a few steps in less than a second); return the config."""
    config.model.update(nf=8, ch_mult=(1, 2), num_res_blocks=1, num_scales=25)
    config.optim.warmup = 1
    config.training.update(
        batch_size=4,
        n_iters=3,
        snapshot_freq=2,
        snapshot_freq_for_preemption=2,
        log_freq=1,
        eval_freq=2,
        snapshot_sampling=False,
    )
    return config


def seconds(work, device: str, calls: int = 1) -> float:
    """Return the seconds per call of `work` over `calls` calls, with the device synchronized."""
    if device.startswith('cuda'):
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    if device.startswith('cuda'):
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def interleaved(ways: dict, device: str, repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Time `ways`, functions without arguments, in rounds over all of them.

    Returns:
        The seconds of each function in each of the `repeats` rounds.
    """
    for way in ways.values():
        for _ in range(warmup):
            way()
    found = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            found[name].append(seconds(way, device))
    return found


class Products:
    """Products of square matrices, the upper limit of the speed of networks.

    `ways` are functions to time; `rate` then returns the FLOP/s. Each function computes enough
    products to take about as long as a network, because on a busy machine the minimum of short
    times is closer to that of an idle machine. With `quick` the matrices are tiny.
    """

    def __init__(self, device: str, dtypes=(torch.float32,), quick: bool = False):
        self.size, self.calls = (8192, 10) if device.startswith('cuda') else (2048, 12)
        if quick:
            self.size, self.calls = 128, 2
        self.ways = {}
        for dtype in dtypes:
            a, b, out = torch.randn(3, self.size, self.size, device=device).to(dtype)
            self.ways[f'{self.size}^3 products, {name_of(dtype)}'] = functools.partial(
                self._multiply, a, b, out
            )

    def _multiply(self, a, b, out):
        for _ in range(self.calls):
            torch.mm(a, b, out=out)

    def rate(self, times: dict, dtype=torch.float32) -> float:
        return (
            2 * self.size**3 * self.calls / min(times[f'{self.size}^3 products, {name_of(dtype)}'])
        )


def dtypes(device: str) -> dict:
    """Return the precisions to measure on the device, by name.

    bfloat16 is included on a GPU, and on a CPU that has instructions for it. Without them it is a
    hundred times slower than float32.
    """
    found = {'float32': torch.float32}
    if device.startswith('cuda') or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        found['bfloat16'] = torch.bfloat16
    return found


def name_of(dtype) -> str:
    return str(dtype).removeprefix('torch.')


def ncsnpp(device: str, quick: bool = False, **training):
    """Return the config of NCSN++ on CIFAR-10 (continuous VE, 62.8 million parameters).

    The memory allocator is configured as in training.

    Args:
        device: name of the PyTorch device.
        quick: replace the network by a tiny one of the same kind.
        training: values that replace those of `config.training`.
    """
    keep_memory(device)
    config = cifar10_ncsnpp_continuous.get_config()
    if quick:
        shrink(config)
    config.device = device
    config.training.update(training)
    return config


def inputs(config, batch: int):
    """Return random inputs (B, C, H, W) and noise levels (B,) for the network."""
    data = config.data
    x = torch.rand(batch, data.num_channels, data.image_size, data.image_size, device=config.device)
    return x, torch.exp(torch.empty(batch, device=config.device).uniform_(-4, 3))


def divergence_ways(sde, model, x) -> dict:
    """Return functions to time: the probability flow drift, without and with its divergence."""
    import likelihood  # late: only some benchmarks need it
    from models.utils import get_score_fn, times_like

    flow = sde.reverse(get_score_fn(sde, model, continuous=True), probability_flow=True)
    t, probe = times_like(x, 0.5), torch.randn_like(x).sign()

    def drift(x, t):
        return flow.sde(x, t)[0]

    def two_passes():
        with torch.no_grad():
            drift(x, t)
        likelihood.get_div_fn(drift)(x, t, probe)

    return {
        'one forward pass': torch.no_grad()(lambda: drift(x, t)),
        'two passes': two_passes,
        'together': lambda: likelihood._value_and_products(drift, x, t, [probe]),
    }


def flops(work) -> int:
    """Count the floating-point operations of convolutions and matrix products in `work()`."""
    aten = torch.ops.aten
    uncounted_by_pytorch = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: (
            flop_counter.sdpa_flop_count(*shapes[:3])
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: (
            flop_counter.sdpa_backward_flop_count(*shapes[:4])
        ),
    }
    with flop_counter.FlopCounterMode(
        display=False, custom_mapping=uncounted_by_pytorch
    ) as counter:
        work()
    return counter.get_total_flops()


def print_table(args, rows):
    """Print rows of text (the first is the header) as columns; add a note for a quick run."""
    print(reports.table(rows))
    if args.quick:
        print(QUICK)


def show(args, title: str, rows: list[dict], columns: dict, **extra):
    """Print the machine, a title and a table, and write args.json if given.

    Args:
        columns: {header: (key of the row, format)}.
    """
    report = dict(
        machine=machine(),
        title=title,
        seed=args.seed,
        repeats=args.repeats,
        quick=args.quick,
        rows=rows,
        **extra,
    )
    print(f'{report["machine"]}\n{title}; seed {args.seed}, {args.repeats} interleaved repeats\n')
    print_table(
        args,
        [
            tuple(columns),
            *(
                tuple(
                    '' if row.get(key) is None else form.format(row[key])
                    for key, form in columns.values()
                )
                for row in rows
            ),
        ],
    )
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(report, indent=1) + '\n')
