"""The classifier of noisy images: logits, gradients, sizes, errors."""

import math

import pytest
import torch

from conftest import load_config
from models import utils as mutils
from test_network_classes import CLASSES
from test_networks import build

EMBEDDINGS = {
    'positional': 'configs.vp.digits_wideresnet',
    'fourier': 'configs.ve.cifar10_wideresnet',
}


def classifier(embedding='positional', data=(), **model):
    """Return a small wide residual network in evaluation mode, with changed initial weights."""
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
def test_a_classifier_returns_logits(embedding, channels, size, n):
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
def test_logits_depend_only_on_the_image_and_its_noise_level(embedding):
    """The logits of an image depend only on the image and its time label, not on the batch.

    In training mode they also depend on dropout.
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


def test_a_classifier_depends_on_the_logarithm_of_sigma():
    """Logits depend on log sigma.

    With integer frequencies, sigma and e sigma give the same logits; other ratios do not.
    """
    network, x, sigma = (
        classifier('fourier', dict(num_channels=1)),
        torch.rand(3, 1, 8, 8),
        torch.tensor([0.01, 1.0, 18.0]),
    )
    network.fourier.W.data.round_()
    logits = network(x, sigma)
    # log sigma times 16 times 2 pi, in float32
    torch.testing.assert_close(network(x, math.e * sigma), logits, rtol=0, atol=1e-3)
    assert (network(x, 1.5 * sigma) - logits).abs().amax(1).min() > 1e-2


@pytest.mark.parametrize('embedding', EMBEDDINGS)
def test_gradients_of_a_classifier_equal_finite_differences(embedding):
    """Every parameter gets a gradient; the gradient of the image equals finite differences."""
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


def test_data_of_either_scaling_give_the_same_logits():
    inside, outside = (
        classifier(data=dict(centered=centered, num_channels=3)) for centered in (False, True)
    )
    outside.load_state_dict(inside.state_dict())
    x, labels = torch.rand(2, 3, 8, 8), torch.tensor([1.0, 30.0])
    torch.testing.assert_close(inside(x, labels), outside(2 * x - 1, labels))


def test_the_first_block_of_every_level_but_the_first_halves_the_size():
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
def test_the_classifier_of_the_paper_is_a_wide_resnet_28_10(module):
    """It has 28 convolutions and 36,479,194 parameters, as in Zagoruyko & Komodakis 2016 (36.5M).

    The number in their Table 4 does not include the time embedding and the biases of the
    convolutions, which their network does not have.
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
def test_invalid_settings_of_a_classifier_raise_an_error(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        classifier(**changes)
    assert '\n' not in str(error.value)


def test_a_classifier_uses_continuous_time():
    config = load_config(EMBEDDINGS['positional'])
    config.training.continuous = False
    with pytest.raises(
        ValueError, match='config.training.continuous must be True for wideresnet, got False'
    ) as error:
        build(config)
    assert '\n' not in str(error.value)
