"""Draw samples of a checkpoint and write them as pictures: --mode sample."""

import os
import pathlib

import numpy as np
from absl import logging
from ml_collections import ConfigDict

import checkpoints
import reports
from commands import drawing, preflight
from runtime import distributed, interruption
from score_model import ScoreModel


@interruption.interruptible('No samples were written.')
def sample(
    config: ConfigDict,
    workdir: str | os.PathLike,
    checkpoint: str | os.PathLike = '',
    num_samples: int = 64,
    output: str | os.PathLike = '',
) -> pathlib.Path:
    """Draw samples from a checkpoint and write them as pictures.

    Each sample is written to a PNG file, all samples to `samples.npz` (key 'samples', 8 bits, NHWC;
    also 'labels' for a class-conditional network), and up to 100 samples to `grid.png`.

    Args:
        config: A config.
        workdir: Work directory of the training.
        checkpoint: A checkpoint file. Default: the latest of `workdir`.
        num_samples: Number of samples.
        output: Folder of the pictures. Default: `workdir/generated`.

    Returns:
        The folder of the pictures.
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
    arrays = dict(samples=images)
    if 'labels' in parts[0]:
        arrays['labels'] = np.concatenate([part['labels'] for part in parts])
    np.savez_compressed(folder / 'samples.npz', **arrays)
    reports.save_grid(folder / 'grid.png', images[:100])
    logging.info('Wrote %d images, samples.npz and grid.png to %s.', len(images), folder)
    return folder
