"""Samplers of the reverse-time SDE and of the probability-flow ODE (Song et al. 2021).

    model = Score(network, sde)  # of models/score.py; it may include guidance
    x, nfe = sample(model, (16, 3, 32, 32), Options(method='heun', steps=18))

`Options` has the keys of a config's `sampling` section. Method 'pc' alternates a predictor, a step
of the reverse-time SDE

    dx = (f(x, t) - g(t)^2 score(x, t)) dt + g(t) dw          (Eq. 6),

and a corrector, steps of Langevin dynamics at a fixed time (Algorithm 1). 'ode' follows the
probability flow (Eq. 13), 'adaptive' the reverse-time SDE with error control; all other methods are
in `solvers`. The functions of the 2021 release (`get_pc_sampler`, `get_ode_sampler`,
`get_sampling_fn`) are adapters of `sample`.

Samplers must draw noise with `runtime.randomness.normal_like`, so that each image can have its own
random stream.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

from configs.defaults import complete
from models.score import Score
from models.utils import get_score_fn, times_like
from runtime.errors import UserError
from runtime.randomness import prior_sampling
from sde_lib import SDE
from solvers import SOLVERS, adaptive, ode, predictor_corrector
from solvers.loop import Loop
from solvers.ode import follow_flow
from solvers.options import Options
from solvers.predictor_corrector import (  # noqa: F401  (published names)
    CORRECTORS,
    PREDICTORS,
    Corrector,
    NoneCorrector,
    NonePredictor,
    Predictor,
)
from solvers.predictors import (  # noqa: F401  (published names)
    AncestralSamplingPredictor,
    AnnealedLangevinDynamics,
    EulerMaruyamaPredictor,
    LangevinCorrector,
    ReverseDiffusionPredictor,
)

register_predictor, get_predictor = PREDICTORS.register, PREDICTORS.get
register_corrector, get_corrector = CORRECTORS.register, CORRECTORS.get


def methods() -> list[str]:
    """The values of `Options.method`."""
    return ['pc', 'ode', 'adaptive', *SOLVERS.names()]


def check(model: Score, options: Options, loop: Loop = Loop()) -> None:
    """Raise an error that names the option if `sample` does not support these arguments.

    The network of `model` may be None.

    Raises:
        NotImplementedError, ValueError: if an option is unknown, or not defined for this SDE.
    """
    sde, method, solver = model.sde, options.method.lower(), options.solver()
    if method not in map(str.lower, methods()):
        raise UserError(f'method must be one of {", ".join(methods())}, got {options.method!r}')
    if options.thresholding and not solver:
        raise UserError(
            f'thresholding=True is not supported by method={method!r}: use one of '
            f'{", ".join(SOLVERS.names())}'
        )
    if method not in ('pc', 'ode') and not model.continuous and sde.N < 100:
        raise UserError(
            f'method={method!r} needs a network trained in continuous time or on at least 100 '
            f"noise levels, got num_scales={sde.N}: use method='pc'"
        )
    if method == 'ode':
        ode.check_method(options.ode_method)
        if loop.project:
            raise UserError(
                "method='ode' does not support inpainting and other measurements: use "
                f"'pc', 'adaptive' or one of {', '.join(SOLVERS.names())}"
            )
    elif method == 'adaptive' and (loop.resample, loop.jump) != (1, 1):
        raise UserError("method='adaptive' does not support resample and jump: set both to 1")
    elif method == 'pc':
        predictor_corrector.check(sde, options, loop)
    elif solver:
        unused: Any = None  # no score function is known yet
        options.build_solver(sde, unused)


def times_of(sde: SDE, options: Options) -> Tensor | None:
    """The times (n + 1,) of a sampler's steps, or None if the sampler chooses its own steps."""
    if options.solver():
        return options.solver_times(sde)
    return predictor_corrector.times(sde, options) if options.method.lower() == 'pc' else None


