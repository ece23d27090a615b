"""A simulated device without float64, like PyTorch's MPS, for machines without such a device.

Its tensors report the device 'meta', the only device type that needs no hardware. Their values are
on the CPU, where every operation runs. As on MPS, a float64 tensor raises TypeError, and so do
operands on two devices.
"""

import contextlib
import sys

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from runtime import randomness

# operations that may mix devices; index operations accept indices on the CPU
MOVES = ('aten::_to_copy', 'aten::copy_', 'aten::index.Tensor', 'aten::index_put_')


class Held(torch.Tensor):
    """A tensor on the simulated device; `held` is its content."""

    @staticmethod
    def __new__(cls, held):
        if held.dtype in (torch.float64, torch.complex128):
            raise TypeError('this device does not support float64')
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device='meta'
        )

    def __init__(self, held):
        self.held = held.detach()

    def __repr__(self):
        return f'Held({self.held!r})'

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    here, elsewhere = (
        [value for value in tensors if isinstance(value, Held) == wanted]
        for wanted in (True, False)
    )
    name = func._schema.name
    if here and name not in MOVES and any(value.ndim for value in elsewhere):
        raise TypeError(f'{name}: operands on two devices')

    def content(value):
        if isinstance(value, torch.device):
            return torch.device('cpu')
        return value.held if isinstance(value, Held) else value

    result = func(*tree_map(content, args), **tree_map(content, kwargs))
    device = kwargs.get('device')
    if name == 'aten::copy_' or not (
        here if device is None else torch.device(device).type == 'meta'
    ):
        return args[0] if name == 'aten::copy_' else result
    known = {id(value.held): value for value in here}  # for in-place operations
    return tree_map(
        lambda value: (
            known.get(id(value))
            if id(value) in known
            else Held(value)
            if isinstance(value, torch.Tensor)
            else value
        ),
        result,
    )


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """Creates tensors with values, which PyTorch would leave empty on 'meta'."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get('device') if func in (torch.as_tensor, torch.tensor) else None
        return (
            func(*args, **kwargs)
            if device is None
            else func(*args, **kwargs | dict(device='cpu')).to(device)
        )


@contextlib.contextmanager
def without_float64(monkeypatch):
    """Simulate the device within the block; yield its name, 'meta'."""
    monkeypatch.setattr(randomness, 'WITHOUT_FLOAT64', {'meta'})
    monkeypatch.setattr(
        sys.modules['torch.optim.optimizer'],
        '_get_fused_kernels_supported_devices',
        lambda: ['cpu', 'meta'],
    )
    with _Operations(), _Constructors():
        yield 'meta'
