"""Do the metrics detect distorted images? Compares CIFAR-10 test and training images.

    python benchmarks/metrics.py --tfds_dir DIR --features 768 --inception_path weights.pth
    python benchmarks/metrics.py --tfds_dir DIR --command --folder features

The reference is n randomly chosen training images. n randomly chosen test images are compared with
it: unchanged, blurred, with noise, and with shuffled pixels. The features of each batch are stored
in a file in --folder, so the same command resumes an interrupted run. With --command the unchanged
images are also written as PNG files and compared with the command of torch-fidelity.
"""

import argparse
import functools
import json
import pathlib
import subprocess
import sys

import numpy as np
import scipy.ndimage
import torch
from machine import machine
from timing import parse_args, print_table

import datasets
import evaluation
import metrics
import reports
from configs.vp import cifar10_ddpmpp_continuous, digits_ddpmpp_continuous
from reports import results


def blurred(images, rng):
    """Blur images with a Gaussian filter of standard deviation 1 pixel."""
    filtered = scipy.ndimage.gaussian_filter(images.astype(np.float32), (0, 1, 1, 0))
    return filtered.round().astype(np.uint8)


def noisy(images, rng):
    """Add Gaussian noise with a standard deviation of 0.1 of the range of pixel values."""
    changed = images + 25.5 * rng.standard_normal(images.shape)
    return np.clip(changed, 0, 255).round().astype(np.uint8)


def shuffled(images, rng):
    """Shuffle the pixels of each image."""
    flat = images.reshape(len(images), -1, images.shape[-1])
    return np.stack([image[rng.permutation(len(image))] for image in flat]).reshape(images.shape)


VARIANTS = {
    'as they are': lambda images, rng: images,
    'blurred': blurred,
    'with noise': noisy,
    'pixels shuffled': shuffled,
}


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--tfds_dir', default='', help='folder of TensorFlow Datasets')
    parser.add_argument(
        '--backend',
        default='torch_fidelity',
        choices=evaluation.EXTRACTORS,
        help='extractor of the features (default: %(default)s)',
    )
    parser.add_argument(
        '--features', default='', help='layer of the extractor (default: the last one)'
    )
    parser.add_argument(
        '--inception_path',
        default='',
        help='weights of the extractor, if they cannot be downloaded',
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--folder', default='runs/metrics', help='folder for the features (default: %(default)s)'
    )
    parser.add_argument(
        '-n', type=int, default=2000, help='images of each set (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--command', action='store_true', help='compare with the command of torch-fidelity'
    )
    return parse_args(parser, 'folder', n=120, backend='pixels')


def main():
    args = command_line()
    config = config_of(args)
    images = {split: chosen_images(config, split, args) for split in ('train', 'test')}
    features = Features(evaluation.get_extractor(config), args)
    real = features('training images', images['train'])
    rows = [('test images', 'FID', 'KID', 'precision', 'recall')]
    for name, change in VARIANTS.items():
        changed = change(images['test'], np.random.default_rng(args.seed))
        rows.append((name, *compared(real, features(name, changed))))
    print(
        f'{args.n} test against {args.n} training images of {config.data.dataset}, seed '
        f'{args.seed}; '
        f'{json.dumps(features.extractor.protocol)}\n{machine()}\n'
    )
    print_table(args, rows)
    if args.command:
        print('torch-fidelity:', by_command(images, args))


def config_of(args):
    """Return a config with the settings of the data and of the extractor."""
    config = (digits_ddpmpp_continuous if args.quick else cifar10_ddpmpp_continuous).get_config()
    config.device = args.device
    config.data.tfds_dir = args.tfds_dir
    config.eval.update(
        metrics_backend=args.backend, features=args.features, inception_path=args.inception_path
    )
    return config


def chosen_images(config, split: str, args) -> np.ndarray:
    """Return n randomly chosen images of a split, uint8 (n, H, W, C)."""
    images = datasets.get_split(config, split)
    order = np.random.default_rng(args.seed).permutation(len(images))
    return images.read(order[: args.n])[0]


class Features:
    """Computes features of images and stores each batch in a file in --folder."""

    def __init__(self, extractor, args):
        self.extractor, self.args, self.folder = extractor, args, pathlib.Path(args.folder)

    def __call__(self, name: str, x: np.ndarray) -> np.ndarray:
        """Return the features of images `x`, uint8 (N, H, W, C); their files start with `name`."""
        starts = range(0, self.args.n, 100)
        return np.concatenate([self.batch(name, x[start : start + 100], start) for start in starts])

    def batch(self, name: str, x: np.ndarray, start: int) -> np.ndarray:
        path = self.folder / f'{name.replace(" ", "_")}_{start}.npz'
        extractor = self.extractor
        protocol = dict(
            extractor=extractor.protocol, images=name, seed=self.args.seed, start=start, n=len(x)
        )
        return results.stored(path, protocol, functools.partial(extractor.run, x))['pool_3']


def compared(real: np.ndarray, x: np.ndarray) -> tuple[str, ...]:
    """Return FID, KID, precision and recall of features, as text."""
    kernel = metrics.kernel_distance(real, x)
    precision, recall = metrics.precision_recall(real, x)
    distance = metrics.frechet_distance(metrics.statistics(real), metrics.statistics(x))
    return (
        f'{distance:.4f}',
        f'{kernel.mean:.6f} +- {kernel.error:.6f}',
        f'{precision:.3f}',
        f'{recall:.3f}',
    )


def by_command(images: dict, args) -> str:
    """Write the unchanged images as PNG files; return the output of torch-fidelity's command."""
    folder = pathlib.Path(args.folder)
    for split, x in images.items():
        (folder / f'{split}_{args.n}').mkdir(exist_ok=True)
        for i, image in enumerate(x):
            reports.save_image(folder / f'{split}_{args.n}' / f'{i:05d}.png', image)
    weights = ['--feature-extractor-weights-path', args.inception_path]
    command = [
        *(sys.executable, '-m', 'torch_fidelity.fidelity'),
        *('--fid', '--json', '--silent', '--no-datasets-download'),
        *(('--gpu', '0') if args.device.startswith('cuda') else ('--cpu',)),
        *(weights if args.inception_path else ()),
        *(('--feature-layer-fid', args.features) if args.features else ()),
        *('--input1', str(folder / f'test_{args.n}')),
        *('--input2', str(folder / f'train_{args.n}')),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout or done.stderr


if __name__ == '__main__':
    main()
