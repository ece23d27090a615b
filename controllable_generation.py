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

import dataclasses

import torch

from control.measurements import Grey, Mask, Measurement
from models.score import Score
from models.utils import get_model_fn, gradients
from runtime.errors import UserError
from sampling import Loop, Options, check, sample
from sde_lib import expand


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


def measurement_guidance(sde, measurement: Measurement, y, weight: float = 1.0):
    """The guidance towards images with y = A x: `weight` times an estimate of grad log p_t(y | x),
    in what y leaves open of x.

    With the denoised estimate x^_0(x_t), taken to be off by a Gaussian of variance r_t^2 = std^2 /
    (m^2 + std^2), the gradient is (dx^_0/dx_t)^T (A^+ y - P x^_0) / r_t^2 (Song, Vahdat, Mardani &
    Kautz 2023, Eqs. 6 to 8). It is left out where less than a tenth of the image stands out of the
    noise, m < std / 10: the estimate then says more about the network than about the image.
    """
    known = measurement.pinv(y)

    def guide(score_fn):
        def guided(x, t):
            with gradients(x, t) as (x, t):
                x = x.detach().requires_grad_()
                score = score_fn(x, t)
                m, std = (expand(value, x) for value in sde.mean_and_std(t))
                estimate = sde.denoise(x, t, score)
                missing = (
                    (known.to(x) - measurement.project(estimate.detach()))
                    * (m**2 + std**2)
                    / std**2
                )
                gradient = torch.autograd.grad(estimate, x, missing)[0]
            gradient = torch.where(m < std / 10, 0, gradient)
            return score.detach() + weight * (gradient - measurement.project(gradient))

        return guided

    return guide


def classifier_guidance(sde, classifier, labels, weight: float = 1.0):
    """The guidance towards classes `labels` (B,) that adds `weight` times grad log p_t(label | x)
    to the score (Eq. 14).

    `classifier(x, network label of the time) -> logits (B, K)`, trained on images at continuous
    times of `sde`.
    """
    classify, labels = get_model_fn(classifier, train=False), _checked(labels)

    def gradient(x, t):
        with gradients(x, t, labels) as (x, t, classes):
            x = x.detach().requires_grad_()
            log_p = classify(x, sde.network_label(t)).log_softmax(1)
            return torch.autograd.grad(log_p.gather(1, classes.to(x.device)[:, None]).sum(), x)[0]

    return lambda score_fn: lambda x, t: score_fn(x, t) + weight * gradient(x, t)


def _checked(labels):
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or labels.is_floating_point():
        raise UserError(
            'labels must be whole numbers of shape (batch,), got '
            f'{tuple(labels.shape)} {labels.dtype}'
        )
    return labels


def classifier_free_guidance(labels, weight: float = 1.0):
    """The guidance of a network that knows classes: (1 - weight) s(x, t) + weight s(x, t, label)
    for `labels` (B,) (Ho & Salimans 2022, Eq. 6, with w = weight - 1). Weight 0 is the
    unconditional score, 1 the conditional one; in between and beyond, two evaluations.
    """
    labels = _checked(labels)

    def guide(score_fn):
        def guided(x, t):
            if weight == 0:
                return score_fn(x, t)
            conditional = score_fn(x, t, classes=labels.to(x.device))
            return (
                conditional if weight == 1 else (1 - weight) * score_fn(x, t) + weight * conditional
            )

        return guided

    return guide


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
        labels = _checked(labels)
        score = Score(model, sde, continuous).guided_by(
            classifier_guidance(sde, classifier, labels, weight)
        )
        x, nfe = sample(score, (len(labels), *shape), options, device=device)
        return inverse_scaler(x), nfe

    return conditional_sampler
