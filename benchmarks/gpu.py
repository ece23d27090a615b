"""Check and measure the library on a GPU: one command of at most nine minutes.

    # kernels, agreement, speed; then trains until the time is up
    python benchmarks/gpu.py --npz cifar10.npz
    python benchmarks/gpu.py --dry-run  # the same on a processor with tiny networks, under a minute

It needs PyTorch, ml_collections, absl-py and what else `import run_lib` needs, but no TensorFlow,
network or compiler. `--npz` is a file with the arrays x_train and x_test of CIFAR-10; without it
training takes random pictures. The report (gpu.md, gpu.json) is written to --folder after every
section. A section that fails is reported with its traceback, the others go on, and the exit status
is 1.

Times are the least of interleaved rounds. "Of products" is the rate of the network's convolutions
and matrix products over that of 8192^3 matrix products in the same precision; "of copy" is the
bandwidth of an operation, its input read once and its output written once, over that of a large
device-to-device copy.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback

import numpy as np
import torch

import losses
import run_lib
import sampling
import sde_lib
from agreement import gaussian_samples, quantities, small_config, tensor_cores
from configs.vp import digits_ddpmpp_continuous
from formulation_2021 import formulation_2021, plain_upfirdn2d
from machine import machine
from models.utils import create_model
from op import nvrtc, upfirdn2d
from sections import Failed, Run, Table
from timing import Products, divergence_ways, flops, inputs, interleaved, ncsnpp

ROOT = pathlib.Path(__file__).parents[1]
FORMATS = {'NCHW': torch.contiguous_format, 'NHWC': torch.channels_last}
TAPS = torch.outer(*2 * [torch.tensor([1.0, 3, 3, 1]) / 8])


# Kernels and tests --------------------------------------------------------------------------------


def kernels(run: Run) -> list[Table]:
    """Compile the CUDA kernels for this GPU (for sm_90 without one) and run every test that needs a
    GPU.
    """
    gpu = run.device == 'cuda'
    target = nvrtc.architecture(torch.cuda.get_device_capability()) if gpu else 'sm_90'
    source, rows = (ROOT / 'op' / 'upfirdn2d.cu').read_text(), []
    for scalar in ['float'] if run.quick else ['double', 'float', 'half', 'bfloat16']:
        start = time.perf_counter()
        _, log = nvrtc.compile(source, target, SCALAR=scalar)
        found = nvrtc.resources(log)
        rows.append(
            dict(
                scalar=scalar,
                seconds=time.perf_counter() - start,
                registers=max(kernel['registers'] for kernel in found.values()),
                spills=sum(kernel['spills'] for kernel in found.values()),
            )
        )
    command = [
        sys.executable,
        '-m',
        'pytest',
        '-m',
        'gpu',
        '-rs',
        '-p',
        'no:cacheprovider',
        *gpu_tests(),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-4000:], done.stderr[-2000:], sep='\n', flush=True)
    tests = [dict(tests=done.stdout.strip().splitlines()[-1].strip('= '), status=done.returncode)]
    if done.returncode:
        run.folder.joinpath('tests.txt').write_text(done.stdout + done.stderr)
    return [
        Table(
            f'Kernels of `op/upfirdn2d.cu`, compiled by NVRTC for {target}',
            {
                'type': ('scalar', '{}'),
                'seconds': ('seconds', '{:.2f}'),
                'registers, at most': ('registers', '{}'),
                'bytes spilled': ('spills', '{}'),
            },
            rows,
        ),
        Table(
            'GPU tests (`pytest -m gpu`)',
            {'result': ('tests', '{}'), 'exit status': ('status', '{}')},
            tests,
        ),
    ]


def gpu_tests() -> list[str]:
    """The test files that hold a test marked `gpu`: others may import packages that are not
    there.
    """
    return [
        str(path)
        for path in sorted((ROOT / 'tests').glob('test_*.py'))
        if 'mark.gpu' in path.read_text()
    ]


def agreement(run: Run) -> list[Table]:
    """Relative errors of the device and of the CPU in float32 against the CPU in float64;
    statistics of random samples.
    """
    exact = quantities('cpu', 'float32', torch.float64, run.seed)
    ways = {'CPU, float32': ('cpu', 'float32', False)}
    if run.device == 'cuda':
        ways |= {
            'GPU, float32': ('cuda', 'float32', False),
            'GPU, TF32': ('cuda', 'float32', True),
            'GPU, bfloat16': ('cuda', 'bfloat16', False),
        }
    rows = {name: dict(quantity=name) for name in exact}
    for way, (device, precision, tf32) in ways.items():
        with tensor_cores(tf32):
            for name, value in quantities(device, precision, seed=run.seed).items():
                rows[name][way] = (
                    (value - exact[name]).abs().max() / exact[name].abs().max()
                ).item()
    limits = dict.fromkeys(exact, 2e-5) | {name: 1e-3 for name in exact if 'dopri5' in name}
    beyond = [
        (name, way)
        for name, row in rows.items()
        for way in ways
        if way.endswith('float32') and not row[way] <= limits[name]
    ]
    ours, theirs = (
        gaussian_samples(device, 20 if run.quick else 200, run.seed)
        for device in (run.device, 'cpu')
    )
    n = theirs.numel()
    gap = {
        'mean': ((ours.mean() - theirs.mean()) / (theirs.std() * (2 / n) ** 0.5)).item(),
        'standard deviation': ((ours.std() - theirs.std()) / (theirs.std() / n**0.5)).item(),
    }
    samples = [
        dict(
            quantity=name,
            device=getattr(ours, kind)().item(),
            cpu=getattr(theirs, kind)().item(),
            z=gap[name],
        )
        for name, kind in (('mean', 'mean'), ('standard deviation', 'std'))
    ]
    tables = [
        Table(
            'Largest error over the largest value, against float64 on the CPU (small '
            'NCSN++, VP, batch 2)',
            {'': ('quantity', '{}'), **{way: (way, '{:.1e}') for way in ways}},
            [*rows.values()],
        ),
        Table(
            f'Predictor-corrector samples of N(0.3, 0.5^2), n = {n} values',
            {
                '': ('quantity', '{}'),
                'device': ('device', '{:.4f}'),
                'CPU': ('cpu', '{:.4f}'),
                'difference in standard errors': ('z', '{:+.1f}'),
            },
            samples,
        ),
    ]
    if beyond or max(map(abs, gap.values())) > 4:
        raise Failed(f'beyond the limits: {beyond}, {gap}', tables)
    return tables


# Resampling ---------------------------------------------------------------------------------------


def composed_upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)):
    """`upfirdn2d` by PyTorch's grouped convolutions, as on devices without the CUDA kernels."""
    size = [(length * up + sum(pad) - len(kernel)) // down + 1 for length in input.shape[2:]]
    return importlib.import_module('op.upfirdn2d')._composed(
        input, kernel, up, down, (pad[0], pad[0]), size
    )


def replayed(work, run: Run):
    """`work` as a recorded CUDA graph, whose replay leaves out the time that Python takes; itself
    on a CPU.
    """
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
    """The least time of one call of each way, of `calls` in a row."""
    repeated = {name: lambda way=way: [way() for _ in range(calls)] for name, way in ways.items()}
    return {
        name: 1e3 * min(times) / calls
        for name, times in interleaved(repeated, run.device, run.repeats).items()
    }


def resampling_row(run: Run, copied: float, shape, direction: str, layout: str, dtype) -> dict:
    """`copied`: bytes/s of a large copy."""
    setting = dict(up=2, pad=(2, 1)) if direction == 'up' else dict(down=2, pad=(1, 1))
    kernel = (TAPS * (4 if direction == 'up' else 1)).to(run.device)
    x = (
        torch.randn(shape, device=run.device)
        .to(dtype, memory_format=FORMATS[layout])
        .requires_grad_()
    )
    kinds = {'ours': upfirdn2d, 'composed': composed_upfirdn2d, 'plain': plain_upfirdn2d}
    if x.numel() > 2**24 and dtype != torch.float32:
        del kinds['plain']  # a third of a second each
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
    """`upfirdn2d` forward, and forward and backward, against copies, grouped convolutions and the
    2021 formulation.
    """
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
            'Resampling by 2 with [1, 3, 3, 1]; milliseconds as a recorded graph, "called" '
            'from Python',
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


# Networks -----------------------------------------------------------------------------------------


MODES = {  # name: settings of config.training, TF32, 2021 formulation
    '2021 formulation, float32': (dict(channels_last=False), False, True),
    '2021 formulation, TF32': (dict(channels_last=False), True, True),
    'float32': ({}, False, False),
    'TF32': ({}, True, False),
    'bfloat16': (dict(precision='bfloat16'), False, False),
    'bfloat16, channels first': (dict(precision='bfloat16', channels_last=False), False, False),
    'bfloat16, recompute': (dict(precision='bfloat16', recompute=True), False, False),
    'bfloat16, compiled': (dict(precision='bfloat16', compile=True), False, False),
}


def network_config(run: Run, **training):
    if not run.quick:
        return ncsnpp(run.device, **training)
    config = small_config(run.device)
    config.training.update(training)
    return config


def bandwidth(run: Run) -> float:
    """Bytes/s of a large copy, counting bytes read and bytes written."""
    source = torch.randn(2**20 if run.quick else 2**30, device=run.device)
    target = torch.empty_like(source)
    return (
        2
        * source.nbytes
        / min(interleaved({'copy': lambda: target.copy_(source)}, run.device, run.repeats)['copy'])
    )


def limits(run: Run) -> dict[str, float]:
    """FLOP/s of matrix products by precision, and bytes/s of a copy."""
    found = {}
    for name, dtype, tf32 in [
        ('float32', torch.float32, False),
        ('TF32', torch.float32, True),
        ('bfloat16', torch.bfloat16, False),
    ][: 1 if run.device == 'cpu' else 3]:
        with tensor_cores(tf32):
            products = Products(run.device, [dtype], run.quick)
            found[name] = products.rate(interleaved(products.ways, run.device, run.repeats), dtype)
    return found | {'copy': bandwidth(run)}


def network_row(run: Run, name: str, rates: dict, work: dict) -> dict:
    """Forward pass and training step of NCSN++ in one mode: seconds, images/s, share of products,
    peak memory.
    """
    settings, tf32, old = MODES[name]
    batch = 2 if run.quick else 128
    torch.manual_seed(run.seed)
    config = network_config(run, batch_size=batch, **settings)
    with tensor_cores(tf32), formulation_2021() if old else contextlib.nullcontext():
        state, (x, labels) = run_lib.create_state(config), inputs(config, batch)
        if old:
            state['optimizer'] = torch.optim.Adam(
                state['model'].parameters(), lr=2e-4, foreach=False
            )
        step = losses.get_step_fn(
            sde_lib.get_sde(config), True, losses.optimization_manager(config)
        )
        start = time.perf_counter()
        step(state, x)
        first = time.perf_counter() - start
        if run.device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        step(state, x)
        memory = torch.cuda.max_memory_allocated() / 2**30 if run.device == 'cuda' else None

        @torch.no_grad()
        def forward():
            state['model'].eval()(x, labels)

        def steps():
            for _ in range(1 if run.quick else 5):
                step(state, x)

        times = interleaved(dict(forward=forward, step=steps), run.device, run.repeats)
    least = dict(forward=min(times['forward']), step=min(times['step']) / (1 if run.quick else 5))
    rate = rates.get('bfloat16' if 'bfloat16' in name else 'TF32' if tf32 else 'float32')
    return dict(
        mode=name,
        batch=batch,
        first=first,
        memory=memory,
        **{f'{key}_seconds': value for key, value in least.items()},
        **{f'{key}_images': batch / value for key, value in least.items()},
        **{
            f'{key}_of_products': rate and work[key] * batch / value / rate
            for key, value in least.items()
        },
    )


def operations(run: Run) -> dict[str, int]:
    """Floating-point operations of a forward pass and of a training step, for one image."""
    config = network_config(run, batch_size=1)
    step = losses.get_step_fn(sde_lib.get_sde(config), True, losses.optimization_manager(config))
    state, (x, labels) = run_lib.create_state(config), inputs(config, 1)
    return dict(
        forward=flops(torch.no_grad()(lambda: state['model'].eval()(x, labels))),
        step=flops(lambda: step(state, x)),
    )


def networks(run: Run) -> list[Table]:
    rates, work = limits(run), operations(run)
    modes = ['2021 formulation, float32', 'float32'] if run.quick else [*MODES]
    rows = []
    for name in modes:
        rows.append(
            network_row(run, name, rates, work)
            if run.quick or run.left() > 200
            else dict(mode=f'{name} (no time left)')
        )
        print(rows[-1], flush=True)
    ceilings = [
        dict(what=f'matrix products, {name}', rate=rate / 1e12, unit='TFLOP/s')
        for name, rate in rates.items()
        if name != 'copy'
    ] + [dict(what='copy, read and write', rate=rates['copy'] / 1e12, unit='TB/s')]
    columns = {'': ('mode', '{}'), 'batch': ('batch', '{}')}
    for key in ('forward', 'step'):
        columns |= {
            f'{key}, s': (f'{key}_seconds', '{:.4f}'),
            f'{key}, images/s': (f'{key}_images', '{:.0f}'),
            f'{key}, of products': (f'{key}_of_products', '{:.2f}'),
        }
    columns |= {'memory of a step, GiB': ('memory', '{:.1f}'), 'first step, s': ('first', '{:.1f}')}
    return [
        Table(
            'Ceilings',
            {'': ('what', '{}'), 'rate': ('rate', '{:.3f}'), 'unit': ('unit', '{}')},
            ceilings,
        ),
        Table(
            f'NCSN++, {work["forward"] / 1e9:.1f} GFLOP an image forward, '
            f'{work["step"] / 1e9:.1f} a training step',
            columns,
            rows,
        ),
    ]


def samplers(run: Run) -> list[Table]:
    """Samplers against the bare network evaluations that they make; the likelihood's drift and
    divergence.
    """
    config = network_config(run, **({} if run.quick else dict(precision='bfloat16')))
    batch = 2 if run.quick else 256
    torch.manual_seed(run.seed)
    model, (x, labels) = create_model(config).eval().requires_grad_(False), inputs(config, batch)
    ways, evaluations = {}, {}
    for method, steps in (('pc', 24), ('heun', 18), ('dpmpp_2m', 18)):
        config.sampling.update(method=method, steps=steps)
        sde = sde_lib.get_sde(config)
        sample = sampling.get_sampling_fn(config, sde, x.shape, lambda x: x, sde.sampling_eps)
        ways[f'{method}, {steps} steps'] = functools.partial(sample, model)
        evaluations[f'{method}, {steps} steps'] = sample(model)[1]
    calls = max(evaluations.values())
    bare = torch.no_grad()(lambda: [model(x, labels) for _ in range(calls)])
    times = {
        name: min(found)
        for name, found in interleaved(
            ways | dict(bare=bare), run.device, min(run.repeats, 3)
        ).items()
    }
    rows = [
        dict(
            sampler=name,
            batch=batch,
            nfe=evaluations[name],
            seconds=times[name],
            images=batch / times[name],
            ratio=times[name] / (times['bare'] * evaluations[name] / calls),
        )
        for name in ways
    ]
    x = x[: max(1, batch // 2)]
    passes = divergence_ways(sde_lib.get_sde(config), model, x)
    found = {
        name: min(times) for name, times in interleaved(passes, run.device, run.repeats).items()
    }
    return [
        Table(
            'Samplers, NCSN++ ' + ('' if run.quick else 'in bfloat16'),
            {
                '': ('sampler', '{}'),
                'images': ('batch', '{}'),
                'NFE': ('nfe', '{}'),
                's': ('seconds', '{:.3f}'),
                'images/s': ('images', '{:.1f}'),
                'over its evaluations alone': ('ratio', '{:.3f}'),
            },
            rows,
        ),
        Table(
            f'Drift and divergence, batch {len(x)}',
            {'': ('way', '{}'), 's': ('seconds', '{:.4f}'), 'of two passes': ('ratio', '{:.2f}')},
            [
                dict(way=name, seconds=value, ratio=value / found['two passes'])
                for name, value in found.items()
            ],
        ),
    ]


# Training by the command --------------------------------------------------------------------------


def command(run: Run, mode: str, *flags: str) -> list[str]:
    data = ['--config.data.dataset=NPZ', f'--config.data.path={run.npz}'] if run.npz else []
    fast = [] if run.quick else ['--config.training.precision=bfloat16']
    return [
        sys.executable,
        'main.py',
        '--config',
        run.config,
        '--workdir',
        str(run.folder / 'training'),
        '--mode',
        mode,
        '--config.training.snapshot_sampling=False',
        f'--config.device={run.device}',
        *fast,
        *data,
        *flags,
    ]


def logged_steps(log: pathlib.Path) -> int:
    """The last step that a training has logged, -1 if none."""
    return max(
        (
            int(step)
            for step in re.findall(r'step: (\d+)', log.read_text() if log.is_file() else '')
        ),
        default=-1,
    )


def training(run: Run) -> list[Table]:
    """Train with main.py until a minute is left, stop it by SIGTERM, resume for some steps, draw a
    grid of samples.
    """
    workdir = run.folder / 'training'
    shutil.rmtree(workdir, ignore_errors=True)
    if not run.npz and not run.quick:
        run.npz = str(run.folder / 'random.npz')
        images = np.random.default_rng(run.seed).integers(0, 256, (4096, 32, 32, 3), dtype=np.uint8)
        np.savez(run.npz, x_train=images, x_test=images[:256])
    compiled = [] if run.quick else ['--config.training.compile=True']
    log_freq = '--config.training.log_freq=50'
    process = subprocess.Popen(command(run, 'train', *compiled, log_freq), cwd=ROOT)
    log, until = workdir / 'stdout.txt', time.monotonic() + max(60, run.left() - 60)
    while (
        process.poll() is None
        and time.monotonic() < until
        and not (run.quick and logged_steps(log) > 50)
    ):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    status = process.wait(timeout=60)
    stopped, lines, last = time.monotonic() - asked, log.read_text(), logged_steps(log)
    seen = re.findall(r'step: (\d+).*?training_loss: ([\d.e+-]+).*?images/s: (\d+)', lines)
    subprocess.run(
        command(run, 'train', log_freq, f'--config.training.n_iters={last + 60}'),
        cwd=ROOT,
        check=True,
    )
    resumed = logged_steps(log)
    sampler = ['--config.sampling.method=dpmpp_2m_sde', '--config.sampling.steps=30']
    subprocess.run(
        command(run, 'sample', *sampler, '--num_samples', '16' if run.quick else '64'),
        cwd=ROOT,
        check=True,
    )
    shutil.copy(workdir / 'generated' / 'grid.png', run.folder / 'grid.png')
    rows = [
        dict(
            config=run.config,
            steps=last,
            loss=float(seen[-1][1]),
            images=float(seen[-1][2]),
            status=status,
            stopped=stopped,
            resumed=resumed,
        )
    ]
    return [
        Table(
            'Training by `main.py`' + (' on random pictures' if 'random.npz' in run.npz else ''),
            {
                'config': ('config', '{}'),
                'steps': ('steps', '{}'),
                'last loss': ('loss', '{:.4g}'),
                'images/s': ('images', '{:.0f}'),
                'exit status': ('status', '{}'),
                'seconds from SIGTERM to exit': ('stopped', '{:.1f}'),
                'resumed to step': ('resumed', '{}'),
            },
            rows,
        )
    ]


SECTIONS = {
    section.__name__: section
    for section in (kernels, agreement, networks, samplers, resampling, training)
}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--dry-run', action='store_true', help='tiny sizes on the CPU, under a minute'
    )
    parser.add_argument(
        '--folder', default='runs/gpu', help='where report and checkpoint go (default: %(default)s)'
    )
    parser.add_argument(
        '--minutes', type=float, default=9, help='for everything (default: %(default)s)'
    )
    parser.add_argument('--npz', default='', help='CIFAR-10 as an NPZ file with x_train and x_test')
    parser.add_argument(
        '--config', help='what is trained (default: NCSN++, continuous VE; the digits in a dry run)'
    )
    parser.add_argument('--sections', default=','.join(SECTIONS), help='default: %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='default: %(default)s')
    args = parser.parse_args(arguments)
    if not args.dry_run and not torch.cuda.is_available():
        parser.error('no CUDA device is available: add --dry-run to try the command on a CPU')
    digits = str(pathlib.Path(digits_ddpmpp_continuous.__file__).relative_to(ROOT))
    config = args.config or (digits if args.dry_run else 'configs/ve/cifar10_ncsnpp_continuous.py')
    run = Run(
        'cpu' if args.dry_run else 'cuda',
        args.dry_run,
        args.seed,
        pathlib.Path(args.folder).resolve(),
        args.npz and str(pathlib.Path(args.npz).resolve()),
        config,
        time.monotonic() + 60 * args.minutes,
    )
    run.folder.mkdir(parents=True, exist_ok=True)
    report, failed = (
        dict(machine=machine(), seed=run.seed, repeats=run.repeats, dry_run=run.quick, sections={}),
        [],
    )
    text = [
        f'# {"Dry run: figures mean nothing" if run.quick else "On a GPU"}',
        machine() + f'; seed {run.seed}',
    ]
    for name in args.sections.split(','):
        print(f'\n== {name}, {run.left():.0f} s left\n', flush=True)
        start, error = time.monotonic(), ''
        try:
            tables = SECTIONS[name](run)
        # the time of the GPU is not lost to one fault: it is reported, and the exit status is 1
        except Exception as problem:
            tables, error = (
                problem.args[1] if isinstance(problem, Failed) else [],
                traceback.format_exc(),
            )
            failed.append(name)
        seconds = time.monotonic() - start
        text += [f'## {name} ({seconds:.0f} s)', *[table.markdown() for table in tables]]
        text += [f'**Failed.**\n\n```\n{error}```'] if error else []
        report['sections'][name] = dict(
            seconds=seconds, error=error, tables=[dataclasses.asdict(table) for table in tables]
        )
        (run.folder / 'gpu.json').write_text(json.dumps(report, indent=1) + '\n')
        (run.folder / 'gpu.md').write_text('\n\n'.join(text) + '\n')
        print('\n\n'.join([table.markdown() for table in tables] + [error]), flush=True)
    sys.exit(f'failed: {", ".join(failed)}' if failed else 0)


if __name__ == '__main__':
    main()
