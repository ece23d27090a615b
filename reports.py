"""Pictures and tables, made from the files of a work directory."""
import glob
import pathlib

import numpy as np
import torch
from torchvision.utils import make_grid
from torchvision.utils import save_image as save_tensor


def save_grid(path, images: np.ndarray, columns: int | None = None) -> torch.Tensor:
    """Writes 8-bit images (n, H, W, C) as one PNG, in rows of `columns` (a square); small ones are enlarged, pixel by pixel.

    Returns the picture (3, height, width), in [0, 1]."""
    enlarge = max(1, 64 // images.shape[1])
    tiles = torch.from_numpy(images).permute(0, 3, 1, 2).repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3).float() / 255
    grid = make_grid(tiles, nrow=columns or max(1, int(len(images) ** 0.5)), padding=2, pad_value=0.5)
    save_tensor(grid, path)
    return grid


def save_image(path, image: np.ndarray):
    """Writes one 8-bit image (H, W, C) as a PNG."""
    save_tensor(torch.from_numpy(image).permute(2, 0, 1).float() / 255, path)


def values(path, key: str) -> np.ndarray:
    """The array called `key` in the npz file at `path`."""
    with np.load(path) as arrays:
        return arrays[key]


def evaluation_rows(eval_dir, checkpoint: int) -> list[tuple[str, str, str]]:
    """What an evaluation folder says of a checkpoint: rows of quantity, value and remark."""
    eval_dir, rows = pathlib.Path(eval_dir), []
    loss_file, report_file = eval_dir / f'ckpt_{checkpoint}_loss.npz', eval_dir / f'report_{checkpoint}.npz'
    if loss_file.is_file():
        rows.append(('loss', f'{values(loss_file, "mean_loss"):.5f}', f'test set, {values(loss_file, "batch_sizes").sum()} images'))
    for split in ('train', 'test'):
        files = glob.glob(str(eval_dir / f'{split}_ckpt_{checkpoint}_bpd_*.npz'))
        if files:
            repeats = {}
            for file in sorted(files, key=lambda file: int(pathlib.Path(file).stem.rpartition('_')[2])):
                repeats.setdefault(int(values(file, 'repeat')), []).append(values(file, 'bpd'))
            bpd = np.mean([np.concatenate(parts) for parts in repeats.values()], axis=0)  # of each image
            error = bpd.std(ddof=1) / len(bpd) ** 0.5
            rows.append(('bits/dim', f'{bpd.mean():.4f} +- {error:.4f}',
                         f'{split} set, {len(bpd)} images, uniformly dequantised, {len(repeats)} time{"s"[:len(repeats) - 1]}'))
    if report_file.is_file():
        with np.load(report_file) as report:
            if 'pixel_frechet' in report:
                rows += [('pixel Frechet distance', f'{report["pixel_frechet"]:.4f}',
                          f'{report["n_samples"]} samples to {report["n_held_out"]} held-out images'),
                         ('  same, real to real', f'{report["pixel_frechet_halves"]:.4f}',
                          f'two halves of the data, {report["n_halves"][0]} and {report["n_halves"][1]} images')]
    return rows


def table(rows) -> str:
    """Rows of text as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
