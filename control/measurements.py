"""Linear measurements y = A x of an image x, and their registry.

A measurement splits x into the part that y determines, P x with P = A^+ A (A^+ is the Moore-Penrose
inverse, P an orthogonal projection), and a part about which y contains no information. Samplers use
only A^+ y and P: an image agrees with y if P x = A^+ y. Components that A almost removes count as
unknown, because rounding errors of y would dominate them.

Images are (B, C, H, W). Every measurement here except `Mask` averages pixels with weights that sum
to one, so it commutes with the data scalers: images may be in [0, 1] or in [-1, 1].

A registered measurement is a task of `--mode control`:

    @register_measurement
    def odd_rows(config):
        mask = torch.zeros(config.data.image_size, config.data.image_size)
        mask[::2] = 1
        return Mask(mask)
"""

import abc
from collections.abc import Callable

import torch
from torch import Tensor

from runtime.errors import UserError
from runtime.registry import Registry


class Measurement(abc.ABC):
    """A linear map A of images: one for the whole batch, or, for masks, one for each image."""

    @abc.abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return A x."""

    @abc.abstractmethod
    def pinv(self, y: Tensor) -> Tensor:
        """Return A^+ y, the image of smallest norm among those that agree with y."""

    def project(self, x: Tensor) -> Tensor:
        """Return P x = A^+ A x, shape of x."""
        return self.pinv(self(x))


class Mask(Measurement):
    """Keep the pixels where the mask is 1 and set the others, which are unknown, to 0.

    Args:
        mask: zeros and ones (or booleans), of any shape that broadcasts to the shape of x.

    Raises:
        UserError: if the mask has other values than 0 and 1.
    """

    def __init__(self, mask: Tensor):
        if not ((mask == 0) | (mask == 1)).all():
            raise UserError('the mask must contain only 1 (known) and 0 (unknown)')
        self.mask = mask.bool()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self.mask.to(x.device), x, 0)

    # a projection is its own pseudo-inverse

    def pinv(self, y: Tensor) -> Tensor:
        return self(y)

    def project(self, x: Tensor) -> Tensor:
        return self(x)


class Grey(Measurement):
    """The mean over the channels, (B, 1, H, W), of images with `channels` channels."""

    def __init__(self, channels: int):
        self.channels = channels

    def __call__(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)

    def pinv(self, y: Tensor) -> Tensor:
        return y.expand(-1, self.channels, -1, -1)


class Separable(Measurement):
    """A separable filter: R x C^T in every channel.

    With the singular value decompositions R = U_R S_R V_R^T and C = U_C S_C V_C^T, the component
    V_R e_i (V_C e_j)^T of x is measured with the gain s_i s_j.

    Args:
        R: (h, H), the filter along the columns of an image.
        C: (w, W), the filter along its rows.
        tolerance: gains of at most this fraction of the largest gain count as 0.
    """

    def __init__(self, R: Tensor, C: Tensor, tolerance: float = 0.03):
        (self.U_R, s_R, self.Vt_R), (self.U_C, s_C, self.Vt_C) = (
            torch.linalg.svd(m.cpu().double(), full_matrices=False) for m in (R, C)
        )
        gains = s_R[:, None] * s_C
        self.R, self.C, self.kept = R, C, gains > tolerance * gains.max()
        self.inverse_gains = torch.where(self.kept, 1 / gains, 0)

    def __call__(self, x: Tensor) -> Tensor:
        return self.R.to(x) @ x @ self.C.to(x).T

    def pinv(self, y: Tensor) -> Tensor:
        return (
            self.Vt_R.to(y).T
            @ (self.inverse_gains.to(y) * (self.U_R.to(y).T @ y @ self.U_C.to(y)))
            @ self.Vt_C.to(y)
        )

    def project(self, x: Tensor) -> Tensor:
        return (
            self.Vt_R.to(x).T
            @ (self.kept.to(x) * (self.Vt_R.to(x) @ x @ self.Vt_C.to(x).T))
            @ self.Vt_C.to(x)
        )


def downsampling(height: int, width: int, factor: int) -> Separable:
    """Return the measurement of the means over blocks of `factor` x `factor` pixels.

    Raises:
        UserError: if height or width is not divisible by `factor`.
    """
    if factor < 1 or height % factor or width % factor:
        raise UserError(
            f'images of {height}x{width} pixels cannot be divided into blocks of {factor}x{factor}'
        )

    def matrix(n):
        return torch.eye(n // factor, dtype=torch.float64).repeat_interleave(factor, 1) / factor

    return Separable(matrix(height), matrix(width))


def blur(height: int, width: int, sigma: float) -> Separable:
    """Return the measurement of images blurred by a Gaussian.

    The Gaussian has a standard deviation of `sigma` pixels and is truncated at four standard
    deviations. Images are extended by reflection at their borders.

    Raises:
        UserError: if `sigma` is not positive.
    """
    if not sigma > 0:
        raise UserError(f'sigma must be positive, got sigma={sigma:g}')

    def matrix(n):
        reach = int(4 * sigma + 0.5)
        offsets = torch.arange(-reach, reach + 1)
        weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
        rows = torch.arange(n)[:, None].expand(-1, len(offsets))
        places = (torch.arange(n)[:, None] + offsets) % (2 * n)
        mirrored = torch.minimum(places, 2 * n - 1 - places)
        return torch.zeros(n, n, dtype=torch.float64).index_put(
            (rows, mirrored), (weights / weights.sum()).expand(n, -1), accumulate=True
        )

    return Separable(matrix(height), matrix(width))


# the masks of regions, as functions of coordinates from -1 to 1
MASKS = {
    'left': lambda row, column: column >= 0,
    'right': lambda row, column: column < 0,
    'top': lambda row, column: row >= 0,
    'bottom': lambda row, column: row < 0,
    'center': lambda row, column: (row.abs() > 0.5) | (column.abs() > 0.5),
    'border': lambda row, column: (row.abs() <= 0.5) & (column.abs() <= 0.5),
}


def named_mask(name: str, height: int, width: int) -> Tensor:
    """Return the mask (H, W) of a named missing region: 1 where pixels are known, 0 elsewhere.

    Args:
        name: the missing region. 'left', 'right', 'top' or 'bottom': that half of the image.
            'center': a rectangle half as wide and half as high as the image; 'border': everything
            around it. 'half' or 'most': half or nine tenths of the pixels, in a fixed random
            choice.
        height: H.
        width: W.

    Raises:
        UserError: if the name is unknown.
    """
    if name in ('half', 'most'):
        order = torch.randperm(height * width, generator=torch.Generator().manual_seed(0)).reshape(
            height, width
        )
        return (order < height * width * (0.5 if name == 'half' else 0.1)).float()
    if name not in MASKS:
        raise UserError(
            f'the mask must be one of {", ".join(MASKS)}, half and most (the missing region), or '
            f'an image; got {name!r}'
        )
    row, column = ((2 * torch.arange(n) + 1 - n) / n for n in (height, width))
    return MASKS[name](row[:, None], column[None]).expand(height, width).float()


# The registry -------------------------------------------------------------------------------------

MEASUREMENTS = Registry('task')  # functions `make(config)` of users, by the name of the task
# the names of the library's own tasks (commands/control.py)
RESERVED = (
    'inpaint',
    'colorize',
    'upscale2',
    'upscale4',
    'deblur',
    'classes',
    'reconstruct',
    'interpolate',
    'temper',
    'mix',
)


def register_measurement(make: Callable | None = None, *, name: str | None = None) -> Callable:
    """Register `make(config)`, which returns a `Measurement`, as a task of `--mode control`.

    The task applies the measurement to each input image and draws images that agree with the
    result. Usable as a decorator, with or without arguments.

    Args:
        make: the function. It may read `config.data` and `config.control`.
        name: the name of the task; the name of the function by default.

    Raises:
        UserError: if another task has the name.
    """
    if make is None:
        return lambda make: register_measurement(make, name=name)
    name = name or make.__name__
    if name.lower() in RESERVED:
        raise UserError(f'the task name {name!r} is used by this library: choose another')
    return MEASUREMENTS.register(make, name=name)
