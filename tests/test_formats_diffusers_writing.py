"""diffusers loads the folders that we write, with our outputs and images."""

import diffusers
import numpy as np
import pytest
import torch

import checkpoints
import convert
import run_lib
import sampling
import sde_lib
from checkpoints import formats
from checkpoints.formats import diffusers as diffusers_format
from conftest import load_config, relative_error
from example_states import SMALL, VE, outputs, randomized, same, weights
from models import utils as mutils
from runtime.errors import UserError
from score_model import load_averaged_model

WRITTEN = {
    'output_skip': ('configs.ve.celebahq_256_ncsnpp_continuous', dict(nf=32, attn_groups=32)),
    'output_skip, uncentred': (
        'configs.ve.celebahq_256_ncsnpp_continuous',
        dict(nf=32, attn_groups=32, center_input=False),
    ),
    'ddpm': ('configs.vp.ddpm.cifar10', dict(nf=32)),
    'ddpm, attention after every block': (
        'configs.vp.ddpm.cifar10',
        dict(nf=32, up_attention='block', num_res_blocks=2),
    ),
}


@pytest.mark.parametrize('name', WRITTEN)
def test_conversion_to_diffusers_and_back(name, tmp_path):
    """`from_pretrained` loads our folders with the same outputs.

    Weights that we read back are bit-identical, with either config.
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
    (tmp_path / 'folder' / diffusers_format.OUR_CONFIG).unlink()  # as saved by diffusers
    read_again()


def with_our_noise(pipeline, steps, **settings):
    torch.manual_seed(5)
    return pipeline(batch_size=2, num_inference_steps=steps, output_type='np', **settings).images


def test_images_of_the_ve_pipeline_equal_ours(tmp_path):
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
    assert nfe == 40 and np.mean((theirs > 0) & (theirs < 1)) > 0.02  # not all values are clipped
    assert relative_error(ours.clamp(0, 1).permute(0, 2, 3, 1), theirs) < 1e-4


def test_images_of_the_ddpm_pipeline_equal_ours(tmp_path):
    """With times down to 0, as in the pipeline, the images are equal.

    The grid of the 2021 release ends at 1e-3. The number of steps is 33, so that times are exact in
    binary, because this grid computes the step number by truncation.
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
    assert np.mean((theirs > 0) & (theirs < 1)) > 0.02
    assert relative_error(ours.clamp(0, 1).permute(0, 2, 3, 1), theirs) < 1e-4


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
            'attn_groups=0: .* around attention must have 32 groups',
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
def test_networks_of_2021_that_diffusers_can_express(module):
    """Names and shapes equal those of the network that diffusers creates from our config."""
    config = load_config(module)
    assert diffusers_format.unfit(config) == []
    family = diffusers_format.family_of(config)
    with torch.device('meta'):
        ours = mutils.get_model(config.model.name)(config)
        theirs = diffusers.UNet2DModel.from_config(family.unet_config(config))
    names, spare = family.table(ours), family.spare(ours)
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
