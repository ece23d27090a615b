"""CIFAR-10, SVHN, MNIST, Fashion-MNIST and CelebA through torchvision, without TensorFlow.

    torchvision_sets.load(config, 'train', name='CIFAR10')

The original files are in the folder `data.path`, arranged as torchvision does
('cifar-10-batches-py', 'MNIST/raw', 'train_32x32.mat', ...). Missing files are downloaded.
Images and splits are those of TensorFlow Datasets, in the order of the files. Only CelebA differs,
by up to a few grey levels (0.9 on average): Pillow decodes JPEG exactly, TensorFlow with its fast
integer DCT.
"""

import io
import os
import pathlib

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from data.images import Images, Streamed, UnreadableImage, image_shape, reason
from data.tensorflow_sets import central_crop, require_network
from runtime.errors import UserError

# {name: (class in torchvision, host of the files, files in the root folder)}
SETS = {
    'CIFAR10': ('CIFAR10', 'www.cs.toronto.edu', 'cifar-10-batches-py'),
    'SVHN': ('SVHN', 'ufldl.stanford.edu', 'train_32x32.mat and test_32x32.mat'),
    'MNIST': ('MNIST', 'ossci-datasets.s3.amazonaws.com', 'MNIST/raw'),
    'FASHIONMNIST': (
        'FashionMNIST',
        'fashion-mnist.s3-website.eu-central-1.amazonaws.com',
        'FashionMNIST/raw',
    ),
    'CELEBA': ('CelebA', 'drive.google.com', 'celeba'),
}


def root(data: ConfigDict) -> pathlib.Path:
    """Return the folder of the files: `data.path`, by default `$TORCH_HOME/datasets`."""
    home = os.environ.get('TORCH_HOME') or '~/.cache/torch'
    return pathlib.Path(data.path or os.path.join(home, 'datasets')).expanduser()


def load(config: ConfigDict, split: str, name: str) -> Images | Streamed:
    """Return the images of a split.

    Args:
        config: The completed config.
        split: 'train' or 'test'. The test set of CelebA is its validation set, as in the 2021
            release.
        name: A key of SETS.

    Raises:
        UserError: if the files are missing and cannot be downloaded, or cannot be read.
    """
    found = _torchvision(name, split, config.data)
    if name == 'CELEBA':
        return _celeba(found, config.data)
    images = np.asarray(found.data)
    if name == 'SVHN':
        images, labels = images.transpose(0, 2, 3, 1), found.labels
    else:
        images, labels = images.reshape(*images.shape[:3], -1), found.targets
    labels = np.asarray(labels).astype(np.int64)
    # the labels of MNIST and SVHN are digits
    classes = tuple(found.classes) if name in ('CIFAR10', 'FASHIONMNIST') else ()
    return Images(np.ascontiguousarray(images), labels, classes=classes)


def _torchvision(name: str, split: str, data):
    """Return the data set of torchvision, downloaded if its files are missing."""
    import torchvision.datasets

    kind, host, files = SETS[name]
    folder = root(data)
    if folder.is_file():
        raise UserError(
            f'config.data.path={data.path!r} is a file, but {data.dataset} needs the '
            f'folder that contains {files}. '
            'For arrays in an NPZ file set config.data.dataset=NPZ'
        )
    if name == 'CELEBA':
        which = dict(split='train' if split == 'train' else 'valid')
    elif name == 'SVHN':
        which = dict(split=split)
    else:
        which = dict(train=split == 'train')
    make = getattr(torchvision.datasets, kind)
    try:
        try:
            return make(folder, download=False, **which)
        except RuntimeError:  # missing or incomplete
            logging.info('Downloading %s to %s.', name, folder)
            require_network(host)
            return make(folder, download=True, **which)
    except Exception as error:  # all errors of torchvision or of the network have the same remedy
        raise UserError(
            f'config.data.dataset={data.dataset!r}: could not read or download {files} '
            f'in {folder}: {reason(error)}. Copy these '
            'files there or set config.data.path to their folder; for a copy in '
            'another format set config.data.dataset to NPZ '
            '(arrays) or FOLDER (pictures)'
        ) from error


def _celeba(found, data) -> Streamed:
    folder = pathlib.Path(found.root, found.base_folder, 'img_align_celeba')

    def decode(i):
        from PIL import Image

        try:
            content = (folder / found.filename[i]).read_bytes()
            picture = np.asarray(Image.open(io.BytesIO(content)).convert('RGB'))
        except Exception as error:  # Pillow's decoders raise errors of many kinds
            raise UnreadableImage(f'cannot be read: {reason(error)}') from error
        return celeba_crop(picture, data.image_size), 0

    return Streamed(
        decode,
        len(found.filename),
        image_shape(data),
        lambda i: str(folder / found.filename[i]),
        data.on_error,
    )


def celeba_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Return the middle 140 x 140 pixels of a picture (H, W, 3), resized to `size`, as uint8.

    The filter is linear and antialiased. The result is that of `tensorflow_sets.celeba_crop`,
    rounded, but needs no TensorFlow.
    """
    from PIL import Image

    middle = central_crop(image, 140).astype(np.float32)
    channels = [
        Image.fromarray(middle[..., k]).resize((size, size), Image.BILINEAR) for k in range(3)
    ]
    return np.clip(np.round(np.stack(channels, -1)), 0, 255).astype(np.uint8)
