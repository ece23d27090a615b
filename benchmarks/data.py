"""The speed of data loading: images in memory, image files, and records of raw bytes.

    python benchmarks/data.py  # about a minute on two cores, in a temporary folder
    python benchmarks/data.py --tfds_dir ~/tensorflow_datasets --json data.json

Every row is the best of `--repeats` rounds. Each round runs all sources one after another, so that
other load on the machine slows all of them equally. 'cores busy' is CPU time of the process /
elapsed time. The last row shows how many cores the other load leaves free: the same number of
threads compute SHA-256 of 1 MiB blocks and never wait for one another.
"""

import argparse
import hashlib
import json
import pathlib
import struct
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from machine import machine
from timing import parse_args, print_table

import datasets
from configs.vp import cifar10_ddpmpp_continuous as cifar10
from data.batches import Batches
from data.images import Images, Streamed, cores
from data.tfrecords import checksum
from runtime.tensorflow import tensorflow


def clocked(work) -> tuple[float, float]:
    """Return the elapsed seconds and the seconds of CPU time of `work()`."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def best_of(ways: dict, repeats: int) -> dict:
    """Time `ways`, functions that load images and return their number; keep the fastest runs."""
    for way in ways.values():
        way()  # warm-up: fills the page cache and starts the threads
    rows = {}
    for _ in range(repeats):
        for name, way in ways.items():
            n = []
            seconds, processor = clocked(lambda way=way, n=n: n.append(way()))
            if name not in rows or seconds < rows[name]['seconds']:
                rows[name] = dict(
                    name=name,
                    images=n[0],
                    seconds=seconds,
                    images_per_second=n[0] / seconds,
                    cores_busy=processor / seconds,
                )
    return rows


def to_torch(source, batch_size: int, n_batches: int, seed: int, **how) -> int:
    """Load batches as in training, as tensors (B, C, H, W); return the number of images."""
    import torch

    batches = Batches(source, batch_size, seed=seed, start=0, shuffle=True, random_flip=True, **how)
    total = 0
    for _, batch in zip(range(n_batches), batches):
        total += len(torch.from_numpy(batch['image']).permute(0, 3, 1, 2).contiguous())
    return total


def in_memory(args) -> dict:
    """Ways to load batches of 128 images: CIFAR-10 with --tfds_dir, else random 32x32 images."""
    if args.tfds_dir:
        config = cifar10.get_config()
        config.data.tfds_dir = args.tfds_dir
        images, name = datasets.get_split(config, 'train'), 'CIFAR-10'
    else:
        pixels = np.random.default_rng(args.seed).integers(
            0, 256, (args.in_memory, 32, 32, 3), np.uint8
        )
        images, name = Images(pixels, np.zeros(len(pixels), np.int64)), 'random 32x32'
    n = len(images) // 128
    return {
        f'{name}, in memory': lambda: to_torch(images, 128, n, args.seed),
        f'{name}, in memory, dequantized': lambda: to_torch(
            images, 128, n, args.seed, dequantize=True
        ),
    }


def crops(n: int, size: int, seed: int):
    """Yield n random crops of the two photographs of scikit-learn.

    The photographs are 427 pixels high and are enlarged where crops need more.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    scale = max(1, 1.2 * size / min(photographs[0].size))
    photographs = [
        image.resize((round(image.width * scale), round(image.height * scale)), Image.BICUBIC)
        for image in photographs
    ]
    rng = np.random.default_rng(seed)
    for k in range(n):
        image = photographs[k % 2]
        left, top = rng.integers(0, image.width - size), rng.integers(0, image.height - size)
        yield image.crop((left, top, left + size, top + size))


def with_one_thread(source):
    """Return the same source, decoded by one thread (plus the one that collects batches)."""
    return Streamed(
        source.decode,
        source.n,
        source.shape,
        source.name,
        source.on_error,
        source.levels,
        parallel=False,
    )


