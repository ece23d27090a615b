"""The memory of a process that computes on a CPU."""

import ctypes
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# parameters of mallopt, as numbered in <malloc.h>
TRIM_THRESHOLD = -1
MMAP_MAX = -4


def keep_memory(device: 'str | torch.device') -> None:
    """Keep freed memory in the process if it computes on a CPU (only with glibc's allocator).

    Otherwise the system clears the same pages again for every batch. Memory use does not grow with
    the number of batches. The setting changes the whole process, so only programs should call this.

    Args:
        device: 'cpu' or torch.device('cpu'); for any other device nothing is changed.
    """
    if sys.platform != 'linux' or str(device).partition(':')[0] != 'cpu':
        return
    library = ctypes.CDLL(None)
    if hasattr(library, 'mallopt'):
        library.mallopt(TRIM_THRESHOLD, -1)
        library.mallopt(MMAP_MAX, 0)
