"""Latent codes: the probability flow carries every image to a code and back (Song et al. 2021, Secs. 4.3 and D.3, Fig. 3).

A code is x_T, distributed as the prior, a Gaussian of mean 0; it follows from the image and the network alone. Codes between, around or
made from others decode to images between, around or made from theirs, if they are as likely under the prior: the functions below
keep the scale of the prior where a plain average would shrink it.
"""
import torch

import fast_sampling
from errors import UserError
from models.utils import get_score_fn
from sampling import Counted, follow_flow, get_fast_sampler, get_ode_sampler


def get_encoder(sde, rtol=1e-5, atol=1e-5, method='RK45', eps=None, continuous=True, *, guidance=None, steps=None, skip_type=None,
                rho=7.0, **settings):
    """-> encoder(model, x (B, ...), scaled as the network sees it) -> (codes, shape of x, and the number of network evaluations).

    `eps`: the time at which the flow meets the image, None the SDE's `sampling_eps`. `rtol`, `atol`, `method`: see `ode_lib.solve`; or
    `method` is a solver of fast_sampling.py that follows the flow, such as 'heun', with its `steps` (None: its default), its grid and its
    `settings` as `sampling.get_fast_sampler` has them.
    """
    solver, eps = _solver(method), sde.sampling_eps if eps is None else eps

    if solver:
        number = steps or solver.default_steps
        own = {key: value for key, value in dict(settings, steps=number).items() if key in solver.settings}
        intervals = solver.intervals(number, **dict(settings, denoise=False))
        times = fast_sampling.time_grid(sde, intervals, eps, skip_type or solver.skip_type, rho).flip(0)

    @torch.no_grad()
    def encoder(model, x):
        score_fn = Counted(get_score_fn(sde, model, train=False, continuous=continuous))
        guided = guidance(score_fn) if guidance else score_fn
        if not solver:
            return follow_flow(sde, guided, x, eps, sde.T, rtol, atol, method), score_fn.calls
        stepper = solver(sde, guided, times, **own)
        for i in range(len(times) - 1):
            x = stepper.step(x, i)
        return x, score_fn.calls

    encoder.times = times if solver else None
    return encoder


def get_decoder(sde, inverse_scaler, rtol=1e-5, atol=1e-5, method='RK45', eps=None, continuous=True, *, guidance=None, steps=None,
                skip_type=None, rho=7.0, **settings):
    """-> decoder(model, z (B, ...)) -> (images, number of network evaluations), the inverse of the encoder of the same arguments."""
    solver, eps = _solver(method), sde.sampling_eps if eps is None else eps
    if solver:
        return get_fast_sampler(sde, None, solver, inverse_scaler, steps, skip_type, rho, denoise=False, eps=eps, continuous=continuous,
                                guidance=guidance, **settings)
    return get_ode_sampler(sde, None, inverse_scaler, False, rtol, atol, method, eps, continuous=continuous, guidance=guidance)


def _solver(method: str):
    """The solver of that name, if it is one of fast_sampling.py."""
    solver = fast_sampling.SOLVERS.find(method)
    if solver and not solver.follows_flow:
        raise UserError(f'codes are made by the flow: method={method!r} adds noise')
    return solver


def interpolate(z0, z1, fractions):
    """Codes (n, B, ...) on the great circle from z0 to z1 (B, ...), at `fractions` (n,) of the angle between them (Shoemake 1985)."""
    a, b = z0.flatten(1), z1.flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    angle = cosine.clamp(-1, 1).arccos().reshape(-1, *[1] * (z0.ndim - 1))
    if (angle > torch.pi - 1e-3).any():
        raise UserError('there is no shortest way between opposite codes')
    at = torch.as_tensor(fractions).to(z0).reshape(-1, *[1] * z0.ndim)
    near = angle < 1e-3  # there the circle is a line to the precision of a float, and the sines would vanish
    sine = torch.where(near, 1, angle.sin())
    return torch.where(near, 1 - at, ((1 - at) * angle).sin() / sine) * z0 + torch.where(near, at, (at * angle).sin() / sine) * z1


def temper(z, temperature: float):
    """Codes with `temperature` times the scale: below 1 nearer to what is typical, above 1 farther from it."""
    return temperature * z


def mix(codes, weights):
    """sum_k w_k z_k / sqrt(sum_k w_k^2) of independent `codes` (K, B, ...), which is distributed as each of them.

    `weights` (K,), or (K, ...) broadcasting to the codes: masks that add up to one join regions of different codes.
    """
    weights = torch.as_tensor(weights).to(codes)
    weights = weights.reshape(-1, *[1] * (codes.ndim - 1)) if weights.ndim == 1 else weights
    scale = weights.square().sum(0).sqrt()
    if not (scale > 0).all():
        raise UserError('the weights of a mixture of codes are all zero somewhere')
    return (weights * codes).sum(0) / scale


def reconstruction_error(x, y, levels: int = 256):
    """Mean and largest absolute difference, each (B,), of images x and y in [0, 1], in grey levels."""
    difference = (levels - 1) * (x - y).abs().flatten(1)
    return difference.mean(1), difference.amax(1)
