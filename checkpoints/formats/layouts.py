"""Translate tensors by tables: for each of our names, the name and layout in another program.

The weight of a convolution has shape (out, in, height, width) in PyTorch and (height, width, in,
out) in JAX. Our matrix W, which multiplies from the right, has shape (in, out). The weight of a
linear layer in PyTorch has shape (out, in), the weight of a 1x1 convolution (out, in, 1, 1).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Layout(NamedTuple):
    """Functions that convert a tensor of another program to ours (`read`) and back (`write`).

    A tensor of unexpected rank is left unchanged, so that its wrong shape is reported later.
    """

    read: Callable
    write: Callable


def _permuted(*dims: int) -> Callable:
    return lambda w: w.permute(dims) if w.ndim == len(dims) else w


SAME = Layout(lambda w: w, lambda w: w)
TRANSPOSED = Layout(_permuted(1, 0), _permuted(1, 0))
KERNEL_LAST = Layout(_permuted(3, 2, 0, 1), _permuted(2, 3, 1, 0))
PIXEL = Layout(
    lambda w: w[:, :, 0, 0].T if w.shape[2:] == (1, 1) else w, lambda w: w.T[..., None, None]
)


class Entry(NamedTuple):
    """The name of a tensor in the other program, and its layout there."""

    name: str
    layout: Layout = SAME


def to_ours(table: dict[str, Entry], theirs: dict, network: torch.nn.Module) -> dict:
    """Return the tensors of another program under our names, contiguous and in float32.

    Tensors that the table lacks keep their names. Buffers, such as noise levels, are copied from
    `network`, because they depend only on its config.
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
    """Return contiguous copies of our tensors in the table, under the other program's names."""
    return {
        entry.name: entry.layout.write(ours[own]).clone(memory_format=torch.contiguous_format)
        for own, entry in table.items()
    }
