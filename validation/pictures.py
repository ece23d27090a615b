"""Pictures of a validation: samples, samples side by side, and denoising errors."""

import pathlib
from collections.abc import Sequence

import numpy as np

import reports
from reports.style import figure, legend_below, log_scale

from .invariants import Denoising
from .result import Result


def draw(results: Sequence[Result], output: pathlib.Path) -> list[tuple[str, str]]:
    """Draw all pictures into a folder and return their file names and captions."""
    pictures = [_samples(result, output) for result in results if len(result.images)]
    panels = [(result.model.name, result.images) for result in results if len(result.images)]
    panels += _real_images(results)
    if len(panels) > 1:
        _draw_side_by_side(output / 'side_by_side.png', panels)
        names = ', '.join(name for name, _ in panels)
        pictures.insert(0, ('side_by_side.png', f'Side by side: {names}.'))
    profiles = [
        (result.model.name, result.denoising) for result in results if result.denoising is not None
    ]
    if profiles:
        _draw_denoising(output / 'denoising.png', profiles)
        caption = (
            'Squared error per pixel of the denoised image against time, for the network and for '
            f'the best estimate that is linear in the pixel ({profiles[0][1].n} test images). At '
            'the right, x_t contains hardly any trace of the image, and a small error of the '
            'predicted noise causes a much larger error of the image.'
        )
        pictures.append(('denoising.png', caption))
    return pictures


def _samples(result: Result, output: pathlib.Path) -> tuple[str, str]:
    """Draw the first samples of a checkpoint in a square."""
    name = f'samples_{result.model.slug}.png'
    columns = min(10, int(len(result.images) ** 0.5))
    reports.save_grid(output / name, result.images[: columns**2], columns)
    caption = (
        f'The first {columns**2} samples of {result.model.name}, not selected: '
        f'seed {result.config.seed}, {result.solver("sample")}.'
    )
    return name, caption


def _real_images(results: Sequence[Result]) -> list[tuple[str, np.ndarray]]:
    """Return the test images of every data set once, with its name."""
    found = {}
    for result in results:
        if result.real is not None:
            data = result.config.data
            found[data.dataset, data.image_size] = result.real
    return [(f'real images of {dataset}', images) for (dataset, _), images in found.items()]


def _draw_side_by_side(path: pathlib.Path, panels: list[tuple[str, np.ndarray]]):
    with figure(path, 3.4 * len(panels), 3.7, 1, len(panels)) as (_, axes_of):
        for axes, (name, images) in zip(axes_of, panels):
            axes.imshow(_tiled(images), cmap='gray', vmin=0, vmax=255, interpolation='nearest')
            axes.set_title(name)
            axes.axis('off')


def _tiled(images: np.ndarray) -> np.ndarray:
    """Return at most 6 x 6 images as one, with lines between small ones."""
    side = min(6, int(len(images) ** 0.5))
    tiles = images[: side**2].reshape(side, side, *images.shape[1:]).swapaxes(1, 2)
    if images.shape[1] < 64:
        line = ((0, 0), (0, 1), (0, 0), (0, 1), (0, 0))
        tiles = np.pad(tiles, line, constant_values=128)
    rows, height, columns, width, channels = tiles.shape
    return tiles.reshape(rows * height, columns * width, channels)


def _draw_denoising(path: pathlib.Path, profiles: list[tuple[str, Denoising]]):
    with figure(path, 4.6 * len(profiles), 3.9, 1, len(profiles)) as (drawn, axes_of):
        for axes, (name, found) in zip(axes_of, profiles):
            axes.plot(found.t, found.linear, '--', color='0.45', label='best linear estimate')
            axes.plot(found.t, found.network, 'o-', color='C0', label='network')
            axes.set(title=name, xlabel='time t', ylabel='squared error per pixel')
            log_scale(axes, np.concatenate([found.linear, found.network]), 4)
        legend_below(drawn, axes_of, 2)
