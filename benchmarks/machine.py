"""What a benchmark was measured on."""

import platform

import numpy as np
import torch

from validation.environment import device


def machine() -> str:
    """Processor, cores that this process may use, GPU, and versions, in one line."""
    return (
        f'{device()}; Python {platform.python_version()}, NumPy {np.__version__}, '
        f'PyTorch {torch.__version__} ({torch.get_num_threads()} threads)'
    )
