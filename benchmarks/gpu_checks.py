"""Two sections of gpu.py: do the kernels compile, and do GPU and CPU agree?"""

import pathlib
import subprocess
import sys
import time

import torch
from agreement import gaussian_samples, quantities, tensor_cores
from sections import Failed, Run, Table

from op import nvrtc

ROOT = pathlib.Path(__file__).parents[1]


def kernels(run: Run) -> list[Table]:
    """Compile the CUDA kernels for this GPU (for sm_90 without a GPU) and run all GPU tests."""
    gpu = run.device == 'cuda'
    target = nvrtc.architecture(torch.cuda.get_device_capability()) if gpu else 'sm_90'
    return [
        Table(
            f'Kernels of `op/upfirdn2d.cu`, compiled by NVRTC for {target}',
            {
                'type': ('scalar', '{}'),
                'seconds': ('seconds', '{:.2f}'),
                'registers (maximum)': ('registers', '{}'),
                'bytes spilled': ('spills', '{}'),
            },
            [
                compiled(target, scalar)
                for scalar in (['float'] if run.quick else ['double', 'float', 'half', 'bfloat16'])
            ],
        ),
        Table(
            'GPU tests (`pytest -m gpu`)',
            {'result': ('tests', '{}'), 'exit status': ('status', '{}')},
            [tested(run)],
        ),
    ]


def compiled(target: str, scalar: str) -> dict:
    """Compile the kernels of one type and return time, registers and spills."""
    source = (ROOT / 'op' / 'upfirdn2d.cu').read_text()
    start = time.perf_counter()
    _, log = nvrtc.compile(source, target, SCALAR=scalar)
    found = nvrtc.resources(log).values()
    return dict(
        scalar=scalar,
        seconds=time.perf_counter() - start,
        registers=max(kernel['registers'] for kernel in found),
        spills=sum(kernel['spills'] for kernel in found),
    )


def tested(run: Run) -> dict:
    """Run the GPU tests and return the last line of pytest and its exit status."""
    flags = ['-m', 'gpu', '-rs', '-p', 'no:cacheprovider']
    command = [sys.executable, '-m', 'pytest', *flags, *gpu_tests()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-4000:], done.stderr[-2000:], sep='\n', flush=True)
    if done.returncode:
        (run.folder / 'tests.txt').write_text(done.stdout + done.stderr)
    return dict(tests=done.stdout.strip().splitlines()[-1].strip('= '), status=done.returncode)


def gpu_tests() -> list[str]:
    """Return the files with tests marked `gpu`; others may import packages that are missing."""
    files = sorted((ROOT / 'tests').glob('test_*.py'))
    return [str(path) for path in files if 'mark.gpu' in path.read_text()]


WAYS = {  # device, precision, whether TF32 is on
    'CPU, float32': ('cpu', 'float32', False),
    'GPU, float32': ('cuda', 'float32', False),
    'GPU, TF32': ('cuda', 'float32', True),
    'GPU, bfloat16': ('cuda', 'bfloat16', False),
}


def agreement(run: Run) -> list[Table]:
    """Compare results of the device and the CPU with float64 on the CPU; compare random samples.

    Raises:
        Failed: if a float32 error is above its limit, or if the mean or the standard deviation of
            the samples differs by more than four standard errors.
    """
    ways = {name: way for name, way in WAYS.items() if way[0] in ('cpu', run.device)}
    rows, samples = errors(run, ways), statistics(run)
    tables = [
        Table(
            'Largest error / largest value, relative to float64 on the CPU (small '
            'NCSN++, VP, batch 2)',
            {'': ('quantity', '{}'), **{way: (way, '{:.1e}') for way in ways}},
            rows,
        ),
        Table(
            f'Predictor-corrector samples of N(0.3, 0.5^2), n = {samples[0]["n"]} values',
            {
                '': ('quantity', '{}'),
                'device': ('device', '{:.4f}'),
                'CPU': ('cpu', '{:.4f}'),
                'difference in standard errors': ('z', '{:+.1f}'),
            },
            samples,
        ),
    ]
    beyond = [
        (row['quantity'], way)
        for row in rows
        for way in ways
        if way.endswith('float32') and not row[way] <= limit(row['quantity'])
    ]
    gap = {row['quantity']: row['z'] for row in samples}
    if beyond or max(map(abs, gap.values())) > 4:
        raise Failed(f'errors above the limits: {beyond}, differences of samples: {gap}', tables)
    return tables


def limit(quantity: str) -> float:
    """Return the relative error allowed in float32; dopri5 has a tolerance of 1e-3."""
    return 1e-3 if 'dopri5' in quantity else 2e-5


def errors(run: Run, ways: dict) -> list[dict]:
    """Return a row for each quantity, with its relative error for each of `ways`."""
    exact = quantities('cpu', 'float32', torch.float64, run.seed)
    rows = {name: dict(quantity=name) for name in exact}
    for way, (device, precision, tf32) in ways.items():
        with tensor_cores(tf32):
            found = quantities(device, precision, seed=run.seed)
        for name, value in found.items():
            error = (value - exact[name]).abs().max() / exact[name].abs().max()
            rows[name][way] = error.item()
    return [*rows.values()]


def statistics(run: Run) -> list[dict]:
    """Compare mean and standard deviation of samples on the device with those on the CPU."""
    batch = 20 if run.quick else 200
    ours, theirs = (gaussian_samples(device, batch, run.seed) for device in (run.device, 'cpu'))
    n = theirs.numel()
    mean = (ours.mean() - theirs.mean()) / (theirs.std() * (2 / n) ** 0.5)
    std = (ours.std() - theirs.std()) / (theirs.std() / n**0.5)
    return [
        dict(
            quantity=name,
            device=getattr(ours, kind)().item(),
            cpu=getattr(theirs, kind)().item(),
            z=z.item(),
            n=n,
        )
        for name, kind, z in (('mean', 'mean', mean), ('standard deviation', 'std', std))
    ]
