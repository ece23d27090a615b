"""Networks: image sizes, dtypes, noise levels, blocks."""

import math

import numpy as np
import pytest
import torch

import sampling
from conftest import load_config
from models import layers, layerspp
from models import utils as mutils
from sde_lib import VESDE, VPSDE

UNETS = ('ddpm', 'ddpmpp', 'ncsnpp')
REFINENETS = ('ncsn', 'ncsnv2', 'ncsnv2_64', 'ncsnv2_128', 'ncsnv2_256')
NETWORKS = UNETS + REFINENETS
CLASSIFIERS = ('wideresnet',)  # they have separate tests
MODULES = {
    'ddpm': 'configs.vp.ddpm.cifar10',
    'ddpmpp': 'configs.vp.cifar10_ddpmpp_continuous',
    'ncsnpp': 'configs.ve.cifar10_ncsnpp_continuous',
    'ncsn': 'configs.ve.ncsn.cifar10',
}
TINY = dict(
    nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.0, init_scale=0.7
)


def tiny_config(name, data=(), module=None, **model):
    """Return a small version of a network's published config: two resolutions, 8 pixels."""
    settings = dict(nf=8) if name in REFINENETS else TINY | (dict(nf=32) if name == 'ddpm' else {})
    size = 16 if name in REFINENETS else 8
    return load_config(
        module or MODULES.get(name, 'configs.ve.ncsnv2.cifar10'),
        dict(image_size=size) | dict(data),
        **settings | dict(name=name) | model,
    )


def build(config):
    """Return the network in evaluation mode, with noise added to its initial weights.

    Without this, the last layers of most networks are nearly zero.
    """
    network = mutils.get_model(config.model.name)(config).eval()
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    return network


def labels_for(name, n, dtype=torch.float32):
    """Return n labels that the network accepts: times, noise levels or indices."""
    return torch.arange(n) + 1 if name in REFINENETS else torch.arange(1, n + 1, dtype=dtype)


def test_every_registered_network_is_tested_here():
    mutils.get_model('ncsnpp')
    published = [
        name
        for name in mutils.MODELS.names()
        if mutils.MODELS.get(name).__module__.startswith('models.')
    ]
    assert sorted(NETWORKS + CLASSIFIERS) == published


# Sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [(8, 8), (16, 16), (8, 12), (20, 8)], ids=str)
@pytest.mark.parametrize('name', NETWORKS)
def test_other_sizes(name, size, channels):
    """Networks accept other image sizes than the size in the config, also images not square."""
    if name in REFINENETS:
        # the deepest of these networks halve the size three times
        size = (2 * size[0], 2 * size[1])
    network = build(tiny_config(name, dict(num_channels=channels)))
    x = torch.rand(2, channels, *size)
    out = network(x, labels_for(name, 2))
    assert out.shape == x.shape
    assert out.isfinite().all() and out.std() > 0


@pytest.mark.parametrize('name', UNETS)
@pytest.mark.parametrize('size', [(8, 10), (6, 8), (7, 7)], ids=str)
def test_sizes_that_cannot_be_halved_raise_an_error(name, size):
    network = build(tiny_config(name, ch_mult=(1, 1, 1)))
    with pytest.raises(ValueError, match='multiples of 4') as error:
        network(torch.rand(2, 3, *size), labels_for(name, 2))
    message = str(error.value)
    assert str((2, 3, *size)) in message and '\n' not in message


@pytest.mark.parametrize('name', UNETS)
def test_labels_of_another_shape_raise_an_error(name):
    network = build(tiny_config(name))
    for labels in (torch.ones(1), torch.ones(3), torch.ones(2, 1), torch.tensor(1.0)):
        with pytest.raises(ValueError, match='labels must have shape'):
            network(torch.rand(2, 3, 8, 8), labels)


@pytest.mark.parametrize('name', UNETS)
def test_unconditional(name):
    """A network without time conditioning has no embedding and gives the same output at all times.

    With time conditioning the output changes.
    """
    conditional, unconditional = (
        build(tiny_config(name, scale_by_sigma=False, conditional=conditional))
        for conditional in (True, False)
    )
    assert not any(isinstance(module, torch.nn.Linear) for module in unconditional.all_modules)
    x, early, late = torch.rand(2, 3, 8, 8), torch.tensor([1.0, 1.0]), torch.tensor([1.0, 30.0])
    torch.testing.assert_close(unconditional(x, early), unconditional(x, late))
    assert not torch.allclose(conditional(x, early), conditional(x, late), rtol=1e-3)

    unconditional(x, early).square().mean().backward()
    unused = [
        key for key, p in unconditional.named_parameters() if p.requires_grad and p.grad is None
    ]
    # as in the 2021 release, blocks may have an unused layer for the embedding
    assert all('.Dense_0.' in key for key in unused)


