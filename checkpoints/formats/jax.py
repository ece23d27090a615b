"""Training states of the 2021 JAX release, read from flax's msgpack without jax or flax.

The file has 'optimizer' ('target': the weights; 'state': Adam's moments), 'params_ema', 'ema_rate'
and 'step'. Flax numbers the modules of each class in the order of their creation,
`ResnetBlockBigGANpp_0`, `_1`, ..., which is the order of `all_modules`; resampling layers without
parameters are numbered too.
"""

import collections
import os
import pathlib

import msgpack
import numpy as np
import torch
from torch import nn

from models.layers import NIN
from models.layerspp import GaussianFourierProjection
from models.ncsnpp import NCSNpp
from models.unet import UNet
from models.up_or_down_sampling import Conv2d
from runtime.errors import CheckpointError, reason_of

from .layouts import KERNEL_LAST, SAME, TRANSPOSED, Entry, to_ours

# The names in the JAX release of our classes with another name: in all networks, and in NCSN++.
CLASSES = {'Linear': 'Dense', 'Conv2d': 'Conv'}
CLASSES_PP = CLASSES | {'AttnBlock': 'AttnBlockpp', 'ResnetBlockDDPM': 'ResnetBlockDDPMpp'}

# Layers with parameters: the names of these parameters in the JAX release, and their layouts.
LEAVES = {
    nn.Conv2d: dict(weight=('kernel', KERNEL_LAST), bias=('bias', SAME)),
    Conv2d: dict(weight=('weight', KERNEL_LAST), bias=('bias', SAME)),
    nn.Linear: dict(weight=('kernel', TRANSPOSED), bias=('bias', SAME)),
    nn.GroupNorm: dict(weight=('scale', SAME), bias=('bias', SAME)),
    NIN: dict(W=('W', SAME), b=('b', SAME)),
    GaussianFourierProjection: dict(W=('W', SAME)),
}


def matches(path: pathlib.Path) -> bool:
    """Return whether a file begins with a msgpack map whose first key is a string."""
    if not path.is_file():
        return False
    with open(path, 'rb') as file:
        start = file.read(6)
    header = {0xDE: 3, 0xDF: 5}.get(start[0], 1) if start else 6
    return (
        len(start) > header
        and (0x81 <= start[0] <= 0x8F or header > 1)
        and (0xA0 <= start[header] <= 0xBF or start[header] == 0xD9)
    )


def _array(code: int, data: bytes):
    """Decode flax's extensions of msgpack: arrays, numpy scalars and complex numbers.

    Args:
        code: 1 for an array, 2 for a complex number, 3 for a numpy scalar.
        data: (shape, dtype, bytes), or the two parts of a complex number.
    """
    if code == 2:
        return complex(*msgpack.unpackb(data))
    shape, dtype, values = msgpack.unpackb(data)
    if dtype == 'bfloat16':
        return (
            torch.frombuffer(bytearray(values), dtype=torch.bfloat16).reshape(shape).float().numpy()
        )
    return np.frombuffer(values, np.dtype(dtype)).reshape(shape)


def _joined(tree):
    """Return the tree with large arrays joined, which flax stores in chunks."""
    if not isinstance(tree, dict):
        return tree
    if '__msgpack_chunked_array__' not in tree:
        return {key: _joined(value) for key, value in tree.items()}
    chunks, shape = _in_order(tree['chunks']), _in_order(tree['shape'])
    joined = np.concatenate([np.ravel(chunk) for chunk in chunks])
    return joined.reshape([int(size) for size in shape])


def _in_order(parts):
    """Return the parts of a list, which flax may store as {'0': first, '1': second, ...}."""
    if not isinstance(parts, dict):
        return parts
    return [part for _, part in sorted(parts.items(), key=lambda item: int(item[0]))]


def load_bytes(content: bytes) -> dict:
    """Return the tree: nested dicts with numpy arrays as leaves."""
    return _joined(msgpack.unpackb(content, ext_hook=_array, strict_map_key=False))


