"""Networks: what they accept and refuse, every combination of their settings, dtypes, noise levels,
classes; the classifier; the moving average of the weights.
"""

import itertools
import math

import numpy as np
import pytest
import torch

import sampling
from conftest import load_config
from models import layers, layerspp, ncsnv2
from models import utils as mutils
from models.ema import ExponentialMovingAverage
from sde_lib import VESDE, VPSDE

UNETS = ('ddpm', 'ddpmpp', 'ncsnpp')
REFINENETS = ('ncsn', 'ncsnv2', 'ncsnv2_64', 'ncsnv2_128', 'ncsnv2_256')
NETWORKS = UNETS + REFINENETS
CLASSIFIERS = ('wideresnet',)  # with tests of their own
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
    """The published settings of a network, small: two resolutions, 8 pixels."""
    settings = dict(nf=8) if name in REFINENETS else TINY | (dict(nf=32) if name == 'ddpm' else {})
    size = 16 if name in REFINENETS else 8
    return load_config(
        module or MODULES.get(name, 'configs.ve.ncsnv2.cifar10'),
        dict(image_size=size) | dict(data),
        **settings | dict(name=name) | model,
    )


def build(config):
    """The network in evaluation mode, its weights moved away from their start, where the last
    layers of most networks are nearly zero.
    """
    network = mutils.get_model(config.model.name)(config).eval()
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    return network


def labels_for(name, n, dtype=torch.float32):
    """Times, noise levels or indices that every network understands."""
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
    """Convolutions do not mind the size they were built for, nor that images be square."""
    if name in REFINENETS:
        # the deepest of them halve the size three times, and need some pixels left
        size = (2 * size[0], 2 * size[1])
    network = build(tiny_config(name, dict(num_channels=channels)))
    x = torch.rand(2, channels, *size)
    out = network(x, labels_for(name, 2))
    assert out.shape == x.shape
    assert out.isfinite().all() and out.std() > 0


@pytest.mark.parametrize('name', UNETS)
@pytest.mark.parametrize('size', [(8, 10), (6, 8), (7, 7)], ids=str)
def test_sizes_that_do_not_halve_are_refused(name, size):
    network = build(tiny_config(name, ch_mult=(1, 1, 1)))
    with pytest.raises(ValueError, match='multiples of 4') as error:
        network(torch.rand(2, 3, *size), labels_for(name, 2))
    message = str(error.value)
    assert str((2, 3, *size)) in message and '\n' not in message


@pytest.mark.parametrize('name', UNETS)
def test_labels_of_another_shape_are_refused(name):
    network = build(tiny_config(name))
    for labels in (torch.ones(1), torch.ones(3), torch.ones(2, 1), torch.tensor(1.0)):
        with pytest.raises(ValueError, match='labels must have shape'):
            network(torch.rand(2, 3, 8, 8), labels)


@pytest.mark.parametrize('name', UNETS)
def test_unconditional(name):
    """A network that is not told the time embeds no labels and answers the same at all times; told
    the time, it does not.
    """
    told, untold = (
        build(tiny_config(name, scale_by_sigma=False, conditional=conditional))
        for conditional in (True, False)
    )
    assert not any(isinstance(module, torch.nn.Linear) for module in untold.all_modules)
    x, early, late = torch.rand(2, 3, 8, 8), torch.tensor([1.0, 1.0]), torch.tensor([1.0, 30.0])
    torch.testing.assert_close(untold(x, early), untold(x, late))
    assert not torch.allclose(told(x, early), told(x, late), rtol=1e-3)

    untold(x, early).square().mean().backward()
    unused = [key for key, p in untold.named_parameters() if p.requires_grad and p.grad is None]
    # blocks may keep, as published, the layer that would take the embedding
    assert all('.Dense_0.' in key for key in unused)


@pytest.mark.parametrize('name', UNETS)
def test_attention_stays_where_it_was_built(name):
    """At the level that has 8 pixels at the size of the config, whatever the size of an input."""
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


