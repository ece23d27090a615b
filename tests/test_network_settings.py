"""Settings of networks: all combinations for NCSN++, and errors for invalid values."""

import itertools

import pytest
import torch

from models import ncsnv2
from models import utils as mutils
from test_networks import NETWORKS, build, labels_for, tiny_config

OPTIONS = dict(
    resblock_type=('biggan', 'ddpm'),
    progressive=('none', 'output_skip', 'residual'),
    progressive_input=('none', 'input_skip', 'residual'),
    progressive_combine=('sum', 'cat'),
    fir=(False, True),
    skip_rescale=(False, True),
    resamp_with_conv=(False, True),
)


def _repeats_another(settings) -> bool:
    """Whether the settings give the same network as others, because an option has no effect.

    `progressive_combine` is only used by input skips; `resamp_with_conv` is not used by BigGAN
    blocks, which have no resampling layer.
    """
    combines = settings['progressive_input'] == 'input_skip'
    resamples = settings['resblock_type'] == 'ddpm'
    return (not combines and settings['progressive_combine'] == 'cat') or (
        not resamples and settings['resamp_with_conv']
    )


COMBINATIONS = [
    settings
    for values in itertools.product(*OPTIONS.values())
    if not _repeats_another(settings := dict(zip(OPTIONS, values)))
]


def _combination_id(settings):
    return '-'.join(
        value if isinstance(value, str) else key if value else f'no_{key}'
        for key, value in settings.items()
    )


@pytest.mark.parametrize('settings', COMBINATIONS, ids=_combination_id)
def test_every_combination_trains(settings):
    """Every parameter gets a gradient.

    The three resolutions have different widths, so a block in the wrong place would raise an error.
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
    """Every setting changes the parameters or, with the same parameters, the output."""
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
def test_invalid_values_raise_an_error(name, key, value):
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
    """Each refinement joins the output of one stage and the output of the previous refinement.

    The order is that of the original networks.
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
