"""Describes the machine of a benchmark; importing this module puts the library on the path."""

import pathlib
import platform
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from validation.environment import device


def machine() -> str:
    """Return CPU, number of usable cores, GPU, and package versions, in one line."""
    return (
        f'{device()}; Python {platform.python_version()}, NumPy {np.__version__}, '
        f'PyTorch {torch.__version__} ({torch.get_num_threads()} threads)'
    )
