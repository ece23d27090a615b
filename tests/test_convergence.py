"""Orders of convergence of predictors, ODE solvers and few-step solvers."""

import math
from unittest import mock

import numpy as np
import pytest
import torch

from likelihood import get_likelihood_fn
from models.utils import get_score_fn
from oracles import (
    FEW_STEP_SDES,
    SDES,
    ExactNetwork,
    gaussian,
    identity,
    level,
    planar_mixture,
    walked,
)
from sampling import get_ode_sampler, get_predictor
from sde_lib import VPSDE
from solvers import time_grid

STARTS = dict(
    ve=0.2, vp=0.02, subvp=0.02
)  # final times, at which the score of the mixture is smooth


def propagated(predictor_class, sde, target, n, probability_flow=False, end=0.0):
    """Compute mean and variance of a Gaussian target after steps of T/n from T to `end`.

    No samples are drawn. A step is x -> a x + b + c z; a, b and c are found from x = 0 and x = 1
    with z = 1. The start has the moments of the target at T.
    """
    sde.N = n
    predictor = predictor_class(
        sde, get_score_fn(sde, ExactNetwork(sde, target), continuous=True), probability_flow
    )
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    mean, variance = moments(sde, target, 1.0)
    with mock.patch('torch.randn_like', torch.ones_like):
        for i in range(round(n * (1 - end))):
            new, new_mean = predictor.update_fn(
                x, torch.full((2,), sde.T * (1 - i / n), dtype=torch.float64)
            )
            b = new_mean[0, 0].item()
            a = (new_mean[1, 0] - new_mean[0, 0]).item()
            c = (new - new_mean)[0, 0].item()
            mean, variance = a * mean + b, a**2 * variance + c**2
    return mean, variance


def moments(sde, target, t):
    m, std = (v.item() for v in level(sde, torch.tensor([t])))
    return m * target.mean.item(), m**2 * target.covariance.item() + std**2


def slope(x, y):
    return np.polyfit(np.log(x), np.log(y), 1)[0]


@pytest.mark.parametrize('probability_flow', [False, True], ids=['sde', 'ode'])
@pytest.mark.parametrize('name', SDES)
def test_euler_maruyama_is_of_weak_order_one(name, probability_flow):
    """The error of the variance falls as 1/N.

    It is measured at t = 1/2, where noise and data have similar weights. At t = 0 the first-order
    error of VE happens to be zero. beta dt is at most 20/400, so that the second-order error is a
    twentieth of the first-order error.
    """
    sde, target, steps = SDES[name](1000), gaussian([0.7], [0.4]), [400, 800, 1600]
    exact = moments(sde, target, 0.5)[1]
    errors = [
        abs(
            propagated(get_predictor('euler_maruyama'), sde, target, n, probability_flow, end=0.5)[
                1
            ]
            - exact
        )
        for n in steps
    ]
    assert errors[-1] < 0.02 * exact
    assert abs(slope(steps, errors) + 1) < 0.15


@pytest.mark.parametrize(
    'name, predictor',
    [
        ('ve', 'reverse_diffusion'),
        ('vp', 'reverse_diffusion'),
        ('subvp', 'reverse_diffusion'),
        ('ve', 'ancestral_sampling'),
        ('vp', 'ancestral_sampling'),
    ],
)
def test_the_chains_converge(name, predictor):
    """Four times as many steps reduce the error to less than half.

    The order is not measured, because table look-ups shift times by up to a step.
    """
    sde, target = SDES[name](1000), gaussian([0.7], [0.4])
    exact = moments(sde, target, 0.0)
    errors = [
        sum(
            abs(got - e)
            for got, e in zip(propagated(get_predictor(predictor), sde, target, n), exact)
        )
        for n in (200, 800)
    ]
    assert errors[1] < 0.5 * errors[0] and errors[1] < 0.02


def flowed(sde, target, x, start, end):
    """Return the exact flow of a Gaussian target, for which (x - mean) / std is constant."""
    (m0, s0), (m1, s1) = (level(sde, torch.tensor([t])) for t in (start, end))
    variances = target.covariance.diag()
    return m1 * target.mean + ((m1**2 * variances + s1**2) / (m0**2 * variances + s0**2)).sqrt() * (
        x - m0 * target.mean
    )


