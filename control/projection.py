"""Samples that agree with a measurement y = A x_0, by a projection after each step of a sampler.

At every time of the sampler's grid, the part of the state that y determines is replaced by a draw
given y (Song et al. 2021, Sec. 5 and Appendix I.2),

    x_t <- x_t - P x_t + P x~_t,    x~_t ~ p_t(x_t | x_0 = A^+ y),

beginning with the prior sample; after the last, noise-free step P x = A^+ y exactly. In inpainting
A is a mask, in colorization the mean over the channels.

The unknown part of x_t depends on y only through the score of the whole image, and at high noise
levels the noise in x~_t hides most of y. Two options reduce this error at the cost of more network
evaluations: `Loop.resample` repeats each step (Lugmayr et al. 2022), which is exact in the limit of
many repetitions, and `consistency` adds `measurement_guidance`.
"""

import dataclasses

import torch
from torch import Tensor

from control.guidance import measurement_guidance
from control.measurements import Measurement
from models.score import Score
from sampling import Loop, Options, sample


def sample_measured(
    model: Score,
    measurement: Measurement,
    y: Tensor,
    options: Options,
    loop: Loop = Loop(),
    consistency: float = 0.0,
    device: torch.device | str | None = None,
) -> tuple[Tensor, int]:
    """Draw images that agree with y = A x.

    Args:
        model: the score to follow, with its guidance.
        measurement: A.
        y: the measured values of images (B, C, H, W) as the network sees them.
        options: the sampler. The method 'ode' is not possible, because its solver has no steps
            after which the state could be projected. With `noise_removal` the images agree
            exactly with y.
        loop: `resample`, `jump` and a callback.
        consistency: the weight of `measurement_guidance`; 0 for none. Guidance also differentiates
            every network evaluation.
        device: where to sample; None: the device of the network.

    Returns:
        The images as the network sees them, and the number of network evaluations.
    """
    known = measurement.pinv(y)

    def replaced(x, known):
        return x - measurement.project(x) + measurement.project(known)

    if consistency:
        model = model.guided_by(measurement_guidance(model.sde, measurement, y, consistency))
    loop = dataclasses.replace(
        loop, project=lambda x, t: replaced(x, model.sde.perturb(known.to(x), t))
    )
    x, nfe = sample(model, known.shape, options, loop=loop, device=device)
    return replaced(x, known.to(x)) if options.noise_removal else x, nfe
