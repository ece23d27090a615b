"""What may be known of an image x: linear measurements y = A x, and what they leave open.

A splits every x into the part that y determines, P x with P = A^+ A (A^+ is the Moore-Penrose
inverse, P an orthogonal projection), and the rest, which y says nothing about. Samplers need no
more than A^+ y and P: an image agrees with y if P x = A^+ y. Components that A nearly extinguishes
count to the rest, as the rounding of y would swamp them.

Images are (B, C, H, W), scaled as they like: the rows of all A here but the mask's sum to one, so
that A commutes with the scalers.
"""

import abc

import torch

from runtime.errors import UserError


class Measurement(abc.ABC):
    """A linear map A of images, the same for all of a batch, or for a mask one for each."""

    @abc.abstractmethod
    def __call__(self, x):
        """A x."""

    @abc.abstractmethod
    def pinv(self, y):
        """A^+ y: of all images that agree with y the one of least norm."""

    def project(self, x):
        """P x = A^+ A x, of the shape of x."""
        return self.pinv(self(x))


class Mask(Measurement):
    """The values of x where `mask` is 1; where it is 0 they are unknown. `mask`: any shape that
    broadcasts to that of x.
    """

    def __init__(self, mask: torch.Tensor):
        if not ((mask == 0) | (mask == 1)).all():
            raise UserError(
                'a mask says with 1 what is known and with 0 what is not: other values '
                'have no meaning'
            )
        self.mask = mask.bool()

    def __call__(self, x):
        return torch.where(self.mask.to(x.device), x, 0)

    pinv = project = __call__  # a projection is its own inverse


class Grey(Measurement):
    """The mean over the channels, (B, 1, H, W), of images with so many channels."""

    def __init__(self, channels: int):
        self.channels = channels

    def __call__(self, x):
        return x.mean(1, keepdim=True)

    def pinv(self, y):
        return y.expand(-1, self.channels, -1, -1)


class Separable(Measurement):
    """R x C^T in every channel, for matrices R (h, H) and C (w, W): one filter for the columns, one
    for the rows of an image.

    With R = U_R S_R V_R^T and C likewise, a component V_R e_i (V_C e_j)^T of x is measured with the
    gain s_i s_j; gains of at most `tolerance` of the largest count as none.
    """

    def __init__(self, R: torch.Tensor, C: torch.Tensor, tolerance: float = 0.03):
        (self.U_R, s_R, self.Vt_R), (self.U_C, s_C, self.Vt_C) = (
            torch.linalg.svd(m.cpu().double(), full_matrices=False) for m in (R, C)
        )
        gains = s_R[:, None] * s_C
        self.R, self.C, self.kept = R, C, gains > tolerance * gains.max()
        self.inverse_gains = torch.where(self.kept, 1 / gains, 0)

    def __call__(self, x):
        return self.R.to(x) @ x @ self.C.to(x).T

    def pinv(self, y):
        return (
            self.Vt_R.to(y).T
            @ (self.inverse_gains.to(y) * (self.U_R.to(y).T @ y @ self.U_C.to(y)))
            @ self.Vt_C.to(y)
        )

    def project(self, x):
        return (
            self.Vt_R.to(x).T
            @ (self.kept.to(x) * (self.Vt_R.to(x) @ x @ self.Vt_C.to(x).T))
            @ self.Vt_C.to(x)
        )


def downsampling(height: int, width: int, factor: int) -> Separable:
    """The means of `factor` x `factor` pixels; UserError where these do not fill the image."""
    if factor < 1 or height % factor or width % factor:
        raise UserError(f'{height}x{width} pixels do not divide into blocks of {factor}x{factor}')
    return Separable(
        *(
            torch.eye(n // factor, dtype=torch.float64).repeat_interleave(factor, 1) / factor
            for n in (height, width)
        )
    )


def blur(height: int, width: int, sigma: float) -> Separable:
    """Gaussian blur with a standard deviation of `sigma` pixels, cut off at four of them; images go
    on mirrored beyond their borders.
    """
    if not sigma > 0:
        raise UserError(f'a blur needs a width above 0 pixels, got sigma={sigma:g}')

    def matrix(n):
        reach = int(4 * sigma + 0.5)
        offsets = torch.arange(-reach, reach + 1)
        weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
        rows, places = (
            torch.arange(n)[:, None].expand(-1, len(offsets)),
            (torch.arange(n)[:, None] + offsets) % (2 * n),
        )
        mirrored = torch.minimum(places, 2 * n - 1 - places)
        return torch.zeros(n, n, dtype=torch.float64).index_put(
            (rows, mirrored), (weights / weights.sum()).expand(n, -1), accumulate=True
        )

    return Separable(matrix(height), matrix(width))


MASKS = {
    'left': lambda row, column: column >= 0,
    'right': lambda row, column: column < 0,
    'top': lambda row, column: row >= 0,
    'bottom': lambda row, column: row < 0,
    'center': lambda row, column: (row.abs() > 0.5) | (column.abs() > 0.5),
    'border': lambda row, column: (row.abs() <= 0.5) & (column.abs() <= 0.5),
}


def named_mask(name: str, height: int, width: int) -> torch.Tensor:
    """A mask (H, W) by what is missing: a half ('left', 'right', 'top', 'bottom'), the 'center' or
    the 'border', each half as wide as the image, or at random 'half' or 'most' (nine tenths) of the
    pixels, always the same ones.
    """
    if name in ('half', 'most'):
        order = torch.randperm(height * width, generator=torch.Generator().manual_seed(0)).reshape(
            height, width
        )
        return (order < height * width * (0.5 if name == 'half' else 0.1)).float()
    if name not in MASKS:
        raise UserError(
            f'the mask must be the missing part, one of {", ".join(MASKS)}, half and '
            f'most, or a picture; got {name!r}'
        )
    row, column = ((2 * torch.arange(n) + 1 - n) / n for n in (height, width))
    return MASKS[name](row[:, None], column[None]).expand(height, width).float()
