"""A network as the score of an SDE: what samplers, likelihoods and guidance compute with.

For x_t = m(t) x_0 + std(t) z a network learns s(x, t) = grad_x log p_t(x) (Song et al. 2021, Eq.
7). The estimates of the noise and of the image in x follow from it (Tweedie's formula):

    z = -std s,    E[x_0 | x_t = x] = (x + std^2 s) / m.
"""

import copy

import torch

from models.utils import get_score_fn, number_of_scales, times_like


class Counted:
    """A function that counts its calls."""

    def __init__(self, fn):
        self.fn, self.calls = fn, 0

    def __call__(self, *args, **settings):
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
        continuous: whether it was trained on continuous times, or on the noise levels of `sde.N`
            steps.
        guides: guidance, each a function from a score function `(x, t) -> score` to another,
        applied in this order.
    """

    def __init__(self, network, sde, continuous: bool = True, guides: tuple = ()):
        self.network, self.sde, self.continuous, self.guides = (
            network,
            sde,
            continuous,
            tuple(guides),
        )

    def counted(self):
        """A score function `(x, t (B,), **condition) -> score`, and the counter of the network
        evaluations that its calls make.
        """
        counter = score_fn = Counted(
            get_score_fn(self.sde, self.network, continuous=self.continuous)
        )
        for guide in self.guides:
            score_fn = guide(score_fn)
        return score_fn, counter

    def label(self, t):
        """What the network is given for the times t (B,)."""
        return self.sde.network_label(t, self.continuous, number_of_scales(self.network))

    def guided_by(self, *guides):
        """The same model with further guidance."""
        other = copy.copy(self)
        other.guides = (*self.guides, *filter(None, guides))
        return other

    def score(self, x, t, **condition):
        """grad_x log p_t(x), shape of x; `condition` is passed to the network, such as `classes=`
        (B,).
        """
        return self.counted()[0](x, times_like(x, t), **condition)

    def noise(self, x, t, **condition):
        """The estimate of the noise z in x, shape of x."""
        t = times_like(x, t)
        return self.sde.noise(x, t, self.score(x, t, **condition))

    def denoise(self, x, t, **condition):
        """The estimate E[x_0 | x_t = x], shape of x; t > 0."""
        t = times_like(x, t)
        return self.sde.denoise(x, t, self.score(x, t, **condition))

    def perturb(self, x0, t, noise=None):
        """A draw of x_t given x_0 (shape of x_0), with standard normal noise unless `noise` (shape
        of x_0) is given.
        """
        return self.sde.perturb(x0, times_like(x0, t), noise)

    def parameter(self) -> torch.Tensor | None:
        """A parameter of the network, which tells its device and dtype; None if it has none."""
        return (
            next(self.network.parameters(), None)
            if isinstance(self.network, torch.nn.Module)
            else None
        )
