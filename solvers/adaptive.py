"""The reverse-time SDE in steps of each image's own."""

import itertools

import torch

from runtime.errors import UserError
from runtime.randomness import float64_device, normal_like
from sde_lib import expand

# of the adaptive solver: in units of T; of its step sizes
FIRST_STEP, SAFETY, EXPONENT = 0.01, 0.9, 0.9


def adaptive(sde, score_fn, x, eps, rtol=0.05, atol=1 / 256, callback=None, project=None):
    """x (B, ...) at time T carried to `eps` along the reverse-time SDE, each image in steps of its
    own (Jolicoeur-Martineau et al. 2021, Algorithm 1), two evaluations each.

    A step of Euler and Maruyama, x', and one of the stochastic improved Euler method, x'', should
    differ by at most delta = max(atol, rtol max(|x'|, |x' of the last accepted step|)) in the root
    mean square over the image. Then the step is accepted, to x''; otherwise it is tried again.
    Either way the next has the size safety h E^-exponent, for the error E in units of delta. `atol`
    is in units of the network's images; the paper's is one grey level. UserError where the steps
    become too small.

    When a step is rejected its Brownian increment is kept: smaller steps of nearly equal size
    sample the Brownian bridge to the same end point. If noise were drawn again, as in the paper,
    step sizes would depend on the noise, which biases the variance in low dimensions.
    """
    reverse, project = sde.reverse(score_fn), project or (lambda x, t: x)
    clock = float64_device(x.device)
    t, h = (
        torch.full((len(x),), value, dtype=torch.float64, device=clock)
        for value in (float(sde.T), FIRST_STEP * sde.T)
    )
    x = before = project(x, t.to(x))
    path = _Path(x)
    for i in itertools.count():
        active = t > eps
        if not active.any():
            return x
        h, noise = path.ahead(torch.where(active, torch.minimum(h, t - eps), 0))
        if (active & ~(h >= 1e-9 * sde.T)).any():
            raise UserError(
                'the steps of the adaptive solver became too small: the score is not '
                'finite, or too steep for '
                f'rtol={rtol:g} and atol={atol:g}'
            )
        start, end, dt = t.to(x), (t - h).to(x), expand(h.to(x), x)
        drift, diffusion = reverse.sde(x, start)
        first = x - dt * drift + expand(diffusion, x) * noise
        drift, diffusion = reverse.sde(first, end)
        second = (first + x - dt * drift + expand(diffusion, x) * noise) / 2
        delta = torch.maximum(first.abs(), before.abs()).mul(rtol).clamp(min=atol)
        error = ((first - second) / delta).flatten(1).square().mean(1).sqrt().to(clock).double()
        accepted = active & (error <= 1)
        path.leave(active, accepted)
        taken = expand(accepted, x).to(x.device)
        x, before, t = (
            torch.where(taken, second, x),
            torch.where(taken, first, before),
            torch.where(accepted, t - h, t),
        )
        t = torch.where(t - eps < 1e-9 * sde.T, eps, t)
        x = torch.where(taken, project(x, t.to(x)), x)
        h = torch.where(active, SAFETY * h * error.clamp(min=1e-6) ** -EXPONENT, h)
        if callback:
            callback(i, t, x)


class _Path:
    """Brownian paths, one for each image, as far ahead as they are known: pieces of a length with
    an increment, the nearest on top.

    Lengths, in float64, and what is computed from them stay on the device of these numbers;
    increments are where the images are.
    """

    def __init__(self, x):
        clock = float64_device(x.device)
        self.lengths = torch.zeros(1, len(x), dtype=torch.float64, device=clock)
        self.increments = torch.zeros(1, *x.shape, dtype=x.dtype, device=x.device)
        self.known = torch.zeros(len(x), dtype=torch.long, device=clock)  # how many pieces
        self.images = torch.arange(len(x), device=clock)

    def ahead(self, h):
        """A step of at most h (B,), an even part of the piece on top, or a new piece; and the
        path's increment over it.
        """
        z, top = normal_like(self.increments[0]), ((self.known - 1).clamp(min=0), self.images)
        fresh = self.known == 0
        self.length = torch.where(fresh, h, self.lengths[top])
        known = self.increments[tuple(index.to(z.device) for index in top)]
        self.piece = torch.where(
            expand(fresh, z).to(z.device), expand(h.sqrt().to(z), z) * z, known
        )
        share = 1 / (self.length / h - 1e-9).ceil().clamp(min=1)
        self.h = torch.where(h > 0, self.length * share, 0)
        bridge = (self.h * (1 - share)).sqrt()
        self.noise = expand(share.to(z), z) * self.piece + expand(bridge.to(z), z) * z
        return self.h, self.noise

    def leave(self, active, accepted):
        """What is known of the path once the step has been taken, where `accepted`; of others that
        are `active` its end is one more.
        """
        if self.known.max() + 1 > len(self.lengths) - 1:
            self.lengths, self.increments = (
                torch.cat([part, torch.zeros_like(part[:1])])
                for part in (self.lengths, self.increments)
            )
        place = (self.known - 1).clamp(min=0)
        left = self.length - self.h
        self._put(active, place, left, self.piece - self.noise)
        place = place + (left > 1e-9 * self.length)
        self._put(active & ~accepted, place, self.h, self.noise)
        self.known = torch.where(active, place + ~accepted, self.known)

    def _put(self, which, place, length, increment):
        here = place, self.images
        self.lengths[here] = torch.where(which, length, self.lengths[here])
        here = tuple(index.to(increment.device) for index in here)
        self.increments[here] = torch.where(
            expand(which, increment).to(increment.device), increment, self.increments[here]
        )
