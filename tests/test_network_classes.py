"""Class-conditional U-Nets: the table of classes, label dropout, and errors for invalid classes."""

import math

import pytest
import torch

from models import utils as mutils
from test_networks import REFINENETS, UNETS, build, labels_for, tiny_config

CLASSES = 5


def with_and_without_classes(name):
    """Return a class-conditional U-Net, and an unconditional one with the same weights.

    The unconditional network lacks the table of classes.
    """
    conditional, unconditional = (
        build(tiny_config(name, num_classes=CLASSES)),
        build(tiny_config(name)),
    )
    unconditional.load_state_dict(
        {
            key: value
            for key, value in conditional.state_dict().items()
            if key != 'label_embedding.weight'
        }
    )
    return conditional, unconditional


@pytest.mark.parametrize('name', UNETS)
def test_the_table_of_classes_is_the_last_parameter(name):
    """Names, order and initial values (from the same seed) of the other parameters do not change.

    Checkpoints and results therefore remain valid.
    """
    networks = []
    for classes in (0, CLASSES):
        torch.manual_seed(0)
        networks.append(mutils.get_model(name)(tiny_config(name, num_classes=classes)))
    unconditional, conditional = (network.state_dict() for network in networks)
    assert [*conditional] == [*unconditional, 'label_embedding.weight'] and all(
        torch.equal(conditional[key], unconditional[key]) for key in unconditional
    )
    unconditional, conditional = (
        [key for key, _ in network.named_parameters()] for network in networks
    )
    assert conditional == [*unconditional, 'label_embedding.weight']
    assert networks[1].label_embedding.weight.shape == (CLASSES + 1, 4 * networks[1].nf)


@pytest.mark.parametrize('name', UNETS)
def test_a_class_adds_its_row_to_the_embedding_of_the_time(name):
    """A table of zeros gives the unconditional network; with equal rows, all classes are equal.

    The last row is used for `classes=None`.
    """
    conditional, unconditional = with_and_without_classes(name)
    table, x, labels = (
        conditional.label_embedding.weight.detach(),
        torch.rand(3, 3, 8, 8),
        labels_for(name, 3),
    )
    classes = torch.tensor([0, 3, CLASSES - 1])

    def row(k):
        conditional.label_embedding.weight.data = table[k].expand(table.shape).clone()
        return conditional(x, labels)

    own = conditional(x, labels)
    of_class = [conditional(x, labels, classes=torch.full((3,), k)) for k in range(CLASSES + 1)]
    assert torch.equal(own, of_class[-1])
    for k in range(CLASSES + 1):
        torch.testing.assert_close(row(k), of_class[k])
        assert torch.equal(conditional(x, labels, classes), conditional(x, labels))
        # 1e-3 is a hundred times the rounding errors of sums
        assert k == CLASSES or not torch.allclose(of_class[k], own, atol=1e-3)
    conditional.label_embedding.weight.data = torch.zeros_like(table)
    torch.testing.assert_close(conditional(x, labels, classes), unconditional(x, labels))


@pytest.mark.parametrize('name', UNETS)
def test_an_output_depends_only_on_the_class_of_its_image(name):
    """A batch with several classes gives the same outputs as its images one by one.

    The class of an image affects only its own output.
    """
    network, x, labels = (
        with_and_without_classes(name)[0],
        torch.rand(4, 3, 8, 8),
        labels_for(name, 4),
    )
    classes = torch.tensor([2, 0, 4, 2])
    out = network(x, labels, classes)
    torch.testing.assert_close(
        out,
        torch.cat([network(x[i : i + 1], labels[i : i + 1], classes[i : i + 1]) for i in range(4)]),
    )
    other = network(x, labels, torch.tensor([2, 1, 4, 2]))
    changed = (other - out).abs().amax((1, 2, 3))
    # 1e-5 is for rounding errors of sums; the change is a hundred times larger
    assert changed[1] > 1e-3 and changed[[0, 2, 3]].max() < 1e-5
    assert torch.equal(network(x, labels, classes.int()), out)


@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('name', UNETS)
def test_label_dropout_hides_the_class_of_a_fraction_of_images(name, share):
    """Each output is that of the class or, with frequency `share`, that of `classes=None`.

    The frequency is tested up to four standard deviations of the mean of n draws. Outside of
    training no class is hidden.
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
    """Rows of classes in the batch get a gradient; if the class is hidden, the last row gets it."""
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
    """Derivatives agree with finite differences, so no intermediate value is float32."""
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
def test_invalid_classes_raise_an_error(name):
    conditional, unconditional = with_and_without_classes(name)
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
            conditional(x, labels, classes)
        assert str(tuple(classes.shape)) in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(ValueError, match=r'built without classes \(num_classes=0\)') as error:
        unconditional(x, labels, torch.ones(2).long())
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', REFINENETS)
def test_networks_without_support_for_classes_raise_an_error(name):
    with pytest.raises(
        ValueError, match=f'config.model.num_classes must be 0 for {name}.*, got 5'
    ) as error:
        mutils.get_model(name)(tiny_config(name, num_classes=5))
    assert 'U-Net' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('name', UNETS)
def test_classes_need_a_network_conditioned_on_the_time(name):
    with pytest.raises(
        ValueError, match=f'config.model.conditional must be True for {name}, got False'
    ) as error:
        mutils.get_model(name)(
            tiny_config(name, num_classes=5, conditional=False, scale_by_sigma=False)
        )
    assert '\n' not in str(error.value)
