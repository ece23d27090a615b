"""Denoising score matching, in continuous time (Song et al. 2021, Eq. 7) and on discrete noise
levels (SMLD, DDPM), and its optimization; and the training of classifiers on noisy images.

Every loss draws x_t = m(t) x_0 + std(t) z and asks the network for the score -z / std(t) of that
draw. With score s, the residual is  std s + z,  weighted equally at all times ("variance
weighting"), or  (s + z/std) g(t)  ("likelihood weighting", Song et al. 2021b). A training state is
a dict: `model`, `optimizer`, `ema`, `step`. Losses of networks that know classes are called with
`classes=` (B,), the classes of the images.

A loss function draws its random numbers, times (or noise levels) and then noise, by its attribute
`draw`, or takes them as `drawn`: a step shares out what it draws for a whole batch among processes
and among parts of a batch, and so does not depend on their number.
"""

import contextlib

import torch
import torch.nn.functional as F
from absl import logging

from configs.defaults import complete
from models.utils import get_model_fn, get_score_fn
from runtime import distributed
from runtime.errors import UserError
from sde_lib import VESDE, VPSDE, expand


def get_optimizer(config, params) -> torch.optim.Optimizer:
    """Adam over `params` with the settings of `config.optim`."""
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


def optimization_manager(config):
    """-> optimize_fn(optimizer, params, step, lr, warmup, grad_clip): one update with linear
    warm-up and clipping by the norm.

    It returns the norm of the gradient before clipping. Where that is not finite nothing is
    updated: an overflow costs a step, not the run. A fused optimizer decides that on its device:
        the host does not wait.
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
            del optimizer.found_inf  # it is about this step alone
        elif torch.isfinite(norm):
            optimizer.step()
        return norm

    return optimize_fn


def _mean_loss(losses, reduce_mean: bool):
    """The batch's mean of each image's loss: the mean over its values, or half their sum."""
    losses = losses.flatten(1)
    return (losses.mean(1) if reduce_mean else 0.5 * losses.sum(1)).mean()


def _with_draws(draw_levels, loss):
    """-> loss_fn(model, batch (B, ...), *known, drawn=None, **condition) = loss(model, batch,
    levels (B,), noise, *known, **condition).

    loss_fn.draw(shape, batch, generator=None) -> (levels, noise) for a batch of `shape`, on the
    device and in the dtype of `batch`; draw_levels(number, device=, dtype=, generator=).
    """

    def draw(shape, batch, generator=None):
        kind = dict(device=batch.device, dtype=batch.dtype, generator=generator)
        return draw_levels(shape[0], **kind), torch.randn(shape, **kind)

    def loss_fn(model, batch, *known, drawn=None, **condition):
        return loss(model, batch, *(drawn or draw(batch.shape, batch)), *known, **condition)

    loss_fn.draw = draw
    return loss_fn


def _times(sde, eps):
    """number, ... -> so many times, uniform in [eps, T]."""
    return lambda number, **kind: torch.rand(number, **kind) * (sde.T - eps) + eps


def get_sde_loss_fn(
    sde, train, reduce_mean=True, continuous=True, likelihood_weighting=True, eps=1e-5
):
    """-> loss_fn(model, batch (B, ...)): Eq. 7 with t uniform in [eps, T].

    `train`: dropout and the like are on. `reduce_mean`: mean over values instead of half the sum.
    `continuous`: what the network is told of the time, see `get_score_fn`. `likelihood_weighting`:
    weights g(t)^2 instead of std(t)^2.
    """

    def loss(model, batch, t, z, **condition):
        score = get_score_fn(sde, model, train=train, continuous=continuous)(
            sde.perturb(batch, t, z), t, **condition
        )
        std = expand(sde.mean_and_std(t)[1], batch)
        if not likelihood_weighting:
            return _mean_loss((std * score + z) ** 2, reduce_mean)
        diffusion = expand(sde.sde(torch.zeros_like(batch), t)[1], batch)
        return _mean_loss(((score + z / std) * diffusion) ** 2, reduce_mean)

    return _with_draws(_times(sde, eps), loss)


def _get_discrete_loss_fn(sde, train, reduce_mean):
    # refuses at once an SDE without discrete levels
    sde.discrete_level(torch.zeros(1, dtype=torch.long))

    def labels(number, device, dtype, generator):
        return torch.randint(0, sde.N, (number,), device=device, generator=generator)

    def loss(model, batch, labels, z, **condition):
        m, std = sde.discrete_level(labels)
        output = get_model_fn(model, train)(
            expand(m, batch) * batch + expand(std, batch) * z, labels, **condition
        )
        return _mean_loss(sde.discrete_residual(output, z, std) ** 2, reduce_mean)

    return _with_draws(labels, loss)


def get_smld_loss_fn(vesde, train, reduce_mean=False):
    """-> loss_fn(model, batch): SMLD's loss over the N noise levels of a VESDE, weighted by sigma^2
    (Song & Ermon 2019, Eq. 6).
    """
    if not isinstance(vesde, VESDE):
        raise UserError(
            f'vesde must be a VESDE, for which SMLD is defined, got {type(vesde).__name__}'
        )
    return _get_discrete_loss_fn(vesde, train, reduce_mean)


def get_ddpm_loss_fn(vpsde, train, reduce_mean=True):
    """-> loss_fn(model, batch): DDPM's simple loss over the N steps of a VPSDE (Ho et al. 2020, Eq.
    14).
    """
    if not isinstance(vpsde, VPSDE):
        raise UserError(
            f'vpsde must be a VPSDE, for which DDPM is defined, got {type(vpsde).__name__}'
        )
    return _get_discrete_loss_fn(vpsde, train, reduce_mean)


def get_loss_fn(sde, train, reduce_mean=False, continuous=True, likelihood_weighting=False):
    """-> loss_fn(model, batch): the loss that a network is trained with, in continuous time or on
    the SDE's discrete noise levels.
    """
    if continuous:
        return get_sde_loss_fn(
            sde, train, reduce_mean, continuous=True, likelihood_weighting=likelihood_weighting
        )
    if likelihood_weighting:
        raise UserError('likelihood_weighting=True is only defined for continuous=True')
    return _get_discrete_loss_fn(sde, train, reduce_mean)


def get_classifier_loss_fn(sde, train, eps=1e-5):
    """-> loss_fn(model, batch (B, ...), classes (B,)): the cross-entropy of the classes of x_t, t
    uniform in [eps, T], for a classifier (x_t, label of the time) -> logits (B, K), whose gradient
    at x_t then guides samplers (Song et al. 2021, Sec. 5).
    """

    def loss(model, batch, t, z, classes):
        return F.cross_entropy(
            get_model_fn(model, train)(sde.perturb(batch, t, z), sde.network_label(t)), classes
        )

    return _with_draws(_times(sde, eps), loss)


def get_step_fn(
    sde,
    train,
    optimize_fn=None,
    reduce_mean=False,
    continuous=True,
    likelihood_weighting=False,
    *,
    accumulation=1,
):
    """-> step_fn(state, batch, metrics=None, **condition) -> loss, one step of training, or with
    `train=False` the loss of the averaged weights.

    Training changes `state` in place: optimizer, parameters, moving average, step. A dict given as
    `metrics` gets the gradient's norm as 'grad_norm'. `accumulation`: the parts of the batch, one
    after the other, whose gradients add up to that of the whole. With several processes `batch` and
    the loss are of this process's own rows, the gradient is that of the whole.
    """
    return _get_step_fn(
        get_loss_fn(sde, train, reduce_mean, continuous, likelihood_weighting),
        train,
        optimize_fn,
        accumulation,
    )


def get_classifier_step_fn(sde, train, optimize_fn=None, eps=1e-5, *, accumulation=1):
    """-> step_fn(state, batch, metrics=None, *, classes): as `get_step_fn`, for a classifier."""
    return _get_step_fn(get_classifier_loss_fn(sde, train, eps), train, optimize_fn, accumulation)


class Skips:
    """Counts, on the device, the steps that were skipped because their gradients were not
    finite.
    """

    def __init__(self, device):
        self.since, self.in_row, self.longest = (
            torch.zeros((), dtype=torch.long, device=device) for _ in range(3)
        )

    def count(self, grad_norm: torch.Tensor):
        """A further step, with the norm of its gradient."""
        bad = ~torch.isfinite(grad_norm)
        self.since = self.since + bad
        self.in_row = (self.in_row + 1) * bad
        self.longest = torch.maximum(self.longest, self.in_row)

    def tell(self, step: int, rate: float, most: int, checkpoint):
        """Logs how many were skipped since the last time; UserError where `most` or more were so in
        a row (0: any number may be).
        """
        since, longest = torch.stack([self.since, self.longest]).tolist()
        if since:
            logging.warning(
                'step: %d, %d steps since the last log line were skipped: their '
                'gradients were not finite',
                step,
                since,
            )
        if most and longest >= most:
            raise UserError(
                f'training stopped at step {step}: the gradients of {longest} steps in '
                'a row were not finite '
                f'(max_bad_steps={most}), with a learning rate of {rate:g}. The '
                'parameters are from before '
                'these steps; '
                + (
                    f'the last checkpoint is {checkpoint}: resume from it'
                    if checkpoint
                    else 'there is no checkpoint yet: start again'
                )
                + ' with a smaller learning rate'
            )
        self.since, self.longest = torch.zeros_like(self.since), self.in_row


def _get_step_fn(loss_fn, train, optimize_fn, accumulation):
    def draw(batch, generator=None):
        """This process's rows of what the whole batch draws."""
        whole = (len(batch) * distributed.size(), *batch.shape[1:])
        return [
            drawn[distributed.rows(len(drawn))] for drawn in loss_fn.draw(whole, batch, generator)
        ]

    def train_step(state, batch, metrics=None, **condition):
        model, optimizer = state['model'], state['optimizer']
        if len(batch) % accumulation:
            raise UserError(
                f'the batch size must be a multiple of accumulation={accumulation}, '
                f'got {len(batch)}'
            )
        drawn = draw(batch, distributed.common_generator(batch.device))
        parts = [tensor.chunk(accumulation) for tensor in (batch, *drawn, *condition.values())]
        optimizer.zero_grad()
        loss = 0
        for i, (images, level, noise, *known) in enumerate(zip(*parts)):
            with getattr(model, 'alone', contextlib.nullcontext)(i < accumulation - 1):
                part = (
                    loss_fn(model, images, drawn=(level, noise), **dict(zip(condition, known)))
                    / accumulation
                )
                part.backward()
            loss = loss + part.detach()
        norm = optimize_fn(optimizer, model.parameters(), step=state['step'])
        state['ema'].update(model.parameters())
        state['step'] += 1
        if metrics is not None:
            metrics['grad_norm'] = norm
        return loss

    @torch.no_grad()
    def eval_step(state, batch, metrics=None, **condition):
        with state['ema'].applied_to(state['model'].parameters()):
            return loss_fn(state['model'], batch, drawn=draw(batch), **condition)

    return train_step if train else eval_step
