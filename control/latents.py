"""Latent codes: the probability-flow ODE maps every image to a code and back (Song et al. 2021,
Secs. 4.3 and D.3, Fig. 3).

The code of an image is x_T. It is determined by the image and the network, and codes of data follow
the prior, a Gaussian of mean 0. Interpolated or mixed codes decode to plausible images only if they
are typical of the prior. `interpolate` and `mix` therefore keep the norm of the prior, which a
plain average would shrink.
"""

import dataclasses

import torch

from models.score import Score
from runtime.errors import UserError
from sampling import Options, check, follow_flow, sample


@torch.no_grad()
def encode(model: Score, x, options: Options = Options()):
    """Carry images to their latent codes.

    Args:
        model: the score to follow, with its guidance.
        x: images (B, ...) as the network sees them.
        options: 'ode', or a solver that follows the flow, such as 'heun'; `eps` is the time at
            which the flow meets the image.

    Returns:
        The codes, shape of x, and the number of network evaluations.
    """
    options = _of_the_flow(model, options)
    score_fn, counter = model.counted()
    if not options.solver():
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
    times = encoding_times(model.sde, options)
    solver = options.solver()(model.sde, score_fn, times, **options.solver_settings())
    for i in range(len(times) - 1):
        x = solver.step(x, i)
    return x, counter.calls


def encoding_times(sde, options: Options):
    """The times (n + 1,) between which `encode` takes its steps, or None if the solver chooses
    them.
    """
    return options.solver_times(sde, denoise=False).flip(0) if options.solver() else None


def decode(model: Score, z, options: Options = Options(), device=None):
    """Carry latent codes z (B, ...) to images: (x, the number of network evaluations), the inverse
    of `encode` with the same options.
    """
    return sample(model, z.shape, _of_the_flow(model, options), z=z, device=device)


def _of_the_flow(model, options: Options) -> Options:
    """The options without noise and without a last denoising step; 'ode' in place of methods that
    are no solvers.
    """
    solver = options.solver()
    if solver and not solver.follows_flow:
        raise UserError(
            f'latent codes follow the probability flow, but method={options.method!r} adds noise'
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


def interpolate(z0, z1, fractions):
    """Codes (n, B, ...) on the great circle from z0 to z1 (B, ...), at `fractions` (n,) of the
    angle between them (Shoemake 1985).
    """
    a, b = z0.flatten(1), z1.flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    angle = cosine.clamp(-1, 1).arccos().reshape(-1, *[1] * (z0.ndim - 1))
    if (angle > torch.pi - 1e-3).any():
        raise UserError(
            'z0 and z1 must not be opposite: the great circle between opposite codes is not unique'
        )
    at = torch.as_tensor(fractions).to(z0).reshape(-1, *[1] * z0.ndim)
    # there the circle is a line to the precision of a float, and the sines would vanish
    near = angle < 1e-3
    sine = torch.where(near, 1, angle.sin())
    return (
        torch.where(near, 1 - at, ((1 - at) * angle).sin() / sine) * z0
        + torch.where(near, at, (at * angle).sin() / sine) * z1
    )


def temper(z, temperature: float):
    """Codes with `temperature` times the scale: below 1 nearer to what is typical, above 1 farther
    from it.
    """
    return temperature * z


def mix(codes, weights):
    """sum_k w_k z_k / sqrt(sum_k w_k^2) of independent `codes` (K, B, ...), which is distributed as
    each of them.

    `weights` (K,), or (K, ...) broadcasting to the codes: masks that add up to one join regions of
    different codes.
    """
    weights = torch.as_tensor(weights).to(codes)
    weights = weights.reshape(-1, *[1] * (codes.ndim - 1)) if weights.ndim == 1 else weights
    scale = weights.square().sum(0).sqrt()
    if not (scale > 0).all():
        raise UserError('weights must not be all zero at any position')
    return (weights * codes).sum(0) / scale


def reconstruction_error(x, y, levels: int = 256):
    """Mean and largest absolute difference, each (B,), of images x and y in [0, 1], in grey
    levels.
    """
    difference = (levels - 1) * (x - y).abs().flatten(1)
    return difference.mean(1), difference.amax(1)
