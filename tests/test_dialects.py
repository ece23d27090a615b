"""Checkpoints of others: outputs agree with theirs, what is written is read as it was, and what
does not fit is named.
"""

import json
import math
import pathlib
import pickle
import subprocess
import sys

import diffusers
import msgpack
import numpy as np
import pytest
import safetensors.torch
import torch

import checkpoints
import convert
import losses
import run_lib
import sampling
import sde_lib
from checkpoints import formats
from checkpoints.formats import diffusers as diffusers_format
from checkpoints.formats import jax, torch_zip
from checkpoints.loading import load_averaged_model
from configs import stored
from conftest import DATA, ROOT, load_config, parity, reference_config, relative_error
from models import utils as mutils
from models.ema import ExponentialMovingAverage
from runtime.errors import CheckpointError, UserError

SMALL = dict(nf=8, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(8,), dropout=0.0)
VE = 'configs.ve.cifar10_ncsnpp_continuous'
OFFICIAL = ('official_ve_checkpoint.pth', 'official_ve_checkpoint_outputs')
JAX = ('jax_ve_checkpoint_12', 'jax_ve_checkpoint_12_outputs')


def small_ve(**model):
    return load_config(VE, dict(image_size=16), **SMALL | model)


def randomized(config, scale=0.1):
    """A state of the config whose weights, averages and moments are all different and far from
    their first values.
    """
    torch.manual_seed(1)
    state = run_lib.create_state(config)
    for parameter in state['model'].parameters():
        parameter.data += scale * torch.randn_like(parameter)
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    state['optimizer'].step()
    for average in state['ema'].shadow_params:
        average += scale * torch.randn_like(average)
    return state | dict(step=11)


def weights(state, averaged: bool) -> dict:
    network = state['model'].module
    with state['ema'].applied_to(network.parameters()) if averaged else torch.no_grad():
        return {name: value.clone() for name, value in network.state_dict().items()}


def outputs(model, x, labels):
    with torch.no_grad():
        return model.eval()(x, labels)


def same(a: dict, b: dict):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# The 2021 releases --------------------------------------------------------------------------------


@pytest.mark.parametrize('file, reference', [OFFICIAL, JAX])
def test_outputs_of_the_releases(file, reference):
    reference = parity(reference)
    state = checkpoints.restore(DATA / file, run_lib.create_state(small_ve()))
    x, labels = torch.tensor(reference['x']), torch.tensor(reference['labels'])
    assert state['step'] == reference['step']
    assert relative_error(outputs(state['model'], x, labels), reference['raw_out']) < 1e-5
    with state['ema'].applied_to(state['model'].parameters()):
        assert relative_error(outputs(state['model'], x, labels), reference['ema_out']) < 1e-5
    # what was stored has come back
    assert relative_error(outputs(state['model'], x, labels), reference['raw_out']) < 1e-5
    model = load_averaged_model(small_ve(), DATA / file)
    assert relative_error(outputs(model, x, labels), reference['ema_out']) < 1e-5


@pytest.mark.parametrize('file, reference', [OFFICIAL, JAX])
def test_through_every_dialect_that_holds_it(file, reference, tmp_path):
    """To safetensors and to a training state, and from there on, without a difference; from raw and
    from averaged weights.
    """
    reference, config = parity(reference), small_ve()
    x, labels = torch.tensor(reference['x']), torch.tensor(reference['labels'])
    convert.convert(DATA / file, tmp_path / 'a.pth', config)
    state = checkpoints.restore(tmp_path / 'a.pth', run_lib.create_state(config))
    assert state['step'] == reference['step'] and len(state['optimizer'].state) == len(
        state['ema'].shadow_params
    )
    for kind in ('raw', 'ema'):
        convert.convert(tmp_path / 'a.pth', tmp_path / f'{kind}.safetensors', config, kind)
        convert.convert(tmp_path / f'{kind}.safetensors', tmp_path / kind / 'b.pth')
        model = load_averaged_model(
            formats.config_of(tmp_path / f'{kind}.safetensors'), tmp_path / kind / 'b.pth'
        )
        assert relative_error(outputs(model, x, labels), reference[f'{kind}_out']) < 1e-5


@pytest.mark.parametrize('through', ['', 'converted.pth'])
def test_training_goes_on_from_the_release(through, tmp_path):
    """The loss of its next step, as the release computed it."""
    reference, config = parity(OFFICIAL[1]), small_ve()
    path = DATA / OFFICIAL[0]
    if through:
        convert.convert(path, tmp_path / through, config)
        path = tmp_path / through
    config.optim.warmup = 5000
    state = checkpoints.restore(path, run_lib.create_state(config))
    step_fn = losses.get_step_fn(
        sde_lib.get_sde(config),
        True,
        losses.optimization_manager(config),
        reduce_mean=config.training.reduce_mean,
        continuous=True,
        likelihood_weighting=False,
    )
    torch.manual_seed(99)
    assert (
        relative_error(
            step_fn(state, torch.tensor(reference['next_batch'])), reference['next_loss']
        )
        < 1e-5
    )


