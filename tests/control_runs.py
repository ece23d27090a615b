"""Configs of small networks (fixture `place` in conftest.py), and runs of `--mode control`."""

import numpy as np
import pytest
from PIL import Image

from commands import control
from conftest import load_config
from runtime.errors import UserError

SIZE, IMAGES, RESULTS = 8, 4, 2
TASKS = (
    'inpaint',
    'colorize',
    'upscale2',
    'upscale4',
    'deblur',
    'classes',
    'reconstruct',
    'interpolate',
    'temper',
    'mix',
)
# required arguments of the tasks
NEEDED = {'inpaint': dict(mask='left'), 'classes': dict(labels='3,5,8')}


def config_for(module='configs.vp.digits_ddpmpp_continuous', data=(), **model):
    """Return the config of a small network with short training and tasks of less than a second.

    Tasks use neither resampling nor consistency, and draw one batch. The last layers do not start
    at zero, so that the network depends on its labels after five steps.
    """
    config = load_config(
        module,
        data,
        **dict(nf=8, num_res_blocks=1, num_scales=25, dropout=0.1, init_scale=0.5) | model,
    )
    config.training.update(
        batch_size=16,
        n_iters=5,
        snapshot_freq=4,
        snapshot_freq_for_preemption=2,
        log_freq=1,
        eval_freq=2,
        snapshot_sampling=False,
    )
    config.optim.warmup = 0
    config.sampling.corrector = 'none'
    config.eval.update(batch_size=360, num_samples=7)
    config.control.update(
        images=IMAGES,
        results=RESULTS,
        resample=1,
        consistency=0.0,
        steps=5,
        temperatures=(0.5, 1.0),
        rtol=0.1,
        atol=0.1,
    )
    return config


CONFIGS = {
    'plain': lambda path: config_for(),
    'classes': lambda path: config_for('configs.vp.digits_ddpmpp_classes'),
    'classifier': lambda path: config_for('configs.vp.digits_wideresnet', widen=1),
    'colour': lambda path: config_for(
        data=dict(
            dataset='FOLDER',
            path=str(path / 'pictures'),
            num_channels=3,
            test_fraction=0.25,
            uniform_dequantization=False,
            random_flip=True,
        )
    ),
}


def pictures(n, size=(SIZE, SIZE), seed=0, low=100, high=156):
    """Make n random pictures (n, height, width, 3) with grey levels from `low` to `high`."""
    return np.random.default_rng(seed).integers(low, high, (n, *size, 3), np.uint8)


def written(folder, images):
    """Write images (n, H, W, 3) or (n, H, W) as 0.png, 1.png, ...; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f'{i}.png')
    return folder


def run(place, tmp_path, task, name='plain', config=None, **settings):
    """Run a task and return its arrays and its gallery (height, width, 3).

    Required arguments of the task are added.
    """
    folder = control.control(
        config or CONFIGS[name](place),
        place / name,
        task,
        output=str(tmp_path / 'out'),
        **NEEDED.get(task, {})
        | {key: str(v) if key != 'measured' else v for key, v in settings.items()},
    )
    assert folder == tmp_path / 'out' and {path.name for path in folder.iterdir()} == {
        'gallery.png',
        'results.npz',
    }
    return dict(np.load(folder / 'results.npz')), np.asarray(Image.open(folder / 'gallery.png'))


def tiles(gallery, rows, columns):
    """Return the pictures (rows, columns, 8, 8, 3) in a gallery.

    Each pixel is drawn as a square of 8 x 8 pixels. Margins are 2 pixels wide, titles are above.
    """
    gallery = gallery[-(66 * rows + 2) :]
    assert gallery.shape == (66 * rows + 2, 66 * columns + 2, 3)
    parts = (
        gallery[2:, 2:].reshape(rows, 66, columns, 66, 3).transpose(0, 2, 1, 3, 4)[:, :, :64, :64]
    )
    assert (parts.reshape(rows, columns, 8, 8, 8, 8, 3) == parts[:, :, ::8, None, ::8, None]).all()
    return parts[:, :, ::8, ::8]


def blocks(images, factor):
    """Return the means over blocks of `factor` x `factor` pixels of (..., height, width, C)."""
    *rest, height, width, channels = images.shape
    return (
        images.astype(float)
        .reshape(*rest, height // factor, factor, width // factor, factor, channels)
        .mean((-4, -2))
    )


def error_of(config, workdir, task, **settings):
    """Return the error message of a task; check that it is one line and that nothing is written."""
    with pytest.raises((UserError, NotImplementedError)) as caught:
        control.control(
            config,
            workdir,
            task,
            **NEEDED.get(task, {})
            | {key: str(v) if key != 'measured' else v for key, v in settings.items()},
        )
    message = str(caught.value)
    assert '\n' not in message and not (workdir / f'control_{task}').exists()
    return message


TINY = [
    '--config.model.nf=8',
    '--config.model.num_res_blocks=1',
    '--config.model.num_scales=25',
    '--config.control.images=2',
    '--config.control.results=2',
    '--config.control.resample=2',
    '--config.device=cpu',
]
