"""Write image files for tests: crops of the two photographs that come with scikit-learn."""

import functools
import io

import numpy as np
from PIL import Image

import datasets
from conftest import load_config


@functools.cache
def photographs():
    from sklearn.datasets import load_sample_images

    return load_sample_images().images  # 427 x 640, RGB


def crops(n, height, width=None, seed=0):
    """Return n different crops of the photographs, (n, height, width, 3)."""
    rng, width = np.random.default_rng(seed), width or height
    tops, lefts = rng.integers(0, 427 - height, n), rng.integers(0, 640 - width, n)
    return np.stack(
        [
            photographs()[k % 2][tops[k] : tops[k] + height, lefts[k] : lefts[k] + width]
            for k in range(n)
        ]
    )


def config_of(dataset, size, channels=3, **data):
    config = load_config(
        'configs.vp.cifar10_ddpmpp_continuous',
        dict(dataset=dataset, image_size=size, num_channels=channels, **data),
    )
    config.training.batch_size = config.eval.batch_size = 8
    return config


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def folder(path, images, name='{:02d}.png'):
    for k, image in enumerate(images):
        save(path / name.format(k), image)
    return str(path)


def everything(config, split='train'):
    """Return all images and labels of a split, in its order."""
    source = datasets.get_split(config, split)
    return source.read(np.arange(len(source)))


def in_levels(batches):
    return np.round(np.concatenate([batch['image'] for batch in batches]) * 255).astype(np.uint8)


def contents(images):
    return sorted(image.tobytes() for image in images)


def flip_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


def encoded(image, kind, **options):
    content = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        content, kind, **options
    )
    return content.getvalue()
