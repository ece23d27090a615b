"""Do the metrics measure what they should? Real CIFAR-10 images against real ones, and against the
same ones damaged.

  python benchmarks/metrics.py --tfds_dir DIR --features 768 --inception_path weights.pth --folder
  features

The first n training images (in a random order) are the reference; the first n test images are
compared with it as they are, blurred, with noise, and with their pixels shuffled. Features are kept
in --folder, a batch a file: an interrupted run goes on. With --command the untouched images are
also written as PNG files and given to the command line of torch-fidelity.
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

import datasets
import evaluation
import metrics
import reports
from configs.vp import cifar10_ddpmpp_continuous, digits_ddpmpp_continuous
from machine import machine
from reports import results
from timing import parse_args, print_table


def blurred(images, rng):
    """A Gaussian filter of standard deviation 1 pixel."""
    return (
        scipy.ndimage.gaussian_filter(images.astype(np.float32), (0, 1, 1, 0))
        .round()
        .astype(np.uint8)
    )


def noisy(images, rng):
    """Gaussian noise of standard deviation 0.1 of the range."""
    return (
        np.clip(images + 25.5 * rng.standard_normal(images.shape), 0, 255).round().astype(np.uint8)
    )


def shuffled(images, rng):
    """Each image's pixels in a random order of its own."""
    flat = images.reshape(len(images), -1, images.shape[-1])
    return np.stack([image[rng.permutation(len(image))] for image in flat]).reshape(images.shape)


VARIANTS = {
    'as they are': lambda images, rng: images,
    'blurred': blurred,
    'with noise': noisy,
    'pixels shuffled': shuffled,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--tfds_dir', default='', help='folder of TensorFlow Datasets')
    parser.add_argument(
        '--backend',
        default='torch_fidelity',
        choices=evaluation.EXTRACTORS,
        help='extractor of the features',
    )
    parser.add_argument(
        '--features', default='', help='layer of the extractor; its last by default'
    )
    parser.add_argument(
        '--inception_path', default='', help='its weights, if they cannot be fetched'
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--folder', default='runs/metrics', help='where features are kept')
    parser.add_argument('-n', type=int, default=2000, help='images of either set')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--command', action='store_true', help="compare with torch-fidelity's own command"
    )
    args = parse_args(parser, 'folder', n=120, backend='pixels')

    config = (digits_ddpmpp_continuous if args.quick else cifar10_ddpmpp_continuous).get_config()
    config.device, config.data.tfds_dir = args.device, args.tfds_dir
    config.eval.update(
        metrics_backend=args.backend, features=args.features, inception_path=args.inception_path
    )
    extractor, folder = evaluation.get_extractor(config), pathlib.Path(args.folder)
    order = {
        split: np.random.default_rng(args.seed).permutation(len(images))
        for split, images in (
            (split, datasets.get_split(config, split)) for split in ('train', 'test')
        )
    }
    images = {
        split: datasets.get_split(config, split).read(chosen[: args.n])[0]
        for split, chosen in order.items()
    }

    def features(name, x):
        parts = [
            results.stored(
                folder / f'{name.replace(" ", "_")}_{start}.npz',
                dict(
                    extractor=extractor.protocol,
                    images=name,
                    seed=args.seed,
                    start=start,
                    n=len(x[start : start + 100]),
                ),
                functools.partial(extractor.run, x[start : start + 100]),
            )['pool_3']
            for start in range(0, args.n, 100)
        ]
        return np.concatenate(parts)

    real = features('training images', images['train'])
    rows = [('test images', 'FID', 'KID', 'precision', 'recall')]
    for name, change in VARIANTS.items():
        x = features(name, change(images['test'], np.random.default_rng(args.seed)))
        kernel, (precision, recall) = (
            metrics.kernel_distance(real, x),
            metrics.precision_recall(real, x),
        )
        distance = metrics.frechet_distance(metrics.statistics(real), metrics.statistics(x))
        rows.append(
            (
                name,
                f'{distance:.4f}',
                f'{kernel.mean:.6f} +- {kernel.error:.6f}',
                f'{precision:.3f}',
                f'{recall:.3f}',
            )
        )
    print(
        f'{args.n} test against {args.n} training images of {config.data.dataset}, seed '
        f'{args.seed}; '
        f'{json.dumps(extractor.protocol)}\n{machine()}\n'
    )
    print_table(args, rows)
    if args.command:
        for split, x in images.items():
            (folder / f'{split}_{args.n}').mkdir(exist_ok=True)
            for i, image in enumerate(x):
                reports.save_image(folder / f'{split}_{args.n}' / f'{i:05d}.png', image)
        weights = (
            ['--feature-extractor-weights-path', args.inception_path] if args.inception_path else []
        )
        layer = ['--feature-layer-fid', args.features] if args.features else []
        done = subprocess.run(
            [
                sys.executable,
                '-m',
                'torch_fidelity.fidelity',
                '--fid',
                '--json',
                '--silent',
                '--no-datasets-download',
                *(['--gpu', '0'] if args.device.startswith('cuda') else ['--cpu']),
                *weights,
                *layer,
                '--input1',
                str(folder / f'test_{args.n}'),
                '--input2',
                str(folder / f'train_{args.n}'),
            ],
            capture_output=True,
            text=True,
        )
        print('torch-fidelity:', done.stdout or done.stderr)


if __name__ == '__main__':
    main()
