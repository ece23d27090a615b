"""Solvers of the probability flow and of the reverse SDE, on grids of times: few-step, adaptive,
and general ODE methods.
"""

from solvers.adaptive import adaptive
from solvers.few_steps import (
    DDIM,
    SOLVERS,
    DPMSolver,
    DPMSolverPP2M,
    Heun,
    SDEDPMSolverPP2M,
    Solver,
    UniPC,
    get_solver,
    register_solver,
    threshold,
)
from solvers.grids import SKIP_TYPES, half_log_snr, levels, time_grid, time_of, transition

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
    'transition',
]
