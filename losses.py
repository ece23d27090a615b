"""Losses of score networks and of classifiers of noisy images, and the training step.

Denoising score matching, in continuous time (Song et al. 2021, Eq. 7) and on discrete noise levels
(SMLD, DDPM), draws x_t = m(t) x_0 + std(t) z and trains the network to predict the score
-z / std(t) of that draw. With the network's score s the residual is

    std s + z              weighted equally at all times ("variance weighting"), or
    (s + z / std) g(t)     ("likelihood weighting", Song et al. 2021b).

A loss is called as `loss(model, batch)`, for class-conditional networks with `classes=` (B,).
`loss.draw` draws the random numbers (times, then noise) for the whole batch. They are then split
among processes and micro-batches, so the loss does not depend on how many there are. A training
state is a dict: `model`, `optimizer`, `ema`, `step`.
"""

import abc
import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor

from configs.defaults import complete
from models.utils import get_model_fn, get_score_fn
from runtime import distributed
from runtime.errors import UserError
from sde_lib import SDE, VESDE, VPSDE, expand


def get_optimizer(
    config: ConfigDict, params: Iterable[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Return Adam for `params` with the settings of `config.optim`."""
    optim = complete(config).optim
    if optim.optimizer.lower() != 'adam':
        raise UserError(f"config.optim.optimizer must be 'Adam', got {optim.optimizer!r}")
    return torch.optim.Adam(
        params,
        lr=optim.lr,
        betas=(float(optim.beta1), 0.999),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        amsgrad=optim.amsgrad,
        fused=True,
    )


def optimization_manager(config: ConfigDict) -> Callable:
    """Return `optimize_fn(optimizer, params, step, lr, warmup, grad_clip)`, which makes one update.

    The learning rate grows linearly for `warmup` steps, and the gradient is clipped by its norm.
    The function returns the norm before clipping. If the norm is not finite, nothing is updated, so
    an overflow only skips a step. A fused optimizer checks the norm on the device, so the host does
    not wait.
    """

    def optimize_fn(
        optimizer,
        params,
        step,
        lr=config.optim.lr,
        warmup=config.optim.warmup,
        grad_clip=config.optim.grad_clip,
    ):
        for group in optimizer.param_groups:
            group['lr'] = float(lr * min(step / warmup, 1.0)) if warmup > 0 else float(lr)
        norm = torch.nn.utils.clip_grad_norm_(
            list(params), max_norm=grad_clip if grad_clip >= 0 else float('inf')
        )
        if all(group.get('fused') for group in optimizer.param_groups):
            optimizer.found_inf = (~torch.isfinite(norm)).float()
            optimizer.step()
            del optimizer.found_inf  # it is valid for this step only
        elif torch.isfinite(norm):
            optimizer.step()
        return norm

    return optimize_fn


class Loss(abc.ABC):
    """A training objective: `loss(model, batch, **condition)` for a batch (B, ...).

    Args:
        sde: the SDE that adds the noise.
        train: whether the network is in training mode (dropout).
    """

    def __init__(self, sde: SDE, train: bool):
        self.sde, self.train = sde, train

    @abc.abstractmethod
    def draw_levels(
        self,
        number: int,
        device: torch.device,
        dtype: torch.dtype,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Draw `number` times, or indices of discrete noise levels."""

    @abc.abstractmethod
    def value(
        self, model: Callable, batch: Tensor, level: Tensor, z: Tensor, /, *known, **condition
    ) -> Tensor:
        """The loss for the noise `z` (B, ...) at the times or noise level indices `level` (B,)."""

    def draw(
        self, shape: Sequence[int], batch: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw times or noise level indices (B,), and noise of `shape` (B, ...), like `batch`."""
        kind: dict[str, Any] = dict(device=batch.device, dtype=batch.dtype, generator=generator)
        return self.draw_levels(shape[0], **kind), torch.randn(shape, **kind)

    def __call__(
        self,
        model: Callable,
        batch: Tensor,
        *known,
        drawn: tuple[Tensor, Tensor] | None = None,
        **condition,
    ) -> Tensor:
        level, z = drawn or self.draw(batch.shape, batch)
        return self.value(model, batch, level, z, *known, **condition)


class ScoreMatching(Loss):
    """Denoising score matching in continuous time, t uniform in [eps, T] (Song et al. 2021, Eq. 7).

    Args:
        sde, train: as for `Loss`.
        reduce_mean: take the mean over the values of an image instead of half the sum.
        continuous: whether the network gets labels for continuous time, see `get_score_fn`.
        likelihood_weighting: weight by g(t)^2 instead of std(t)^2.
        eps: the smallest time.
    """

    def __init__(
        self,
        sde: SDE,
        train: bool,
        reduce_mean: bool = False,
        continuous: bool = True,
        likelihood_weighting: bool = False,
        eps: float = 1e-5,
    ):
        super().__init__(sde, train)
        self.reduce_mean, self.likelihood_weighting = reduce_mean, likelihood_weighting
        self.continuous, self.eps = continuous, eps

    def draw_levels(
        self,
        number: int,
        device: torch.device,
        dtype: torch.dtype,
        generator: torch.Generator | None,
    ) -> Tensor:
        return _uniform_times(self.sde, self.eps, number, device, dtype, generator)

    def value(self, model: Callable, batch: Tensor, t: Tensor, z: Tensor, **condition) -> Tensor:
        score_fn = get_score_fn(self.sde, model, train=self.train, continuous=self.continuous)
        score = score_fn(self.sde.perturb(batch, t, z), t, **condition)
        std = expand(self.sde.mean_and_std(t)[1], batch)
        if not self.likelihood_weighting:
            return _mean_loss((std * score + z) ** 2, self.reduce_mean)
        g = expand(self.sde.sde(torch.zeros_like(batch), t)[1], batch)
        return _mean_loss(((score + z / std) * g) ** 2, self.reduce_mean)


class DiscreteScoreMatching(Loss):
    """Denoising score matching on the N noise levels of an SDE's chain (Song et al. 2021, Eq. 1).

    Args:
        sde, train: as for `Loss`.
        reduce_mean: take the mean over the values of an image instead of half the sum.

    Raises:
        NotImplementedError: if the SDE has no discrete levels.
    """

    def __init__(self, sde: SDE, train: bool, reduce_mean: bool):
        super().__init__(sde, train)
        self.reduce_mean = reduce_mean
        sde.discrete_level(torch.zeros(1, dtype=torch.long))  # raises here rather than in training

    def draw_levels(
        self,
        number: int,
        device: torch.device,
        dtype: torch.dtype,
        generator: torch.Generator | None,
    ) -> Tensor:
        return torch.randint(0, self.sde.N, (number,), device=device, generator=generator)

    def value(
        self, model: Callable, batch: Tensor, label: Tensor, z: Tensor, **condition
    ) -> Tensor:
        m, std = self.sde.discrete_level(label)
        x = expand(m, batch) * batch + expand(std, batch) * z
        output = get_model_fn(model, self.train)(x, label, **condition)
        return _mean_loss(self.sde.discrete_residual(output, z, std) ** 2, self.reduce_mean)


class NoisyCrossEntropy(Loss):
    """The cross-entropy of a classifier of x_t, t uniform in [eps, T] (Song et al. 2021, Sec. 5).

    The classifier is called as `classifier(x_t, time_label)` and returns logits (B, K). The
    gradient of its log-probabilities with respect to x_t guides samplers.
    """

    def __init__(self, sde: SDE, train: bool, eps: float = 1e-5):
        super().__init__(sde, train)
        self.eps = eps

    def draw_levels(
        self,
        number: int,
        device: torch.device,
        dtype: torch.dtype,
        generator: torch.Generator | None,
    ) -> Tensor:
        return _uniform_times(self.sde, self.eps, number, device, dtype, generator)

    def value(
        self, model: Callable, batch: Tensor, t: Tensor, z: Tensor, classes: Tensor
    ) -> Tensor:
        x = self.sde.perturb(batch, t, z)
        logits = get_model_fn(model, self.train)(x, self.sde.network_label(t))
        return F.cross_entropy(logits, classes)


def _uniform_times(sde, eps, number, device, dtype, generator):
    shares = torch.rand(number, device=device, dtype=dtype, generator=generator)
    return shares * (sde.T - eps) + eps


def _mean_loss(losses, reduce_mean: bool):
    """The mean loss of a batch; the loss of an image is the mean of its values or half the sum."""
    losses = losses.flatten(1)
    return (losses.mean(1) if reduce_mean else 0.5 * losses.sum(1)).mean()


# The functions of the 2021 release ----------------------------------------------------------------


def get_sde_loss_fn(
    sde: SDE,
    train: bool,
    reduce_mean: bool = True,
    continuous: bool = True,
    likelihood_weighting: bool = True,
    eps: float = 1e-5,
) -> Loss:
    """Return `loss_fn(model, batch)`, see `ScoreMatching`."""
    return ScoreMatching(sde, train, reduce_mean, continuous, likelihood_weighting, eps)


def get_smld_loss_fn(vesde: VESDE, train: bool, reduce_mean: bool = False) -> Loss:
    """Return `loss_fn(model, batch)`: the loss of SMLD (Song & Ermon 2019, Eq. 6)."""
    if not isinstance(vesde, VESDE):
        raise UserError(f'vesde must be a VESDE, got {type(vesde).__name__}')
    return DiscreteScoreMatching(vesde, train, reduce_mean)


def get_ddpm_loss_fn(vpsde: VPSDE, train: bool, reduce_mean: bool = True) -> Loss:
    """Return `loss_fn(model, batch)`: the simple loss of DDPM (Ho et al. 2020, Eq. 14)."""
    if not isinstance(vpsde, VPSDE):
        raise UserError(f'vpsde must be a VPSDE, got {type(vpsde).__name__}')
    return DiscreteScoreMatching(vpsde, train, reduce_mean)


def get_loss_fn(
    sde: SDE,
    train: bool,
    reduce_mean: bool = False,
    continuous: bool = True,
    likelihood_weighting: bool = False,
) -> Loss:
    """Return the loss that a network is trained with, in continuous time or on discrete levels."""
    if continuous:
        return ScoreMatching(sde, train, reduce_mean, True, likelihood_weighting)
    if likelihood_weighting:
        raise UserError('likelihood_weighting=True is only defined for continuous=True')
    return DiscreteScoreMatching(sde, train, reduce_mean)


def get_step_fn(
    sde: SDE,
    train: bool,
    optimize_fn: Callable | None = None,
    reduce_mean: bool = False,
    continuous: bool = True,
    likelihood_weighting: bool = False,
    *,
    accumulation: int = 1,
) -> Callable:
    """Return `step_fn(state, batch, metrics=None, **condition)`, which returns the loss.

    With `train=True` it makes one training step, which changes `state` in place: optimizer,
    parameters, moving average, step. With `train=False` it computes the loss of the EMA weights. If
    `metrics` is a dict, the norm of the gradient is stored in it as 'grad_norm'.

    Args:
        sde, reduce_mean, continuous, likelihood_weighting: as for `get_loss_fn`.
        train: whether to train.
        optimize_fn: the function that `optimization_manager` returns, for `train=True`.
        accumulation: number of micro-batches, whose gradients are added up.

    With several processes, `batch` and the loss are for the rows of this process; the gradient is
    for the whole batch.
    """
    loss = get_loss_fn(sde, train, reduce_mean, continuous, likelihood_weighting)
    return make_step(loss, optimize_fn, accumulation)


def get_classifier_step_fn(
    sde: SDE, train: bool, optimize_fn: Callable | None = None, *, accumulation: int = 1
) -> Callable:
    """Return the step function of a classifier, with the argument `classes` (see `get_step_fn`)."""
    return make_step(NoisyCrossEntropy(sde, train), optimize_fn, accumulation)


def make_step(loss: Loss, optimize_fn: Callable | None = None, accumulation: int = 1) -> Callable:
    """Return the step function of any loss, see `get_step_fn`."""
    if loss.train:
        return functools.partial(_train_step, loss, optimize_fn, accumulation)
    return functools.partial(_eval_step, loss)


def _train_step(loss, optimize_fn, accumulation, state, batch, metrics=None, **condition):
    model = state['model']
    if len(batch) % accumulation:
        raise UserError(
            f'the batch size must be a multiple of accumulation={accumulation}, got {len(batch)}'
        )
    drawn = _draw_rows(loss, batch, distributed.common_generator(batch.device))
    parts = [tensor.chunk(accumulation) for tensor in (batch, *drawn, *condition.values())]
    state['optimizer'].zero_grad()
    total = 0
    for i, (x, level, z, *known) in enumerate(zip(*parts)):
        with getattr(model, 'alone', contextlib.nullcontext)(i < accumulation - 1):
            part = loss(model, x, drawn=(level, z), **dict(zip(condition, known))) / accumulation
            part.backward()
        total = total + part.detach()
    norm = optimize_fn(state['optimizer'], model.parameters(), step=state['step'])
    state['ema'].update(model.parameters())
    state['step'] += 1
    if metrics is not None:
        metrics['grad_norm'] = norm
    return total


@torch.no_grad()
def _eval_step(loss, state, batch, metrics=None, **condition):
    with state['ema'].applied_to(state['model'].parameters()):
        return loss(state['model'], batch, drawn=_draw_rows(loss, batch), **condition)


def _draw_rows(loss, batch, generator=None):
    """Draw times and noise for the whole batch; return the rows of this process."""
    whole = (len(batch) * distributed.size(), *batch.shape[1:])
    return [part[distributed.rows(len(part))] for part in loss.draw(whole, batch, generator)]