def test_networks_see_data_of_either_scaling_alike():
    """Data in [0, 1] are brought to [-1, 1] inside, unless the config says that they are there."""
    x = torch.rand(2, 3, 16, 16)
    for name in NETWORKS:
        inside, outside = (
            build(tiny_config(name, dict(centered=centered))) for centered in (False, True)
        )
        outside.load_state_dict(inside.state_dict())
        torch.testing.assert_close(
            inside(x, labels_for(name, 2)), outside(2 * x - 1, labels_for(name, 2)), msg=name
        )


# Settings of NCSN++ -------------------------------------------------------------------------------


COMBINATIONS = [
    dict(
        zip(
            (
                'resblock_type',
                'progressive',
                'progressive_input',
                'progressive_combine',
                'fir',
                'skip_rescale',
                'resamp_with_conv',
            ),
            values,
        )
    )
    for values in itertools.product(
        ('biggan', 'ddpm'),
        ('none', 'output_skip', 'residual'),
        ('none', 'input_skip', 'residual'),
        ('sum', 'cat'),
        *[(False, True)] * 3,
    )
]


def _combination_id(settings):
    return '-'.join(
        value if isinstance(value, str) else key if value else f'no_{key}'
        for key, value in settings.items()
    )


@pytest.mark.parametrize('settings', COMBINATIONS, ids=_combination_id)
def test_every_combination_trains(settings):
    """Three widths, so that a block in the wrong place would not fit; a gradient reaches every
    parameter.
    """
    network = build(tiny_config('ncsnpp', ch_mult=(1, 2, 3), **settings)).train()
    x = torch.rand(2, 3, 8, 8)
    out = network(x, torch.tensor([0.3, 5.0]))
    assert out.shape == x.shape and out.dtype == x.dtype
    out.square().mean().backward()
    gradients = {key: p.grad for key, p in network.named_parameters() if p.requires_grad}
    assert [key for key, gradient in gradients.items() if gradient is None] == []
    assert [key for key, gradient in gradients.items() if not gradient.isfinite().all()] == []
    assert [
        key
        for key, gradient in gradients.items()
        if key.endswith(('.weight', '.W')) and not gradient.any()
    ] == []


def test_settings_change_the_network():
    """No setting is without effect, wherever it is defined: each gives other parameters or, with
    the same ones, another output.
    """
    x, labels = torch.rand(2, 3, 8, 8), torch.tensor([0.3, 5.0])
    base = dict(
        resblock_type='biggan',
        progressive='none',
        progressive_input='input_skip',
        progressive_combine='sum',
        fir=True,
        skip_rescale=True,
    )
    reference = build(tiny_config('ncsnpp', **base))
    for change in (
        dict(resblock_type='ddpm'),
        dict(progressive='output_skip'),
        dict(progressive='residual'),
        dict(progressive_input='none'),
        dict(progressive_input='residual'),
        dict(progressive_combine='cat'),
        dict(fir=False),
        dict(skip_rescale=False),
        dict(nonlinearity='elu'),
        dict(fir_kernel=(1, 2, 2, 1)),
    ):
        other = build(tiny_config('ncsnpp', **base | change))
        shapes = [
            {key: v.shape for key, v in network.state_dict().items()}
            for network in (reference, other)
        ]
        if shapes[0] == shapes[1]:
            other.load_state_dict(reference.state_dict())
            assert not torch.allclose(other(x, labels), reference(x, labels), atol=1e-4), change


@pytest.mark.parametrize(
    'name, key, value',
    [
        ('ncsnpp', 'conv_size', 5),
        ('ncsnpp', 'attention_type', 'x'),
        ('ncsnpp', 'normalization', 'BatchNorm'),
        ('ddpmpp', 'conv_size', 5),
        ('ddpmpp', 'attention_type', 'x'),
        ('ddpmpp', 'normalization', 'BatchNorm'),
        ('ddpm', 'normalization', 'BatchNorm'),
        ('ncsn', 'normalization', 'BatchNorm'),
        ('ncsnv2_64', 'normalization', 'BatchNorm'),
        ('ncsnpp', 'resblock_type', 'x'),
        ('ncsnpp', 'embedding_type', 'x'),
        ('ncsnpp', 'progressive', 'x'),
        ('ncsnpp', 'progressive_input', 'x'),
        ('ncsnpp', 'progressive_combine', 'x'),
        ('ncsnpp', 'nonlinearity', 'x'),
        ('ncsn', 'scale_by_sigma', True),
    ],
)
def test_values_without_a_meaning_are_refused(name, key, value):
    config = tiny_config(name, **{key: value})
    with pytest.raises(ValueError, match=f'config.model.{key}') as error:
        build(config)
    assert repr(value) in str(error.value) and '\n' not in str(error.value)