@pytest.mark.parametrize('name', UNETS)
def test_attention_remains_at_its_level_for_any_input_size(name):
    """Attention remains at the U-Net level that the config chooses, for any input size."""
    network = build(
        tiny_config(name, dict(image_size=16), attn_resolutions=(8,), ch_mult=(1, 1, 1))
    )
    seen = []
    for layer in network.modules():
        if isinstance(layer, layers.AttnBlock):
            layer.register_forward_pre_hook(
                lambda layer, inputs: seen.append(tuple(inputs[0].shape[2:]))
            )
    for size, middle, bottom in (
        ((16, 16), (8, 8), (4, 4)),
        ((32, 32), (16, 16), (8, 8)),
        ((8, 16), (4, 8), (2, 4)),
    ):
        seen.clear()
        network(torch.rand(1, 3, *size), torch.ones(1))
        assert seen == [middle, bottom, middle]  # on the way down, at the bottom, on the way up


def test_data_of_either_scaling_give_the_same_output():
    """Networks map data in [0, 1] to [-1, 1], unless the data are already in this range."""
    x = torch.rand(2, 3, 16, 16)
    for name in NETWORKS:
        inside, outside = (
            build(tiny_config(name, dict(centered=centered))) for centered in (False, True)
        )
        outside.load_state_dict(inside.state_dict())
        torch.testing.assert_close(
            inside(x, labels_for(name, 2)), outside(2 * x - 1, labels_for(name, 2)), msg=name
        )


# Dtypes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', NETWORKS)
def test_float64_throughout(name):
    """Input, output and all values between are float64: derivatives are exact to eight digits."""
    network = build(tiny_config(name, dict(num_channels=1))).double()
    size = 16 if name in REFINENETS else 8
    x = torch.rand(1, 1, size, size, dtype=torch.float64).requires_grad_()
    labels = labels_for(name, 1, torch.float64)
    assert network(x, labels).dtype == torch.float64
    weights = torch.randn(1, 1, size, size, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: (network(x, labels) * weights).sum(),
        x,
        eps=1e-6,
        atol=1e-7,
        rtol=1e-5,
        fast_mode=True,
    )


@pytest.mark.parametrize(
    'labels',
    [torch.tensor([1, 2]), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0], dtype=torch.float64)],
    ids=lambda labels: str(labels.dtype),
)
@pytest.mark.parametrize(
    'name, module',
    [(name, None) for name in NETWORKS]
    + [('ncsnpp', 'configs.ve.cifar10_ncsnpp'), ('ddpm', 'configs.ve.cifar10_ddpm')],
)
def test_float32_throughout(name, module, labels):
    """The output has the dtype of the image for labels of any dtype.

    Tables and times in float64 do not change it.
    """
    network = build(tiny_config(name, module=module))
    assert {buffer.dtype for buffer in network.buffers()} <= {torch.float32}
    assert network(torch.rand(2, 3, 16, 16), labels).dtype == torch.float32


