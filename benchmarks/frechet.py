"""Error and time of `metrics.frechet_distance` with fewer samples than dimensions.

It is compared with `scipy.linalg.sqrtm` of the product of the covariances.

    python benchmarks/frechet.py

500 Gaussian features are compared with 700. Their standard deviation falls exponentially over the
dimensions. The exact value is computed from the centred samples A and B: the trace of the square
root is the nuclear norm of A B^T.
"""

import argparse
import time

import numpy as np
import scipy.linalg
from machine import machine
from timing import parse_args, print_table

import metrics


def by_sqrtm(a: metrics.Statistics, b: metrics.Statistics) -> float:
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    return float(
        np.square(a.mean - b.mean).sum()
        + np.trace(a.covariance)
        + np.trace(b.covariance)
        - 2 * np.trace(root)
    )


def exact(x: np.ndarray, y: np.ndarray) -> float:
    a, b = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(
        np.square(x.mean(0) - y.mean(0)).sum() + np.square(a).sum() + np.square(b).sum() - 2 * cross
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--dimensions', type=int, default=2048)
    parser.add_argument(
        '--repeats',
        type=int,
        default=3,
        help='number of rounds; the best one is reported (default: %(default)s)',
    )
    parser.add_argument('--seed', type=int, default=0)
    args = parse_args(parser, dimensions=64, repeats=1)
    rng = np.random.default_rng(args.seed)
    mixing = rng.standard_normal((args.dimensions, args.dimensions)) * np.exp(
        -np.arange(args.dimensions) / 300
    )
    x = rng.standard_normal((500, args.dimensions)) @ mixing
    y = 1.1 * rng.standard_normal((700, args.dimensions)) @ mixing + 0.3
    truth, statistics = exact(x, y), [metrics.statistics(z) for z in (x, y)]
    times = {
        'metrics.frechet_distance': (metrics.frechet_distance, []),
        'scipy.linalg.sqrtm': (by_sqrtm, []),
    }
    for _ in range(args.repeats):
        for way, seconds in times.values():
            start = time.perf_counter()
            way(*statistics)
            seconds.append(time.perf_counter() - start)
    print(
        f'500 against 700 features of {args.dimensions} dimensions, seed {args.seed}, best of '
        f'{args.repeats} interleaved repeats'
    )
    print(f'{machine()}\n')
    fastest = min(times['scipy.linalg.sqrtm'][1])
    print_table(
        args,
        [
            ('way', 'relative error', 'time, sqrtm = 1'),
            *(
                (name, f'{abs(way(*statistics) / truth - 1):.1e}', f'{min(seconds) / fastest:.3f}')
                for name, (way, seconds) in times.items()
            ),
        ],
    )


if __name__ == '__main__':
    main()