def test_a_training_state_has_what_the_release_reads(tmp_path):
    """Its keys, names with 'module.', an Adam of PyTorch; a plain unpickler, which the release is,
    can read it.
    """
    convert.convert(DATA / JAX[0], tmp_path / 'a.pth', small_ve())
    content, published = (
        torch.load(path, weights_only=False) for path in (tmp_path / 'a.pth', DATA / OFFICIAL[0])
    )
    assert (
        content.keys() == published.keys()
        and content['ema'].keys() - {'untrained'} == published['ema'].keys()
    )
    assert list(content['model']) == list(published['model'])
    assert [tuple(p.shape) for p in content['ema']['shadow_params']] == [
        tuple(p.shape) for p in published['ema']['shadow_params']
    ]
    network = mutils.create_model(small_ve())
    optimizer = torch.optim.Adam(network.parameters(), lr=1.0)
    optimizer.load_state_dict(content['optimizer'])
    assert {len(values) for values in optimizer.state.values()} == {3} and optimizer.param_groups[
        0
    ]['betas'] == (0.9, 0.999)


def steps_of_adam(network, optimizer, losses_of, numbers):
    for i in numbers:
        torch.manual_seed(i)
        optimizer.zero_grad()
        losses_of(network, torch.rand(4, 3, 16, 16, dtype=torch.float64)).backward()
        optimizer.step()


@pytest.mark.parametrize('writer', ['save', 'Saver', 'convert'])
def test_others_train_on_from_our_files(writer, tmp_path):
    """20 steps of a plain Adam over plain weights are those of our own training, in float64, where
    rounding does not hide anything.
    """
    config, losses_of = small_ve(), losses.get_sde_loss_fn(sde_lib.VESDE(), train=False)
    model = mutils.create_model(config).double()
    state = dict(
        model=model,
        optimizer=losses.get_optimizer(config, model.parameters()),
        step=3,
        ema=ExponentialMovingAverage(model.parameters(), decay=0.999),
    )
    steps_of_adam(model, state['optimizer'], losses_of, range(3))
    # what others must not read
    assert any(not value['exp_avg'].is_contiguous() for value in state['optimizer'].state.values())
    path = tmp_path / 'a.pth'
    if writer == 'Saver':
        with checkpoints.Saver() as saver:
            saver.save(path, state)
    else:
        checkpoints.save(path, state)
    if writer == 'convert':  # which has weights of float32
        convert.convert(path, tmp_path / 'b.pth', config)
        path = tmp_path / 'b.pth'
    content = torch.load(path, weights_only=True)
    tensors = [
        *content['model'].values(),
        *content['ema']['shadow_params'],
        *[value for values in content['optimizer']['state'].values() for value in values.values()],
    ]
    assert (
        all(value.is_contiguous() for value in tensors)
        and 'fused' not in content['optimizer']['param_groups'][0]
    )

    network = mutils.get_model(config.model.name)(config).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=1.0)
    network.load_state_dict(torch_zip.bare(content['model']))
    optimizer.load_state_dict(content['optimizer'])
    assert all(
        value.is_contiguous() for value in network.parameters()
    ) and not optimizer.param_groups[0].get('fused')
    if writer == 'convert':
        checkpoints.restore(path, state)
    start = [value.clone() for value in network.parameters()]
    steps_of_adam(model, state['optimizer'], losses_of, range(3, 23))
    steps_of_adam(network, optimizer, losses_of, range(3, 23))
    torch.testing.assert_close(
        list(network.parameters()), list(model.parameters()), rtol=0, atol=1e-6
    )
    # they have moved
    assert max((own - before).abs().max() for own, before in zip(model.parameters(), start)) > 1e-3


def test_buffers_keep_their_dtype(tmp_path):
    """Noise levels are float64 in files of the 2021 release, and in what is made from them."""
    convert.convert(DATA / OFFICIAL[0], tmp_path / 'a.pth', small_ve())
    ours, published = (
        torch_zip.load(path)['model']['module.sigmas']
        for path in (tmp_path / 'a.pth', DATA / OFFICIAL[0])
    )
    assert ours.dtype == torch.float64 and torch.equal(ours, published)


def flax_tree(network, named: dict) -> dict:
    """The nested dict of the JAX release for tensors of ours."""
    tree = {}
    for own, entry in jax.table(network).items():
        *path, leaf = entry.name.split('/')
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = entry.layout.write(named[own]).contiguous().numpy()
    return tree