def test_unknown_network():
    with pytest.raises(ValueError, match="'ncsnpq'") as error:
        mutils.get_model('ncsnpq')
    for name in NETWORKS:
        assert name in str(error.value)


@pytest.mark.parametrize(
    'size, expected',
    [
        (32, ncsnv2.NCSNv2),
        (64, ncsnv2.NCSNv2),
        (95, ncsnv2.NCSNv2),
        (96, ncsnv2.NCSNv2_128),
        (128, ncsnv2.NCSNv2_128),
        (129, ncsnv2.NCSNv2_256),
        (256, ncsnv2.NCSNv2_256),
    ],
)
def test_ncsnv2_by_image_size(size, expected):
    config = tiny_config('ncsnv2', dict(image_size=size))
    with torch.device('meta'):
        assert type(mutils.get_model('ncsnv2')(config)) is expected
        assert type(ncsnv2.get_network(config)()) is expected


@pytest.mark.parametrize(
    'name, pairs',
    [
        ('ncsn', 'res4-refine1 res3-refine2 res2-refine3 res1-refine4'),
        ('ncsnv2_64', 'res4-refine1 res3-refine2 res2-refine3 res1-refine4'),
        ('ncsnv2_128', 'res5-refine1 res4-refine2 res3-refine3 res2-refine4 res1-refine5'),
        (
            'ncsnv2_256',
            'res5-refine1 res4-refine2 res31-refine31 res3-refine3 res2-refine4 res1-refine5',
        ),
    ],
)
def test_refinements_join_the_stages_of_the_originals(name, pairs):
    """Each refinement takes the output of one stage and that of the refinement before it, in the
    order of the originals.
    """
    network, made, calls = build(tiny_config(name)), {}, []
    for stage in network.stages:
        getattr(network, stage.name)[-1].register_forward_hook(
            lambda _, inputs, output, name=stage.name: made.update({name: output})
        )
    for refinement, _ in network.refinements:
        getattr(network, refinement).register_forward_hook(
            lambda _, inputs, output, name=refinement: calls.append((name, inputs[0], output))
        )
    network(torch.rand(1, 3, 16, 16), labels_for(name, 1))
    found = [
        f'{stage}-{refinement}'
        for refinement, inputs, _ in calls
        for stage in made
        if inputs[0] is made[stage]
    ]
    assert found == pairs.split()
    assert all(inputs[1] is before for (_, inputs, _), (_, _, before) in zip(calls[1:], calls))


def test_ncsnv2_has_a_largest_image_size():
    with pytest.raises(
        ValueError, match='config.data.image_size must be at most 256 for NCSNv2, got 257'
    ):
        ncsnv2.get_network(tiny_config('ncsnv2', dict(image_size=257)))


# Dtypes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', NETWORKS)
def test_float64_throughout(name):
    """Float64 in, float64 out, and nothing of float32 on the way: finite differences see
    derivatives to eight digits.
    """
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
    """The output has the dtype of the image, whatever the labels are: tables and times of float64
    do not spill over.
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
    """A list to which every call of the network adds its labels."""
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
def test_a_discrete_network_meets_its_own_noise_levels(name, module, levels, steps):
    """With an SDE of more or fewer steps: at every time the network is told the level, of those it
    was built with, nearest to sigma(t).
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
    assert not labels.is_floating_point() and 0 <= labels.min() and labels.max() < levels
    log_ratio = (
        torch.tensor(mutils.get_sigmas(config))[labels].log()
        - sde.marginal_prob(t, t)[1].double().log()
    )
    # half the distance between two levels
    assert log_ratio.abs().max() < 0.501 * math.log(5000) / (levels - 1)


