"""The training step: gradients, warm-up, clipping and averages; evaluation changes nothing."""

import copy
import math

import ml_collections
import numpy as np
import pytest
import torch
from torch import nn

from losses import (
    get_loss_fn,
    get_optimizer,
    get_step_fn,
    optimization_manager,
)
from models.ema import ExponentialMovingAverage
from sde_lib import VPSDE
from toy_networks import Toy, ToyOfClasses


def config(**optim):
    settings = dict(
        optimizer='Adam', lr=2e-2, beta1=0.9, eps=1e-8, weight_decay=0.0, warmup=0, grad_clip=-1.0
    )
    return ml_collections.ConfigDict(dict(optim=dict(settings, **optim)))


def new_state(settings, optimizer=None, decay=0.9):
    model = Toy()
    return dict(
        model=model,
        optimizer=optimizer(model) if optimizer else get_optimizer(settings, model.parameters()),
        ema=ExponentialMovingAverage(model.parameters(), decay=decay),
        step=0,
    )


def plain(lr=1.0):
    """Return plain gradient descent, whose update shows the gradient."""
    return lambda model: torch.optim.SGD(model.parameters(), lr=lr)


def parameters(state):
    return torch.cat([p.detach().reshape(-1).clone() for p in state['model'].parameters()])


def averages(state):
    return torch.cat([p.reshape(-1).clone() for p in state['ema'].shadow_params])


def train(settings, state, steps=1, batch=None, metrics=None):
    step_fn = get_step_fn(
        VPSDE(), train=True, optimize_fn=optimization_manager(settings), reduce_mean=True
    )
    for _ in range(steps):
        loss = step_fn(state, torch.ones(16, 2) if batch is None else batch, metrics)
    return loss


def test_a_step_follows_the_gradient():
    """A step leads to theta - lr grad, with the gradient of the loss computed by hand.

    The norm of the gradient is reported.
    """
    settings, metrics = config(lr=0.5), {}
    state = new_state(settings, plain())
    twin, before = copy.deepcopy(state['model']), parameters(state)
    torch.manual_seed(0)
    loss = train(settings, state, metrics=metrics)
    torch.manual_seed(0)
    expected = get_loss_fn(VPSDE(), train=True, reduce_mean=True)(twin, torch.ones(16, 2))
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(expected, twin.parameters())])
    assert torch.equal(loss, expected)
    # the tolerance of float32
    torch.testing.assert_close(parameters(state), before - 0.5 * gradient, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(metrics['grad_norm'], gradient.norm(), rtol=1e-6, atol=0)


def test_gradients_do_not_accumulate():
    """With a learning rate of 0, two steps with the same draws have the same gradient norm."""
    settings, norms = config(lr=0.0), []
    state = new_state(settings, plain())
    for _ in range(2):
        torch.manual_seed(0)
        metrics = {}
        train(settings, state, metrics=metrics)
        norms.append(metrics['grad_norm'])
    assert torch.equal(*norms)


def test_training_lowers_the_loss():
    settings = config()
    state, evaluate = new_state(settings), get_step_fn(VPSDE(), train=False, reduce_mean=True)

    def loss():
        torch.manual_seed(1)
        return evaluate(state, torch.ones(2000, 2))

    before = loss()
    torch.manual_seed(0)
    train(settings, state, steps=100)
    assert loss() < 0.5 * before  # at the start most of the loss is slope * label, up to 10


def test_the_step_is_counted():
    settings = config()
    state = new_state(settings)
    train(settings, state, steps=3)
    assert state['step'] == 3
    get_step_fn(VPSDE(), train=False)(state, torch.ones(4, 2))
    assert state['step'] == 3


def test_warm_up():
    """The learning rate is lr min(step / warmup, 1), a plain number that is 0 at the first step."""
    settings, rates = config(lr=0.4, warmup=4), []
    state = new_state(settings)
    start = parameters(state)
    for i in range(7):
        train(settings, state)
        rates.append(state['optimizer'].param_groups[0]['lr'])
        assert torch.equal(parameters(state), start) == (i == 0)
    assert all(type(rate) is float for rate in rates)
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-12)
    state = new_state(config(lr=0.4))  # without warm-up, the full rate from the start
    train(config(lr=0.4), state)
    assert state['optimizer'].param_groups[0]['lr'] == 0.4


@pytest.mark.parametrize('grad_clip', [-1.0, 0.01, 1e6])
def test_clipping(grad_clip):
    """The norm of an update is at most grad_clip; a negative value means no clipping.

    The reported norm is the norm before clipping.
    """
    settings, metrics = config(lr=1.0, grad_clip=grad_clip), {}
    state = new_state(settings, plain())
    before = parameters(state)
    train(settings, state, metrics=metrics)
    length, norm = (parameters(state) - before).norm(), metrics['grad_norm']
    assert norm > 0.1
    # float32, and clipping is accurate to 1e-4
    torch.testing.assert_close(
        length, torch.tensor(0.01) if grad_clip == 0.01 else norm, rtol=1e-3, atol=0
    )


def test_the_average_follows_the_parameters():
    """shadow <- d shadow + (1 - d) theta at step n, with d = min(decay, (1 + n) / (10 + n))."""
    settings = config(lr=0.1)
    state = new_state(settings, decay=0.3)
    shadow = parameters(state).double()
    for n in range(1, 6):
        train(settings, state)
        d = min(0.3, (1 + n) / (10 + n))
        shadow = d * shadow + (1 - d) * parameters(state).double()
    torch.testing.assert_close(averages(state).double(), shadow, rtol=1e-5, atol=1e-7)  # float32
    assert (averages(state) - parameters(state)).abs().max() > 1e-3


