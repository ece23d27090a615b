"""Write images as PNG files: single images, and grids with optional column titles."""

import os

import numpy as np
import torch

SMALLEST = 64  # height of a tile in pixels; smaller images are enlarged
PADDING = 2  # pixels between tiles
MARGIN = 4  # pixels around a title
FONT_SIZES = range(14, 8, -1)  # the first is used at which every word fits into its column


def save_grid(
    path: str | os.PathLike,
    images: np.ndarray,
    columns: int | None = None,
    titles: list[str] | None = None,
) -> torch.Tensor:
    """Write 8-bit images as one PNG, row by row.

    Images smaller than 64 pixels are enlarged by repeating pixels an integer number of times.

    Args:
        path: The PNG file.
        images: 8-bit images (n, H, W, C).
        columns: Images in a row. Default: the square root of n, for a square grid.
        titles: A title for each column, above the grid.

    Returns:
        The picture (3, height, width), in [0, 1].

    Raises:
        ValueError: if the number of titles is not the number of columns.
    """
    import torchvision  # late: it imports PyTorch's compiler, which takes a second

    columns = columns or max(1, int(len(images) ** 0.5))
    if titles is not None and len(titles) != columns:
        raise ValueError(f'titles must have one entry for each of {columns} columns, got {titles}')
    enlarge = max(1, SMALLEST // images.shape[1])
    tiles = torch.from_numpy(images).permute(0, 3, 1, 2)
    tiles = tiles.repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3).float() / 255
    grid = torchvision.utils.make_grid(tiles, nrow=columns, padding=PADDING, pad_value=0.5)
    if titles:
        grid = torch.cat([_header(titles, tiles.shape[3], grid.shape[2]), grid], dim=1)
    torchvision.utils.save_image(grid, path)
    return grid


def save_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write one 8-bit image (H, W, C) as a PNG."""
    import torchvision  # late, as above

    torchvision.utils.save_image(torch.from_numpy(image).permute(2, 0, 1).float() / 255, path)


def _header(titles: list[str], tile_width: int, width: int) -> torch.Tensor:
    """Draw a white strip (3, height, width) with a title for each column, broken into lines."""
    from PIL import Image, ImageDraw

    room = tile_width - MARGIN
    font = _font([word for title in titles for word in title.split()], room)
    texts = [_lines(title, font, room) for title in titles]
    spacing = round(1.25 * font.size)
    height = spacing * max(map(len, texts)) + 2 * MARGIN
    strip = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(strip)
    for i, lines in enumerate(texts):
        middle = PADDING + i * (tile_width + PADDING) + tile_width / 2
        for k, line in enumerate(reversed(lines)):
            baseline = height - 2 * MARGIN - k * spacing
            draw.text((middle, baseline), line, fill='black', font=font, anchor='ms')
    return torch.from_numpy(np.array(strip)).permute(2, 0, 1).float() / 255


def _font(words: list[str], room: int):
    """Find the largest font in which every word fits into `room` pixels, else the smallest."""
    from PIL import ImageFont

    for size in FONT_SIZES:
        font = ImageFont.load_default(size)
        if all(font.getlength(word) <= room for word in words):
            break
    return font


def _lines(title: str, font, room: int) -> list[str]:
    """Break a title between words into lines of at most `room` pixels."""
    lines = ['']
    for word in title.split():
        longer = f'{lines[-1]} {word}'.strip()
        if lines[-1] and font.getlength(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