@pytest.mark.parametrize('steps', [100, 2000])
def test_a_discrete_vp_network_meets_its_own_noise_levels(steps):
    """The label is a place in the chain of 1000 steps, and minus the output is divided by the std
    of that chain there.
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


# Classes ------------------------------------------------------------------------------------------

CLASSES = 5


def told_and_untold(name):
    """A U-Net that knows classes, and one that does not, with the same weights beside the table of
    the classes.
    """
    told, untold = build(tiny_config(name, num_classes=CLASSES)), build(tiny_config(name))
    untold.load_state_dict(
        {key: value for key, value in told.state_dict().items() if key != 'label_embedding.weight'}
    )
    return told, untold


@pytest.mark.parametrize('name', UNETS)
def test_classes_add_a_table_behind_all_other_parameters(name):
    """Names, order and, from the same seed, initial values of the others stay, so that checkpoints
    and numbers do.
    """
    networks = []
    for classes in (0, CLASSES):
        torch.manual_seed(0)
        networks.append(mutils.get_model(name)(tiny_config(name, num_classes=classes)))
    untold, told = (network.state_dict() for network in networks)
    assert [*told] == [*untold, 'label_embedding.weight'] and all(
        torch.equal(told[key], untold[key]) for key in untold
    )
    untold, told = ([key for key, _ in network.named_parameters()] for network in networks)
    assert told == [*untold, 'label_embedding.weight']
    assert networks[1].label_embedding.weight.shape == (CLASSES + 1, 4 * networks[1].nf)


@pytest.mark.parametrize('name', UNETS)
def test_a_class_adds_its_row_to_the_embedding_of_the_time(name):
    """A table of zeros makes the network that knows no classes, rows alike make all classes alike,
    and the last row stands for None.
    """
    told, untold = told_and_untold(name)
    table, x, labels = (
        told.label_embedding.weight.detach(),
        torch.rand(3, 3, 8, 8),
        labels_for(name, 3),
    )
    classes = torch.tensor([0, 3, CLASSES - 1])

    def row(k):
        told.label_embedding.weight.data = table[k].expand(table.shape).clone()
        return told(x, labels)

    own = told(x, labels)
    of_class = [told(x, labels, classes=torch.full((3,), k)) for k in range(CLASSES + 1)]
    assert torch.equal(own, of_class[-1])
    for k in range(CLASSES + 1):
        torch.testing.assert_close(row(k), of_class[k])
        assert torch.equal(told(x, labels, classes), told(x, labels))
        # 1e-3: a hundred times what sums round
        assert k == CLASSES or not torch.allclose(of_class[k], own, atol=1e-3)
    told.label_embedding.weight.data = torch.zeros_like(table)
    torch.testing.assert_close(told(x, labels, classes), untold(x, labels))


@pytest.mark.parametrize('name', UNETS)
def test_the_class_of_an_image_is_its_own(name):
    """A batch of classes answers as the images do one at a time; another class of one image changes
    that one alone.
    """
    network, x, labels = told_and_untold(name)[0], torch.rand(4, 3, 8, 8), labels_for(name, 4)
    classes = torch.tensor([2, 0, 4, 2])
    out = network(x, labels, classes)
    torch.testing.assert_close(
        out,
        torch.cat([network(x[i : i + 1], labels[i : i + 1], classes[i : i + 1]) for i in range(4)]),
    )
    other = network(x, labels, torch.tensor([2, 1, 4, 2]))
    changed = (other - out).abs().amax((1, 2, 3))
    # what sums round, and a hundred times as much
    assert changed[1] > 1e-3 and changed[[0, 2, 3]].max() < 1e-5
    assert torch.equal(network(x, labels, classes.int()), out)


@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('name', UNETS)
def test_label_dropout_hides_the_class_of_a_share_of_images_in_training(name, share):
    """Each output is that of the class or that of None, the latter with the frequency `share`: 0.3
    to within four standard deviations of a mean of n draws. Outside of training none is hidden.
    """
    n, network = 500, build(tiny_config(name, num_classes=CLASSES, label_dropout=share))
    x, labels, classes = (
        torch.rand(1, 3, 4, 4).expand(n, -1, -1, -1),
        torch.ones(n),
        torch.full((n,), 2),
    )
    with torch.no_grad():
        assert torch.equal(network(x, labels, classes), network(x, labels, classes))
        of_class, of_none = network(x[:1], labels[:1], classes[:1]), network(x[:1], labels[:1])
        out = network.train()(x, labels, classes)
        torch.testing.assert_close(network(x[:2], labels[:2]), of_none.expand(2, -1, -1, -1))
    distances = torch.stack(
        [(out - answer).abs().amax((1, 2, 3)) for answer in (of_class, of_none)]
    )
    assert distances.amin(0).max() < 1e-5 < 1e-3 < distances.amax(0).min()
    assert abs(distances.argmin(0).float().mean() - share) <= 4 * math.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize('name', UNETS)
def test_a_gradient_reaches_the_rows_of_the_classes(name):
    """Of those in the batch, and of the last where the class is hidden."""
    network = build(tiny_config(name, num_classes=CLASSES, label_dropout=0.0)).train()

    def rows(classes):
        network.zero_grad()
        network(torch.rand(3, 3, 8, 8), labels_for(name, 3), classes).square().mean().backward()
        return network.label_embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()

    assert rows(torch.tensor([3, 1, 3])) == [1, 3]
    assert rows(None) == [CLASSES]
    network.label_dropout = 1.0
    assert rows(torch.tensor([3, 1, 3])) == [CLASSES]
    unreached = [key for key, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert unreached == []


def test_classes_in_float64():
    """Nothing of float32 on the way: finite differences agree."""
    network = build(tiny_config('ncsnpp', dict(num_channels=1), num_classes=CLASSES)).double()
    x, labels, classes = (
        torch.rand(1, 1, 8, 8, dtype=torch.float64).requires_grad_(),
        torch.ones(1, dtype=torch.float64),
        torch.tensor([1]),
    )
    assert network(x, labels, classes).dtype == torch.float64
    assert torch.autograd.gradcheck(
        lambda x: network(x, labels, classes).square().sum(),
        x,
        eps=1e-6,
        atol=1e-7,
        rtol=1e-5,
        fast_mode=True,
    )


@pytest.mark.parametrize('name', UNETS)
def test_classes_that_are_none_are_refused(name):
    told, untold = told_and_untold(name)
    x, labels = torch.rand(2, 3, 8, 8), labels_for(name, 2)
    for classes in (
        torch.ones(1).long(),
        torch.ones(3).long(),
        torch.ones(2, 1).long(),
        torch.tensor(1),
        torch.ones(2),
    ):
        with pytest.raises(
            ValueError,
            match=r'classes must be integers of shape \(batch,\) = '
            r'\(2,\), got',
        ) as error:
            told(x, labels, classes)
        assert str(tuple(classes.shape)) in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(ValueError, match=r'built without classes \(num_classes=0\)') as error:
        untold(x, labels, torch.ones(2).long())
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', REFINENETS)
def test_networks_that_cannot_be_told_classes_refuse_to_be_built(name):
    with pytest.raises(
        ValueError, match=f'config.model.num_classes must be 0 for {name}.*, got 5'
    ) as error:
        mutils.get_model(name)(tiny_config(name, num_classes=5))
    assert 'U-Net' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('name', UNETS)
def test_classes_need_a_network_that_is_told_the_time(name):
    with pytest.raises(
        ValueError, match=f'config.model.conditional must be True for {name}, got False'
    ) as error:
        mutils.get_model(name)(
            tiny_config(name, num_classes=5, conditional=False, scale_by_sigma=False)
        )
    assert '\n' not in str(error.value)


# The classifier -----------------------------------------------------------------------------------

EMBEDDINGS = {
    'positional': 'configs.vp.digits_wideresnet',
    'fourier': 'configs.ve.cifar10_wideresnet',
}


def classifier(embedding='positional', data=(), **model):
    """A small wide residual network, in evaluation mode, away from its start."""
    settings = dict(
        name='wideresnet', nf=8, widen=1, num_res_blocks=1, num_classes=CLASSES, dropout=0.5
    )
    return build(
        load_config(EMBEDDINGS[embedding], dict(image_size=8) | dict(data), **settings | model)
    )


@pytest.mark.parametrize('embedding', EMBEDDINGS)
@pytest.mark.parametrize(
    'channels, size, n', [(1, (8, 8), 1), (3, (8, 8), 3), (3, (16, 12), 5), (1, (4, 4), 2)]
)
def test_a_classifier_answers_logits(embedding, channels, size, n):
    network = classifier(embedding, dict(num_channels=channels))
    logits = network(torch.rand(n, channels, *size), torch.arange(1.0, n + 1))
    assert logits.shape == (n, CLASSES) and logits.dtype == torch.float32
    assert logits.isfinite().all() and logits.std() > 0
    assert (
        network.shape == (channels, 8, 8)
        and network.num_classes == CLASSES
        and network.is_classifier
    )


@pytest.mark.parametrize('embedding', EMBEDDINGS)
def test_a_classifier_judges_each_image_by_itself_and_by_its_noise(embedding):
    """The logits of an image depend on it and the label of its time, on nothing else in the batch;
    in training there is dropout.
    """
    network, x = classifier(embedding, dict(num_channels=3)), torch.rand(3, 3, 8, 8)
    labels = torch.tensor([0.3, 5.0, 40.0])
    logits = network(x, labels)
    assert torch.equal(network(x, labels), logits)
    torch.testing.assert_close(
        torch.cat([network(x[i : i + 1], labels[i : i + 1]) for i in range(3)]), logits
    )
    later = network(x, torch.tensor([0.3, 9.0, 40.0]))
    changed = (later - logits).abs().amax(1)
    assert changed[1] > 1e-3 and changed[[0, 2]].max() < 1e-5
    assert not torch.allclose(network.train()(x, labels), logits, atol=1e-3)


def test_a_classifier_is_told_the_logarithm_of_sigma():
    """With whole frequencies, the features are those of e times the noise; of another ratio they
    are others.
    """
    network, x, sigma = (
        classifier('fourier', dict(num_channels=1)),
        torch.rand(3, 1, 8, 8),
        torch.tensor([0.01, 1.0, 18.0]),
    )
    network.fourier.W.data.round_()
    logits = network(x, sigma)
    # log sigma times 16 and 2 pi, in float32
    torch.testing.assert_close(network(x, math.e * sigma), logits, rtol=0, atol=1e-3)
    assert (network(x, 1.5 * sigma) - logits).abs().amax(1).min() > 1e-2


@pytest.mark.parametrize('embedding', EMBEDDINGS)
def test_a_classifier_passes_its_gradient_on(embedding):
    """To every parameter, for training, and to the image, for guidance: that of finite differences,
    in float64.
    """
    network = classifier(embedding, dict(num_channels=1), dropout=0.0).double()
    x, labels = (
        torch.rand(2, 1, 8, 8, dtype=torch.float64).requires_grad_(),
        torch.tensor([1.0, 3.0], dtype=torch.float64),
    )
    network(x, labels).log_softmax(1)[:, 0].sum().backward()
    parameters = {key: p for key, p in network.named_parameters() if p.requires_grad}
    assert [
        key for key, p in parameters.items() if p.grad is None or not p.grad.isfinite().all()
    ] == []
    assert [
        key for key, p in parameters.items() if key.endswith('weight') and not p.grad.any()
    ] == []
    assert torch.autograd.gradcheck(
        lambda x: network(x, labels).log_softmax(1)[:, 0],
        x,
        eps=1e-6,
        atol=1e-7,
        rtol=1e-5,
        fast_mode=True,
    )


def test_a_classifier_sees_data_of_either_scaling_alike():
    inside, outside = (
        classifier(data=dict(centered=centered, num_channels=3)) for centered in (False, True)
    )
    outside.load_state_dict(inside.state_dict())
    x, labels = torch.rand(2, 3, 8, 8), torch.tensor([1.0, 30.0])
    torch.testing.assert_close(inside(x, labels), outside(2 * x - 1, labels))


def test_the_first_block_of_a_level_halves_the_size_but_at_the_first_level():
    network, seen = (
        classifier(
            data=dict(image_size=16, num_channels=1), ch_mult=(1, 2, 4), num_res_blocks=2, widen=3
        ),
        [],
    )
    for block in network.blocks:
        block.register_forward_hook(
            lambda block, inputs, output: seen.append(tuple(output.shape[1:]))
        )
    network(torch.rand(1, 1, 16, 16), torch.ones(1))
    assert seen == [(24, 16, 16)] * 2 + [(48, 8, 8)] * 2 + [(96, 4, 4)] * 2


@pytest.mark.parametrize(
    'module', ['configs.vp.cifar10_wideresnet', 'configs.ve.cifar10_wideresnet']
)
def test_the_published_classifier_is_a_wide_resnet_28_10(module):
    """28 convolutions and 36,479,194 parameters (Zagoruyko & Komodakis 2016, Table 4: 36.5M),
    beside those that tell it the time and the biases of the convolutions, which the original lacks.
    """
    with torch.device('meta'):
        network = mutils.get_model('wideresnet')(load_config(module))
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in network.modules()) == 28
    biases = {id(layer.bias) for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)}
    assert (
        sum(
            p.numel()
            for key, p in network.named_parameters()
            if id(p) not in biases
            and not key.startswith(('embedding.', 'fourier.'))
            and '.Dense_0.' not in key
        )
        == 36479194
    )


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(num_classes=0), 'config.model.num_classes must be >= 2'),
        (dict(num_classes=1), 'config.model.num_classes must be >= 2'),
        (dict(normalization='BatchNorm'), 'config.model.normalization'),
        (dict(embedding_type='x'), 'config.model.embedding_type'),
        (dict(nonlinearity='x'), 'config.model.nonlinearity'),
        (dict(nf=2), 'channels must be >= 4 for group normalization, got 2'),
    ],
)
def test_classifiers_without_a_meaning_are_refused(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        classifier(**changes)
    assert '\n' not in str(error.value)


def test_a_classifier_is_of_continuous_time():
    config = load_config(EMBEDDINGS['positional'])
    config.training.continuous = False
    with pytest.raises(
        ValueError, match='config.training.continuous must be True for wideresnet, got False'
    ) as error:
        build(config)
    assert '\n' not in str(error.value)


# Moving average of the weights --------------------------------------------------------------------


def two_layers():
    """Parameters of several shapes, one of which is not trained."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    network[0].bias.requires_grad_(False)
    return network


