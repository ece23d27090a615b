"""The exponential moving average of the weights."""

import numpy as np
import pytest
import torch

from models.ema import ExponentialMovingAverage


def two_layers():
    """Return a network with parameters of several shapes, one of which is not trained."""
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
def test_moving_average_of_other_parameters_raises_an_error(method, other):
    network = two_layers()
    ema = ExponentialMovingAverage(network.parameters(), decay=0.5)
    before, own = values(ema.shadow_params), values(network.parameters())
    with pytest.raises(ValueError):
        getattr(ema, method)(other(network))
    assert all(map(torch.equal, ema.shadow_params, before)) and all(
        map(torch.equal, network.parameters(), own)
    )


def test_store_copy_to_and_restore_exchange_the_weights():
    """store, copy_to and restore exchange the weights for an evaluation during training.

    The frozen parameter does not change.
    """
    network = two_layers()
    ema = ExponentialMovingAverage(network.parameters(), decay=0.5)
    average = values(ema.shadow_params)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1)
    own = values(network.parameters())

    def exchanged():
        trained = [p for p in network.parameters() if p.requires_grad]
        return all(map(torch.equal, trained, average)) and torch.equal(network[0].bias, own[1])

    ema.store(network.parameters())
    ema.copy_to(network.parameters())
    assert exchanged()
    ema.restore(network.parameters())
    assert all(map(torch.equal, network.parameters(), own))

    with pytest.raises(RuntimeError, match='in the block'), ema.applied_to(network.parameters()):
        assert exchanged()
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
    assert all(map(torch.equal, ema.shadow_params, kept))  # the loaded parameters are copies

    shorter = ema.state_dict() | dict(shadow_params=kept[:-1])
    reshaped = ema.state_dict() | dict(shadow_params=[kept[0].t(), *kept[1:]])
    before = values(other.shadow_params)
    for faulty in (shorter, reshaped):
        with pytest.raises(ValueError):
            other.load_state_dict(faulty)
        assert all(map(torch.equal, other.shadow_params, before)) and other.num_updates == 2


@pytest.mark.parametrize('decay', [-0.1, 1.1])
def test_a_decay_outside_its_range_raises_an_error(decay):
    with pytest.raises(ValueError, match='decay'):
        ExponentialMovingAverage(two_layers().parameters(), decay=decay)
