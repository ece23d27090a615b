"""A GPU of fake tensors, which finds operands on two devices on machines without a GPU.

Tensors on the fake device have a shape, a dtype and a device, but no values
(`torch._subclasses.FakeTensorMode`). Tensors on the CPU stay real, so solvers can compute their
tables. An operation with operands on both raises, as on a GPU.

Two things need values or a GPU. A branch on a value of a fake tensor raises, unless the test gives
the answer. A backward pass on 'cuda' needs a GPU, so gradients are walked on the device 'meta',
for which the rules are the same.
"""

import contextlib
import functools

import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch.utils._pytree import tree_leaves

from resampling_cases import module as upfirdn2d
from sdes import chains
from solvers import ode

TWO_DEVICES = 'on the same device|two (different )?devices'  # in messages of device faults
SHAPE = 2, 3, 8, 8  # of most walks
TABLES = chains.linear_betas, chains.log_alphabars, chains.geometric_sigmas  # kept for a device


class FakeDevice(fake_tensor.FakeTensorMode):
    """Run operations on the CPU as usual, and all others on fake tensors.

    Args:
        answers: the values that the library reads from fake tensors, in their order.
    """

    def __init__(self, answers=()):
        super().__init__(allow_non_fake_inputs=True)
        self.answers = list(answers)
        self.generators = {}  # by address: operations get another Python object

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = torch.device(kwargs.get('device') or 'cpu')
        if generator := kwargs.get('generator'):
            self._check(func, {device.type, self._owner(generator)})
        if fake_tensor.FakeTensor not in types and device.type == 'cpu' and _on_cpu(args):
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default and self.answers:
            return self.answers.pop(0)
        if func.namespace != 'aten':  # PyTorch checks its own operations only
            leaves = tree_leaves((args, kwargs))
            self._check(func, {x.device.type for x in leaves if isinstance(x, torch.Tensor)})
        return super().__torch_dispatch__(func, types, args, kwargs)

    def generator(self, device='cpu'):
        """Return a generator that counts as one on `device`: without a GPU 'cuda' has none."""
        generator = torch._C.Generator()
        self.generators[generator._cdata] = generator, torch.device(device).type
        return generator

    def _owner(self, generator):
        return self.generators.get(generator._cdata, (None, 'cpu'))[1]

    @staticmethod
    def _check(func, devices):
        if len(devices) > 1:
            raise RuntimeError(f'{func}: found two devices, {" and ".join(sorted(devices))}')


def _on_cpu(args):
    """Whether no operand is on a GPU: with a real one, `torch.tensor` makes real tensors there."""
    return all(x.device.type == 'cpu' for x in args if isinstance(x, torch.Tensor))


@functools.cache
def why_not():
    """Return the error of a PyTorch without fake CUDA tensors, else None."""
    try:
        with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
            assert torch.ones(2).to('cuda').device.type == 'cuda'
    except Exception as error:
        return repr(error)
    return None


@contextlib.contextmanager
def fake_device(monkeypatch, kernels=False, answers=()):
    """Within the block tensors on 'cuda' and on 'meta' are fake. Yields the `FakeDevice`.

    ODE solvers take one Euler step in the block: they choose their own steps by values.

    Args:
        kernels: whether upfirdn2d finds CUDA kernels; otherwise it composes convolutions.
        answers: see `FakeDevice`. All of them must be used.
    """
    mode = FakeDevice(answers)
    with monkeypatch.context() as patch:
        # a class, because annotations use it
        create = {'__new__': lambda cls, device='cpu': mode.generator(device)}
        patch.setattr(torch, 'Generator', type('Generator', (torch.Generator,), create))
        patch.setattr(upfirdn2d, '_has_kernels', lambda device, _: kernels and device.type != 'cpu')
        for name in ('_on_device', '_on_host'):
            patch.setattr(ode, name, euler_step)
        try:
            with mode:
                yield mode
        finally:
            for table in TABLES:  # some are fake now
                table.cache_clear()
    assert not mode.answers, 'the library read fewer values than the test has answers'


def euler_step(f, y, t0, t1, rtol, atol, method):
    """One step from t0 to t1, as `solvers.ode` calls its solvers; those of SciPy need the CPU."""
    assert method in ode.TORCH_METHODS or y.device.type == 'cpu'
    return y + (t1 - t0) * f(torch.tensor(t0, dtype=y.dtype, device=y.device), y), 1


def check(x, shape=SHAPE, device='cuda'):
    """Check that a result is a fake tensor of this shape on this device."""
    assert isinstance(x, fake_tensor.FakeTensor)
    assert (x.device.type, tuple(x.shape)) == (device, tuple(shape))


class Pointwise(nn.Module):
    """A network for three channels and three classes, of few operations: they take long here."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
        self.embedding = nn.Embedding(self.num_classes + 1, 3)

    def forward(self, x, labels, classes=None):
        shift = self.embedding.weight[-1] if classes is None else self.embedding(classes)
        return self.layer(x + labels[:, None, None, None]) + shift[..., None, None]
