"""ODE solvers on the device and on the host, compared with exact solutions."""

import math

import pytest
import torch

from runtime.errors import UserError
from solvers import ode


def test_methods_are_known():
    assert set(ode.METHODS) == {
        'dopri5',
        'bosh3',
        'dopri8',
        'RK45',
        'RK23',
        'DOP853',
        'Radau',
        'BDF',
        'LSODA',
    }
    for check in (
        ode.check_method,
        lambda name: ode.solve(lambda t, x: (x,), (torch.ones(1),), 0, 1, method=name),
    ):
        with pytest.raises(UserError, match="method must be one of dopri5, .*got 'euler'"):
            check('euler')


@pytest.mark.parametrize('backwards', [False, True])
@pytest.mark.parametrize('method', ode.METHODS)
def test_two_coupled_parts(method, backwards):
    """The ODE dx/dt = a y, dy/dt = -a x rotates two parts with different shapes and dtypes."""
    a, t0, t1 = 3.0, 0.25, 1.5
    ends = (t1, t0) if backwards else (t0, t1)

    def f(t, x, y):
        assert (
            x.dtype == torch.float32
            and y.dtype == torch.float64
            and x.shape == (2, 3)
            and y.shape == (6,)
        )
        assert t0 <= float(t) <= t1
        return a * y.reshape(2, 3), -a * x.reshape(6)

    x, y = torch.rand(2, 3), torch.rand(6, dtype=torch.float64)
    (x1, y1), nfe = ode.solve(f, (x, y), *ends, rtol=1e-6, atol=1e-6, method=method)
    angle = a * (ends[1] - ends[0])
    assert (
        x1.dtype == x.dtype and x1.shape == x.shape and y1.dtype == y.dtype and y1.shape == y.shape
    )
    torch.testing.assert_close(
        x1.double(),
        math.cos(angle) * x.double() + math.sin(angle) * y.reshape(2, 3),
        rtol=0,
        atol=1e-4,
    )
    torch.testing.assert_close(
        y1, math.cos(angle) * y - math.sin(angle) * x.reshape(6).double(), rtol=0, atol=1e-4
    )
    assert 10 < nfe < 2000


@pytest.mark.parametrize('method', ode.METHODS)
def test_evaluations_are_counted(method):
    calls = []
    _, nfe = ode.solve(
        lambda t, x: (calls.append(t) or -x,),
        (torch.ones(3),),
        0,
        2,
        rtol=1e-4,
        atol=1e-4,
        method=method,
    )
    if method not in ('Radau', 'BDF'):  # SciPy does not count calls for Jacobians
        assert nfe == len(calls)


@pytest.mark.parametrize('method, order', [('dopri5', 5), ('bosh3', 3), ('dopri8', 8), ('RK45', 5)])
def test_the_error_follows_the_tolerance(method, order):
    """A tolerance smaller by 100 gives an error smaller by 10, for 100^(1/order) times the work."""
    x = torch.linspace(0.5, 2, 7, dtype=torch.float64)

    def error(tolerance):
        (end,), nfe = ode.solve(
            lambda t, x: (-t * x,), (x,), 0, 2, rtol=tolerance, atol=tolerance, method=method
        )
        return (end - x * math.exp(-2)).abs().max().item(), nfe

    (coarse, few), (fine, many) = error(1e-4), error(1e-6)
    assert fine < coarse / 10 or fine < 1e-9
    assert many < 1.5 * 100 ** (1 / order) * few


@pytest.mark.parametrize('method', ['dopri5', 'dopri8', 'RK45'])
@pytest.mark.parametrize('ends', [(0.0, 1.0), (1.0, 0.0)])
def test_f_is_called_only_within_the_interval(method, ends):
    """f is never called outside of the interval, even if the first step would be far longer."""
    seen = []

    def f(t, x):
        seen.append(float(t))
        return (1e-6 * x,)

    ode.solve(f, (torch.ones(4),), *ends, rtol=1e-3, atol=1e-3, method=method)
    assert min(seen) >= 0 and max(seen) <= 1


@pytest.mark.parametrize('method', ['dopri5', 'RK45'])
def test_a_solver_that_stops_early_raises_an_error_with_the_time(method):
    with pytest.raises(RuntimeError, match=f'the ODE solver {method} stopped before t=2'):
        # the solution exists only for t < 1
        ode.solve(lambda t, x: (x**2,), (torch.ones(2, dtype=torch.float64),), 0, 2, method=method)


@pytest.mark.parametrize('method', ['dopri5', 'RK45'])
def test_an_interval_of_length_zero(method):
    x = torch.rand(3)
    (end,), nfe = ode.solve(None, (x,), 1.0, 1.0, method=method)
    assert torch.equal(end, x) and nfe == 0
