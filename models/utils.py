"""The registry of networks, their wrapper, and the score function of a network and an SDE."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from configs import rules
from configs.defaults import complete
from runtime import distributed
from runtime.errors import UserError
from runtime.registry import Registry

MODELS = Registry('network')
register_model = MODELS.register


def get_model(name: str) -> type[nn.Module]:
    """The network class registered under `name`."""
    return MODELS.get(name)


def completed(config: ConfigDict) -> ConfigDict:
    """Return a copy of a network's config in which missing keys have their defaults.

    Raises:
        UserError: if a key that the network needs is missing and has no default.
    """
    if missing := rules.missing(config, config.model.name):
        raise UserError('\n'.join(missing.values()))
    return complete(config)


def accept(config: ConfigDict, key: str, *values, why: str = '') -> None:
    """Raise UserError if a config has a key ('section.name') with a value not in `values`.

    Upper and lower case are equivalent.
    """
    section, name = key.split('.')
    got = config[section][name] if name in config[section] else values[0]
    if (got.lower() if isinstance(got, str) else got) not in [
        v.lower() if isinstance(v, str) else v for v in values
    ]:
        accepted = ' or '.join(repr(v) for v in values)
        raise UserError(
            f'config.{key} must be {accepted} for {config.model.name}, got '
            f'{got!r}{" (" + why + ")" if why else ""}'
        )


def get_sigmas(config: ConfigDict) -> np.ndarray:
    """The `model.num_scales` noise levels of SMLD: a geometric sequence, largest first; float64."""
    model = config.model
    return np.exp(np.linspace(np.log(model.sigma_max), np.log(model.sigma_min), model.num_scales))


def get_ddpm_params(config: ConfigDict) -> dict:
    """Return the constants of DDPM's chain as float64 arrays (N,) (Ho et al. 2020, Sec. 2)."""
    n = config.model.num_scales
    betas = np.linspace(config.model.beta_min / n, config.model.beta_max / n, n)
    alphas_cumprod = np.cumprod(1 - betas)
    return dict(
        betas=betas,
        alphas=1 - betas,
        alphas_cumprod=alphas_cumprod,
        sqrt_alphas_cumprod=np.sqrt(alphas_cumprod),
        sqrt_1m_alphas_cumprod=np.sqrt(1 - alphas_cumprod),
        beta_min=config.model.beta_min,
        beta_max=config.model.beta_max,
        num_diffusion_timesteps=n,
    )


PRECISIONS = {'float32': None, 'bfloat16': torch.bfloat16}


class Undivided(nn.Module):
    """A wrapper of the network `module` that replaces DataParallel of the 2021 release.

    Parameters keep their prefix 'module.'. The output is float32 and contiguous (B, C, H, W).

    Args:
        module: The network.
        precision: 'bfloat16' runs convolutions and matrix products in that dtype.
        channels_last: Store images with the channels of a pixel adjacent in memory.
        compile: Compile the whole graph, separately for training and for evaluation.
    """

    def __init__(
        self,
        module: nn.Module,
        precision: str = 'float32',
        channels_last: bool = False,
        compile: bool = False,
    ):
        super().__init__()
        if precision not in PRECISIONS:
            raise UserError(
                f'precision must be one of {", ".join(map(repr, PRECISIONS))}, got {precision!r}'
            )
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.module = module.to(memory_format=self.format)
        self.dtype = PRECISIONS[precision]
        self._shared = []  # a list, so that the parameters are not counted twice
        if compile:
            module.compile(fullgraph=True)

    def share(self) -> None:
        """Average gradients over all processes in every backward pass of training from now on.

        The parameters must be the same in all processes.
        """
        if distributed.size() > 1:
            with warnings.catch_warnings():
                # PyTorch 2.14 deprecates `broadcast_buffers`, which older releases need
                warnings.simplefilter('ignore', FutureWarning)
                self._shared = [
                    nn.parallel.DistributedDataParallel(self.module, broadcast_buffers=False)
                ]

    @contextlib.contextmanager
    def alone(self, alone: bool = True) -> Iterator[None]:
        """Within the block, accumulate gradients without averaging over processes, if `alone`.

        The next backward pass outside the block averages them.
        """
        with self._shared[0].no_sync() if alone and self._shared else contextlib.nullcontext():
            yield

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        network = (
            self._shared[0]
            if self._shared and self.training and torch.is_grad_enabled()
            else self.module
        )
        x = x.contiguous(memory_format=self.format) if x.ndim == 4 else x
        with torch.autocast(x.device.type, self.dtype) if self.dtype else contextlib.nullcontext():
            output = network(x, *args, **kwargs)
        output = output.contiguous()
        return output.float() if self.dtype else output


