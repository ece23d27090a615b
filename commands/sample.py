"""Samples of a checkpoint as pictures: --mode sample."""

import pathlib

import numpy as np
from absl import logging

import checkpoints
import reports
from commands import drawing, preflight
from runtime import distributed, interruption
from score_model import ScoreModel


@interruption.interruptible('No samples were written.')
def sample(config, workdir, checkpoint='', num_samples=64, output=''):
    """Draws `num_samples` images from a checkpoint file (the latest of `workdir`) into the folder
    `output` (`workdir/generated`).

    Each becomes a PNG; `samples.npz` (key 'samples', 8 bits, NHWC; 'labels' of a network that knows
    classes) holds all, `grid.png` shows up to 100. Returns the folder.
    """
    config = preflight.check(config, workdir, 'sample', checkpoint)
    model = ScoreModel.load(checkpoint or checkpoints.latest(workdir), config)
    folder = pathlib.Path(output or pathlib.Path(workdir, 'generated'))
    folder.mkdir(parents=True, exist_ok=True)
    parts = drawing.draw_all(model, ('sample',), num_samples, config.eval.batch_size)
    if not distributed.is_main():
        return folder
    images = np.concatenate([part['samples'] for part in parts])
    if (folder / 'samples.npz').is_file():  # pictures of an earlier call, which may have drawn more
        for path in (path for path in folder.glob('*.png') if path.stem.isdigit()):
            path.unlink()
    for i, image in enumerate(images):
        reports.save_image(folder / f'{i:05d}.png', image)
    labels = (
        dict(labels=np.concatenate([part['labels'] for part in parts]))
        if 'labels' in parts[0]
        else {}
    )
    np.savez_compressed(folder / 'samples.npz', samples=images, **labels)
    reports.save_grid(folder / 'grid.png', images[:100])
    logging.info('Wrote %d images, samples.npz and grid.png to %s.', len(images), folder)
    return folder
