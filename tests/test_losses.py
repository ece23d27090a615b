"""Losses: their minimum, formulas, weights and times."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

import losses
from losses import (
    get_ddpm_loss_fn,
    get_loss_fn,
    get_sde_loss_fn,
    get_smld_loss_fn,
)
from oracles import ExactNetwork, gaussian, level
from sde_lib import VESDE, VPSDE, subVPSDE
from toy_networks import Toy, ToyOfClasses

SDES = dict(ve=lambda: VESDE(0.01, 20), vp=VPSDE, subvp=subVPSDE)
VARIANCES = torch.tensor([0.4, 1.5], dtype=torch.float64)
# The smallest time in these tests: likelihood weights grow like 1/t, and so does the scatter of a
# Monte Carlo mean.
EPS = 1e-2


@pytest.fixture(params=SDES)
def sde(request):
    return SDES[request.param]()


@pytest.fixture(scope='module')
def target():
    return gaussian([0.7, -0.5], VARIANCES)


def average(fn, start=EPS, end=1.0):
    """Return the mean of fn(t) over [start, end], computed by quadrature."""
    return quad(
        lambda t: fn(torch.tensor([t], dtype=torch.float64)),
        start,
        end,
        epsabs=1e-10,
        epsrel=1e-8,
        limit=200,
    )[0] / (end - start)


def weight(sde, t, likelihood_weighting):
    """Return the weight of the squared residual std s + z: 1, or g^2 / std^2."""
    return (
        (sde.sde(torch.zeros_like(t), t)[1] / level(sde, t)[1]).square().item()
        if likelihood_weighting
        else 1.0
    )


def smallest_residual(m, std):
    """Return the mean square of std s + z in each dimension, for the exact score of N(mu, c).

    Let V = m^2 c + std^2 and x_t - m mu = m sqrt(c) u + std z. Then the residual is
    z (1 - std^2/V) - u m sqrt(c) std/V, and its variance is m^2 c / V.
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
    """The exact score has the loss computed by quadrature; other networks have a larger loss.

    The difference is the weighted square of the change: shift^2, or (factor - 1)^2 std^2 / V.
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
    assert error < 0.01 * exact  # small enough to detect an error of 4 %
    assert abs(smallest.mean() - exact) < 4 * error
    for factor, shift in [(1, 0.2), (1, -0.2), (0.8, 0), (1.2, 0)]:
        torch.manual_seed(0)  # the same times and noise: differences scatter less
        excess = estimates(loss_fn, Changed(network, factor, shift), target) - smallest
        exact = exactly(
            lambda m, std, a=factor, b=shift: (
                (a - 1) ** 2 * std**2 / (m**2 * VARIANCES + std**2) + b**2
            )
        )
        assert excess.mean() > 0
        assert abs(excess.mean() - exact) < 4 * excess.std() / math.sqrt(len(excess))


def test_times_reach_down_to_eps(sde, target):
    """According to the network's labels, times are uniform in [eps, T]; eps is 1e-5 by default.

    The extremes of n draws differ from eps and T by about 1/n of the range.
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
        # the tolerance is four standard errors
        assert abs(t.mean() - (low + 1) / 2) < 4 * (1 - low) / math.sqrt(12 * n)


def test_defaults_of_the_2021_release(sde, target):
    """By default, get_loss_fn takes half the sum over values, with variance weighting.

    By default, get_sde_loss_fn takes the mean over values, with likelihood weighting.
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


@pytest.mark.parametrize('reduce_mean', [False, True])
def test_smld_is_its_formula(reduce_mean):
    """The SMLD loss is sigma^2 |s(x + sigma z, i) + z / sigma|^2; sigma_0 is the largest sigma.

    Labels are drawn before the noise.
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
    # the sigmas come from a float32 table, with relative errors of 1e-6
    torch.testing.assert_close(
        loss, squares.mean() if reduce_mean else squares.sum(1).mean() / 2, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize('reduce_mean', [False, True])
def test_ddpm_is_its_formula(reduce_mean):
    """The DDPM loss is |e(sqrt(alphabar_i) x + sqrt(1 - alphabar_i) z, i) - z|^2.

    Labels are drawn before the noise.
    """
    sde, network, x, n = VPSDE(N=100), Toy(), torch.linspace(-1, 1, 64).reshape(32, 2), 100
    torch.manual_seed(0)
    loss = get_ddpm_loss_fn(sde, train=False, reduce_mean=reduce_mean)(network, x)
    torch.manual_seed(0)
    labels, z = torch.randint(0, n, (32,)), torch.randn(32, 2)
    alphabar = torch.from_numpy(np.cumprod(1 - np.linspace(0.1 / n, 20 / n, n)))[
        labels, None
    ].float()
    squares = (network(alphabar.sqrt() * x + (1 - alphabar).sqrt() * z, labels) - z) ** 2
    # the tolerance is for float32
    torch.testing.assert_close(
        loss, squares.mean() if reduce_mean else squares.sum(1).mean() / 2, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize('name', ['ve', 'vp'])
def test_discrete_minimum_is_at_the_exact_score(name, target):
    """The minimum is the mean of m^2 c / V over the noise levels, as in continuous time.

    The loss is that of get_loss_fn with continuous=False.
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


def test_undefined_losses_raise_an_error():
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


def test_the_loss_accepts_images_and_volumes(sde):
    """For any shape, half the sum is the mean times half the number of values."""
    for shape in [(3,), (1, 4, 4), (2, 3, 3, 3)]:
        values = []
        for reduce_mean in (True, False):
            torch.manual_seed(0)
            values.append(
                losses.get_loss_fn(sde, train=False, reduce_mean=reduce_mean)(
                    lambda x, labels: -x, torch.ones(4, *shape)
                )
            )
        # the tolerance is for float32
        torch.testing.assert_close(
            values[1] / values[0], torch.tensor(math.prod(shape) / 2), rtol=1e-4, atol=0
        )


# Classes


LOSSES = {
    'continuous': lambda: get_sde_loss_fn(VPSDE(), train=True),
    'ddpm': lambda: get_ddpm_loss_fn(VPSDE(), train=True),
    'smld': lambda: get_smld_loss_fn(VESDE(), train=True),
    'by name': lambda: get_loss_fn(subVPSDE(), train=True),
}


@pytest.mark.parametrize('name', LOSSES)
def test_classes_are_passed_to_the_network(name):
    """The network gets the classes unchanged, in one call; without classes it gets no argument.

    Only the classes in the batch get a gradient.
    """
    network, loss_fn, classes = ToyOfClasses(), LOSSES[name](), torch.tensor([2, 0, 2, 2])
    loss_fn(network, torch.ones(4, 2), classes=classes).backward()
    assert (
        len(network.conditions) == 1
        and network.conditions[0].keys() == {'classes'}
        and torch.equal(network.conditions[0]['classes'], classes)
    )
    assert network.shifts.grad.any(1).tolist() == [True, False, True]
    loss_fn(network, torch.ones(4, 2))
    assert network.conditions[1:] == [{}]
