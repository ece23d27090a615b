"""The losses against their exact minima, and a step of training against what it says it does."""

import copy
import math

import ml_collections
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

import losses
from conftest import load_config
from losses import (
    NoisyCrossEntropy,
    get_classifier_step_fn,
    get_ddpm_loss_fn,
    get_loss_fn,
    get_optimizer,
    get_sde_loss_fn,
    get_smld_loss_fn,
    get_step_fn,
    optimization_manager,
)
from models import utils as mutils
from models.ema import ExponentialMovingAverage
from oracles import ExactClassifier, ExactNetwork, gaussian, level, planar_mixture
from sde_lib import VESDE, VPSDE, subVPSDE

SDES = dict(ve=lambda: VESDE(0.01, 20), vp=VPSDE, subvp=subVPSDE)
VARIANCES = torch.tensor([0.4, 1.5], dtype=torch.float64)
# where times start here: likelihood weights grow like 1/t, and so does the scatter of a Monte Carlo
# mean
EPS = 1e-2


@pytest.fixture(params=SDES)
def sde(request):
    return SDES[request.param]()


@pytest.fixture(scope='module')
def target():
    return gaussian([0.7, -0.5], VARIANCES)


def average(fn, start=EPS, end=1.0):
    """The mean of fn(t) over [start, end], by quadrature."""
    return quad(
        lambda t: fn(torch.tensor([t], dtype=torch.float64)),
        start,
        end,
        epsabs=1e-10,
        epsrel=1e-8,
        limit=200,
    )[0] / (end - start)


def weight(sde, t, likelihood_weighting):
    """What the squared residual std s + z is multiplied with: 1, or g^2 / std^2."""
    return (
        (sde.sde(torch.zeros_like(t), t)[1] / level(sde, t)[1]).square().item()
        if likelihood_weighting
        else 1.0
    )


def smallest_residual(m, std):
    """The mean square of std s + z, of each dimension, for the exact score of N(mu, c). With V =
    m^2 c + std^2 and x_t - m mu = m sqrt(c) u + std z it is z (1 - std^2/V) - u m sqrt(c) std/V, of
    variance m^2 c / V.
    """
    return m**2 * VARIANCES / (m**2 * VARIANCES + std**2)


def over_dimensions(values, reduce_mean):
    return (values.mean() if reduce_mean else 0.5 * values.sum()).item()


class Changed(nn.Module):
    """A network whose std * score is `factor` times another's, plus `shift`, in continuous time."""

    def __init__(self, network, factor=1.0, shift=0.0):
        super().__init__()
        self.network, self.factor, self.shift = network, factor, shift

    def forward(self, x, labels):
        output = self.factor * self.network(x, labels)
        return (
            output + self.shift / labels[:, None]
            if isinstance(self.network.sde, VESDE)
            else output - self.shift
        )


def estimates(loss_fn, network, target, batches=20, size=5000):
    return torch.stack([loss_fn(network, target.sample(size, seed=i)) for i in range(batches)])


@pytest.mark.parametrize('likelihood_weighting', [False, True], ids=['variance', 'likelihood'])
@pytest.mark.parametrize('reduce_mean', [False, True], ids=['sum', 'mean'])
def test_the_minimum_is_at_the_exact_score(sde, target, reduce_mean, likelihood_weighting):
    """The exact score has the loss computed by quadrature; other networks lie above it by the
    weighted square of what they change: shift^2, or (factor - 1)^2 std^2 / V.
    """
    loss_fn = get_sde_loss_fn(
        sde,
        train=False,
        reduce_mean=reduce_mean,
        likelihood_weighting=likelihood_weighting,
        eps=EPS,
    )
    network = ExactNetwork(sde, target)

    def exactly(residual):
        return average(
            lambda t: (
                weight(sde, t, likelihood_weighting)
                * over_dimensions(residual(*level(sde, t)), reduce_mean)
            )
        )

    torch.manual_seed(0)
    smallest = estimates(loss_fn, network, target)
    exact = exactly(smallest_residual)
    error = (smallest.std() / math.sqrt(len(smallest))).item()
    assert error < 0.01 * exact  # so that 4 % would be seen
    assert abs(smallest.mean() - exact) < 4 * error
    for factor, shift in [(1, 0.2), (1, -0.2), (0.8, 0), (1.2, 0)]:
        torch.manual_seed(0)  # the same times and noise, so that differences are small in scatter
        excess = estimates(loss_fn, Changed(network, factor, shift), target) - smallest
        exact = exactly(
            lambda m, std, a=factor, b=shift: (
                (a - 1) ** 2 * std**2 / (m**2 * VARIANCES + std**2) + b**2
            )
        )
        assert excess.mean() > 0
        assert abs(excess.mean() - exact) < 4 * excess.std() / math.sqrt(len(excess))