@torch.no_grad()
def sample(
    model: Score,
    shape: Sequence[int],
    options: Options = Options(),
    *,
    z: Tensor | None = None,
    loop: Loop = Loop(),
    device: torch.device | str | None = None,
) -> tuple[Tensor, int]:
    """Draw samples of a model.

    Args:
        model: the score to follow, with its guidance.
        shape: the shape of the samples, (B, ...).
        options: the method and its settings.
        z: the state at time T, of `shape`, such as latent codes, on any device. None: a draw from
            the prior.
        loop: projection, repetition and callback between the steps.
        device: where to sample. None: the device of the network.

    Returns:
        The samples as the network sees them, and the number of network evaluations.

    Raises:
        NotImplementedError, ValueError: if the options are not defined for this SDE.
    """
    check(model, options, loop)
    x = _prior(model, shape, options.prior_mean) if z is None else z
    device = device or getattr(model.parameter(), 'device', None)
    x = x.to(device) if device else x
    score_fn, counter = model.counted()
    draws = {'pc': predictor_corrector.draw, 'ode': _follow_flow, 'adaptive': adaptive.draw}
    draw = draws.get(options.method.lower(), _take_few_steps)
    return draw(model.sde, score_fn, x, options, loop), counter.calls


def _take_few_steps(sde, score_fn, x, options, loop):
    return options.build_solver(sde, score_fn).draw(x, loop, options.noise_removal)


def _prior(model, shape, mean):
    """Return a draw from the prior, shifted by `mean`, in the network's dtype.

    It is drawn on the CPU, so that a seed gives the same numbers on every device.
    """
    parameter, x = model.parameter(), prior_sampling(model.sde, shape)
    x = x + (mean.to(x) if torch.is_tensor(mean) else mean)
    return x if parameter is None else x.to(torch.promote_types(parameter.dtype, torch.float32))


def _follow_flow(sde, score_fn, x, options, loop):
    """Follow the ODE from the prior to the data; a predictor step without noise may follow."""
    eps = options.stop(sde)
    x = follow_flow(sde, score_fn, x, sde.T, eps, *options.tolerances(), options.ode_method)
    if options.noise_removal:
        _, x = ReverseDiffusionPredictor(sde, score_fn).update_fn(x, times_like(x, eps))
    return x


def round_to_8_bits(x: Tensor) -> Tensor:
    """Round images in [0, 1] (B, ...) to the values k / 255."""
    return (x.clamp(0, 1) * 255).round() / 255


# The functions of the 2021 release ----------------------------------------------------------------


def shared_predictor_update_fn(
    x: Tensor,
    t: Tensor,
    sde: SDE,
    model: Callable,
    predictor: type[Predictor] | None,
    probability_flow: bool,
    continuous: bool,
) -> tuple[Tensor, Tensor]:
    """Return (x, x_mean) after one step of a predictor class (None: no step) with a network.

    In your own loop, build the predictor once instead of calling this function.
    """
    score_fn = get_score_fn(sde, model, train=False, continuous=continuous)
    return (predictor or NonePredictor)(sde, score_fn, probability_flow).update_fn(x, t)


def shared_corrector_update_fn(
    x: Tensor,
    t: Tensor,
    sde: SDE,
    model: Callable,
    corrector: type[Corrector] | None,
    continuous: bool,
    snr: float,
    n_steps: int,
) -> tuple[Tensor, Tensor]:
    """Return (x, x_mean) after the steps of a corrector class (None: no step) with a network.

    In your own loop, build the corrector once instead of calling this function.
    """
    score_fn = get_score_fn(sde, model, train=False, continuous=continuous)
    return (corrector or NoneCorrector)(sde, score_fn, snr, n_steps).update_fn(x, t)


def pc_options(
    predictor: type[Predictor] | None,
    corrector: type[Corrector] | None,
    snr: float,
    n_steps: int,
    probability_flow: bool,
    denoise: bool,
    eps: float,
) -> Options:
    """Convert these arguments of `get_pc_sampler` to `Options`."""
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