def values(parameters):
    return [p.detach().clone() for p in parameters]


@pytest.mark.parametrize('use_num_updates', [True, False])
def test_moving_average_is_its_formula(use_num_updates):
    network = two_layers().double()
    ema = ExponentialMovingAverage(network.parameters(), decay=0.9, use_num_updates=use_num_updates)
    trained = [p for p in network.parameters() if p.requires_grad]
    expected = [p.detach().numpy().copy() for p in trained]
    for n in range(1, 101):  # the warm-up of the decay, (1 + n)/(10 + n), ends at n = 80
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p))
        ema.update(network.parameters())
        decay = min(0.9, (1 + n) / (10 + n)) if use_num_updates else 0.9
        expected = [decay * s + (1 - decay) * p.detach().numpy() for s, p in zip(expected, trained)]
        for shadow, value in zip(ema.shadow_params, expected):
            np.testing.assert_allclose(shadow, value, rtol=1e-12, atol=1e-12)
    assert not any(shadow.requires_grad for shadow in ema.shadow_params)


def test_moving_average_has_the_order_of_the_trained_parameters():
    network = two_layers()
    ema = ExponentialMovingAverage(network.parameters(), decay=0.5)
    expected = [network[0].weight, network[1].weight, network[1].bias]
    assert len(ema.shadow_params) == 3
    assert all(torch.equal(shadow, p) for shadow, p in zip(ema.shadow_params, expected))
    with torch.no_grad():
        network[0].weight.zero_()
    assert ema.shadow_params[0].any()  # a copy, not the parameter itself


