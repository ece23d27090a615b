"""Conditional samples from unconditional networks (Song et al. 2021, Secs. 5 and Appendix I), and
from networks that know classes.

Of an image x_0 a linear measurement y = A x_0 is known (control/measurements.py; P is the
projection on what y determines). A sampler's state is then made to agree, at every time that it
comes to, with a draw of what is known:

    x_t <- x_t - P x_t + P x~_t,    x~_t ~ p_t(x_t | x_0 = A^+ y),

starting at the prior; after the last, noise-free step P x equals A^+ y. For inpainting A is a mask,
for colorization the mean over the channels. The unknown part of x_t depends on y only through the
score of the whole image, and the noise in x~_t hides most of y. Two options reduce this error; both
are off by default because they take more time. `resample` repeats each step (Lugmayr et al. 2022)
and is exact in the limit of many repetitions; `consistency` adds an estimate of the gradient of log
p(y | x_t) (`measurement_guidance`).

Class-conditional samples follow the score of p_t(x | c) (Eq. 14),
grad log p_t(x) + grad log p_t(c | x). It comes from a classifier that was trained on noisy images,
or from a class-conditional network. Either is passed to a sampler as `guidance`, a function that
maps a score function to another score function.
"""

import torch

from control.guidance import check_labels, classifier_guidance
from control.measurements import Grey, Mask
from control.projection import sample_measured
from models.score import Score
from runtime.errors import UserError
from sampling import Loop, Options, check, sample


def _pc_options(predictor, corrector, snr, n_steps, probability_flow, denoise, eps) -> Options:
    """The options of predictor-corrector sampling under their published names."""
    return Options(
        method='pc',
        predictor=predictor,
        corrector=corrector,
        snr=snr,
        n_steps_each=n_steps,
        probability_flow=probability_flow,
        noise_removal=denoise,
        eps=eps,
    )


def _measured_sampler(
    sde, options, inverse_scaler, continuous, resample, jump, consistency, guidance
):
    """Return the function `sampler(model, measurement, y) -> images` that `get_pc_inpainter` and
    `get_pc_colorizer` use.
    """
    loop = Loop(resample=resample, jump=jump)
    check(Score(None, sde, continuous), options, loop)

    def sampler(model, measurement, y):
        return inverse_scaler(
            sample_measured(
                Score(model, sde, continuous).guided_by(guidance),
                measurement,
                y,
                options,
                loop,
                consistency,
            )[0]
        )

    return sampler


def get_pc_inpainter(
    sde,
    predictor,
    corrector,
    inverse_scaler,
    snr,
    n_steps=1,
    probability_flow=False,
    continuous=False,
    denoise=True,
    eps=1e-5,
    *,
    resample=1,
    jump=1,
    consistency=0.0,
    guidance=None,
):
    """Return `inpainter(model, data, mask)`: images like `data` (B, C, H, W), scaled as the network
    sees them, where `mask` is 1, and new where it is 0 (Appendix I.2).

    The mask broadcasts to the data, whose values where it is 0 have no influence. `resample`,
    `jump`: see `sampling.Loop`; `consistency`: see `sample_measured`. Everything else as for
    `sampling.get_pc_sampler`.
    """
    options = _pc_options(predictor, corrector, snr, n_steps, probability_flow, denoise, eps)
    sampler = _measured_sampler(
        sde, options, inverse_scaler, continuous, resample, jump, consistency, guidance
    )

    def inpainter(model, data, mask):
        mask = Mask(torch.as_tensor(mask))
        return sampler(model, mask, mask(data))

    return inpainter


def get_pc_colorizer(
    sde,
    predictor,
    corrector,
    inverse_scaler,
    snr,
    n_steps=1,
    probability_flow=False,
    continuous=False,
    denoise=True,
    eps=1e-5,
    *,
    resample=1,
    jump=1,
    consistency=0.0,
    guidance=None,
):
    """Return `colorizer(model, gray_scale_img)`: images in colour whose channels have the mean of
    those of `gray_scale_img` (B, C, H, W) (Appendix I.3, where an orthogonal matrix makes it the
    first of the decoupled channels). Everything else as for `get_pc_inpainter`.
    """
    options = _pc_options(predictor, corrector, snr, n_steps, probability_flow, denoise, eps)
    sampler = _measured_sampler(
        sde, options, inverse_scaler, continuous, resample, jump, consistency, guidance
    )

    def colorizer(model, gray_scale_img):
        grey = Grey(gray_scale_img.shape[1])
        return sampler(model, grey, grey(gray_scale_img))

    return colorizer


def get_pc_conditional_sampler(
    sde,
    classifier,
    predictor,
    corrector,
    inverse_scaler,
    snr,
    n_steps=1,
    probability_flow=False,
    continuous=False,
    denoise=True,
    eps=1e-5,
    *,
    shape=None,
    weight=1.0,
    device=None,
):
    """Return `conditional_sampler(model, labels (B,)) -> (samples, nfe)` of these classes, by a
    classifier of noisy images (Sec. 5).

    `shape`: of one sample, (C, H, W); None is what the classifier says in its attribute `shape`.
    `weight`: of its gradient. Everything else as for `sampling.get_pc_sampler`.
    """
    shape = (
        getattr(getattr(classifier, 'module', classifier), 'shape', None)
        if shape is None
        else shape
    )
    if shape is None:
        raise UserError('the classifier has no attribute `shape`: pass shape=(C, H, W)')
    options = _pc_options(predictor, corrector, snr, n_steps, probability_flow, denoise, eps)
    check(Score(None, sde, continuous), options)

    def conditional_sampler(model, labels):
        labels = check_labels(labels)
        score = Score(model, sde, continuous).guided_by(
            classifier_guidance(sde, classifier, labels, weight)
        )
        x, nfe = sample(score, (len(labels), *shape), options, device=device)
        return inverse_scaler(x), nfe

    return conditional_sampler
