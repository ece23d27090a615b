"""Folders saved by diffusers: outputs agree, and settings that do not fit are reported."""

import json
import math

import diffusers
import pytest
import safetensors.torch
import torch

import checkpoints
import convert
import run_lib
import sde_lib
from checkpoints import formats
from checkpoints.trained import load_averaged_model
from configs import stored
from conftest import relative_error
from example_states import outputs
from runtime.errors import CheckpointError


def skip_unet(**settings):
    """Return a small network of the same kind as google/ncsnpp-*."""
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
    """Return a small network of the same kind as google/ddpm-*."""
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
    """Folders saved by diffusers give the same outputs, in the current layout and in older ones."""
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


def test_a_network_without_its_scheduler(tmp_path):
    """Without a scheduler the noise levels are unknown, so --config is required."""
    unet = saved(skip_unet(), tmp_path)
    config = formats.config_of(tmp_path)
    (tmp_path / 'scheduler' / 'scheduler_config.json').unlink()
    with pytest.raises(CheckpointError, match='has no scheduler, .* pass --config'):
        formats.config_of(tmp_path)
    for folder in (tmp_path, tmp_path / 'unet'):
        convert.convert(folder, tmp_path / 'a.safetensors', config, overwrite=True)
        model = load_averaged_model(config, tmp_path / 'a.safetensors')
        x, labels = torch.rand(1, 3, 16, 16), torch.ones(1)
        assert relative_error(outputs(model, x, labels), unet(x, labels).sample) < 1e-5


def test_groups_of_the_middle_and_the_end(tmp_path):
    """Skip networks raise CheckpointError if their norm_num_groups differs from ours.

    They use it in the middle and at the end, where our number of groups depends on the channels.
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
    """Frequencies are also read under the name that older versions of diffusers used."""
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
    with pytest.raises(CheckpointError, match='expected .*Scheduler for this network, got '):
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
def test_invalid_settings_raise_a_one_line_error(change, tmp_path):
    saved(plain_unet(), tmp_path)
    file = tmp_path / 'unet' / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match='is not a supported UNet2DModel'):
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
        (
            dict(up_block_types=('AttnUpBlock2D', 'UpBlock2D')),
            'the same attention on the way down and up',
        ),
    ],
)
def test_unsupported_networks_of_diffusers_raise_an_error(settings, message, tmp_path):
    saved(plain_unet(**settings), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        formats.config_of(tmp_path)


def test_a_config_that_does_not_match_the_folder(tmp_path):
    """A --config that contradicts the folder raises an error.

    Normalization groups, attention heads and centring change no name or shape of a tensor.
    """
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


def test_training_from_a_folder_of_diffusers(tmp_path):
    """The config is written next to the training state, and all its keys can be changed."""
    saved(plain_unet(), tmp_path / 'folder')
    convert.convert(tmp_path / 'folder', tmp_path / 'w' / 'checkpoints-meta' / 'checkpoint.pth')
    config = stored.get_config(tmp_path / 'w' / 'checkpoints-meta' / 'checkpoint.json')
    config.lock().model.ch_mult = (1, 2)  # a tuple, as flags set it
    assert config.model.up_attention == 'block'
    state = checkpoints.restore(
        checkpoints.find_resumable(tmp_path / 'w'), run_lib.create_state(config) | dict(rng=None)
    )
    assert state['step'] == 0 and state['rng'] is None