# parameters that are made in inference mode cannot have gradients, nor can their inputs
@torch.inference_mode(False)
def create_model(config: ConfigDict) -> nn.Module:
    """Build the network of a config on `config.device`, with the parameter names of 2021.

    `config.training.precision`, `channels_last` and `compile` set how it runs. Missing optional
    keys have their defaults.
    """
    network, training = (
        get_model(config.model.name)(config).to(config.device),
        complete(config).training,
    )
    return Undivided(network, training.precision, training.channels_last, training.compile)


@contextlib.contextmanager
def gradients(*tensors) -> Iterator[list[Tensor]]:
    """Compute gradients within the block, even inside `torch.no_grad()` or inference mode.

    Yields:
        The tensors. Those made under inference mode are copied, because autograd rejects them.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield [tensor.clone() if tensor.is_inference() else tensor for tensor in tensors]


def _dtype(model) -> torch.dtype | None:
    """The dtype of a network's matrices and convolutions, or None if it has none."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next(
        (
            parameter.dtype
            for parameter in parameters
            if parameter.ndim > 1 and parameter.is_floating_point()
        ),
        None,
    )


def get_model_fn(model: Callable, train: bool = False) -> Callable:
    """Return a function `(x, labels, **condition)` that returns the output of the network.

    Dropout is on if `train`. A network cast to another dtype, as by `.bfloat16()`, gets x in that
    dtype; the output has the dtype of x. The condition is `classes=` (B,) for a network that was
    built with `model.num_classes`.
    """

    def model_fn(x, labels, **condition):
        # `train` visits all modules, which is slow
        if isinstance(model, nn.Module) and model.training != train:
            model.train(train)
        dtype = _dtype(model) or x.dtype
        return (
            model(x, labels, **condition)
            if dtype == x.dtype
            else model(x.to(dtype), labels, **condition).to(x.dtype)
        )

    return model_fn


def number_of_scales(model: Callable) -> int | None:
    """Return the number of noise levels of a discrete network, or None if it has no `sigmas`."""
    sigmas = getattr(getattr(model, 'module', model), 'sigmas', None)
    return None if sigmas is None else len(sigmas)


def get_score_fn(
    sde: Any, model: Callable, train: bool = False, continuous: bool = False
) -> Callable:
    """Return a function `(x, t, **condition)` that returns the score grad_x log p_t(x).

    Its arguments are x (B, ...) and t (B,); the score has the shape of x.

    Args:
        sde: The SDE that the network was trained for. It converts the network's output, which is
            the score (VE) or minus the noise (VP, sub-VP).
        model: The network.
        train: Whether dropout is on.
        continuous: Whether the network was trained with continuous time. The labels of a discrete
            network number the noise levels it was built with, independently of `sde.N`.
    """
    model_fn, scales = get_model_fn(model, train), number_of_scales(model)

    def score_fn(x, t, **condition):
        output = model_fn(x, sde.network_label(t, continuous, scales), **condition)
        return sde.score_from_output(output, t, continuous, scales)

    return score_fn


def times_like(x: Tensor, t: float | Tensor) -> Tensor:
    """Return the time t, a number or a tensor () or (B,), as a tensor (B,) like x (B, ...)."""
    return torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))


def to_flattened_numpy(x: Tensor) -> np.ndarray:
    """All values of `x` as a NumPy vector."""
    return x.detach().cpu().numpy().reshape(-1)


def from_flattened_numpy(x: np.ndarray, shape: Sequence[int]) -> Tensor:
    """The tensor of the given shape that `to_flattened_numpy` flattened."""
    return torch.from_numpy(x.reshape(shape))