@pytest.mark.parametrize('value', [math.nan, math.inf, 1e30], ids=str)
@pytest.mark.parametrize('grad_clip', [-1.0, 1.0])
def test_a_gradient_that_is_not_finite_changes_nothing(value, grad_clip):
    """Parameters and Adam's moments are bit-identical; the average moves towards the parameters.

    The next good step is taken.
    """
    settings, metrics = config(grad_clip=grad_clip), {}
    state = new_state(settings)
    torch.manual_seed(0)
    train(settings, state, steps=3)
    before, expected = parameters(state), copy.deepcopy(state['ema'])
    expected.update(state['model'].parameters())
    moments = copy.deepcopy(state['optimizer'].state_dict()['state'])
    bad = get_step_fn(VPSDE(), train=True, optimize_fn=optimization_manager(settings))

    class Overflowing(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x, labels):
            return self.network(x, labels) * value

    bad(dict(state, model=Overflowing(state['model'])), torch.ones(4, 2), metrics)
    assert not torch.isfinite(metrics['grad_norm'])
    assert torch.equal(parameters(state), before) and torch.equal(
        averages(state), averages(dict(ema=expected))
    )
    after = state['optimizer'].state_dict()['state']
    assert moments and all(
        torch.equal(torch.as_tensor(v), torch.as_tensor(after[i][k]))
        for i in moments
        for k, v in moments[i].items()
    )
    assert torch.isfinite(train(settings, state))
    assert torch.isfinite(parameters(state)).all() and not torch.equal(parameters(state), before)


def test_evaluation_uses_the_averaged_weights_and_gives_them_back():
    settings = config(lr=0.1)
    state = new_state(settings, decay=0.9)
    torch.manual_seed(0)
    train(settings, state, steps=5)
    weights, shadow, moments = (
        parameters(state),
        averages(state),
        copy.deepcopy(state['optimizer'].state_dict()['state']),
    )
    averaged = Toy()
    averaged.scale.data, averaged.slope.data = (p.clone() for p in state['ema'].shadow_params)
    results = []
    for run in (
        lambda: get_step_fn(VPSDE(), train=False)(state, torch.ones(64, 2)),
        lambda: get_loss_fn(VPSDE(), train=False)(averaged, torch.ones(64, 2)),
        lambda: get_loss_fn(VPSDE(), train=False)(state['model'], torch.ones(64, 2)),
    ):
        torch.manual_seed(1)
        results.append(run())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert not results[0].requires_grad and state['model'].in_training is False
    assert (
        torch.equal(parameters(state), weights)
        and torch.equal(averages(state), shadow)
        and state['step'] == 5
    )
    after = state['optimizer'].state_dict()['state']
    assert all(
        torch.equal(torch.as_tensor(v), torch.as_tensor(after[i][k]))
        for i in moments
        for k, v in moments[i].items()
    )


def test_evaluation_gives_the_weights_back_after_an_error():
    settings = config(lr=0.1)
    state = new_state(settings)
    train(settings, state, steps=2)
    weights = parameters(state)
    with pytest.raises(RuntimeError):
        get_step_fn(VPSDE(), train=False)(state, torch.ones(4, 3))  # Toy has two dimensions
    assert torch.equal(parameters(state), weights)


def test_the_optimizer_has_the_given_settings():
    settings = config(beta1=0.8, eps=1e-6, weight_decay=0.1)
    group = get_optimizer(settings, Toy().parameters()).param_groups[0]
    assert (group['lr'], group['betas'], group['eps'], group['weight_decay']) == (
        2e-2,
        (0.8, 0.999),
        1e-6,
        0.1,
    )
    with pytest.raises(ValueError, match="^config.optim.optimizer must be 'Adam', got 'SGD'$"):
        get_optimizer(config(optimizer='SGD'), Toy().parameters())


def test_a_step_uses_classes():
    """A step passes the classes to the network, and evaluation has the loss of the same seed.

    Training then separates data of different classes.
    """
    settings, batch, classes = (
        config(lr=0.1),
        torch.tensor([[2.0, 0.0], [0.0, -2.0]]).repeat(50, 1),
        torch.tensor([0, 1]).repeat(50),
    )
    state = new_state(settings) | dict(model=ToyOfClasses())
    state |= dict(
        optimizer=get_optimizer(settings, state['model'].parameters()),
        ema=ExponentialMovingAverage(state['model'].parameters(), decay=0.9),
    )
    step_fn = get_step_fn(
        VPSDE(), train=True, optimize_fn=optimization_manager(settings), reduce_mean=True
    )
    evaluate, loss_fn = (
        get_step_fn(VPSDE(), train=False, reduce_mean=True),
        get_loss_fn(VPSDE(), train=False, reduce_mean=True),
    )

    def of_seed(run, **condition):
        torch.manual_seed(1)
        return run(batch, **condition).item()

    before = of_seed(lambda *batch, **c: evaluate(state, *batch, **c), classes=classes)
    assert before == of_seed(
        lambda *batch, **c: loss_fn(state['model'], *batch, **c), classes=classes
    )
    assert torch.equal(state['model'].conditions[0]['classes'], classes)
    for _ in range(150):
        step_fn(state, batch, classes=classes)
    assert state['step'] == 150 and torch.equal(state['model'].conditions[-1]['classes'], classes)
    after = [
        of_seed(lambda *batch, **c: evaluate(state, *batch, **c), classes=c)
        for c in (classes, 1 - classes)
    ]
    # the loss is higher if the classes are exchanged
    assert after[0] < 0.1 * before and after[0] < after[1] - 0.05
    assert state['model'].shifts[2].abs().max() == 0  # no image had this class


# Classifiers
