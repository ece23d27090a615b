"""Training states of the 2021 JAX release: msgpack of flax, without jax or flax.

The file holds 'optimizer' ('target': the weights; 'state': Adam's moments), 'params_ema',
'ema_rate' and 'step'. Flax numbers modules by class in the order of their creation,
`ResnetBlockBigGANpp_0`, `_1`, ..., which is that of `all_modules`; resamplings without parameters
count too.
"""

import collections
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
from op import Conv3x3
from runtime.errors import CheckpointError

from .layouts import KERNEL_LAST, SAME, TRANSPOSED, Entry, to_ours

# Classes of ours that have another name there, in any network; in NCSN++.
CLASSES = {'Linear': 'Dense', 'Conv2d': 'Conv', 'Conv3x3': 'Conv'}
CLASSES_PP = CLASSES | {'AttnBlock': 'AttnBlockpp', 'ResnetBlockDDPM': 'ResnetBlockDDPMpp'}

# Layers with parameters: the names of these there, and their layout.
LEAVES = {
    **dict.fromkeys(
        (nn.Conv2d, Conv3x3), dict(weight=('kernel', KERNEL_LAST), bias=('bias', SAME))
    ),
    Conv2d: dict(weight=('weight', KERNEL_LAST), bias=('bias', SAME)),
    nn.Linear: dict(weight=('kernel', TRANSPOSED), bias=('bias', SAME)),
    nn.GroupNorm: dict(weight=('scale', SAME), bias=('bias', SAME)),
    NIN: dict(W=('W', SAME), b=('b', SAME)),
    GaussianFourierProjection: dict(W=('W', SAME)),
}


def matches(path: pathlib.Path) -> bool:
    """A file that begins with a map whose first key is a string."""
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
    """What flax keeps as an extension of msgpack: an array or a numpy scalar as (shape, dtype,
    bytes), or a complex number.
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
    """The tree with arrays in one piece that flax has cut up for their size."""
    if not isinstance(tree, dict):
        return tree
    if '__msgpack_chunked_array__' not in tree:
        return {key: _joined(value) for key, value in tree.items()}
    in_order = [
        [part for _, part in sorted(tree[key].items(), key=lambda item: int(item[0]))]
        if isinstance(tree[key], dict)
        else tree[key]
        for key in ('chunks', 'shape')
    ]
    return np.concatenate([np.ravel(chunk) for chunk in in_order[0]]).reshape(
        [int(size) for size in in_order[1]]
    )


def load_bytes(content: bytes) -> dict:
    """The tree: dicts, with numpy arrays at their ends."""
    return _joined(msgpack.unpackb(content, ext_hook=_array, strict_map_key=False))


def load(path) -> dict:
    """The tree in a file; CheckpointError where it cannot be read."""
    try:
        return load_bytes(pathlib.Path(path).read_bytes())
    except (OSError, ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise CheckpointError(
            f'{path} cannot be read as a state of flax; it may be cut short: '
            f'{error or type(error).__name__}'
        ) from error


def flat(tree: dict, prefix: str = '') -> dict[str, torch.Tensor]:
    """{'Conv_0/kernel': tensor, ...}"""
    found = {}
    for key, value in tree.items():
        found |= (
            flat(value, f'{prefix}{key}/')
            if isinstance(value, dict)
            else {f'{prefix}{key}': torch.from_numpy(np.array(value))}
        )
    return found


def table(network: UNet) -> dict[str, Entry]:
    """The names of the network's parameters there."""
    classes = CLASSES_PP if isinstance(network, NCSNpp) else CLASSES
    # resamplings of the pyramids, by the position of the layer that comes after each of them
    without_parameters = {}
    if network.pyramid_down is not None:
        without_parameters |= {
            level.pyramid: 'Downsample'
            for level in network.down_levels
            if level.pyramid is not None
        }
    if network.pyramid_up is not None:
        without_parameters |= {level.pyramid[0]: 'Upsample' for level in network.up_levels[1:]}
    found, number = {}, collections.Counter(dict.fromkeys(classes, 0))
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
                found[ours] = Entry(
                    '/'.join(filter(None, (place, *name.split('.'), there))), layout
                )
    return found


def read(path, network, device='cpu') -> dict:
    """The training state: weights, their average, the step, and Adam's moments where they are
    there.
    """
    if not isinstance(network, UNet):
        raise CheckpointError(
            f'{path} is a state of the JAX release, of which ddpm, ncsnpp and '
            'ddpmpp networks are read here'
        )
    tree = load(path)
    try:
        weights, step, optimizer = (
            flat(tree['optimizer']['target']),
            int(tree['step']),
            tree['optimizer'].get('state', {}),
        )
        average, rate = flat(tree['params_ema']), float(tree['ema_rate'])
        assert isinstance(optimizer, dict), 'optimizer/state'
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise CheckpointError(
            f'{path} is no training state of the JAX release: it lacks what belongs to {error}'
        ) from error
    names = table(network)
    state = dict(
        model=to_ours(names, weights, network),
        step=step,
        ema=dict(decay=rate, named=to_ours(names, average, network)),
    )
    # else the weights do not fit, which will be told
    if optimizer.get('param_states') and names.keys() <= state['model'].keys():
        state['optimizer'] = _adam(path, network, names, optimizer)
    return state


def _adam(path, network, names, optimizer) -> dict:
    """The state of PyTorch's Adam; the settings of its parameter groups are left to the config."""
    flattened, moments = flat(optimizer['param_states']), {}
    for own, there in dict(exp_avg='grad_ema', exp_avg_sq='grad_sq_ema').items():
        moments[own] = to_ours(
            names,
            {
                name.removesuffix(f'/{there}'): value
                for name, value in flattened.items()
                if name.endswith(f'/{there}')
            },
            network,
        )
    step, parameters = (
        torch.tensor(float(np.array(optimizer['step']))),
        dict(network.named_parameters()),
    )
    try:
        of_each = {
            i: dict(step=step.clone(), **{own: values[name] for own, values in moments.items()})
            for i, (name, parameter) in enumerate(parameters.items())
            if parameter.requires_grad
        }
    except KeyError as error:
        raise CheckpointError(
            f'{path} does not fit the network of the config: the optimizer in it lacks {error}'
        ) from error
    return dict(state=of_each, param_groups=[dict(params=list(range(len(parameters))))])