@pytest.mark.parametrize('method', ['update', 'copy_to'])
@pytest.mark.parametrize(
    'other',
    [
        lambda network: list(network.parameters())[:-1],
        lambda network: [*network.parameters(), network[0].weight],
        lambda network: reversed(list(network.parameters())),
    ],
    ids=['fewer', 'more', 'other order'],
)
def test_moving_average_refuses_other_parameters(method, other):
    network = two_layers()
    ema = ExponentialMovingAverage(network.parameters(), decay=0.5)
    before, own = values(ema.shadow_params), values(network.parameters())
    with pytest.raises(ValueError):
        getattr(ema, method)(other(network))
    assert all(map(torch.equal, ema.shadow_params, before)) and all(
        map(torch.equal, network.parameters(), own)
    )


def test_moving_average_lends_itself():
    """store, copy_to, restore: as evaluation does it in the middle of a training; the frozen
    parameter is nobody's business.
    """
    network = two_layers()
    ema = ExponentialMovingAverage(network.parameters(), decay=0.5)
    average = values(ema.shadow_params)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1)
    own = values(network.parameters())

    def lent():
        trained = [p for p in network.parameters() if p.requires_grad]
        return all(map(torch.equal, trained, average)) and torch.equal(network[0].bias, own[1])

    ema.store(network.parameters())
    ema.copy_to(network.parameters())
    assert lent()
    ema.restore(network.parameters())
    assert all(map(torch.equal, network.parameters(), own))

    with pytest.raises(RuntimeError, match='in the block'), ema.applied_to(network.parameters()):
        assert lent()
        raise RuntimeError('in the block')
    assert all(map(torch.equal, network.parameters(), own))


