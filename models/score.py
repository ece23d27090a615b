"""A network as the score of an SDE, for samplers, likelihoods and guidance.

For x_t = m(t) x_0 + std(t) z a network learns s(x, t) = grad_x log p_t(x) (Song et al. 2021, Eq.
7). The estimates of the noise and of the image in x follow from it (Tweedie's formula):

    z = -std s,    E[x_0 | x_t = x] = (x + std^2 s) / m.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from models.utils import get_score_fn, number_of_scales, times_like

AnyScore = TypeVar('AnyScore', bound='Score')


class Counted:
    """A function that counts its calls."""

    def __init__(self, fn: Callable):
        self.fn, self.calls = fn, 0

    def __call__(self, *args, **settings) -> Any:
        self.calls += 1
        return self.fn(*args, **settings)


class Score:
    """The score that `network` has learned for `sde`.

    All methods take x (B, ...) as the network sees it and the time t in [0, T], a number or (B,),
    and are differentiable.

    Args:
        network: called as `network(x, label)`, with the label that `sde.network_label` gives. Its
            output is converted to a score by `sde.score_from_output`: minus the noise for VP and
            sub-VP, the score itself for VE.
        sde: the SDE it was trained for.
        continuous: True if the network was trained on continuous times, False if on the noise
            levels of `sde.N` steps.
        guides: functions that map a score function `(x, t)` to a guided one. They are applied in
            this order.
    """

    def __init__(
        self,
        network: Callable | None,
        sde: Any,
        continuous: bool = True,
        guides: Sequence[Callable] = (),
    ):
        self.network = network
        self.sde = sde
        self.continuous = continuous
        self.guides = tuple(guides)

    def counted(self) -> tuple[Callable, Counted]:
        """Return a score function, and a counter of the network evaluations that it makes.

        The function is called as `score_fn(x, t, **condition)` with t of shape (B,).
        """
        counter = score_fn = Counted(
            get_score_fn(self.sde, self.network, continuous=self.continuous)
        )
        for guide in self.guides:
            score_fn = guide(score_fn)
        return score_fn, counter

    def label(self, t: Tensor) -> Tensor:
        """The network's label for the times t (B,)."""
        return self.sde.network_label(t, self.continuous, number_of_scales(self.network))

    def guided_by(self: AnyScore, *guides: Callable | None) -> AnyScore:
        """Return the same model with further guidance."""
        other = copy.copy(self)
        other.guides = (*self.guides, *filter(None, guides))
        return other

    def score(self, x: Tensor, t: float | Tensor, **condition) -> Tensor:
        """Return the score grad_x log p_t(x), shape of x.

        `condition`, such as `classes=` (B,), is passed to the network.
        """
        return self.counted()[0](x, times_like(x, t), **condition)

    def noise(self, x: Tensor, t: float | Tensor, **condition) -> Tensor:
        """The estimate of the noise z in x, shape of x."""
        t = times_like(x, t)
        return self.sde.noise(x, t, self.score(x, t, **condition))

    def denoise(self, x: Tensor, t: float | Tensor, **condition) -> Tensor:
        """The estimate E[x_0 | x_t = x], shape of x; t > 0."""
        t = times_like(x, t)
        return self.sde.denoise(x, t, self.score(x, t, **condition))

    def perturb(self, x0: Tensor, t: float | Tensor, noise: Tensor | None = None) -> Tensor:
        """A draw of x_t given x_0, shape of x_0.

        The noise is standard normal unless `noise` (shape of x_0) is given.
        """
        return self.sde.perturb(x0, times_like(x0, t), noise)

    def parameter(self) -> Tensor | None:
        """A parameter of the network, to read its device and dtype; None if it has none."""
        return (
            next(self.network.parameters(), None)
            if isinstance(self.network, torch.nn.Module)
            else None
        )
