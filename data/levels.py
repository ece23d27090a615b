"""Grey levels."""

import numpy as np

from data.images import Damaged


def in_8_bits(values: np.ndarray, levels: int) -> np.ndarray:
    """Values 0 .. levels - 1 of 16 bits (levels=0: 65536) as uint8: `levels` of them become 256; up
    to 256 stay as they are.
    """
    levels = levels or 2**16
    check_values(values, levels)
    if levels <= 256:
        return values.astype(np.uint8, copy=False)
    return (np.arange(levels) * 256 // levels).astype(np.uint8)[values]


def check_values(values: np.ndarray, levels: int):
    lowest, highest = values.min(initial=0), values.max(initial=0)
    if lowest < 0 or highest >= levels:
        raise Damaged(
            f'has values {f"down to {lowest}" if lowest < 0 else f"up to {highest}"}, '
            f'but {levels} grey levels: expected 0 to '
            f'{levels - 1}, of which the last is white (config.data.levels)'
        )


def to_8_bits(images: np.ndarray, levels: int) -> np.ndarray:
    """Grey levels 0 .. levels - 1 spread over 0 .. 255."""
    return images if levels == 256 else np.round(images * (255 / (levels - 1))).astype(np.uint8)


def to_uint8(x: np.ndarray, levels: int = 256, dequantized: bool = False) -> np.ndarray:
    """Images in [0, 1] as 8-bit ones of the same shape: each value gets a grey level, level v of L
    becomes 255 v / (L - 1).

    A value x is level (L - 1) x truncated, as published; where the data were dequantised, level L x
    truncated, whose inverse that is.
    """
    x = np.clip(x, 0, 1)
    level = (
        np.minimum(np.floor(levels * x), levels - 1) if dequantized else np.floor((levels - 1) * x)
    )
    return to_8_bits(level.astype(np.uint8), levels)