def test_moving_average_in_a_checkpoint():
    network = two_layers()
    ema = ExponentialMovingAverage(network.parameters(), decay=0.5)
    ema.update(network.parameters())
    assert ema.state_dict().keys() == {'decay', 'num_updates', 'shadow_params'}

    other_network = two_layers()
    other = ExponentialMovingAverage(other_network.parameters(), decay=0.999)
    other.load_state_dict(ema.state_dict())
    assert (other.decay, other.num_updates) == (0.5, 1)
    assert all(map(torch.equal, other.shadow_params, ema.shadow_params))
    kept = values(ema.shadow_params)
    other.update(other_network.parameters())
    assert all(map(torch.equal, ema.shadow_params, kept))  # what was loaded is a copy

    shorter = ema.state_dict() | dict(shadow_params=kept[:-1])
    reshaped = ema.state_dict() | dict(shadow_params=[kept[0].t(), *kept[1:]])
    before = values(other.shadow_params)
    for faulty in (shorter, reshaped):
        with pytest.raises(ValueError):
            other.load_state_dict(faulty)
        assert all(map(torch.equal, other.shadow_params, before)) and other.num_updates == 2


@pytest.mark.parametrize('decay', [-0.1, 1.1])
def test_moving_average_refuses_a_decay_outside_its_range(decay):
    with pytest.raises(ValueError, match='decay'):
        ExponentialMovingAverage(two_layers().parameters(), decay=decay)


# Blocks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('dimension', [8, 9])
def test_timestep_embedding(dimension):
    """Sines then cosines, at frequencies from 1 to 1/10000; an odd dimension ends with a zero."""
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
    """softmax(q k / sqrt(C)) v over all pixels, projected and added."""
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


def test_combine_refuses_an_unknown_method():
    with pytest.raises(ValueError, match="'product'"):
        layerspp.Combine(3, 8, 'product')
