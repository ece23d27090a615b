"""Translation of tensors by tables: for each name of ours, the name there, and how to come from one
layout to the other.

A convolution's weight is (out, in, height, width) in PyTorch and (height, width, in, out) in JAX; a
matrix W of ours, which multiplies from the right, is (in, out), (out, in) in PyTorch's linear
layers, and (out, in, 1, 1) in a convolution of one pixel.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Layout(NamedTuple):
    """How a tensor of theirs becomes one of ours, and back. One of another rank is left as it is,
    so that its shape will be reported.
    """

    read: Callable
    write: Callable


def _permuted(*dims):
    return lambda w: w.permute(dims) if w.ndim == len(dims) else w


SAME = Layout(lambda w: w, lambda w: w)
TRANSPOSED = Layout(_permuted(1, 0), _permuted(1, 0))
KERNEL_LAST = Layout(_permuted(3, 2, 0, 1), _permuted(2, 3, 1, 0))
PIXEL = Layout(
    lambda w: w[:, :, 0, 0].T if w.shape[2:] == (1, 1) else w, lambda w: w.T[..., None, None]
)


class Entry(NamedTuple):
    name: str  # theirs
    layout: Layout = SAME


def to_ours(table: dict[str, Entry], theirs: dict, network) -> dict:
    """The tensors of `theirs` under our names, contiguous and in float32, with those that the table
    lacks under their own names. Buffers of `network`, such as its noise levels, follow from its
    config and are taken from it.
    """
    found = {
        own: entry.layout.read(theirs[entry.name]).float().contiguous()
        for own, entry in table.items()
        if entry.name in theirs
    }
    known = {entry.name for entry in table.values()}
    found |= {name: value for name, value in theirs.items() if name not in known}
    parameters = dict(network.named_parameters())
    return {
        name: value for name, value in network.state_dict().items() if name not in parameters
    } | found


def to_theirs(table: dict[str, Entry], ours: dict) -> dict:
    """The tensors of `ours` that the table has, under their names, contiguous copies."""
    return {
        entry.name: entry.layout.write(ours[own]).clone(memory_format=torch.contiguous_format)
        for own, entry in table.items()
    }
