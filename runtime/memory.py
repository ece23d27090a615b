"""The memory of a process on a CPU."""

import ctypes
import sys

import torch


def keep_memory(device):
    """On a CPU, keep freed memory in the process: the system would otherwise clear every page again
    for the next batch.

    Memory use does not grow with the number of batches. This has an effect only with the allocator
    of glibc.
    """
    allocator = (
        ctypes.CDLL(None)
        if sys.platform == 'linux' and torch.device(device).type == 'cpu'
        else None
    )
    if hasattr(allocator, 'mallopt'):
        trim_threshold, most_mappings = -1, -4  # as <malloc.h> numbers them
        allocator.mallopt(trim_threshold, -1)
        allocator.mallopt(most_mappings, 0)
