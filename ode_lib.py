"""Initial value problems dx/dt = f(t, x) on tensors, by the adaptive solvers of SciPy."""
import numpy as np
import torch
from scipy import integrate

from errors import UserError

METHODS = ('RK45', 'RK23', 'DOP853', 'Radau', 'BDF', 'LSODA')


def solve(f, state: tuple[torch.Tensor, ...], t0: float, t1: float, rtol: float = 1e-5, atol: float = 1e-5, method: str = 'RK45'):
    """The state at `t1` of the problem that starts at `t0`, and the number of evaluations of f.

    `state` is a tuple of tensors; f(t, *state), with t a number, answers their derivatives in the same shapes. The solver works in
    float64 on the host and chooses its steps for all values together; f sees, and the result has, the dtypes and devices of
    `state`. `method`: one of METHODS, see scipy.integrate.solve_ivp. RuntimeError where the solver gives up.
    """
    if method not in METHODS:
        raise UserError(f'unknown ODE method {method!r}: known are {", ".join(METHODS)}')
    if t0 == t1:
        return state, 0
    ends = np.cumsum([part.numel() for part in state])

    def unpack(flat):
        parts = np.split(flat, ends[:-1])
        return tuple(torch.tensor(p).to(like).reshape(like.shape) for p, like in zip(parts, state))

    def pack(parts):
        return np.concatenate([part.detach().cpu().double().numpy().reshape(-1) for part in parts])

    solution = integrate.solve_ivp(lambda t, flat: pack(f(t, *unpack(flat))), (t0, t1), pack(state), rtol=rtol, atol=atol, method=method,
                                   t_eval=(t1,))
    if not solution.success:
        raise RuntimeError(f'the ODE solver {method} stopped before t={t1:g}: {solution.message}')
    return unpack(solution.y[:, -1]), solution.nfev
