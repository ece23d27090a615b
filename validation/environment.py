"""The environment of a validation: hardware, system and versions, for RUN_ENV.txt."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
import sys

import torch

from data.images import cores

ROOT = pathlib.Path(__file__).parents[1]


def processor() -> str:
    """Return the name of the processor, or 'unknown'."""
    cpuinfo = pathlib.Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next(
        (line.partition(':')[2].strip() for line in lines if line.startswith('model name')),
        platform.processor() or 'unknown',
    )


def device() -> str:
    """Describe the CPU cores and GPUs in a few words."""
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    return f'{cores()} cores of {processor()}' + ''.join(
        f', {gpus.count(gpu)}x {gpu}' for gpu in dict.fromkeys(gpus)
    )


def _revision() -> str:
    """Return the commit of this library, and whether files differ from it.

    The result is 'unknown' outside a Git clone.
    """

    def git(*words):
        return subprocess.run(
            ['git', '-C', str(ROOT), *words], capture_output=True, text=True, timeout=30
        )

    try:
        head = git('rev-parse', 'HEAD')
        changed = git('status', '--porcelain', '--untracked-files=no')
    except (OSError, subprocess.TimeoutExpired):
        return 'unknown'
    if head.returncode != 0:
        return 'unknown'
    return head.stdout.strip() + (' with local changes' if changed.stdout.strip() else '')


def snapshot() -> str:
    """Return time, command, hardware and system, then the versions of all required packages."""
    versions = []
    for name in re.findall(r'(?m)^[\w-]+', (ROOT / 'requirements.txt').read_text()):
        try:
            versions.append(f'{name} {importlib.metadata.version(name)}')
        except importlib.metadata.PackageNotFoundError:
            versions.append(f'{name} is not installed')
    settings = [
        f'{name}={os.environ[name]}'
        for name in ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES')
        if name in os.environ
    ]
    lines = {
        'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        'command': ' '.join(['python', '-m', 'validation', *sys.argv[1:]]),
        'revision': _revision(),
        'device': device(),
        'system': platform.platform(),
        'python': platform.python_version(),
        'threads of PyTorch': torch.get_num_threads(),
        'CUDA of PyTorch': torch.version.cuda or 'none',
        'environment': ' '.join(settings) or '-',
    }
    return '\n'.join([*(f'{name}: {value}' for name, value in lines.items()), '', *versions]) + '\n'


if __name__ == '__main__':
    print(snapshot())