@pytest.mark.parametrize('method, least, most', [('RK45', 4.5, 10), ('RK23', 2.5, 4)])
@pytest.mark.parametrize('name', SDES)
def test_ode_sampler_follows_the_exact_flow_with_the_solvers_order(name, method, least, most):
    """The slope of error against evaluations is the order: 5 for RK45, 3 for RK23.

    The test would detect an order that is too small by a half, or the wrong method. The slopes of
    RK45 are steeper than five because its steps adapt: at these tolerances the number of steps
    still grows more slowly than asymptotically.
    """
    sde, target = SDES[name](1000), gaussian([0.7, -0.3], [0.4, 0.1])
    z = torch.tensor([[1.1, -0.6]], dtype=torch.float64) * (30 if name == 've' else 1)
    exact, errors, evaluations = flowed(sde, target, z, 1.0, 1e-3), [], []
    for tolerance in 10.0 ** -np.arange(5, 10 if method == 'RK45' else 8):
        x, nfe = get_ode_sampler(
            sde, (1, 2), identity, rtol=tolerance, atol=tolerance, method=method
        )(ExactNetwork(sde, target), z)
        assert x.dtype == torch.float64
        errors.append((x - exact).abs().max().item())
        evaluations.append(nfe)
        # some tens of steps have errors of this size, and the flow reduces them
        assert errors[-1] < 30 * tolerance
    assert least < -slope(evaluations, errors) < most


@pytest.mark.parametrize('method', ['DOP853', 'LSODA', 'Radau', 'BDF'])
def test_ode_sampler_with_other_methods(method):
    sde = VPSDE()
    target = gaussian([0.7, -0.3], [0.4, 0.1])
    z = torch.tensor([[1.1, -0.6]], dtype=torch.float64)
    x, _ = get_ode_sampler(sde, (1, 2), identity, method=method)(ExactNetwork(sde, target), z)
    # an error of 1e-5 at each of some tens of steps
    torch.testing.assert_close(x, flowed(sde, target, z, 1.0, 1e-3), rtol=0, atol=1e-3)


@pytest.mark.parametrize('name', SDES)
def test_encoding_then_decoding_gives_the_data(name, target):
    """The ODE sampler decodes the latent codes of the likelihood to the data.

    Both have a tolerance of 1e-5 and need some tens of steps.
    """
    sde, x = SDES[name](1000), target.sample(16, seed=2)
    network, eps = ExactNetwork(sde, target), sde.sampling_eps
    _, z, _ = get_likelihood_fn(sde, identity, eps=eps)(network, x)
    assert z.dtype == torch.float64 and (z - x).abs().max() > 0.5
    decoded, _ = get_ode_sampler(sde, x.shape, identity, eps=eps)(network, z)
    torch.testing.assert_close(decoded, x, rtol=0, atol=1e-3)


ORDERS = [
    ('ddim', {}, 1),
    ('heun', {}, 2),
    ('dpm_solver', dict(dpm_solver_order=1), 1),
    ('dpm_solver', dict(dpm_solver_order=2), 2),
    ('dpm_solver', dict(dpm_solver_order=3), 3),
    ('dpmpp_2m', {}, 2),
    ('unipc', dict(dpm_solver_order=1), 2),
    ('unipc', dict(dpm_solver_order=2), 3),
]


@pytest.fixture(scope='module')
def problems():
    """Return score, start and end of the flow for each SDE; the end uses 1,000 steps of order 3."""
    found = {}
    for name, make in FEW_STEP_SDES.items():
        sde, target = make(), planar_mixture()
        score_fn = get_score_fn(sde, ExactNetwork(sde, target), continuous=True)
        x = sde.prior_sampling((100, 2)).double()
        end = walked(
            'dpm_solver', sde, score_fn, x, time_grid(sde, 1000, STARTS[name]), dpm_solver_order=3
        )
        found[name] = sde, score_fn, x, end
    return found


@pytest.mark.parametrize('name', FEW_STEP_SDES)
@pytest.mark.parametrize('solver, settings, order', ORDERS, ids=lambda value: str(value))
def test_order_of_convergence(problems, name, solver, settings, order):
    """The order is log2 of the ratio of the errors for 150 and 300 steps.

    It is the median over points, because points that start close to where paths separate converge
    late.
    """
    sde, score_fn, x, end = problems[name]
    errors = [
        (walked(solver, sde, score_fn, x, time_grid(sde, n, STARTS[name]), **settings) - end)
        .norm(dim=1)
        .median()
        for n in (150, 300)
    ]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.25
