"""Measurements compared with other implementations, and the algebra of A^+ and P as matrices."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from control.measurements import (
    MASKS,
    Grey,
    Mask,
    Measurement,
    Separable,
    blur,
    downsampling,
    named_mask,
)
from runtime.errors import UserError

CHANNELS = 3
SIZES = [(8, 8), (6, 10), (5, 7)]
# components whose gain is at most this fraction of the largest gain count as not measured
TOLERANCE = 0.03
# rounding errors of sums over a hundred pixels, divided by gains >= 0.03: 1e3 machine epsilons
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-12}
# widths of the blur in pixels: from a filter of one weight to one that is wider than the image,
# which is then mirrored many times
SIGMAS = [0.1, 0.5, 1.0, 2.0, 20.0]


def downsampled(factor):
    return lambda height, width: downsampling(height, width, factor)


def blurred(sigma):
    return lambda height, width: blur(height, width, sigma)


MASK = {
    'mask': (lambda height, width: Mask(named_mask('half', height, width)), (6, 10)),
    'mask of each channel': (
        lambda height, width: Mask(torch.arange(CHANNELS)[:, None, None] == 1),
        (5, 7),
    ),
}
EXACT = {
    **MASK,
    **{f'grey {size}': (lambda height, width: Grey(CHANNELS), size) for size in SIZES},
    **{
        f'downsampling {factor} {size}': (downsampled(factor), size)
        for factor, size in [
            (1, (5, 7)),
            (2, (8, 8)),
            (2, (6, 10)),
            (4, (8, 12)),
            (4, (4, 4)),
            (3, (6, 9)),
        ]
    },
}
BLUR = {f'blur {sigma} {size}': (blurred(sigma), size) for sigma in SIGMAS for size in SIZES}
ALL = EXACT | BLUR


def images(batch, size, dtype=torch.float64):
    return torch.randn(batch, CHANNELS, *size, dtype=dtype)


def matrices(measurement, size):
    """Return A, A^+ and P as float64 matrices, by applying them to all unit vectors."""
    unit = torch.eye(CHANNELS * math.prod(size), dtype=torch.float64).reshape(-1, CHANNELS, *size)
    measured = measurement(unit)
    unit_y = torch.eye(measured[0].numel(), dtype=torch.float64).reshape(-1, *measured.shape[1:])
    return (
        measured.flatten(1).T,
        measurement.pinv(unit_y).flatten(1).T,
        measurement.project(unit).flatten(1).T,
    )


@pytest.mark.parametrize('make, size', ALL.values(), ids=ALL)
def test_the_pseudoinverse_equals_that_of_pytorch(make, size):
    """A^+ equals the pseudoinverse of PyTorch with the same cut-off, and fulfils its definition.

    If small gains are dropped, A A^+ A = A P. The norm of A^+ is at most 1/0.03, so rounding errors
    of sums are up to 30 times larger than 1e-15.
    """
    A, A_pinv, P = matrices(make(*size), size)
    torch.testing.assert_close(A_pinv, torch.linalg.pinv(A, rtol=TOLERANCE), rtol=0, atol=1e-10)
    torch.testing.assert_close(P, A_pinv @ A, rtol=0, atol=1e-12)
    torch.testing.assert_close(P, P.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(P @ P, P, rtol=0, atol=1e-12)
    torch.testing.assert_close(A @ A_pinv, (A @ A_pinv).T, rtol=0, atol=1e-12)
    torch.testing.assert_close(A_pinv @ A @ A_pinv, A_pinv, rtol=0, atol=1e-10)
    torch.testing.assert_close(A @ A_pinv @ A, A @ P, rtol=0, atol=1e-12)


@pytest.mark.parametrize('make, size', EXACT.values(), ids=EXACT)
def test_only_blur_drops_components(make, size):
    A, A_pinv, _ = matrices(make(*size), size)
    torch.testing.assert_close(A @ A_pinv @ A, A, rtol=0, atol=1e-12)  # rounding errors of float64


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('sigma', SIGMAS)
def test_blur_drops_only_components_with_small_gains(sigma, size):
    """A^+ amplifies noise by at most 1/0.03, and A (1 - P) has a norm of at most 0.03.

    The largest gain is 1, for a constant image. A wider blur drops more components, and a very
    narrow blur drops none.
    """
    A, A_pinv, P = matrices(blur(*size, sigma), size)
    gains, rank = torch.linalg.svdvals(A), P.trace().item()
    assert gains[0].item() == pytest.approx(1, abs=1e-12)
    assert torch.linalg.matrix_norm(A_pinv, 2) <= (1 + 1e-9) / TOLERANCE
    assert torch.linalg.matrix_norm(A - A @ P, 2) <= (1 + 1e-9) * TOLERANCE
    assert rank == pytest.approx((gains > TOLERANCE).sum().item(), abs=1e-9)
    # smallest and largest fraction of components that are kept
    least, most = {0.1: (1, 1), 0.5: (1, 1), 1.0: (0.3, 0.9), 2.0: (0.05, 0.3), 20.0: (0, 1 / 30)}[
        sigma
    ]
    # the mean of each channel is always measured
    assert least * len(A) <= rank + 1e-9 and rank - 1e-9 <= most * len(A) and rank > CHANNELS - 1e-9


@pytest.mark.parametrize('make, size', ALL.values(), ids=ALL)
@pytest.mark.parametrize('dtype', ROUNDING)
def test_project_is_the_inverse_of_the_measurement(dtype, make, size):
    """`project` computes P x = A^+ (A x) directly; A, A^+ and P keep the dtype."""
    measurement, x = make(*size), images(4, size, dtype)
    y = measurement(x)
    assert isinstance(measurement, Measurement)
    assert y.dtype == measurement.pinv(y).dtype == measurement.project(x).dtype == dtype
    assert measurement.project(x).shape == x.shape and len(y) == 4
    torch.testing.assert_close(
        measurement.project(x), measurement.pinv(y), rtol=0, atol=ROUNDING[dtype]
    )
    torch.testing.assert_close(
        measurement.pinv(y),
        matrices(measurement, size)[1].to(dtype).matmul(y.flatten(1).T).T.reshape(x.shape),
        rtol=0,
        atol=2 * ROUNDING[dtype],
    )


UNMASKED = {name: case for name, case in ALL.items() if name not in MASK}


@pytest.mark.parametrize('make, size', UNMASKED.values(), ids=UNMASKED)
@pytest.mark.parametrize('dtype', ROUNDING)
def test_all_but_masks_commute_with_the_scalers(dtype, make, size):
    """A, A^+ and P commute with the scaling of x to 2 x - 1 and back."""
    measurement, x = make(*size), images(2, size, dtype)
    y = measurement(x)
    for scaled in (lambda v: 2 * v - 1, lambda v: (v + 1) / 2):
        for f, v in ((measurement, x), (measurement.pinv, y), (measurement.project, x)):
            torch.testing.assert_close(f(scaled(v)), scaled(f(v)), rtol=0, atol=2 * ROUNDING[dtype])


# Against other implementations


@pytest.mark.parametrize('dtype', ROUNDING)
@pytest.mark.parametrize(
    'factor, size', [(1, (5, 7)), (2, (8, 8)), (2, (6, 10)), (4, (8, 12)), (3, (6, 9))]
)
def test_downsampling_is_average_pooling(factor, size, dtype):
    x = images(2, size, dtype)
    y = downsampling(*size, factor)(x)
    assert y.shape == (2, CHANNELS, size[0] // factor, size[1] // factor)
    # sums of 16 values have rounding errors of a few machine epsilons
    torch.testing.assert_close(y, F.avg_pool2d(x, factor), rtol=0, atol=ROUNDING[dtype] / 10)


@pytest.mark.parametrize('size', [*SIZES, (1, 9)], ids=str)
@pytest.mark.parametrize('sigma', SIGMAS)
def test_blur_equals_that_of_scipy(sigma, size):
    x = images(2, size)
    exact = torch.from_numpy(
        gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode='reflect', truncate=4.0)
    )
    torch.testing.assert_close(blur(*size, sigma)(x), exact, rtol=0, atol=1e-12)  # in float64
    torch.testing.assert_close(blur(*size, sigma)(x.float()), exact.float(), rtol=0, atol=1e-6)


def test_grey_is_the_mean_of_the_channels():
    x = images(2, (4, 6))
    # the tolerance is about one machine epsilon
    torch.testing.assert_close(
        Grey(CHANNELS)(x), (x[:, :1] + x[:, 1:2] + x[:, 2:]) / 3, rtol=0, atol=1e-15
    )
    # A^+ gives the image of smallest norm with these channel means
    assert torch.equal(Grey(CHANNELS).pinv(x[:, :1]), x[:, [0, 0, 0]])


def test_rows_and_columns_have_separate_filters():
    """`Separable(R, C)` computes R x C^T, also if R and C differ in shape and values."""
    R, C, x = (
        torch.randn(3, 5, dtype=torch.float64),
        torch.randn(2, 7, dtype=torch.float64),
        images(2, (5, 7)),
    )
    torch.testing.assert_close(
        Separable(R, C)(x), torch.einsum('hr,bcrs,ws->bchw', R, x, C), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize(
    'shape', [(4, 6), (1, 4, 6), (3, 4, 6), (2, 1, 4, 6), (2, 3, 4, 6), (6,), (3, 1, 1)], ids=str
)
def test_masks_broadcast(shape):
    """Masked values have no influence, even if they are NaN; known values are copied.

    Masks of numbers 0 and 1 and masks of booleans are equivalent.
    """
    x, mask = images(2, (4, 6)), (torch.randn(shape) > 0)
    full = mask.expand(x.shape)
    expected = torch.zeros_like(x)
    expected[full] = x[full]
    for m in (mask, mask.float(), mask.long()):
        for f in (Mask(m), Mask(m).pinv, Mask(m).project):
            assert torch.equal(f(x), expected) and torch.equal(
                f(x.masked_fill(~full, math.nan)), expected
            )


# Invalid arguments


@pytest.mark.parametrize(
    'make, named',
    [
        (lambda: Mask(torch.tensor([0.0, 0.5, 1.0])), 'mask'),
        (lambda: Mask(torch.tensor([0, 255])), 'mask'),
        (lambda: Mask(torch.tensor([math.nan, 1.0])), 'mask'),
        (lambda: downsampling(6, 8, 4), '6x8.*4x4'),
        (lambda: downsampling(8, 6, 4), '8x6.*4x4'),
        (lambda: downsampling(8, 8, 0), '0x0'),
        (lambda: downsampling(8, 8, -2), '-2'),
        (lambda: blur(8, 8, 0), 'sigma=0'),
        (lambda: blur(8, 8, -1.5), 'sigma=-1.5'),
        (lambda: blur(8, 8, math.nan), 'sigma=nan'),
        (lambda: named_mask('middle', 8, 8), "'middle'"),
    ],
)
def test_invalid_arguments_raise_an_error(make, named):
    with pytest.raises(UserError, match=named) as error:
        make()
    assert 20 < len(str(error.value)) < 250 and '\n' not in str(error.value)


def test_an_unknown_mask_raises_an_error_with_the_known_names():
    with pytest.raises(UserError) as error:
        named_mask('middle', 8, 8)
    assert all(name in str(error.value) for name in (*MASKS, 'half', 'most'))


# Named masks

NAMES = (*MASKS, 'half', 'most')
MASK_SIZES = [(8, 8), (28, 28), (4, 12), (5, 7), (7, 4), (6, 10), (3, 3), (2, 2)]


@pytest.mark.parametrize('size', MASK_SIZES, ids=str)
@pytest.mark.parametrize('name', NAMES)
def test_named_masks_are_zeros_and_ones(name, size):
    mask = named_mask(name, *size)
    assert mask.shape == size and mask.dtype == torch.float32 and ((mask == 0) | (mask == 1)).all()


@pytest.mark.parametrize('size', MASK_SIZES, ids=str)
@pytest.mark.parametrize(
    'name, axis, reverse',
    [('left', 1, False), ('right', 1, True), ('top', 0, False), ('bottom', 0, True)],
)
def test_a_half_is_missing(name, axis, reverse, size):
    """The named half is missing; the middle row or column may be missing or known."""
    mask = named_mask(name, *size).movedim(axis, 0)
    mask = mask.flip(0) if reverse else mask
    n = len(mask)
    assert (mask[: n // 2] == 0).all() and (mask[(n + 1) // 2 :] == 1).all()
    assert (mask[n // 2] == mask[n // 2, 0]).all()


@pytest.mark.parametrize('size', MASK_SIZES, ids=str)
def test_center_and_border_are_complementary(size):
    """The center is a rectangle with half the side lengths of the image, up to one pixel."""
    center, border = named_mask('center', *size), named_mask('border', *size)
    assert torch.equal(center + border, torch.ones(size))
    rows, columns = (center == 0).any(1), (center == 0).any(0)
    assert torch.equal(center == 0, rows[:, None] & columns)
    for inside, n in ((rows, size[0]), (columns, size[1])):
        assert torch.equal(inside, inside.flip(0)) and abs(inside.sum() - n / 2) <= (
            0 if n % 4 == 0 else 1
        )
        places = inside.nonzero()
        assert len(places) == 0 or places[-1] - places[0] + 1 == len(places)


@pytest.mark.parametrize('size', MASK_SIZES, ids=str)
@pytest.mark.parametrize('name, known', [('half', 0.5), ('most', 0.1)])
def test_random_masks_have_the_given_fraction_and_are_fixed(name, known, size):
    torch.manual_seed(1)
    mask = named_mask(name, *size)
    state = torch.get_rng_state()
    # they do not use the global random state either
    assert torch.equal(named_mask(name, *size), mask) and torch.equal(torch.get_rng_state(), state)
    assert abs(mask.sum().item() - known * mask.numel()) < 1
    if mask.numel() > 90:  # no half of the image contains all known pixels
        for side in ('left', 'right', 'top', 'bottom'):
            assert 0 < (mask * named_mask(side, *size)).sum() < mask.sum()


def test_pixels_known_with_most_are_known_with_half():
    """Pixels known with 'most' are also known with 'half', because the random order is the same."""
    assert (named_mask('most', 28, 28) <= named_mask('half', 28, 28)).all()
