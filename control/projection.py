"""Samples that agree with a measurement: a projection after each step of a sampler."""

import dataclasses

from control.guidance import measurement_guidance
from control.measurements import Measurement
from models.score import Score
from sampling import Loop, Options, sample


def sample_measured(
    model: Score,
    measurement: Measurement,
    y,
    options: Options,
    loop: Loop = Loop(),
    consistency: float = 0.0,
    device=None,
):
    """Draw images that agree with y = A x.

    Args:
        model: the score to follow, with its guidance.
        measurement: A.
        y: measured of images (B, C, H, W) as the network sees them.
        options: the method and its settings; not 'ode', within whose steps nothing can be imposed.
            With `noise_removal` the images agree with y exactly.
        loop: `resample`, `jump` and a callback.
        consistency: the weight of `measurement_guidance`, which differentiates every network
            evaluation.
        device: where to sample; None: the device of the network.

    Returns:
        The images as the network sees them, and the number of network evaluations.
    """
    known = measurement.pinv(y)

    def replaced(x, known):
        return x - measurement.project(x) + measurement.project(known)

    model = model.guided_by(
        consistency and measurement_guidance(model.sde, measurement, y, consistency)
    )
    loop = dataclasses.replace(
        loop, project=lambda x, t: replaced(x, model.sde.perturb(known.to(x), t))
    )
    x, nfe = sample(model, known.shape, options, loop=loop, device=device)
    return replaced(x, known.to(x)) if options.noise_removal else x, nfe
