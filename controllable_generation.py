"""Inpainting, colorization and class-conditional sampling under the names of the 2021 release.

    inpainter = get_pc_inpainter(sde, predictor, corrector, inverse_scaler, snr=0.16, ...)
    images = inpainter(model, data, mask)

The functions build predictor-corrector samplers from the parts in `control`: a measurement with the
projection onto it (Song et al. 2021, Appendix I), or the guidance of a classifier (Sec. 5). Use
`control.sample_measured` for other samplers and measurements, and `score_model.ScoreModel` for
trained models.
"""

from collections.abc import Callable, Sequence

import torch

from control.guidance import check_labels, classifier_guidance
from control.measurements import Grey, Mask
from control.projection import sample_measured
from models.score import Score
from runtime.errors import UserError
from sampling import Corrector, Loop, Predictor, check, pc_options, sample
from sde_lib import SDE


def _measured_sampler(score_of: Callable, options, inverse_scaler, loop, consistency) -> Callable:
    """Return a function `sampler(model, measurement, y)` that draws images consistent with y.

    `score_of` maps a network to its (guided) score. Incompatible settings raise an error here,
    before a network is passed.
    """
    check(score_of(None), options, loop)

    def sampler(model, measurement, y):
        images, _ = sample_measured(score_of(model), measurement, y, options, loop, consistency)
        return inverse_scaler(images)

    return sampler


def get_pc_inpainter(  # noqa: PLR0913  (a signature of the 2021 release)
    sde: SDE,
    predictor: type[Predictor] | None,
    corrector: type[Corrector] | None,
    inverse_scaler: Callable,
    snr: float,
    n_steps: int = 1,
    probability_flow: bool = False,
    continuous: bool = False,
    denoise: bool = True,
    eps: float = 1e-5,
    *,
    resample: int = 1,
    jump: int = 1,
    consistency: float = 0.0,
    guidance: Callable | None = None,
) -> Callable:
    """Return a function `inpainter(model, data, mask)` that fills in missing pixels of images.

    `data` (B, C, H, W) are images as the network sees them; their values at missing pixels are not
    used. `mask` broadcasts to `data` and is 1 where pixels are known, 0 where they are missing. The
    inpainter returns images (B, C, H, W) after `inverse_scaler`.

    Args:
        resample: how often each step is repeated, see `sampling.Loop`.
        jump: how many steps are repeated together, see `sampling.Loop`.
        consistency: the weight of `control.measurement_guidance`; 0 for none.
        guidance: further guidance, see `control.guidance`.

    The other arguments are those of `sampling.get_pc_sampler`.

    References:
        Song et al. 2021, Appendix I.2.
    """
    sampler = _measured_sampler(
        lambda model: Score(model, sde, continuous).guided_by(guidance),
        pc_options(predictor, corrector, snr, n_steps, probability_flow, denoise, eps),
        inverse_scaler,
        Loop(resample=resample, jump=jump),
        consistency,
    )

    def inpainter(model, data, mask):
        mask = Mask(torch.as_tensor(mask))
        return sampler(model, mask, mask(data))

    return inpainter


def get_pc_colorizer(  # noqa: PLR0913  (a signature of the 2021 release)
    sde: SDE,
    predictor: type[Predictor] | None,
    corrector: type[Corrector] | None,
    inverse_scaler: Callable,
    snr: float,
    n_steps: int = 1,
    probability_flow: bool = False,
    continuous: bool = False,
    denoise: bool = True,
    eps: float = 1e-5,
    *,
    resample: int = 1,
    jump: int = 1,
    consistency: float = 0.0,
    guidance: Callable | None = None,
) -> Callable:
    """Return a function `colorizer(model, gray_scale_img)` that draws colours for grey images.

    `gray_scale_img` (B, C, H, W) are images as the network sees them; only the mean over their
    channels is used. The colorizer returns images (B, C, H, W) with the same channel mean, after
    `inverse_scaler`. The mean over the channels is, up to a factor, the first of the decoupled
    channels in the paper.

    Args:
        resample, jump, consistency, guidance: as for `get_pc_inpainter`.

    The other arguments are those of `sampling.get_pc_sampler`.

    References:
        Song et al. 2021, Appendix I.3.
    """
    sampler = _measured_sampler(
        lambda model: Score(model, sde, continuous).guided_by(guidance),
        pc_options(predictor, corrector, snr, n_steps, probability_flow, denoise, eps),
        inverse_scaler,
        Loop(resample=resample, jump=jump),
        consistency,
    )

    def colorizer(model, gray_scale_img):
        grey = Grey(gray_scale_img.shape[1])
        return sampler(model, grey, grey(gray_scale_img))

    return colorizer


def get_pc_conditional_sampler(  # noqa: PLR0913  (a signature of the 2021 release)
    sde: SDE,
    classifier: Callable,
    predictor: type[Predictor] | None,
    corrector: type[Corrector] | None,
    inverse_scaler: Callable,
    snr: float,
    n_steps: int = 1,
    probability_flow: bool = False,
    continuous: bool = False,
    denoise: bool = True,
    eps: float = 1e-5,
    *,
    shape: Sequence[int] | None = None,
    weight: float = 1.0,
    device: torch.device | str | None = None,
) -> Callable:
    """Return a function `conditional_sampler(model, labels)` that draws one sample per label.

    It takes labels (B,) and returns `(samples, nfe)`: the samples (B, C, H, W) after
    `inverse_scaler`, and the number of network evaluations.

    Args:
        classifier: a classifier of noisy images, see `control.classifier_guidance`.
        shape: the shape of one sample, (C, H, W); None: the attribute `shape` of the classifier.
        weight: the guidance scale.
        device: where to sample; None: the device of the network.

    The other arguments are those of `sampling.get_pc_sampler`.

    Raises:
        UserError: if the shape is unknown.

    References:
        Song et al. 2021, Sec. 5.
    """
    if shape is None:
        shape = getattr(getattr(classifier, 'module', classifier), 'shape', None)
    if shape is None:
        raise UserError('the classifier has no attribute `shape`: pass shape=(C, H, W)')
    options = pc_options(predictor, corrector, snr, n_steps, probability_flow, denoise, eps)
    check(Score(None, sde, continuous), options)

    def conditional_sampler(model, labels):
        labels = check_labels(labels)
        score = Score(model, sde, continuous).guided_by(
            classifier_guidance(sde, classifier, labels, weight)
        )
        x, nfe = sample(score, (len(labels), *shape), options, device=device)
        return inverse_scaler(x), nfe

    return conditional_sampler