def test_times_reach_down_to_eps(sde, target):
    """Uniform in [eps, T], by default from 1e-5: the labels that a network is told, whose ends miss
    eps and T by some 1/n of the range.
    """
    seen = []

    def network(x, labels):
        seen.append(labels)
        return torch.zeros_like(x)

    n = 20000
    for eps in (None, 0.5):
        seen.clear()
        torch.manual_seed(0)
        get_sde_loss_fn(sde, train=False, **({} if eps is None else dict(eps=eps)))(
            network, target.sample(n)
        )
        t = (
            torch.log(seen[0] / sde.sigma_min) / math.log(sde.sigma_max / sde.sigma_min)
            if isinstance(sde, VESDE)
            else seen[0] / 999
        )
        low = eps or 1e-5
        assert t.min() >= low * (1 - 1e-9) and t.min() < low + 10 / n and 1 - 10 / n < t.max() <= 1
        # four standard errors
        assert abs(t.mean() - (low + 1) / 2) < 4 * (1 - low) / math.sqrt(12 * n)


def test_published_defaults(sde, target):
    """get_loss_fn: half the sum over values, variance weights. get_sde_loss_fn: mean, likelihood
    weights.
    """
    x, network = target.sample(8), ExactNetwork(sde, target)

    def run(loss_fn):
        torch.manual_seed(0)
        return loss_fn(network, x)

    for default, chosen in [
        (get_loss_fn, dict(reduce_mean=False, likelihood_weighting=False)),
        (get_sde_loss_fn, dict(reduce_mean=True, likelihood_weighting=True)),
    ]:
        assert torch.equal(
            run(default(sde, train=False)),
            run(get_sde_loss_fn(sde, train=False, continuous=True, **chosen)),
        )
    assert torch.equal(
        run(get_loss_fn(sde, False, reduce_mean=True, likelihood_weighting=True)),
        run(get_sde_loss_fn(sde, train=False)),
    )


# Discrete noise levels


class Toy(nn.Module):
    """A small network that uses everything it is told."""

    def __init__(self):
        super().__init__()
        self.scale, self.slope = (
            nn.Parameter(torch.tensor([0.5, -0.3])),
            nn.Parameter(torch.tensor(0.01)),
        )
        self.in_training = None

    def forward(self, x, labels):
        self.in_training = self.training
        return self.scale * torch.tanh(x) + self.slope * labels.to(x.dtype)[:, None]