def get_pc_sampler(  # noqa: PLR0913  (a signature of the 2021 release)
    sde: SDE,
    shape: Sequence[int],
    predictor: type[Predictor] | None,
    corrector: type[Corrector] | None,
    inverse_scaler: Callable,
    snr: float,
    n_steps: int = 1,
    probability_flow: bool = False,
    continuous: bool = False,
    denoise: bool = True,
    eps: float = 1e-3,
    device: torch.device | str | None = None,
    *,
    guidance: Callable | None = None,
) -> Callable:
    """Return a predictor-corrector sampler (Algorithm 1).

    It is a function `pc_sampler(model)` that returns (samples, nfe).

    Args:
        sde: the SDE; the sampler takes `sde.N` steps from T to `eps`.
        shape: the shape of the samples, (B, ...).
        predictor, corrector: classes, or None for no step.
        inverse_scaler: applied to the samples.
        snr, n_steps: signal-to-noise ratio and number of steps of the corrector.
        probability_flow: whether the predictor follows the ODE.
        continuous: whether the network was trained in continuous time.
        denoise: whether to leave out the noise of the last step.
        device: the device of the samples. None: the device of the network.
        guidance: a function that maps the network's score function to the guided score function.
    """
    options = pc_options(predictor, corrector, snr, n_steps, probability_flow, denoise, eps)
    model = Score(None, sde, continuous).guided_by(guidance)
    return _sampler(model, shape, options, inverse_scaler, device)


def get_ode_sampler(  # noqa: PLR0913  (a signature of the 2021 release)
    sde: SDE,
    shape: Sequence[int],
    inverse_scaler: Callable,
    denoise: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = 'RK45',
    eps: float = 1e-3,
    device: torch.device | str | None = None,
    *,
    continuous: bool = True,
    guidance: Callable | None = None,
) -> Callable:
    """Return a sampler that follows the probability flow (Eq. 13) from T to `eps`.

    It is a function `ode_sampler(model, z=None)` that returns (samples, nfe). It starts from the
    latent codes `z` (of `shape`), or from a draw from the prior.

    Args:
        denoise: whether to add a predictor step without noise.
        rtol, atol, method: see `solvers.ode.solve`.
        sde, shape, inverse_scaler, device, continuous, guidance: see `get_pc_sampler`.
    """
    options = Options(
        method='ode', noise_removal=denoise, rtol=rtol, atol=atol, ode_method=method, eps=eps
    )
    model = Score(None, sde, continuous).guided_by(guidance)
    return _sampler(model, shape, options, inverse_scaler, device)


def get_sampling_fn(
    config: ConfigDict,
    sde: SDE,
    shape: Sequence[int],
    inverse_scaler: Callable,
    eps: float,
    guidance: Callable | None = None,
    loop: Loop = Loop(),
) -> Callable:
    """Return the sampler that `config.sampling` describes, a function of the network.

    It returns (samples, nfe). The samples have `shape`, and the sampler stops at time `eps`. For
    `inverse_scaler` and `guidance` see `get_pc_sampler`, for `loop` see `sample`.
    """
    config = complete(config)
    options = Options.of(config.sampling, eps=eps)
    if 'centered' in config.data:
        options = dataclasses.replace(options, centered=config.data.centered)

    def to_images(x):
        return round_to_8_bits(inverse_scaler(x)) if config.sampling.round else inverse_scaler(x)

    model = Score(None, sde, config.training.continuous).guided_by(guidance)
    return _sampler(model, shape, options, to_images, config.device, loop)


def _sampler(model: Score, shape, options, inverse_scaler, device, loop=Loop()):
    """Return `sampler(network, z=None)`, which samples `model` with this network."""
    check(model, options, loop)

    def sampler(network, z=None):
        score = Score(network, model.sde, model.continuous, model.guides)
        x, nfe = sample(score, shape, options, z=z, loop=loop, device=device)
        return inverse_scaler(x), nfe

    return sampler