def streamed(folder: pathlib.Path, args) -> dict:
    """Ways to load 256-pixel images from files for each batch: JPEGs of two sizes, and raw bytes.

    Each source is read with all threads and with one. The SHA-256 hashes are added for comparison.
    """
    config = cifar10.get_config()
    config.data.update(dataset='FOLDER', image_size=256, test_fraction=0.0, memory_gib=0.0)
    sources = {}
    for size, n in ((256, args.n), (512, args.n // 2)):
        path = folder / f'jpeg{size}'
        path.mkdir()
        for k, image in enumerate(crops(n, size, args.seed)):
            image.save(path / f'{k:05d}.jpg', quality=90)
        config.data.path = str(path)
        sources[f'JPEG, {size} px' + (' to 256' if size != 256 else '')] = datasets.get_split(
            config, 'train'
        )
    with open(folder / 'r08.tfrecords', 'wb') as file:
        for image in crops(args.n, 256, args.seed):
            write_record(file, np.asarray(image).transpose(2, 0, 1))
    with config.unlocked():
        config.data.update(dataset='FFHQ', tfrecords_path=str(folder / 'r08.tfrecords'))
    sources['raw TFRecord, 256 px'] = datasets.get_split(config, 'train')
    ways = {}
    for name, source in sources.items():
        for threads, one in (
            (f'{cores()} threads', source),
            ('1 thread', with_one_thread(source)),
        ):
            ways[f'{name}, {threads}'] = lambda one=one: to_torch(
                one, args.batch, len(one) // args.batch, args.seed
            )
    block = bytes(2**20)
    threads = ThreadPoolExecutor(cores())
    ways[f'SHA-256 of 1 MiB, {cores()} threads'] = lambda: len(
        list(threads.map(lambda _: hashlib.sha256(block).digest(), range(args.n)))
    )
    return ways


def write_record(file, image: np.ndarray):
    """Append an image (C, H, W) to a TFRecord file, in the format of StyleGAN's tools."""
    tensorflow()
    from tensorflow.core.example.example_pb2 import Example

    example = Example()
    example.features.feature['shape'].int64_list.value.extend(image.shape)
    example.features.feature['data'].bytes_list.value.append(image.tobytes())
    content = example.SerializeToString()
    length = struct.pack('<Q', len(content))
    file.write(length + checksum(length) + content + checksum(content))


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--tfds_dir',
        default='',
        help='folder of TensorFlow Datasets with CIFAR-10 (default: use random images instead)',
    )
    parser.add_argument(
        '--n',
        type=int,
        default=416,
        help='number of streamed images of each kind; half of it for 512 px (default: %(default)s)',
    )
    parser.add_argument(
        '--repeats',
        type=int,
        default=3,
        help='number of rounds; the best one is reported (default: %(default)s)',
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='seed of the images and of their order (default: %(default)s)',
    )
    parser.add_argument(
        '--json', metavar='PATH', help='write the rows, the machine and the arguments to this file'
    )
    parser.set_defaults(in_memory=50000, batch=32)
    args = parse_args(parser, n=8, repeats=1, in_memory=1280, batch=4)
    if args.n < 2 * args.batch:
        parser.error(
            f'--n must be at least {2 * args.batch} (two batches of {args.batch}, or one of '
            f'512-px images), got {args.n}'
        )
    return args


def main():
    args = command_line()
    with tempfile.TemporaryDirectory() as folder:
        kinds = in_memory(args), streamed(pathlib.Path(folder), args)
        rows = [row for ways in kinds for row in best_of(ways, args.repeats).values()]
    report = dict(
        machine=machine(), seed=args.seed, repeats=args.repeats, quick=args.quick, rows=rows
    )
    print(report['machine'])
    print(f'seed {args.seed}, best of {args.repeats} interleaved repeats; n: number of images\n')
    table = [('source', 'n', 'images/s', 'cores busy')]
    for row in rows:
        rate, busy = f'{row["images_per_second"]:.0f}', f'{row["cores_busy"]:.2f}'
        table.append((row['name'], str(row['images']), rate, busy))
    print_table(args, table)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
