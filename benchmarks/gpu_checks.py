"""Sections of gpu.py: do the kernels compile, and do GPU and CPU agree?"""

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
