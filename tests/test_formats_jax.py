"""Training states of the 2021 JAX release: all tensors are read, mismatches are reported."""

import msgpack
import numpy as np
import pytest
import torch

import checkpoints
import run_lib
from checkpoints import formats
from checkpoints.formats import jax
from conftest import DATA, load_config
from example_states import JAX, SMALL, VE, randomized, same, small_ve, weights
from models import utils as mutils
from runtime.errors import CheckpointError


def flax_tree(network, named: dict) -> dict:
    """Return our tensors as the nested dict of the JAX release."""
    tree = {}
    for own, entry in jax.table(network).items():
        *path, leaf = entry.name.split('/')
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = entry.layout.write(named[own]).contiguous().numpy()
    return tree


def packed(value, chunk=10**9) -> bytes:
    """Serialize like flax.serialization; split arrays with more than `chunk` values."""

    def split(tree):
        if isinstance(tree, dict):
            return {key: split(part) for key, part in tree.items()}
        if isinstance(tree, np.ndarray) and tree.size > chunk:
            parts = {
                str(i): tree.ravel()[start : start + chunk]
                for i, start in enumerate(range(0, tree.size, chunk))
            }
            return {
                '__msgpack_chunked_array__': True,
                'shape': {str(i): size for i, size in enumerate(tree.shape)},
                'chunks': parts,
            }
        return tree

    def extension(value):
        code = 1 if isinstance(value, np.ndarray) else 3
        value = np.asarray(value)
        return msgpack.ExtType(
            code, msgpack.packb((value.shape, value.dtype.name, value.tobytes()), use_bin_type=True)
        )

    return msgpack.packb(split(value), default=extension, strict_types=True, use_bin_type=True)


def flax_state(state, chunk=10**9) -> bytes:
    network = state['model'].module
    parameters = dict(network.named_parameters())
    adam = {
        name: state['optimizer'].state[parameter]
        for name, parameter in parameters.items()
        if parameter.requires_grad
    }
    moments = [
        flax_tree(
            network,
            {
                name: adam[name][key] if name in adam else torch.zeros_like(parameter)
                for name, parameter in parameters.items()
            },
        )
        for key in ('exp_avg', 'exp_avg_sq')
    ]

    def joined(a, b):
        return {
            key: joined(a[key], b[key])
            if isinstance(a[key], dict)
            else {'grad_ema': a[key], 'grad_sq_ema': b[key]}
            for key in a
        }

    optimizer = dict(
        target=flax_tree(network, weights(state, False)),
        state=dict(step=np.int32(1), param_states=joined(*moments)),
    )
    return packed(
        dict(
            optimizer=optimizer,
            params_ema=flax_tree(network, weights(state, True)),
            ema_rate=np.float32(0.999),
            step=np.int32(11),
            lr=np.float32(2e-4),
            model_state={},
            rng=np.zeros(2, np.uint32),
        ),
        chunk,
    )


NETWORKS = {
    'ncsnpp residual': (VE, {}),
    'output_skip': ('configs.ve.celebahq_256_ncsnpp_continuous', {}),
    'output_skip, cat': (
        'configs.ve.celebahq_256_ncsnpp_continuous',
        dict(progressive_combine='cat'),
    ),
    'ddpm blocks, all pyramids': (
        VE,
        dict(resblock_type='ddpm', progressive='output_skip', progressive_input='input_skip'),
    ),
    'ddpm blocks, residual pyramids, no fir': (
        VE,
        dict(resblock_type='ddpm', progressive='residual', fir=False),
    ),
    'ddpmpp': ('configs.vp.cifar10_ddpmpp_continuous', {}),
    'ddpm': ('configs.vp.ddpm.cifar10', dict(nf=32)),
    'unconditional ddpm': ('configs.vp.ddpm.cifar10', dict(nf=32, conditional=False)),
}


