"""Guidance: wrapped score functions that lead samples to a measurement or to a class.

A guidance maps a score function `score_fn(x, t)` to another one. `Score.guided_by` applies it, and
`sampling` functions of the 2021 release take it as `guidance=`. All samplers accept guided scores.

Class-conditional samples follow the score of p_t(x | c) (Song et al. 2021, Eq. 14),

    grad log p_t(x | c) = grad log p_t(x) + grad log p_t(c | x),

where the last term comes from a classifier of noisy images (`classifier_guidance`), or the left
side from a class-conditional network (`classifier_free_guidance`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from control.measurements import Measurement
from models.utils import get_model_fn, gradients
from runtime.errors import UserError
from sde_lib import SDE, expand


def measurement_guidance(
    sde: SDE, measurement: Measurement, y: Tensor, weight: float = 1.0
) -> Callable:
    """Return the guidance towards images x_0 with A x_0 = y.

    It adds `weight` times an estimate of grad log p_t(y | x_t), restricted to the part of x_t that
    y does not determine. With the denoised estimate x^_0(x_t), whose error is modelled as Gaussian
    with variance r_t^2 = std^2 / (m^2 + std^2), the gradient is
    (dx^_0/dx_t)^T (A^+ y - P x^_0) / r_t^2. It is set to zero at noise levels with m < std / 10,
    where the estimate depends more on the network than on the image.

    Args:
        sde: the SDE of the network.
        measurement: A.
        y: the measured values of images as the network sees them.
        weight: the weight of the gradient.

    References:
        Song, Vahdat, Mardani & Kautz 2023, Eqs. 6 to 8.
    """
    known = measurement.pinv(y)

    def guide(score_fn):
        def guided(x, t):
            with gradients(x, t) as (x, t):
                x = x.detach().requires_grad_()
                score = score_fn(x, t)
                m, std = (expand(value, x) for value in sde.mean_and_std(t))
                estimate = sde.denoise(x, t, score)
                missing = known.to(x) - measurement.project(estimate.detach())
                missing = missing * (m**2 + std**2) / std**2
                gradient = torch.autograd.grad(estimate, x, missing)[0]
            gradient = torch.where(m < std / 10, 0, gradient)
            return score.detach() + weight * (gradient - measurement.project(gradient))

        return guided

    return guide


def classifier_guidance(
    sde: SDE, classifier: Callable, labels: Sequence[int] | Tensor, weight: float = 1.0
) -> Callable:
    """Return the guidance towards classes by a classifier of noisy images.

    It adds `weight` times grad log p_t(label | x) to the score.

    Args:
        sde: the SDE of the network.
        classifier: called as `classifier(x, label)` with the network label of the time, returns
            logits (B, K). It must have been trained at continuous times of `sde`.
        labels: (B,), the class of each image.
        weight: the guidance scale.

    References:
        Song et al. 2021, Eq. 14.
    """
    classify, labels = get_model_fn(classifier, train=False), check_labels(labels)

    def gradient(x, t):
        with gradients(x, t, labels) as (x, t, classes):
            x = x.detach().requires_grad_()
            log_p = classify(x, sde.network_label(t)).log_softmax(1)
            return torch.autograd.grad(log_p.gather(1, classes.to(x.device)[:, None]).sum(), x)[0]

    return lambda score_fn: lambda x, t: score_fn(x, t) + weight * gradient(x, t)


def classifier_free_guidance(labels: Sequence[int] | Tensor, weight: float = 1.0) -> Callable:
    """Return the guidance towards classes by a class-conditional network.

    The guided score is (1 - weight) s(x, t) + weight s(x, t, label): the unconditional score for
    weight 0, the conditional score for weight 1. Other weights take two network evaluations.

    Args:
        labels: (B,), the class of each image.
        weight: the guidance scale.

    References:
        Ho & Salimans 2022, Eq. 6, with w = weight - 1.
    """
    labels = check_labels(labels)

    def guide(score_fn):
        def guided(x, t):
            if weight == 0:
                return score_fn(x, t)
            conditional = score_fn(x, t, classes=labels.to(x.device))
            if weight == 1:
                return conditional
            return (1 - weight) * score_fn(x, t) + weight * conditional

        return guided

    return guide


def check_labels(labels: Sequence[int] | Tensor) -> Tensor:
    """Return class labels as a tensor (B,) of integers.

    Raises:
        UserError: if they have another shape or are floating-point numbers.
    """
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or labels.is_floating_point():
        raise UserError(
            'labels must be integers of shape (batch,), got '
            f'{labels.dtype} of shape {tuple(labels.shape)}'
        )
    return labels
