"""Initial value problems dx/dt = f(t, x) on tensors, by the adaptive solvers of torchdiffeq, on
their device, or of SciPy, on the host.
"""

import itertools

import numpy as np
import torch

from models.utils import times_like
from runtime.errors import UserError
from runtime.randomness import float64_device

SCIPY_METHODS = ('RK45', 'RK23', 'DOP853', 'Radau', 'BDF', 'LSODA')
TORCH_METHODS = ('dopri5', 'bosh3', 'dopri8')
METHODS = (*TORCH_METHODS, *SCIPY_METHODS)


def solve(
    f,
    state: tuple[torch.Tensor, ...],
    t0: float,
    t1: float,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = 'RK45',
):
    """The state at `t1` of the problem that starts at `t0`, and the number of evaluations of f.

    `state` is a tuple of tensors on one device; f(t, *state), with t a number or a tensor of shape
    (), answers their derivatives in the same shapes. The solver works in float64 and chooses its
    steps for all values together; f sees, and the result has, the dtypes and devices of `state`.
    `method`: one of METHODS. TORCH_METHODS (Dormand & Prince of order 5, Bogacki & Shampine of
    order 3, Dormand & Prince of order 8) work on the device of the state, or on the CPU for an MPS
    device, which lacks float64; SCIPY_METHODS, see scipy.integrate.solve_ivp, on the CPU. 'dopri5'
    and 'RK45' are the same pair of formulas. RuntimeError where the solver gives up.
    """
    check_method(method)
    if t0 == t1:
        return state, 0
    sizes = [part.numel() for part in state]
    place, integrator = (
        (float64_device(state[0].device), _on_device)
        if method in TORCH_METHODS
        else (torch.device('cpu'), _on_host)
    )

    def unpack(flat):
        return tuple(
            part.to(like.dtype).to(like.device).reshape(like.shape)
            for part, like in zip(flat.split(sizes), state)
        )

    def pack(parts):
        return torch.cat([part.detach().reshape(-1).to(place).double() for part in parts])

    end, evaluations = integrator(
        lambda t, flat: pack(f(t, *unpack(flat))),
        pack(state),
        float(t0),
        float(t1),
        rtol,
        atol,
        method,
    )
    return unpack(end), evaluations


def check_method(method: str):
    """UserError for a method that is not one of METHODS."""
    if method not in METHODS:
        raise UserError(f'unknown ODE method {method!r}: known are {", ".join(METHODS)}')


def _on_device(f, y, t0, t1, rtol, atol, method):
    from torchdiffeq import odeint

    calls = itertools.count()
    times = torch.tensor([t0, t1], dtype=y.dtype, device=y.device)

    def counted(t, y):
        next(calls)
        # in search of its first step it may look beyond the end
        return f(t.clamp(min(t0, t1), max(t0, t1)), y)

    try:
        # step_t: it must not step over the end, where f need not exist, and interpolate
        end = odeint(
            counted, y, times, rtol=rtol, atol=atol, method=method, options=dict(step_t=times[1:])
        )[-1]
    except (
        AssertionError
    ) as error:  # how it says that a step became too small, or a value not finite
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


def follow_flow(sde, score_fn, x, t0, t1, rtol=1e-5, atol=1e-5, method='RK45'):
    """x (B, ...) at time t0, carried to time t1 by the probability-flow ODE (Eq. 13), either
    way.
    """
    flow = sde.reverse(score_fn, probability_flow=True)

    def drift(t, x):
        return (flow.sde(x, times_like(x, t))[0],)

    return solve(drift, (x,), t0, t1, rtol, atol, method)[0][0]
