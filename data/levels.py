"""Conversion of grey levels from 16 bits, and of images in [0, 1], to 8 bits."""

import numpy as np

from data.images import UnreadableImage


def in_8_bits(values: np.ndarray, levels: int) -> np.ndarray:
    """Convert grey levels 0 to levels - 1 of 16 bits to uint8.

    Args:
        values: Integers, of any shape.
        levels: Number of grey levels. Up to 256 do not change, more become 256. 0: 65536.

    Raises:
        UnreadableImage: if a value is not from 0 to levels - 1.
    """
    levels = levels or 2**16
    check_values(values, levels)
    if levels <= 256:
        return values.astype(np.uint8, copy=False)
    return (np.arange(levels) * 256 // levels).astype(np.uint8)[values]


def check_values(values: np.ndarray, levels: int) -> None:
    """Raise UnreadableImage if a value is not from 0 to levels - 1."""
    lowest, highest = values.min(initial=0), values.max(initial=0)
    if lowest < 0 or highest >= levels:
        raise UnreadableImage(
            f'has values {f"down to {lowest}" if lowest < 0 else f"up to {highest}"}, '
            f'expected 0 to {levels - 1} (white) for {levels} grey levels, see config.data.levels'
        )


def to_8_bits(images: np.ndarray, levels: int) -> np.ndarray:
    """Spread grey levels 0 to levels - 1 over 0 to 255."""
    return images if levels == 256 else np.round(images * (255 / (levels - 1))).astype(np.uint8)


def to_uint8(x: np.ndarray, levels: int = 256, dequantized: bool = False) -> np.ndarray:
    """Round images down to grey levels, and spread these over 0 to 255.

    Args:
        x: Images in [0, 1], of any shape; values outside are clipped.
        levels: Number of grey levels L.
        dequantized: If True, a value x becomes level floor(L x), which inverts uniform
            dequantization. If False, it becomes level floor((L - 1) x), as in the 2021 release.

    Returns:
        An array of the same shape, uint8, in which level v is 255 v / (L - 1), rounded.
    """
    x = np.clip(x, 0, 1)
    if dequantized:
        level = np.minimum(np.floor(levels * x), levels - 1)
    else:
        level = np.floor((levels - 1) * x)
    return to_8_bits(level.astype(np.uint8), levels)