def packed(value, chunk=10**9) -> bytes:
    """As jax.serialization writes it; arrays of more than `chunk` values in pieces."""

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
    """Written by the table, every parameter of every kind of network comes back, with average,
    moments and step.
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
    """And no other; the numbering counts resamplings without parameters."""
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
            'its average lacks',
            'missing: module.all_modules.25.weight (3, 8, 3, 3)',
        ),
        (lambda tree: tree.pop('params_ema'), 'no training state of the JAX release', ''),
        (lambda tree: tree.pop('optimizer'), 'no training state of the JAX release', ''),
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
    with pytest.raises(CheckpointError, match='cut short'):
        checkpoints.restore(tmp_path / 'a', run_lib.create_state(small_ve()))


# NCSN and NCSNv2 ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, averaged', [('net_ncsn_cifar', False), ('net_ncsnv2_64', False), ('net_ncsnv2_64', True)]
)
def test_files_of_ncsn(name, averaged, tmp_path):
    """[model, optimizer] of NCSN; [model, optimizer, epoch, step, average] of NCSNv2."""
    reference, config = parity(name), reference_config(name)
    named = {
        key.removeprefix('sd/'): torch.tensor(value)
        for key, value in reference.items()
        if key.startswith('sd/')
    }
    x, labels = torch.tensor(reference['x']), torch.tensor(reference['labels'])
    trained = {key: value for key, value in named.items() if key != 'sigmas'}
    other = {key: torch.randn_like(value) for key, value in trained.items()} | {
        key: named[key] for key in named.keys() - trained.keys()
    }
    in_model = {f'module.{key}': value for key, value in (other if averaged else named).items()}
    states = [in_model, dict(state={}, param_groups=[])] + (
        [3, 4567, trained] if averaged else [3, 4567] if 'v2' in name else []
    )
    torch.save(states, tmp_path / 'checkpoint.pth')
    state = checkpoints.restore(
        tmp_path / 'checkpoint.pth', run_lib.create_state(config), optional=('optimizer',)
    )
    assert state['step'] == (4567 if 'v2' in name else 0)
    assert (relative_error(outputs(state['model'], x, labels), reference['out']) < 1e-5) != averaged
    assert (
        relative_error(
            outputs(load_averaged_model(config, tmp_path / 'checkpoint.pth'), x, labels),
            reference['out'],
        )
        < 1e-5
    )


# safetensors --------------------------------------------------------------------------------------


def test_safetensors_are_plain_weights_with_a_config_beside(tmp_path):
    state, config = randomized(small_ve()), small_ve()
    checkpoints.save(tmp_path / 'a.pth', state)
    for kind in ('ema', 'raw'):
        convert.convert(tmp_path / 'a.pth', tmp_path / f'{kind}.safetensors', config, kind)
        same(
            safetensors.torch.load_file(tmp_path / f'{kind}.safetensors'),
            weights(state, kind == 'ema'),
        )
        found = stored.get_config(tmp_path / f'{kind}.json')
        assert json.loads(found.model.to_json()) == json.loads(config.model.to_json())
    with safetensors.safe_open(str(tmp_path / 'ema.safetensors'), 'pt') as file:
        assert file.metadata() == dict(format='pt', step='11', weights='averaged')


def test_what_a_training_state_lacks_is_logged(tmp_path, caplog):
    """Safetensors hold one set of weights and nothing of Adam; published states hold all."""
    caplog.set_level('WARNING')
    convert.convert(DATA / OFFICIAL[0], tmp_path / 'a.pth', small_ve())
    convert.convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', small_ve())
    assert not caplog.messages
    convert.convert(tmp_path / 'b.safetensors', tmp_path / 'c' / 'c.pth')
    assert caplog.messages == [
        f'Wrote {tmp_path}/c/c.pth without Adam moments and with raw '
        'weights equal to the averaged ones: '
        f'{tmp_path}/b.safetensors (safetensors) does not hold them.'
    ]


def test_a_stored_config_that_cannot_be_read(tmp_path):
    for content in ('', '[]', '{"data": 3}', '{"data": {"dataset": "CIFAR10"}}'):
        (tmp_path / 'a.json').write_text(content)
        with pytest.raises(UserError, match='a.json holds no config'):
            stored.get_config(tmp_path / 'a.json')


# diffusers ----------------------------------------------------------------------------------------


def skip_unet(**settings):
    """A network as google/ncsnpp-*: small."""
    return diffusers.UNet2DModel(
        **dict(
            sample_size=16,
            layers_per_block=1,
            time_embedding_type='fourier',
            norm_eps=1e-6,
            mid_block_scale_factor=math.sqrt(2),
            norm_num_groups=None,
            attention_head_dim=None,
            block_out_channels=(32, 64, 64),
            down_block_types=('SkipDownBlock2D', 'AttnSkipDownBlock2D', 'SkipDownBlock2D'),
            up_block_types=('SkipUpBlock2D', 'AttnSkipUpBlock2D', 'SkipUpBlock2D'),
        )
        | settings
    )


def plain_unet(**settings):
    """A network as google/ddpm-*: small."""
    return diffusers.UNet2DModel(
        **dict(
            sample_size=16,
            layers_per_block=2,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
            downsample_padding=0,
            attention_head_dim=None,
            block_out_channels=(32, 64),
            down_block_types=('AttnDownBlock2D', 'DownBlock2D'),
            up_block_types=('UpBlock2D', 'AttnUpBlock2D'),
        )
        | settings
    )


def saved(unet, folder):
    torch.manual_seed(2)
    for parameter in unet.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    skip = hasattr(unet.down_blocks[0], 'skip_conv')
    pipeline = (
        diffusers.ScoreSdeVePipeline(unet, diffusers.ScoreSdeVeScheduler(sigma_max=20.0, snr=0.2))
        if skip
        else diffusers.DDPMPipeline(
            unet, diffusers.DDPMScheduler(num_train_timesteps=500, beta_start=2e-4, beta_end=0.04)
        )
    )
    pipeline.save_pretrained(folder)
    return unet.eval()


FOLDERS = {
    'ncsnpp': lambda: skip_unet(),
    'ncsnpp, as wide as published': lambda: skip_unet(block_out_channels=(128, 128, 256)),
    'ncsnpp, centred, heads, two blocks': lambda: skip_unet(
        center_input_sample=True, attention_head_dim=8, layers_per_block=2
    ),
    'ddpm': lambda: plain_unet(),
    'ddpm, grey, other groups, heads': lambda: plain_unet(
        in_channels=1, out_channels=1, norm_num_groups=8, attention_head_dim=16
    ),
}


@pytest.mark.parametrize('form', ['pipeline', 'flat', 'old names', 'pickled'])
@pytest.mark.parametrize('name', FOLDERS)
def test_folders_of_diffusers(name, form, tmp_path):
    """Built and saved by diffusers itself: the same outputs; laid out as today, and as older ones
    on the hub are.
    """
    unet = saved(FOLDERS[name](), tmp_path)
    weights_file = tmp_path / 'unet' / 'diffusion_pytorch_model.safetensors'
    if form == 'old names':
        old = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
        named = safetensors.torch.load_file(weights_file)
        for new, before in old.items():
            named = {key.replace(f'.{new}.', f'.{before}.'): value for key, value in named.items()}
        safetensors.torch.save_file(named, weights_file)
    if form == 'pickled':
        torch.save(
            safetensors.torch.load_file(weights_file),
            tmp_path / 'unet' / 'diffusion_pytorch_model.bin',
        )
        weights_file.unlink()
    if form == 'flat':
        for file in [*(tmp_path / 'unet').iterdir(), *(tmp_path / 'scheduler').iterdir()]:
            file.rename(tmp_path / file.name)
        (tmp_path / 'unet').rmdir()
    config = formats.config_of(tmp_path)
    config.device = 'cpu'
    model = load_averaged_model(config, tmp_path)
    x = torch.rand(3, unet.config.in_channels, 16, 16)
    labels = (
        torch.tensor([0.02, 1.0, 15.0]) if name.startswith('ncsnpp') else torch.tensor([0, 40, 499])
    )
    assert relative_error(outputs(model, x, labels), unet(x, labels).sample) < 1e-5
    sde = sde_lib.get_sde(config)
    if name.startswith('ncsnpp'):
        assert (sde.sigma_min, sde.sigma_max, sde.N, config.sampling.snr) == (0.01, 20.0, 2000, 0.2)
    else:
        assert relative_error(sde.discrete_betas, torch.linspace(2e-4, 0.04, 500)) < 1e-6


WRITTEN = {
    'output_skip': ('configs.ve.celebahq_256_ncsnpp_continuous', dict(nf=32, attn_groups=32)),
    'output_skip, uncentred': (
        'configs.ve.celebahq_256_ncsnpp_continuous',
        dict(nf=32, attn_groups=32, center_input=False),
    ),
    'ddpm': ('configs.vp.ddpm.cifar10', dict(nf=32)),
    'ddpm, attention behind every block': (
        'configs.vp.ddpm.cifar10',
        dict(nf=32, up_attention='block', num_res_blocks=2),
    ),
}


@pytest.mark.parametrize('name', WRITTEN)
def test_diffusers_there_and_back(name, tmp_path):
    """`from_pretrained` opens what is written, its outputs are ours, and what is read again is the
    same bit for bit, by either config.
    """
    module, model = WRITTEN[name]
    config = load_config(module, dict(image_size=16), **SMALL | model)
    state = randomized(config)
    checkpoints.save(tmp_path / 'a.pth', state)
    convert.convert(tmp_path / 'a.pth', tmp_path / 'folder', config)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(tmp_path / 'folder'))
    x, labels = (
        torch.rand(3, 3, 16, 16),
        torch.tensor([0.02, 1.0, 15.0]) if 'skip' in name else torch.tensor([0, 40, 999]),
    )
    network = state['model'].module
    with state['ema'].applied_to(network.parameters()):
        ours = outputs(network, x, labels)
    assert relative_error(pipeline.unet(x, labels).sample, ours) < 1e-5

    def read_again():
        again = formats.config_of(tmp_path / 'folder')
        again.device = 'cpu'
        assert again.model.up_attention == config.model.up_attention
        same(
            load_averaged_model(again, tmp_path / 'folder').module.state_dict(),
            weights(state, True),
        )

    read_again()
    convert.convert(tmp_path / 'folder', tmp_path / 'b.pth')
    (tmp_path / 'folder' / diffusers_format.OUR_CONFIG).unlink()  # as if diffusers had saved it
    read_again()


def with_our_noise(pipeline, steps, **settings):
    torch.manual_seed(5)
    return pipeline(batch_size=2, num_inference_steps=steps, output_type='np', **settings).images


def test_images_of_the_ve_pipeline_are_ours(tmp_path):
    model = SMALL | dict(nf=32, attn_groups=32, num_scales=20, sigma_max=5.0)
    config = load_config('configs.ve.celebahq_256_ncsnpp_continuous', dict(image_size=16), **model)
    state = randomized(config, 0.02)
    checkpoints.save(tmp_path / 'a.pth', state)
    convert.convert(tmp_path / 'a.pth', tmp_path / 'folder', config)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(tmp_path / 'folder'))
    theirs = with_our_noise(pipeline, 20)
    sde, model = sde_lib.get_sde(config), load_averaged_model(config, tmp_path / 'folder')
    torch.manual_seed(5)
    ours, nfe = sampling.get_sampling_fn(
        config, sde, (2, 3, 16, 16), lambda x: x, sde.sampling_eps
    )(model)
    assert nfe == 40 and 0.02 < np.mean((theirs > 0) & (theirs < 1))  # not all of it clipped
    assert relative_error(ours.clamp(0, 1).permute(0, 2, 3, 1), theirs) < 1e-4


def test_images_of_the_ddpm_pipeline_are_ours(tmp_path):
    """With times down to 0, which the pipeline has, where the published grid ends at 1e-3; and 33
    steps, whose times are exact in binary: the published grid, kept here, finds the number of a
    step by truncation.
    """
    config = load_config(
        'configs.vp.ddpm.cifar10',
        dict(image_size=16),
        **SMALL | dict(nf=32, num_scales=33, beta_max=2.0),
    )
    state = randomized(config, 0.02)
    checkpoints.save(tmp_path / 'a.pth', state)
    convert.convert(tmp_path / 'a.pth', tmp_path / 'folder', config)
    theirs = with_our_noise(
        diffusers.DiffusionPipeline.from_pretrained(str(tmp_path / 'folder')), 33
    )
    sde, model = sde_lib.get_sde(config), load_averaged_model(config, tmp_path / 'folder')
    torch.manual_seed(5)
    ours, _ = sampling.get_sampling_fn(config, sde, (2, 3, 16, 16), lambda x: x / 2 + 0.5, 0.0)(
        model
    )
    assert 0.02 < np.mean((theirs > 0) & (theirs < 1))
    assert relative_error(ours.clamp(0, 1).permute(0, 2, 3, 1), theirs) < 1e-4


def test_a_network_without_its_scheduler(tmp_path):
    """Does not tell the noise levels of its training: they are asked for, and with a config it is
    read.
    """
    unet = saved(skip_unet(), tmp_path)
    config = formats.config_of(tmp_path)
    (tmp_path / 'scheduler' / 'scheduler_config.json').unlink()
    with pytest.raises(CheckpointError, match='has no scheduler, .* give --config'):
        formats.config_of(tmp_path)
    for folder in (tmp_path, tmp_path / 'unet'):
        convert.convert(folder, tmp_path / 'a.safetensors', config, overwrite=True)
        model = load_averaged_model(config, tmp_path / 'a.safetensors')
        x, labels = torch.rand(1, 3, 16, 16), torch.ones(1)
        assert relative_error(outputs(model, x, labels), unet(x, labels).sample) < 1e-5


def test_groups_of_the_middle_and_the_end(tmp_path):
    """Skip networks with norm_num_groups take it there, where ours follow the channels: refused,
    unless both are the same.
    """
    saved(skip_unet(norm_num_groups=32), tmp_path / 'a')
    with pytest.raises(CheckpointError, match='norm_num_groups=32'):
        formats.config_of(tmp_path / 'a')
    unet = saved(skip_unet(norm_num_groups=32, block_out_channels=(128, 128, 128)), tmp_path / 'b')
    config = formats.config_of(tmp_path / 'b')
    config.device = 'cpu'
    x, labels = torch.rand(1, 3, 16, 16), torch.ones(1)
    assert (
        relative_error(
            outputs(load_averaged_model(config, tmp_path / 'b'), x, labels), unet(x, labels).sample
        )
        < 1e-5
    )


def test_frequencies_under_two_names(tmp_path):
    """As older versions saved them."""
    unet = saved(skip_unet(), tmp_path)
    file = tmp_path / 'unet' / 'diffusion_pytorch_model.safetensors'
    named = safetensors.torch.load_file(file)
    config = formats.config_of(tmp_path)
    config.device = 'cpu'
    x, labels = torch.rand(1, 3, 16, 16), torch.ones(1)
    for also in (True, False):
        again = dict(named, **{'time_proj.W': named['time_proj.weight'].clone()})
        again if also else again.pop('time_proj.weight')
        safetensors.torch.save_file(again, file)
        assert (
            relative_error(
                outputs(load_averaged_model(config, tmp_path), x, labels), unet(x, labels).sample
            )
            < 1e-5
        )


@pytest.mark.parametrize(
    'name', ['FlowMatchEulerDiscreteScheduler', 'EDMEulerScheduler', 'ScoreSdeVeScheduler', '']
)
def test_schedulers_of_other_noise_levels(name, tmp_path):
    saved(plain_unet(), tmp_path)
    (tmp_path / 'scheduler' / 'scheduler_config.json').write_text(json.dumps({'_class_name': name}))
    with pytest.raises(CheckpointError, match='which does not go with the network'):
        formats.config_of(tmp_path)


@pytest.mark.parametrize(
    'change',
    [
        dict(attention_head_dim=[8, 8]),
        dict(layers_per_block=[1, 2]),
        dict(down_block_types=None),
        dict(block_out_channels=[]),
        dict(down_block_types=[1, 2], up_block_types=[2, 1]),
        dict(sample_size='big'),
        dict(_class_name='UNet2DConditionModel'),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(change, tmp_path):
    saved(plain_unet(), tmp_path)
    file = tmp_path / 'unet' / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match='is no network of ours'):
        formats.config_of(tmp_path)
    for content in ('[]', '{"a"', '[' * 100000):
        file.write_text(content)
        with pytest.raises(CheckpointError, match='cannot be read'):
            formats.config_of(tmp_path)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(norm_eps=1e-5), 'norm_eps=1e-05'),
        (dict(resnet_time_scale_shift='scale_shift'), 'resnet_time_scale_shift'),
        (dict(downsample_padding=1), 'downsample_padding=1'),
        (dict(flip_sin_to_cos=True), 'flip_sin_to_cos=True'),
        (dict(num_class_embeds=3), 'num_class_embeds=3'),
        (dict(block_out_channels=(64, 96)), 'multiples of the first'),
        (
            dict(
                down_block_types=('ResnetDownsampleBlock2D', 'DownBlock2D'),
                up_block_types=('UpBlock2D', 'ResnetUpsampleBlock2D'),
            ),
            'ResnetD',
        ),
        (dict(up_block_types=('AttnUpBlock2D', 'UpBlock2D')), 'the same attention on both ways'),
    ],
)
def test_networks_of_diffusers_that_are_none_of_ours(settings, message, tmp_path):
    saved(plain_unet(**settings), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        formats.config_of(tmp_path)


def test_a_config_that_is_not_of_the_folder(tmp_path):
    """Groups of a normalization, heads, centring: no name or shape tells them apart."""
    saved(skip_unet(), tmp_path)
    for key, value, message in (
        ('attn_groups', 0, 'GroupNorm'),
        ('attn_head_dim', 8, '1 heads'),
        ('center_input', True, 'centers'),
        ('progressive', 'none', 'progressive: output_skip in the folder, none by'),
        ('num_res_blocks', 2, 'lacks'),
    ):
        config = formats.config_of(tmp_path)
        config.device = 'cpu'
        config.model[key] = value
        with pytest.raises(CheckpointError, match=message):
            load_averaged_model(config, tmp_path)


@pytest.mark.parametrize(
    'module, model, message',
    [
        (VE, {}, "model.progressive='none'"),
        ('configs.vp.cifar10_ddpmpp_continuous', {}, 'model.skip_rescale|model.fir=False'),
        ('configs.vp.ddpm.cifar10_continuous', dict(nf=32), 'training.continuous=True'),
        ('configs.ve.ncsnv2.cifar10', {}, 'U-Nets'),
        (
            'configs.ve.celebahq_256_ncsnpp_continuous',
            dict(nf=32),
            'attn_groups=0: around attention .* 32 groups',
        ),
        ('configs.vp.ddpm.cifar10', dict(nf=32, num_classes=10), 'num_classes=10'),
    ],
)
def test_networks_that_diffusers_cannot_express(module, model, message, tmp_path):
    config = load_config(module, dict(image_size=16), **SMALL | model)
    checkpoints.save(tmp_path / 'a.pth', run_lib.create_state(config))
    with pytest.raises(UserError, match=message):
        convert.convert(tmp_path / 'a.pth', tmp_path / 'folder', config)
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']


@pytest.mark.parametrize(
    'module',
    [
        'configs.ve.celebahq_256_ncsnpp_continuous',
        'configs.ve.ffhq_ncsnpp_continuous',
        'configs.vp.ddpm.cifar10',
    ],
)
def test_published_networks_that_diffusers_can_express(module):
    """Every name of its network, and shape, is that of the network built by diffusers from the
    config that we write.
    """
    config = load_config(module)
    assert diffusers_format.unfit(config) == []
    with torch.device('meta'):
        ours = mutils.get_model(config.model.name)(config)
        theirs = diffusers.UNet2DModel.from_config(diffusers_format.unet_config(config))
    names, spare = diffusers_format.table(ours)
    shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    own = ours.state_dict()
    assert {
        entry.name: tuple(entry.layout.write(own[name]).shape) for name, entry in names.items()
    } == {
        name: shape
        for name, shape in shapes.items()
        if not name.startswith(tuple(f'{place}.' for place in spare) or '\0')
    }
    assert {
        f'{place}.group_norm.weight': (channels,) for place, channels in spare.items()
    }.items() <= shapes.items()


# The command --------------------------------------------------------------------------------------


def test_nothing_is_replaced_unasked(tmp_path):
    config = small_ve()
    for name in ('a.pth', 'a.safetensors'):
        (tmp_path / name).write_text('precious')
        with pytest.raises(UserError, match=f'{name} is there already: --overwrite'):
            convert.convert(DATA / JAX[0], tmp_path / name, config)
        assert (tmp_path / name).read_text() == 'precious'
        convert.convert(DATA / JAX[0], tmp_path / name, config, overwrite=True)
        assert (tmp_path / name).stat().st_size > 10**5
    with pytest.raises(UserError, match='a.json is there already'):
        (tmp_path / 'a.safetensors').unlink()
        convert.convert(DATA / JAX[0], tmp_path / 'a.safetensors', config)
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'precious.jpg').write_text('precious')
    with pytest.raises(UserError, match='no diffusers checkpoint: it is not replaced'):
        convert.convert(DATA / JAX[0], tmp_path / 'photos', config, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.json', 'a.pth', 'photos']


def test_of_a_folder_only_what_is_written_is_replaced(tmp_path):
    config = load_config('configs.vp.ddpm.cifar10', dict(image_size=16), **SMALL | dict(nf=32))
    checkpoints.save(tmp_path / 'folder' / 'raw.pth', randomized(config))
    (tmp_path / 'folder' / 'config.json').write_text('{}')
    (tmp_path / 'folder' / 'thesis.txt').write_text('precious')
    convert.convert(tmp_path / 'folder' / 'raw.pth', tmp_path / 'folder', config, overwrite=True)
    assert (tmp_path / 'folder' / 'thesis.txt').read_text() == 'precious' and (
        tmp_path / 'folder' / 'raw.pth'
    ).is_file()
    assert (tmp_path / 'folder' / 'model_index.json').is_file() and len(
        list(tmp_path.iterdir())
    ) == 1


def test_weights_that_are_no_numbers_are_converted_as_they_are(tmp_path):
    """A converter does not judge; the validation does."""
    state = randomized(small_ve())
    next(state['model'].parameters()).data[0] = float('nan')
    checkpoints.save(tmp_path / 'a.pth', state)
    convert.convert(tmp_path / 'a.pth', tmp_path / 'b.pth', small_ve())
    convert.convert(tmp_path / 'a.pth', tmp_path / 'c.safetensors', small_ve(), 'raw')
    assert any(
        value.isnan().any()
        for value in safetensors.torch.load_file(tmp_path / 'c.safetensors').values()
    )


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be written'):
        convert.convert(DATA / OFFICIAL[0], tmp_path / 'file' / 'a.pth', small_ve())
    (tmp_path / 'b').write_text('')
    with pytest.raises(UserError, match='is there and no diffusers checkpoint'):
        convert.convert(DATA / JAX[0], tmp_path / 'b', small_ve(), overwrite=True)

    def denied(*_):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(pathlib.Path, 'is_dir', denied)
    with pytest.raises(CheckpointError, match='cannot be read: Permission denied'):
        formats.guess(DATA / OFFICIAL[0])


def test_training_goes_on_from_a_folder_of_diffusers(tmp_path):
    """With the config that is written beside the training state, in which every key can be
    changed.
    """
    saved(plain_unet(), tmp_path / 'folder')
    convert.convert(tmp_path / 'folder', tmp_path / 'w' / 'checkpoints-meta' / 'checkpoint.pth')
    config = stored.get_config(tmp_path / 'w' / 'checkpoints-meta' / 'checkpoint.json')
    config.lock().model.ch_mult = (1, 2)  # a tuple, as flags set it
    assert config.model.up_attention == 'block'
    state = checkpoints.restore(
        checkpoints.find_resumable(tmp_path / 'w'), run_lib.create_state(config) | dict(rng=None)
    )
    assert state['step'] == 0 and state['rng'] is None


def test_what_cannot_be_told_is_asked_for(tmp_path):
    with pytest.raises(UserError, match='does not tell its config: give --config'):
        convert.convert(DATA / OFFICIAL[0], tmp_path / 'a.safetensors')
    with pytest.raises(UserError, match='must end in'):
        convert.convert(DATA / OFFICIAL[0], tmp_path / 'a.onnx', small_ve())
    with pytest.raises(CheckpointError, match='there is no checkpoint'):
        convert.convert(tmp_path / 'none.pth', tmp_path / 'a.safetensors', small_ve())


class Trap:
    def __reduce__(self):
        return pathlib.Path.write_text, (pathlib.Path('sprung'), 'x')


def test_what_is_no_checkpoint(tmp_path, monkeypatch):
    """One sentence each; nothing is executed."""
    monkeypatch.chdir(tmp_path)
    contents = {
        'empty.pth': b'',
        'text.pth': b'hello, world',
        'page.pth': b'<!doctype html>',
        'zeros.pth': bytes(1000),
        'pickle.pth': pickle.dumps([Trap()]),
        'map': b'\x81\xa1a\x01',
        'short.safetensors': b'\x10\0\0\0\0\0\0\0{"a":',
        'list.pth': pickle.dumps([1, 2]),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / 'folder').mkdir()
    for name in [*contents, 'folder']:
        with pytest.raises(CheckpointError) as caught:
            checkpoints.restore(tmp_path / name, run_lib.create_state(small_ve()))
        assert name in str(caught.value) and '\n' not in str(caught.value)
    assert not (tmp_path / 'sprung').exists()


def command(*arguments, script='convert.py'):
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_command(tmp_path):
    """Converts, samples from what it wrote with the config beside it, and tells what does not fit,
    key by key, without a traceback.
    """
    size = [
        '--config',
        'configs/ve/cifar10_ncsnpp_continuous.py',
        '--config.data.image_size=16',
        '--config.model.nf=8',
        '--config.model.ch_mult=(1,2,2)',
        '--config.model.num_res_blocks=1',
        '--config.model.attn_resolutions=(8,)',
    ]
    done = command(DATA / JAX[0], tmp_path / 'a.safetensors', *size)
    assert done.returncode == 0 and '(flax, step 600000, 0.1 million parameters)' in done.stderr, (
        done.stderr
    )
    done = command(
        '--config',
        f'configs/stored.py:{tmp_path}/a.json',
        '--config.sampling.steps=2',
        '--config.device=cpu',
        '--checkpoint',
        tmp_path / 'a.safetensors',
        '--workdir',
        tmp_path,
        '--mode',
        'sample',
        '--num_samples',
        2,
        script='main.py',
    )
    assert done.returncode == 0 and (tmp_path / 'generated' / '00001.png').is_file(), done.stderr

    done = command(DATA / JAX[0], tmp_path / 'b.pth', *size, '--config.model.num_res_blocks=2')
    lines = done.stderr.strip().splitlines()
    assert (
        done.returncode == 1
        and lines[0].startswith('error: ')
        and 'lacks' in lines[0]
        and len(lines) > 50
    )
    assert all(
        line.startswith(('  missing: ', '  unexpected: ', '  shape mismatch: '))
        for line in lines[1:]
    )
    for source, destination, config, words in (
        (DATA / JAX[0], '', (), 'SOURCE and DESTINATION'),
        (DATA / JAX[0], tmp_path / 'a.safetensors', size, '--overwrite'),
        (tmp_path / 'a.json', tmp_path / 'c.pth', size, 'no checkpoint of a kind known'),
        (
            DATA / JAX[0],
            tmp_path / 'd.pth',
            ['--config', f'configs/stored.py:{tmp_path}/none.json'],
            'holds no config',
        ),
    ):
        done = command(source, *[destination] * bool(destination), *config)
        assert (
            done.returncode == 1
            and words in done.stderr
            and len(done.stderr.strip().splitlines()) == 1
        ), done.stderr