@pytest.mark.parametrize('chunk', [10**9, 100])
@pytest.mark.parametrize('name', NETWORKS)
def test_states_of_jax(name, chunk, tmp_path):
    """A state written with the name table is read back: parameters, EMA weights, moments, step.

    All kinds of networks are tested.
    """
    module, model = NETWORKS[name]
    config = load_config(module, dict(image_size=16), **SMALL | model)
    state = randomized(config)
    (tmp_path / 'checkpoint_3').write_bytes(flax_state(state, chunk))
    assert formats.guess(tmp_path / 'checkpoint_3') == 'flax'
    found = checkpoints.restore(tmp_path / 'checkpoint_3', run_lib.create_state(config))
    for averaged in (False, True):
        same(weights(found, averaged), weights(state, averaged))
    assert (
        found['step'] == 11
        and found['ema'].decay == pytest.approx(0.999)
        and found['ema'].num_updates is None
    )
    assert (
        found['optimizer'].param_groups[0]['betas'] == state['optimizer'].param_groups[0]['betas']
    )
    for parameter, values in zip(state['model'].parameters(), found['model'].parameters()):
        if parameter.requires_grad:
            same(state['optimizer'].state[parameter], found['optimizer'].state[values])


def test_the_table_of_jax_has_every_name_of_the_release():
    """The table has exactly the names of the release, whose numbers count resampling layers.

    These layers have no parameters.
    """
    network = mutils.create_model(small_ve()).module
    release = jax.flat(jax.load(DATA / JAX[0])['params_ema'])
    assert {entry.name for entry in jax.table(network).values()} == release.keys()
    network = mutils.create_model(
        small_ve(resblock_type='ddpm', progressive='output_skip', progressive_input='input_skip')
    ).module
    names = {entry.name.partition('/')[0] for entry in jax.table(network).values()}
    assert {name for name in names if 'sample' in name} == {
        'Downsample_0',
        'Downsample_2',
        'Upsample_0',
        'Upsample_2',
    }


@pytest.mark.parametrize(
    'change, message, detail',
    [
        (
            lambda tree: tree['optimizer']['target'].pop('Conv_1'),
            'lacks .*all_modules.25.weight',
            'missing: module.all_modules.25.bias (3,)',
        ),
        (
            lambda tree: tree['optimizer']['target'].update(
                Conv_7=dict(bias=np.zeros(3, np.float32))
            ),
            'unexpected keys',
            'unexpected: module.Conv_7/bias (3,)',
        ),
        (
            lambda tree: tree['optimizer']['target'].update(
                Conv_1=dict(bias=np.zeros(4, np.float32), kernel=np.zeros((8, 3), np.float32))
            ),
            '2 shapes differ',
            'shape mismatch: module.all_modules.25.weight (8, 3) in the file, (3, 8, '
            '3, 3) in the network',
        ),
        (
            lambda tree: tree['params_ema'].pop('Conv_1'),
            'its EMA lacks',
            'missing: module.all_modules.25.weight (3, 8, 3, 3)',
        ),
        (lambda tree: tree.pop('params_ema'), 'not a training state of the JAX release', ''),
        (lambda tree: tree.pop('optimizer'), 'not a training state of the JAX release', ''),
    ],
)
def test_states_of_jax_that_do_not_fit(change, message, detail, tmp_path):
    state = randomized(small_ve())
    tree = jax.load_bytes(flax_state(state))
    change(tree)
    (tmp_path / 'a').write_bytes(packed(tree))
    fresh = run_lib.create_state(small_ve())
    before = weights(fresh, False)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.restore(tmp_path / 'a', fresh)
    assert detail in [*caught.value.details, '']
    same(weights(fresh, False), before)


@pytest.mark.parametrize('part', [1, 4, 10, 15])
def test_a_state_of_jax_that_is_cut_short(part, tmp_path):
    content = (DATA / JAX[0]).read_bytes()
    (tmp_path / 'a').write_bytes(content[: len(content) * part // 16])
    with pytest.raises(CheckpointError, match='truncated'):
        checkpoints.restore(tmp_path / 'a', run_lib.create_state(small_ve()))
