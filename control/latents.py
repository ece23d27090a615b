"""Latent codes: the probability-flow ODE maps each image to a code x_T and back.

A code is determined by its image and the network (Song et al. 2021, Secs. 4.3 and D.3, Fig. 3).
Codes of data are distributed as the prior, a Gaussian with mean 0. Interpolated or mixed codes
decode to plausible images only if they are typical of the prior. `interpolate` and `mix` therefore
keep the norm, which a plain average would reduce.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from models.score import Score
from runtime.errors import UserError
from sampling import Options, check, follow_flow, sample
from sde_lib import SDE


@torch.no_grad()
def encode(model: Score, x: Tensor, options: Options = Options()) -> tuple[Tensor, int]:
    """Map images to their latent codes.

    Args:
        model: the score to follow, with its guidance.
        x: images (B, ...) as the network sees them.
        options: the sampler: 'ode', or a solver without noise, such as 'heun'. The flow starts at
            the time `eps`.

    Returns:
        The codes, shape of x, and the number of network evaluations.

    Raises:
        UserError: if the method of `options` adds noise.
    """
    options = _without_noise(model, options)
    score_fn, counter = model.counted()
    times = encoding_times(model.sde, options)
    if times is None:
        x = follow_flow(
            model.sde,
            score_fn,
            x,
            options.stop(model.sde),
            model.sde.T,
            *options.tolerances(),
            options.ode_method,
        )
        return x, counter.calls
    solver = options.build_solver(model.sde, score_fn, times)
    for i in range(len(times) - 1):
        x = solver.step(x, i)
    return x, counter.calls


def encoding_times(sde: SDE, options: Options) -> Tensor | None:
    """Return the times (n + 1,) of the steps of `encode`, or None if the solver chooses them."""
    return options.solver_times(sde, denoise=False).flip(0) if options.solver() else None


def decode(
    model: Score, z: Tensor, options: Options = Options(), device: torch.device | str | None = None
) -> tuple[Tensor, int]:
    """Map latent codes z (B, ...) to images: the inverse of `encode` with the same options.

    Returns:
        The images as the network sees them, shape of z, and the number of network evaluations.
    """
    return sample(model, z.shape, _without_noise(model, options), z=z, device=device)


def _without_noise(model, options: Options) -> Options:
    """Return the options without noise, without thresholding and without the last denoising step.

    Methods that are not few-step solvers are replaced by 'ode'.
    """
    solver = options.solver()
    if solver and not solver.follows_flow:
        raise UserError(
            f'latent codes need a method without noise, got method={options.method!r}: use '
            "'ode', 'heun' or another deterministic solver"
        )
    options = dataclasses.replace(
        options,
        method=options.method if solver else 'ode',
        noise_removal=False,
        eta=0.0,
        churn=0.0,
        thresholding=False,
    )
    check(model, options)
    return options


def interpolate(z0: Tensor, z1: Tensor, fractions: Sequence[float] | Tensor) -> Tensor:
    """Interpolate between codes along great circles (spherical linear interpolation).

    Args:
        z0: (B, ...), the codes at fraction 0.
        z1: (B, ...), the codes at fraction 1.
        fractions: (n,), fractions of the angle between z0 and z1.

    Returns:
        The codes (n, B, ...).

    Raises:
        UserError: if two codes are opposite.

    References:
        Shoemake 1985.
    """
    a, b = z0.flatten(1), z1.flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    angle = cosine.clamp(-1, 1).arccos().reshape(-1, *[1] * (z0.ndim - 1))
    if (angle > torch.pi - 1e-3).any():
        raise UserError(
            'z0 and z1 must not be opposite: there is no unique great circle between opposite codes'
        )
    at = torch.as_tensor(fractions).to(z0).reshape(-1, *[1] * z0.ndim)
    # at small angles the circle is a line to floating-point precision, and the sine is almost 0
    near = angle < 1e-3
    sine = torch.where(near, 1, angle.sin())
    return (
        torch.where(near, 1 - at, ((1 - at) * angle).sin() / sine) * z0
        + torch.where(near, at, (at * angle).sin() / sine) * z1
    )


def temper(z: Tensor, temperature: float) -> Tensor:
    """Scale codes by `temperature`: typical images below 1, unusual images above 1."""
    return temperature * z


def mix(codes: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """Mix independent codes so that the result has their distribution.

    Returns sum_k w_k z_k / sqrt(sum_k w_k^2), shape (B, ...).

    Args:
        codes: z, (K, B, ...).
        weights: w, (K,), or (K, ...) broadcasting to the codes. Masks that add up to one join
            regions of different codes.

    Raises:
        UserError: if all weights are zero at some position.
    """
    weights = torch.as_tensor(weights).to(codes)
    weights = weights.reshape(-1, *[1] * (codes.ndim - 1)) if weights.ndim == 1 else weights
    scale = weights.square().sum(0).sqrt()
    if not (scale > 0).all():
        raise UserError('weights must not be all zero at any position')
    return (weights * codes).sum(0) / scale


def reconstruction_error(x: Tensor, y: Tensor, levels: int = 256) -> tuple[Tensor, Tensor]:
    """Return the mean and the largest absolute difference (B,) of images x and y in [0, 1].

    Both are in grey levels; the images have `levels` of them, from black to white.
    """
    difference = (levels - 1) * (x - y).abs().flatten(1)
    return difference.mean(1), difference.amax(1)
