"""Make the samplers of `controllable_generation` from names of predictors and correctors."""

import math

import torch

import sampling
from control import sample_measured
from controllable_generation import get_pc_inpainter
from models.score import Score
from oracles import ExactNetwork, GaussianMixture, OrnsteinUhlenbeck, identity  # noqa: F401
from sampling import Loop, Options, get_corrector, get_predictor
from sde_lib import VESDE, VPSDE, subVPSDE

SEED = 0
SDES = dict(
    ve=lambda N: VESDE(0.01, 20, N=N), vp=lambda N: VPSDE(N=N), subvp=lambda N: subVPSDE(N=N)
)
ALL_SDES = dict(SDES, own=OrnsteinUhlenbeck)


def made(
    make,
    sde,
    predictor='reverse_diffusion',
    corrector='langevin',
    snr=0.16,
    inverse_scaler=identity,
    **settings,
):
    """Return a sampler from `make` for a continuous network, with the final time of the SDE."""
    return make(
        sde=sde,
        predictor=predictor and get_predictor(predictor),
        corrector=corrector and get_corrector(corrector),
        snr=snr,
        inverse_scaler=inverse_scaler,
        **dict(dict(continuous=True, eps=sde.sampling_eps), **settings),
    )


def measured_sampler(
    sde, inverse_scaler, continuous, consistency=0.0, resample=1, jump=1, **options
):
    """Return `sample_measured` with the arguments of the functions of the 2021 release.

    It is called as `sampler(network, measurement, y) -> (images, nfe)`.
    """
    options, loop = Options(method='pc', **options), Loop(resample=resample, jump=jump)
    sampling.check(Score(None, sde, continuous), options, loop)
    return lambda network, measurement, y: sample_measured(
        Score(network, sde, continuous), measurement, y, options, loop, consistency
    )


def walked(times, resample, jump):
    """Return the times of a sampler that runs each `jump` steps `resample` times."""
    stretches = [times[i : i + jump] for i in range(0, len(times) - 1, jump)]
    assert (len(times) - 1) % jump == 0
    return [t for stretch in stretches for _ in range(resample) for t in stretch] + times[-1:]


def correlated(shape):
    """Return a Gaussian over points of `shape` with strong correlations.

    Variances are of order one, and covariances not much smaller.
    """
    dims, generator = math.prod(shape), torch.Generator().manual_seed(4)
    root, mean = (
        torch.randn(*size, generator=generator, dtype=torch.float64)
        for size in ((dims, dims), (1, dims))
    )
    return GaussianMixture([1.0], mean, (root @ root.T / dims + 0.1 * torch.eye(dims))[None], shape)


HALF = torch.tensor([1.0, 1.0, 0.0, 0.0])


def inpainted(sde, data, mask, shape=(4,), seed=SEED, **settings):
    """Inpaint a few samples in few steps, with a corrector that treats samples independently."""
    torch.manual_seed(seed)
    network = ExactNetwork(sde, correlated(shape))
    return made(get_pc_inpainter, sde, **dict(dict(corrector='ald'), **settings))(
        network, data, mask
    )
