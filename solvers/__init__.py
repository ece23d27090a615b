"""Solvers of the reverse-time SDE and of the probability-flow ODE, and their common parts.

grids                signal and noise levels, grids of times, the transition between two times
few_steps            DDIM, Heun, DPM-Solver, DPM-Solver++, UniPC
adaptive             the reverse SDE with a step size for each image
ode                  general ODE solvers, the probability-flow ODE
predictor_corrector  Algorithm 1 for any predictor and corrector
predictors           the predictors and correctors of the paper
loop                 operations between two steps: projection, resampling, callbacks
options              the settings of all solvers
"""

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
)
from solvers.grids import SKIP_TYPES, half_log_snr, levels, time_grid, time_of, transition
from solvers.loop import Loop
from solvers.options import Options, threshold

__all__ = [
    'DDIM',
    'DPMSolver',
    'DPMSolverPP2M',
    'Heun',
    'Loop',
    'Options',
    'SDEDPMSolverPP2M',
    'SKIP_TYPES',
    'SOLVERS',
    'Solver',
    'UniPC',
    'get_solver',
    'half_log_snr',
    'levels',
    'register_solver',
    'threshold',
    'time_grid',
    'time_of',
    'transition',
]