def load(path: str | os.PathLike) -> dict:
    """Return the tree in a file.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    try:
        return load_bytes(pathlib.Path(path).read_bytes())
    except (OSError, ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise CheckpointError(
            f'{path} cannot be read as a flax training state; it may be truncated: '
            f'{reason_of(error)}'
        ) from error


def flat(tree: dict, prefix: str = '') -> dict[str, torch.Tensor]:
    """Return the leaves of a tree by their paths: {'Conv_0/kernel': tensor, ...}."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f'{prefix}{key}/')
        else:
            found[f'{prefix}{key}'] = torch.from_numpy(np.array(value))
    return found


def table(network: UNet) -> dict[str, Entry]:
    """Return {our name: entry} with the names of a network's parameters in the JAX release."""
    classes = CLASSES_PP if isinstance(network, NCSNpp) else CLASSES
    without_parameters = _resampling_before(network)
    found = {}
    number = collections.Counter(dict.fromkeys(classes, 0))
    for position, module in enumerate(network.all_modules):
        if position in without_parameters:
            number[without_parameters[position]] += 1
        kind = type(module).__name__
        kind = classes.get(kind, kind)
        place = f'{kind}_{number[kind]}'
        number[kind] += 1
        for name, part in module.named_modules():
            for own, (there, layout) in LEAVES.get(type(part), {}).items():
                ours = '.'.join(filter(None, ('all_modules', str(position), name, own)))
                theirs = '/'.join(filter(None, (place, *name.split('.'), there)))
                found[ours] = Entry(theirs, layout)
    return found


def _resampling_before(network: UNet) -> dict[int, str]:
    """Return the resampling layers of the pyramids, by the position of the layer after each."""
    found = {}
    if network.pyramid_down is not None:
        found |= {
            level.pyramid: 'Downsample'
            for level in network.down_levels
            if level.pyramid is not None
        }
    if network.pyramid_up is not None:
        found |= {level.pyramid[0]: 'Upsample' for level in network.up_levels[1:]}
    return found


def read(path: str | os.PathLike, network: nn.Module, device: str | torch.device = 'cpu') -> dict:
    """Return the training state: weights, EMA, step, and Adam's moments if the file has them.

    Raises:
        CheckpointError: if the network is not a U-Net, or the file is not such a training state.
    """
    if not isinstance(network, UNet):
        raise CheckpointError(
            f'{path} is a training state of the JAX release: expected a ddpm, ncsnpp or ddpmpp '
            f'network in the config, got {type(network).__name__}'
        )
    tree = load(path)
    try:
        optimizer = tree['optimizer']
        weights = flat(optimizer['target'])
        moments = optimizer.get('state', {})
        average = flat(tree['params_ema'])
        rate = float(tree['ema_rate'])
        step = int(tree['step'])
        if not isinstance(moments, dict):
            raise TypeError("expected the entry 'optimizer/state' to be a dict")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f'{path} is not a training state of the JAX release: {reason_of(error)}'
        ) from error
    names = table(network)
    state = dict(
        model=to_ours(names, weights, network),
        step=step,
        ema=dict(decay=rate, named=to_ours(names, average, network)),
    )
    # If weights are missing, `checkpoints.restore` lists them.
    if moments.get('param_states') and names.keys() <= state['model'].keys():
        state['optimizer'] = _adam(path, network, names, moments)
    return state


def _adam(path, network: UNet, names: dict[str, Entry], saved: dict) -> dict:
    """Return the state of PyTorch's Adam; the config later sets the options of its groups."""
    flattened = flat(saved['param_states'])
    moments = {}
    for own, there in dict(exp_avg='grad_ema', exp_avg_sq='grad_sq_ema').items():
        theirs = {
            name.removesuffix(f'/{there}'): value
            for name, value in flattened.items()
            if name.endswith(f'/{there}')
        }
        moments[own] = to_ours(names, theirs, network)
    step = torch.tensor(float(np.array(saved['step'])))
    parameters = dict(network.named_parameters())
    try:
        state = {
            i: dict(step=step.clone(), **{own: values[name] for own, values in moments.items()})
            for i, (name, parameter) in enumerate(parameters.items())
            if parameter.requires_grad
        }
    except KeyError as error:
        raise CheckpointError(
            f'{path} does not fit the network of the config: its Adam moments lack {error}'
        ) from error
    return dict(state=state, param_groups=[dict(params=list(range(len(parameters))))])
