"""Initial value problems dx/dt = f(t, x) on tensors; one of them is the probability-flow ODE.

torchdiffeq solves them on the device of the tensors, SciPy on the CPU.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from models.utils import times_like
from runtime.errors import UserError
from runtime.randomness import float64_device
from sde_lib import SDE

SCIPY_METHODS = ('RK45', 'RK23', 'DOP853', 'Radau', 'BDF', 'LSODA')
TORCH_METHODS = ('dopri5', 'bosh3', 'dopri8')
METHODS = (*TORCH_METHODS, *SCIPY_METHODS)


def solve(
    f: Callable,
    state: tuple[Tensor, ...],
    t0: float,
    t1: float,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = 'RK45',
) -> tuple[tuple[Tensor, ...], int]:
    """Solve the problem that starts with `state` at time t0, up to time t1.

    The solver works in float64 and chooses its steps for all values together.

    Args:
        f: `f(t, *state)` returns a tuple of derivatives, in the shapes of `state`; t is a number or
            a tensor of shape (). f is called with the dtypes and devices of `state`.
        state: tensors on one device, of any shapes and dtypes.
        rtol, atol: the relative and the absolute error allowed in a step.
        method: one of TORCH_METHODS (Dormand & Prince of order 5, Bogacki & Shampine of order 3,
            Dormand & Prince of order 8), which run on the device of the state, or on the CPU if it
            lacks float64; or of SCIPY_METHODS, which run on the CPU (scipy.integrate.solve_ivp).
            'dopri5' and 'RK45' are the same pair of formulas.

    Returns:
        The state at t1, and the number of evaluations of f.

    Raises:
        RuntimeError: if the solver stops before t1.
    """
    check_method(method)
    if t0 == t1:
        return state, 0
    sizes = [part.numel() for part in state]
    if method in TORCH_METHODS:
        place, integrate = float64_device(state[0].device), _on_device
    else:
        place, integrate = torch.device('cpu'), _on_host

    def unpack(flat):
        return tuple(
            part.to(like.dtype).to(like.device).reshape(like.shape)
            for part, like in zip(flat.split(sizes), state)
        )

    def pack(parts):
        return torch.cat([part.detach().reshape(-1).to(place).double() for part in parts])

    def slope(t, flat):
        return pack(f(t, *unpack(flat)))

    end, nfe = integrate(slope, pack(state), float(t0), float(t1), rtol, atol, method)
    return unpack(end), nfe


def check_method(method: str) -> None:
    """Raise UserError if `method` is not one of METHODS."""
    if method not in METHODS:
        raise UserError(f'method must be one of {", ".join(METHODS)}, got {method!r}')


def _on_device(f, y, t0, t1, rtol, atol, method):
    from torchdiffeq import odeint

    calls = itertools.count()
    times = torch.tensor([t0, t1], dtype=y.dtype, device=y.device)

    def counted(t, y):
        next(calls)
        # the search for the first step may leave the interval
        return f(t.clamp(min(t0, t1), max(t0, t1)), y)

    # without step_t a step may pass t1, where f may be undefined, and interpolate back
    options = {'step_t': times[1:]}
    try:
        end = odeint(counted, y, times, rtol=rtol, atol=atol, method=method, options=options)[-1]
    except AssertionError as error:  # raised if a step is too small or values are not finite
        raise RuntimeError(f'the ODE solver {method} stopped before t={t1:g}: {error}') from error
    return end, next(calls)


def _on_host(f, y, t0, t1, rtol, atol, method):
    from scipy import integrate

    def on_host(t, flat):
        return f(t, torch.from_numpy(np.ascontiguousarray(flat))).numpy()

    solution = integrate.solve_ivp(
        on_host, (t0, t1), y.numpy(), rtol=rtol, atol=atol, method=method, t_eval=(t1,)
    )
    if not solution.success:
        raise RuntimeError(f'the ODE solver {method} stopped before t={t1:g}: {solution.message}')
    return torch.from_numpy(solution.y[:, -1].copy()), solution.nfev


def follow_flow(
    sde: SDE,
    score_fn: Callable,
    x: Tensor,
    t0: float,
    t1: float,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = 'RK45',
) -> Tensor:
    """Carry x (B, ...) from time t0 to t1 by dx/dt = f - g^2 score / 2 (Song et al. 2021, Eq. 13).

    Either time may be the later one.
    """
    flow = sde.reverse(score_fn, probability_flow=True)

    def drift(t, x):
        return (flow.sde(x, times_like(x, t))[0],)

    return solve(drift, (x,), t0, t1, rtol, atol, method)[0][0]
