"""The reverse-time SDE with a step size for each image (Jolicoeur-Martineau et al. 2021).

A step of Euler-Maruyama and one of the stochastic improved Euler method use the same increment dw
of the Brownian motion. Their difference estimates the error, which controls the step size h:

    x'  = x - h f(x, t) + g(t) dw                              f, g: drift and diffusion of the
    x'' = (x' + x - h f(x', t - h) + g(t - h) dw) / 2          reverse SDE
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models.utils import times_like
from runtime.errors import UserError
from runtime.randomness import float64_device, normal_like
from sde_lib import SDE, expand
from solvers.loop import Loop
from solvers.options import Options

FIRST_STEP = 0.01  # in units of T
SAFETY, EXPONENT = 0.9, 0.9  # the next step has the size SAFETY h E^-EXPONENT
TINY = 1e-9  # relative tolerance of times and lengths


def solve(
    sde: SDE,
    score_fn: Callable,
    x: Tensor,
    eps: float,
    rtol: float = 0.05,
    atol: float = 1 / 256,
    loop: Loop = Loop(),
) -> Tensor:
    """Carry x (B, ...) from time T to `eps` along the reverse-time SDE (Algorithm 1).

    E is the root mean square of (x' - x'') / delta over the image, where delta =
    max(atol, rtol max(|x'|, |x' of the last accepted step|)). A step is accepted, with the result
    x'', if E is at most 1. The next step has the size 0.9 h E^-0.9 in both cases. Each step takes
    two network evaluations.

    When a step is rejected its Brownian increment is kept: smaller steps sample the Brownian bridge
    to the same end point. If noise were drawn again, as in the paper, step sizes would depend on
    the noise, which biases the variance in low dimensions.

    Args:
        atol: in units of the network's images; the default is one of 256 grey levels.
        loop: `callback` is called after every step, `project` after every accepted step.

    Raises:
        UserError: if the steps become too small.
    """
    reverse, clock = sde.reverse(score_fn), float64_device(x.device)
    t = torch.full((len(x),), float(sde.T), dtype=torch.float64, device=clock)
    h = torch.full_like(t, FIRST_STEP * sde.T)
    x = x_before = loop.projected(x, t.to(x))
    path, i = BrownianPath(x), 0
    while (active := t > eps).any():
        h, dw = path.ahead(torch.where(active, torch.minimum(h, t - eps), 0))
        if (active & ~(h >= TINY * sde.T)).any():
            raise UserError(
                'the steps of the adaptive solver became too small: the score is not '
                f'finite, or too steep for rtol={rtol:g} and atol={atol:g}'
            )
        first, second = _steps(reverse, x, t, h, dw)
        delta = torch.maximum(first.abs(), x_before.abs()).mul(rtol).clamp(min=atol)
        error = ((first - second) / delta).flatten(1).square().mean(1).sqrt().to(clock).double()
        accepted = active & (error <= 1)
        path.leave(active, accepted)
        taken = expand(accepted, x).to(x.device)
        x = torch.where(taken, second, x)
        x_before = torch.where(taken, first, x_before)
        t = torch.where(accepted, t - h, t)
        t = torch.where(t - eps < TINY * sde.T, eps, t)
        x = torch.where(taken, loop.projected(x, t.to(x)), x)
        h = torch.where(active, SAFETY * h * error.clamp(min=1e-6) ** -EXPONENT, h)
        if loop.callback:
            loop.callback(i, t, x)
        i += 1
    return x


def _steps(reverse, x, t, h, dw):
    """Return x' and x'' (B, ...) after steps of h (B,) from times t (B,); see the module."""
    start, end, h = t.to(x), (t - h).to(x), expand(h.to(x), x)
    f, g = reverse.sde(x, start)
    first = x - h * f + expand(g, x) * dw
    f, g = reverse.sde(first, end)
    return first, (first + x - h * f + expand(g, x) * dw) / 2


def draw(sde: SDE, score_fn: Callable, x: Tensor, options: Options, loop: Loop) -> Tensor:
    """Carry x (B, ...) from the prior to the data; `noise_removal` uses Tweedie's formula."""
    eps = options.stop(sde)
    x = solve(sde, score_fn, x, eps, *options.tolerances(), loop)
    t = times_like(x, eps)
    return sde.denoise(x, t, score_fn(x, t)) if options.noise_removal else x


class BrownianPath:
    """Brownian paths, one for each image, as far ahead as they have been drawn.

    A path is a stack of pieces, with the next piece on top. A piece has a length (float64) and the
    increment of the path over this length.

        time ->   |-- h --|------ rest of the top piece ------|---- next piece ----|
                  the step that `ahead` proposes

    If the step is accepted, the rest replaces the top piece. If it is rejected, the step becomes a
    new piece on top of the rest. Lengths, and values computed from them, are on a device that
    supports float64; increments are on the device of the images.
    """

    def __init__(self, x: Tensor):
        clock = float64_device(x.device)
        self.lengths = torch.zeros(1, len(x), dtype=torch.float64, device=clock)
        self.increments = torch.zeros(1, *x.shape, dtype=x.dtype, device=x.device)
        self.known = torch.zeros(len(x), dtype=torch.long, device=clock)  # the number of pieces
        self.images = torch.arange(len(x), device=clock)

    def ahead(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next step, at most h (B,), and the path's increment over it.

        The top piece is divided into equal steps, and the first is drawn from the Brownian bridge.
        If no piece is known, a new one is drawn.
        """
        z = normal_like(self.increments[0])
        fresh = self.known == 0
        top = (self.known - 1).clamp(min=0), self.images
        self.length = torch.where(fresh, h, self.lengths[top])
        known = self.increments[tuple(index.to(z.device) for index in top)]
        drawn = expand(h.sqrt().to(z), z) * z
        self.piece = torch.where(expand(fresh, z).to(z.device), drawn, known)
        share = 1 / (self.length / h - TINY).ceil().clamp(min=1)
        self.h = torch.where(h > 0, self.length * share, 0)
        bridge = (self.h * (1 - share)).sqrt()
        self.noise = expand(share.to(z), z) * self.piece + expand(bridge.to(z), z) * z
        return self.h, self.noise

    def leave(self, active: Tensor, accepted: Tensor) -> None:
        """Remove the step from the path where it was `accepted` (B,).

        If it was rejected and the image is `active` (B,), the top piece is split at the step's end.
        """
        if self.known.max() + 1 > len(self.lengths) - 1:
            self.lengths = torch.cat([self.lengths, torch.zeros_like(self.lengths[:1])])
            self.increments = torch.cat([self.increments, torch.zeros_like(self.increments[:1])])
        place = (self.known - 1).clamp(min=0)
        left = self.length - self.h
        self._put(active, place, left, self.piece - self.noise)
        place = place + (left > TINY * self.length)
        self._put(active & ~accepted, place, self.h, self.noise)
        self.known = torch.where(active, place + ~accepted, self.known)

    def _put(self, which, place, length, increment):
        """Write a piece at `place` (B,) of the stacks of the images where `which` (B,) is True."""
        here = place, self.images
        self.lengths[here] = torch.where(which, length, self.lengths[here])
        here = tuple(index.to(increment.device) for index in here)
        which = expand(which, increment).to(increment.device)
        self.increments[here] = torch.where(which, increment, self.increments[here])