# Noise levels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, module',
    [
        ('ncsnpp', 'configs.ve.cifar10_ncsnpp'),
        ('ddpm', 'configs.ve.cifar10_ddpm'),
        ('ncsnv2_64', None),
    ],
)
def test_discrete_labels_are_indices_from_the_largest_sigma_down(name, module):
    config = tiny_config(name, module=module, scale_by_sigma=True)
    network, model = build(config), config.model
    x, n = torch.rand(4, 3, 16, 16), model.num_scales
    labels = torch.tensor([0, 1, n // 2, n - 1])
    scaled = network(x, labels)
    network.scale_by_sigma = False
    sigma = model.sigma_max * (model.sigma_min / model.sigma_max) ** (labels.double() / (n - 1))
    torch.testing.assert_close(
        scaled * sigma.float()[:, None, None, None], network(x, labels), rtol=1e-5, atol=1e-6
    )


def test_continuous_labels_are_sigma():
    network = build(tiny_config('ncsnpp'))
    x, sigma = torch.rand(4, 3, 8, 8), torch.tensor([0.01, 0.3, 1.0, 50.0])
    scaled = network(x, sigma)
    network.scale_by_sigma = False
    torch.testing.assert_close(scaled * sigma[:, None, None, None], network(x, sigma))


def recorded_labels(network):
    """Return a list to which every call of the network appends its labels."""
    labels = []
    network.register_forward_pre_hook(lambda network, inputs: labels.append(inputs[1]))
    return labels


@pytest.mark.parametrize('steps', [10, 100, 2000])
@pytest.mark.parametrize(
    'name, module, levels',
    [
        ('ncsnpp', 'configs.ve.cifar10_ncsnpp', 1000),
        ('ddpm', 'configs.ve.cifar10_ddpm', 1000),
        ('ncsnv2_64', None, 1000),
        ('ncsn', None, 1000),
        ('ncsn', None, 10),
    ],
)
def test_a_discrete_network_gets_the_index_of_the_nearest_noise_level(name, module, levels, steps):
    """The label is the index of the network's noise level nearest to sigma(t).

    This holds at every time of an SDE with more or fewer steps than the network has noise levels.
    """
    config = tiny_config(name, module=module, num_scales=levels, sigma_min=0.01, sigma_max=50.0)
    model, sde = mutils.create_model(config), VESDE(0.01, 50.0, N=steps)
    seen = recorded_labels(model)
    t = torch.linspace(1, 1e-5, steps)
    score_fn = mutils.get_score_fn(sde, model, continuous=False)
    with torch.no_grad():
        for part in t.split(500):
            score_fn(
                torch.zeros(len(part), 3, 16, 16)[..., :8, :8]
                if name in UNETS
                else torch.zeros(len(part), 3, 8, 8),
                part,
            )
    labels = torch.cat(seen)
    assert not labels.is_floating_point() and labels.min() >= 0 and labels.max() < levels
    log_ratio = (
        torch.tensor(mutils.get_sigmas(config))[labels].log()
        - sde.marginal_prob(t, t)[1].double().log()
    )
    # the tolerance is half the distance between two noise levels
    assert log_ratio.abs().max() < 0.501 * math.log(5000) / (levels - 1)


@pytest.mark.parametrize('steps', [100, 2000])
def test_a_discrete_vp_network_gets_a_position_in_its_chain(steps):
    """The label is a position in the network's chain of 1000 steps.

    The score is minus the output, divided by the std of this chain at the label.
    """
    config = tiny_config('ddpm', num_scales=1000)
    model, sde = mutils.create_model(config), VPSDE(N=steps)
    seen, outputs = recorded_labels(model), []
    model.register_forward_hook(lambda model, inputs, output: outputs.append(output))
    t = torch.linspace(1, 1e-3, 200)
    with torch.no_grad():
        score = mutils.get_score_fn(sde, model, continuous=False)(torch.zeros(200, 3, 4, 4), t)
    labels = torch.cat(seen)
    torch.testing.assert_close(labels, 999 * t)
    std = torch.tensor(mutils.get_ddpm_params(config)['sqrt_1m_alphas_cumprod'])[
        labels.long()
    ].float()
    torch.testing.assert_close(score, -outputs[0] / std[:, None, None, None], rtol=1e-4, atol=0)


@pytest.mark.parametrize('name', ['ncsnpp', 'ncsn'])
@pytest.mark.parametrize('steps', [5, 30])
def test_sampling_a_discrete_network_with_another_number_of_steps(name, steps):
    module = 'configs.ve.cifar10_ncsnpp' if name == 'ncsnpp' else None
    config = tiny_config(name, module=module, num_scales=10)
    model, sde = (
        mutils.create_model(config),
        VESDE(config.model.sigma_min, config.model.sigma_max, N=steps),
    )
    seen = recorded_labels(model)
    sampler = sampling.get_pc_sampler(
        sde,
        (2, 3, 8, 8),
        sampling.ReverseDiffusionPredictor,
        sampling.LangevinCorrector,
        lambda x: x,
        0.16,
        continuous=False,
        eps=1e-5,
        device='cpu',
    )
    samples, nfe = sampler(model)
    assert samples.isfinite().all() and nfe == 2 * steps == len(seen)
    assert seen[0].tolist() == [0, 0] and seen[-1].tolist() == [9, 9]


# Blocks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('dimension', [8, 9])
def test_timestep_embedding(dimension):
    """Sines, then cosines, have frequencies from 1 to 1/10000; an odd dimension ends with zero."""
    t = torch.tensor([0.0, 1.0, 37.5])
    embedding = layers.get_timestep_embedding(t, dimension)
    expected = np.zeros((3, dimension))
    for i, frequency in enumerate(10000 ** -np.linspace(0, 1, 4)):
        expected[:, i], expected[:, 4 + i] = (
            np.sin(t.numpy() * frequency),
            np.cos(t.numpy() * frequency),
        )
    np.testing.assert_allclose(embedding, expected, atol=1e-5)
    with pytest.raises(ValueError, match='shape'):
        layers.get_timestep_embedding(t[:, None], dimension)


def test_attention_is_its_formula():
    """Attention adds the projection of softmax(q k / sqrt(C)) v over all pixels to its input."""
    block = layers.AttnBlock(32, init_scale=1.0).double()
    x = torch.randn(2, 32, 3, 4, dtype=torch.float64)
    h = torch.nn.functional.group_norm(
        x, 32, block.GroupNorm_0.weight, block.GroupNorm_0.bias, 1e-6
    )
    q, k, v = (
        torch.einsum('bchw,cd->bhwd', h, nin.W) + nin.b
        for nin in (block.NIN_0, block.NIN_1, block.NIN_2)
    )
    weights = (
        (torch.einsum('bhwc,bijc->bhwij', q, k) / math.sqrt(32))
        .flatten(3)
        .softmax(-1)
        .reshape(2, 3, 4, 3, 4)
    )
    h = torch.einsum('bhwij,bijc->bhwc', weights, v)
    h = (h @ block.NIN_3.W + block.NIN_3.b).permute(0, 3, 1, 2)
    torch.testing.assert_close(block(x), x + h)


def test_combine_with_an_unknown_method_raises_an_error():
    with pytest.raises(ValueError, match="'product'"):
        layerspp.Combine(3, 8, 'product')
