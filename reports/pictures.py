"""Grids of images as PNG files."""

import numpy as np
import torch


def save_grid(path, images: np.ndarray, columns: int | None = None) -> torch.Tensor:
    """Writes 8-bit images (n, H, W, C) as one PNG, in rows of `columns` (a square); small ones are
    enlarged, pixel by pixel.

    Returns the picture (3, height, width), in [0, 1].
    """
    import torchvision  # late: it imports PyTorch's compiler, which takes a second

    enlarge = max(1, 64 // images.shape[1])
    tiles = (
        torch.from_numpy(images)
        .permute(0, 3, 1, 2)
        .repeat_interleave(enlarge, 2)
        .repeat_interleave(enlarge, 3)
        .float()
        / 255
    )
    grid = torchvision.utils.make_grid(
        tiles, nrow=columns or max(1, int(len(images) ** 0.5)), padding=2, pad_value=0.5
    )
    torchvision.utils.save_image(grid, path)
    return grid


def save_image(path, image: np.ndarray):
    """Writes one 8-bit image (H, W, C) as a PNG."""
    import torchvision  # late, as above

    torchvision.utils.save_image(torch.from_numpy(image).permute(2, 0, 1).float() / 255, path)
