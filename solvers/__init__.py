"""Solvers of the probability flow and of the reverse SDE, on grids of times: few-step, adaptive,
and general ODE methods.
"""

from solvers.fast_sampling import (
    DDIM,
    SKIP_TYPES,
    SOLVERS,
    DPMSolver,
    DPMSolverPP2M,
    Heun,
    SDEDPMSolverPP2M,
    Solver,
    UniPC,
    adaptive,
    get_solver,
    half_log_snr,
    levels,
    register_solver,
    threshold,
    time_grid,
    time_of,
)

__all__ = [
    'DDIM',
    'DPMSolver',
    'DPMSolverPP2M',
    'Heun',
    'SDEDPMSolverPP2M',
    'SKIP_TYPES',
    'SOLVERS',
    'Solver',
    'UniPC',
    'adaptive',
    'get_solver',
    'half_log_snr',
    'levels',
    'register_solver',
    'threshold',
    'time_grid',
    'time_of',
]