@pytest.mark.parametrize('reduce_mean', [False, True])
def test_smld_is_its_formula(reduce_mean):
    """sigma^2 |s(x + sigma z, i) + z / sigma|^2 with sigma_0 the largest; labels are drawn before
    noise.
    """
    sde, network, x, n = (
        VESDE(0.01, 50, N=100),
        Toy(),
        torch.linspace(-1, 1, 64).reshape(32, 2),
        100,
    )
    torch.manual_seed(0)
    loss = get_smld_loss_fn(sde, train=False, reduce_mean=reduce_mean)(network, x)
    torch.manual_seed(0)
    labels, z = torch.randint(0, n, (32,)), torch.randn(32, 2)
    sigma = (50 * (0.01 / 50) ** (labels / (n - 1)))[:, None]
    squares = sigma**2 * (network(x + sigma * z, labels) + z / sigma) ** 2
    # a table in float32, whose sigmas know 1e-6
    torch.testing.assert_close(
        loss, squares.mean() if reduce_mean else squares.sum(1).mean() / 2, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize('reduce_mean', [False, True])
def test_ddpm_is_its_formula(reduce_mean):
    """|e(sqrt(alphabar_i) x + sqrt(1 - alphabar_i) z, i) - z|^2; labels are drawn before noise."""
    sde, network, x, n = VPSDE(N=100), Toy(), torch.linspace(-1, 1, 64).reshape(32, 2), 100
    torch.manual_seed(0)
    loss = get_ddpm_loss_fn(sde, train=False, reduce_mean=reduce_mean)(network, x)
    torch.manual_seed(0)
    labels, z = torch.randint(0, n, (32,)), torch.randn(32, 2)
    alphabar = torch.from_numpy(np.cumprod(1 - np.linspace(0.1 / n, 20 / n, n)))[
        labels, None
    ].float()
    squares = (network(alphabar.sqrt() * x + (1 - alphabar).sqrt() * z, labels) - z) ** 2
    # float32
    torch.testing.assert_close(
        loss, squares.mean() if reduce_mean else squares.sum(1).mean() / 2, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize('name', ['ve', 'vp'])
def test_discrete_minimum_is_at_the_exact_score(name, target):
    """As in continuous time, the mean over levels of m^2 c / V; and get_loss_fn with
    continuous=False is that loss.
    """
    sde = SDES[name]()
    sde.N = 100
    network = ExactNetwork(sde, target, continuous=False)
    i = torch.arange(100, dtype=torch.float64)
    m, std = network.level(i)
    exact = over_dimensions(smallest_residual(m[:, None], std[:, None]).mean(0), reduce_mean=False)
    loss_fn = get_loss_fn(sde, train=False, reduce_mean=False, continuous=False)
    torch.manual_seed(0)
    smallest = estimates(loss_fn, network, target)
    assert abs(smallest.mean() - exact) < 4 * smallest.std() / math.sqrt(len(smallest))
    torch.manual_seed(0)
    excess = estimates(loss_fn, lambda x, labels: 1.2 * network(x, labels), target) - smallest
    exact = over_dimensions(
        (0.04 * std[:, None] ** 2 / (m[:, None] ** 2 * VARIANCES + std[:, None] ** 2)).mean(0),
        reduce_mean=False,
    )
    assert abs(excess.mean() - exact) < 4 * excess.std() / math.sqrt(len(excess))


def test_losses_without_a_definition_are_refused():
    with pytest.raises(NotImplementedError, match='subVPSDE.*continuous=True'):
        get_loss_fn(subVPSDE(), train=True, continuous=False)
    for name in ('ve', 'vp'):
        with pytest.raises(
            ValueError, match='^likelihood_weighting=True is only defined for continuous=True$'
        ):
            get_loss_fn(SDES[name](), train=True, continuous=False, likelihood_weighting=True)
    with pytest.raises(ValueError, match='vesde must be a VESDE.* got VPSDE'):
        get_smld_loss_fn(VPSDE(), train=True)
    with pytest.raises(ValueError, match='vpsde must be a VPSDE.* got VESDE'):
        get_ddpm_loss_fn(VESDE(), train=True)


@pytest.mark.parametrize('continuous', [True, False])
def test_dropout_is_on_in_training_only(continuous):
    network = Toy()
    for train in (True, False):
        get_loss_fn(VPSDE(), train=train, continuous=continuous)(network, torch.zeros(4, 2))
        assert network.in_training is train


# Steps of training


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
    """Plain gradient descent, whose update shows the gradient that it was given."""
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
    """theta - lr grad, the gradient that of the same loss taken by hand; the norm of it is
    reported.
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
    # float32
    torch.testing.assert_close(parameters(state), before - 0.5 * gradient, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(metrics['grad_norm'], gradient.norm(), rtol=1e-6, atol=0)


def test_gradients_do_not_accumulate():
    """Two steps are two updates with a gradient each: with a learning rate of 0 the norm of the
    same draws stays.
    """
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
    assert loss() < 0.5 * before  # slope * label of up to 10 is most of the loss at the start


def test_the_step_is_counted():
    settings = config()
    state = new_state(settings)
    train(settings, state, steps=3)
    assert state['step'] == 3
    get_step_fn(VPSDE(), train=False)(state, torch.ones(4, 2))
    assert state['step'] == 3


def test_warm_up():
    """lr min(step / warmup, 1), from 0 at the first step: as a plain number in the optimizer."""
    settings, rates = config(lr=0.4, warmup=4), []
    state = new_state(settings)
    start = parameters(state)
    for i in range(7):
        train(settings, state)
        rates.append(state['optimizer'].param_groups[0]['lr'])
        assert torch.equal(parameters(state), start) == (i == 0)
    assert all(type(rate) is float for rate in rates)
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-12)
    state = new_state(config(lr=0.4))  # without warm-up, the whole from the start
    train(config(lr=0.4), state)
    assert state['optimizer'].param_groups[0]['lr'] == 0.4


@pytest.mark.parametrize('grad_clip', [-1.0, 0.01, 1e6])
def test_clipping(grad_clip):
    """An update along the gradient, no longer than grad_clip; negative means no clipping; the norm
    reported is that before.
    """
    settings, metrics = config(lr=1.0, grad_clip=grad_clip), {}
    state = new_state(settings, plain())
    before = parameters(state)
    train(settings, state, metrics=metrics)
    length, norm = (parameters(state) - before).norm(), metrics['grad_norm']
    assert norm > 0.1
    # float32, clipped to 1e-4
    torch.testing.assert_close(
        length, torch.tensor(0.01) if grad_clip == 0.01 else norm, rtol=1e-3, atol=0
    )


def test_the_average_follows_the_parameters():
    """After k steps: shadow <- d shadow + (1 - d) theta, with d the smaller of the decay and (1 +
    n) / (10 + n) at the n-th.
    """
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
    """Parameters and Adam's moments stay bit by bit, the average moves towards these parameters;
    the next good step is taken.
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
        get_step_fn(VPSDE(), train=False)(state, torch.ones(4, 3))  # Toy is of two dimensions
    assert torch.equal(parameters(state), weights)


def test_the_optimizer_takes_its_settings():
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


def test_the_loss_takes_images_and_volumes(sde):
    """Mean and half sum differ by half the number of values, whatever the shape."""
    for shape in [(3,), (1, 4, 4), (2, 3, 3, 3)]:
        values = []
        for reduce_mean in (True, False):
            torch.manual_seed(0)
            values.append(
                losses.get_loss_fn(sde, train=False, reduce_mean=reduce_mean)(
                    lambda x, labels: -x, torch.ones(4, *shape)
                )
            )
        # float32
        torch.testing.assert_close(
            values[1] / values[0], torch.tensor(math.prod(shape) / 2), rtol=1e-4, atol=0
        )


# Classes


class ToyOfClasses(Toy):
    """A small network that knows three classes besides, and remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.shifts, self.told = nn.Parameter(torch.zeros(3, 2)), []

    def forward(self, x, labels, **condition):
        self.told.append(condition)
        return super().forward(x, labels) + (self.shifts[condition['classes']] if condition else 0)


LOSSES = {
    'continuous': lambda: get_sde_loss_fn(VPSDE(), train=True),
    'ddpm': lambda: get_ddpm_loss_fn(VPSDE(), train=True),
    'smld': lambda: get_smld_loss_fn(VESDE(), train=True),
    'by name': lambda: get_loss_fn(subVPSDE(), train=True),
}


@pytest.mark.parametrize('name', LOSSES)
def test_classes_reach_the_network(name):
    """As they are, in one call; without them the network is called as it always was. A gradient
    reaches what the classes select.
    """
    network, loss_fn, classes = ToyOfClasses(), LOSSES[name](), torch.tensor([2, 0, 2, 2])
    loss_fn(network, torch.ones(4, 2), classes=classes).backward()
    assert (
        len(network.told) == 1
        and network.told[0].keys() == {'classes'}
        and torch.equal(network.told[0]['classes'], classes)
    )
    assert network.shifts.grad.any(1).tolist() == [True, False, True]
    loss_fn(network, torch.ones(4, 2))
    assert network.told[1:] == [{}]


def test_a_step_takes_classes():
    """In training and in evaluation: to the loss that the same seed gives. Training then tells data
    of different classes apart.
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
    assert torch.equal(state['model'].told[0]['classes'], classes)
    for _ in range(150):
        step_fn(state, batch, classes=classes)
    assert state['step'] == 150 and torch.equal(state['model'].told[-1]['classes'], classes)
    after = [
        of_seed(lambda *batch, **c: evaluate(state, *batch, **c), classes=c)
        for c in (classes, 1 - classes)
    ]
    # to take an image for one of the other class costs more
    assert after[0] < 0.1 * before and after[0] < after[1] - 0.05
    assert state['model'].shifts[2].abs().max() == 0  # of a class that there was none of


# Classifiers


def test_the_loss_of_a_classifier_is_the_cross_entropy_by_hand(sde):
    """-log of the share of the right class, averaged; times are drawn before noise, t uniform in
    [1e-5, 1].
    """

    def classify(x, labels):
        return torch.stack([x[:, 0] * labels.log(), x[:, 1] - x[:, 0], x.square().sum(1)], 1).tanh()

    x, classes, n = planar_mixture().sample(64), torch.arange(64) % 3, 64
    torch.manual_seed(0)
    loss = NoisyCrossEntropy(sde, train=False)(classify, x, classes)
    torch.manual_seed(0)
    t, z = (
        torch.rand(n, dtype=torch.float64) * (1 - 1e-5) + 1e-5,
        torch.randn(n, 2, dtype=torch.float64),
    )
    m, std = level(sde, t)
    labels = std if isinstance(sde, VESDE) else 999 * t
    odds = classify(m[:, None] * x + std[:, None] * z, labels).exp()
    torch.testing.assert_close(
        loss, -(odds[range(n), classes] / odds.sum(1)).log().mean(), rtol=1e-9, atol=0
    )


def test_the_loss_of_a_classifier_is_least_at_the_exact_one(sde):
    """Bayes' rule beats it made surer, less sure, or partial to one class: over the same draws, by
    more than four standard errors.
    """
    target = planar_mixture()
    exact = ExactClassifier(sde, target)
    others = [
        lambda x, labels: 1.3 * exact(x, labels),
        lambda x, labels: 0.75 * exact(x, labels),
        lambda x, labels: exact(x, labels) + torch.tensor([0.3, 0.0, 0.0]),
    ]
    loss_fn, excess = NoisyCrossEntropy(sde, train=False, eps=EPS), [[] for _ in others]
    for i in range(40):
        k = torch.multinomial(
            target.weights,
            2000,
            replacement=True,
            generator=torch.Generator().manual_seed(1000 + i),
        )
        x = torch.stack([target.component(c).sample(2000, seed=i) for c in range(3)])[
            k, torch.arange(2000)
        ]

        def loss(network, x=x, k=k, i=i):
            torch.manual_seed(i)
            return loss_fn(network, x, k)

        smallest = loss(exact)
        for found, network in zip(excess, others):
            found.append(loss(network) - smallest)
    for found in map(torch.stack, excess):
        assert found.mean() > 4 * found.std() / math.sqrt(len(found))


def test_times_of_a_classifier_reach_down_to_eps(sde):
    """As those of a network; in training it is in training mode, in evaluation it is not."""
    seen, n = [], 20000

    class Recording(nn.Module):
        def forward(self, x, labels):
            seen.append((labels, self.training))
            return x

    for train, settings in ((True, {}), (False, dict(eps=0.5))):
        NoisyCrossEntropy(sde, train, **settings)(
            Recording(), torch.zeros(n, 2, dtype=torch.float64), torch.zeros(n).long()
        )
        labels, training = seen.pop()
        t = (
            torch.log(labels / sde.sigma_min) / math.log(sde.sigma_max / sde.sigma_min)
            if isinstance(sde, VESDE)
            else labels / 999
        )
        low = settings.get('eps', 1e-5)
        assert (
            training is train
            and t.min() >= low * (1 - 1e-9)
            and t.min() < low + 10 / n
            and 1 - 10 / n < t.max() <= 1
        )


def test_a_classifier_learns():
    """Two Gaussians of images, stripes lying and standing, their means 3 standard deviations s
    apart: at time t the best possible share of right answers is Phi(1.5 m s / sqrt(m^2 s^2 +
    std^2)). A small wide residual network comes to within 2 % of it, where 10000 images tell a
    share to 0.5 %.
    """
    settings = load_config(
        'configs.vp.digits_wideresnet',
        dict(image_size=4),
        num_classes=2,
        nf=16,
        widen=1,
        ch_mult=(1,),
        dropout=0.0,
    )
    settings.optim.update(lr=5e-3, warmup=0)
    stripes = torch.tensor([-1.0, -1.0, 1.0, 1.0]).expand(1, 4, 4)
    means, n, sde = 1.5 * torch.stack([stripes, stripes.mT]) / math.sqrt(8), 10000, VPSDE()  # s = 1
    model = mutils.create_model(settings)
    state = dict(
        model=model,
        optimizer=get_optimizer(settings, model.parameters()),
        step=0,
        ema=ExponentialMovingAverage(model.parameters(), decay=0.98),
    )
    step_fn = get_classifier_step_fn(sde, train=True, optimize_fn=optimization_manager(settings))

    def draw(n):
        classes = torch.arange(n) % 2
        return means[classes] + torch.randn(n, 1, 4, 4), classes

    for _ in range(400):
        x, classes = draw(128)
        step_fn(state, x, classes=classes)
    assert state['step'] == 400
    state['ema'].copy_to(model.parameters())
    classify = mutils.get_model_fn(model)
    for time in (1e-3, 0.2, 0.4):
        x, classes = draw(n)
        with torch.no_grad():
            t = torch.full((n,), time)
            logits = classify(sde.perturb(x, t), sde.network_label(t))
        m, std = level(sde, torch.tensor([time]))
        best = torch.distributions.Normal(0.0, 1.0).cdf(1.5 * m / (m**2 + std**2).sqrt()).item()
        right = (logits.argmax(1) == classes).float().mean().item()
        assert abs(right - best) < 0.02
