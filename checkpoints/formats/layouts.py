"""Translation of tensors by tables: for each of our names the other program's, and its layout.

The weight of a convolution is (out, in, height, width) in PyTorch and (height, width, in, out) in
JAX. Our matrix W, which multiplies from the right, is (in, out); the weight of PyTorch's linear
layer is (out, in), that of a convolution of one pixel (out, in, 1, 1).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Layout(NamedTuple):
    """How a tensor of another program becomes ours (`read`), and back (`write`).

    A tensor of another rank is left unchanged, so that its shape is reported.
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

    Tensors that the table lacks keep their names. Buffers of `network`, such as its noise levels,
    follow from its config and are taken from it.
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
