"""Guidance: functions that change a score function, towards measurements or classes."""

import torch

from control.measurements import Measurement
from models.utils import get_model_fn, gradients
from runtime.errors import UserError
from sde_lib import expand


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
    classify, labels = get_model_fn(classifier, train=False), check_labels(labels)

    def gradient(x, t):
        with gradients(x, t, labels) as (x, t, classes):
            x = x.detach().requires_grad_()
            log_p = classify(x, sde.network_label(t)).log_softmax(1)
            return torch.autograd.grad(log_p.gather(1, classes.to(x.device)[:, None]).sum(), x)[0]

    return lambda score_fn: lambda x, t: score_fn(x, t) + weight * gradient(x, t)


def check_labels(labels):
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
    labels = check_labels(labels)

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
