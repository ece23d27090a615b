"""What a benchmark was measured on."""
import pathlib
import platform

import numpy as np
import torch

import image_sources


def machine() -> str:
    """Processor, cores that this process may use, GPU, and versions, in one line."""
    cpuinfo = pathlib.Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), platform.processor())
    gpu = f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''
    return (f'{image_sources.cores()} cores of {model}{gpu}; Python {platform.python_version()}, NumPy {np.__version__}, '
            f'PyTorch {torch.__version__} ({torch.get_num_threads()} threads)')
