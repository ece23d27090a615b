"""Sample quality against network evaluations (NFE) of every solver, for VE, VP and sub-VP.

    # two cores: about an hour
    python benchmarks/quality.py --json docs/quality/quality.json --plots docs/quality
    # fit the target `images` to these images (x_train, y_train) instead of to digits
    python benchmarks/quality.py --npz cifar10.npz ...

There are three targets:

- plane: a mixture of three Gaussians with an exact score. The distance is the sliced 2-Wasserstein
  distance of 10 n samples to exact samples.
- images: a mixture of ten Gaussians in 3,072 dimensions, fitted to real images (tests/oracles.py).
  Its score is exact too, so all errors come from the solver. The distance is the Frechet distance
  to the mean and covariance of the mixture, in its first 64 principal components, whitened.
- network: the networks of the digits configs (in --runs, trained first if missing). The distance is
  the Frechet distance in pixels to the training images.

The table has the mean distance and half the range over the seeds. The solver 'exact' is the
distance of the same number of exact samples (for `network`, of held-out images). Samplers are built
from `config.sampling` only. Rows of the JSON file with the same n and seeds are not measured
again.
"""

import argparse
import importlib
import json
import logging
import math
import pathlib
import sys
import time

import numpy as np
import torch
from timing import parse_args, print_table, shrink

sys.path.insert(1, str(pathlib.Path(__file__).parents[1] / 'tests'))
from machine import machine

import datasets
import metrics
import run_lib
import sampling
import sde_lib
from checkpoints.trained import load_averaged_model
from oracles import ExactNetwork, SubspaceMixture, planar_mixture
from reports import plots

CONFIGS = dict(
    ve='configs.ve.digits_ncsnpp_continuous',
    vp='configs.vp.digits_ddpmpp_continuous',
    subvp='configs.subvp.digits_ddpmpp_continuous',
)
PC = dict(
    ve=dict(predictor='reverse_diffusion', corrector='langevin', snr=0.16),
    vp=dict(predictor='euler_maruyama', corrector='none'),
    subvp=dict(predictor='euler_maruyama', corrector='none'),
)  # as in the 2021 release for CIFAR-10
STEPS = (9, 18, 36, 72)
HEUN_STEPS = (5, 9, 18, 36)
SOLVERS = {
    'pc': [dict(method='pc', steps=steps) for steps in (50, 100, 500, 1000, 2000)],
    'pc, corrector=none': [
        dict(method='pc', steps=steps, corrector='none') for steps in (100, 1000)
    ],
    'adaptive': [dict(method='adaptive', rtol=rtol) for rtol in (0.2, 0.05, 0.02)],
    'ode': [dict(method='ode', rtol=rtol, atol=rtol) for rtol in (1e-2, 1e-3, 1e-5)],
    'ddim': [dict(method='ddim', steps=steps - 1) for steps in STEPS],
    'ddim, eta=1': [dict(method='ddim', steps=steps - 1, eta=1.0) for steps in STEPS],
    'heun': [dict(method='heun', steps=steps) for steps in HEUN_STEPS],
    'heun, churn=n/4': [dict(method='heun', steps=steps, churn=steps / 4) for steps in HEUN_STEPS],
    'heun, churn=0.4n': [
        dict(method='heun', steps=steps, churn=0.4 * steps) for steps in HEUN_STEPS
    ],
    'dpm_solver, order 2': [
        dict(method='dpm_solver', steps=steps - 1, dpm_solver_order=2) for steps in STEPS
    ],
    'dpm_solver, order 3': [
        dict(method='dpm_solver', steps=steps - 1, dpm_solver_order=3) for steps in STEPS
    ],
    'dpmpp_2m': [dict(method='dpmpp_2m', steps=steps - 1) for steps in STEPS],
    'dpmpp_2m, karras': [
        dict(method='dpmpp_2m', steps=steps - 1, skip_type='karras') for steps in STEPS
    ],
    'dpmpp_2m_sde': [dict(method='dpmpp_2m_sde', steps=steps - 1) for steps in STEPS],
    'unipc': [dict(method='unipc', steps=steps - 1) for steps in STEPS],
    'unipc, thresholding': [dict(method='unipc', steps=17, thresholding=True)],
    'heun, prior_mean': [
        dict(method='heun', steps=steps, prior_mean='mean') for steps in HEUN_STEPS
    ],
    'dpmpp_2m, prior_mean': [
        dict(method='dpmpp_2m', steps=steps - 1, prior_mean='mean') for steps in STEPS
    ],
    'dpmpp_2m_sde, prior_mean': [
        dict(method='dpmpp_2m_sde', steps=steps - 1, prior_mean='mean') for steps in STEPS
    ],
    'pc, prior_mean': [dict(method='pc', steps=steps, prior_mean='mean') for steps in (50, 500)],
    'unipc, order 3': [
        dict(method='unipc', steps=steps - 1, dpm_solver_order=3) for steps in STEPS
    ],
}


class Plane:
    """Sliced 2-Wasserstein distance (64 directions) of 10 n samples to 200 n exact ones."""

    unit, shape, sigma_max = 'sliced Wasserstein distance', (2,), 10.0

    def __init__(self, args, sde_name):
        self.n, self.target = 10 * args.n, planar_mixture()
        self.mean = self.target.mean.mean().item()
        angles = torch.arange(64, dtype=torch.float64) * math.pi / 64
        self.directions = torch.stack([angles.cos(), angles.sin()])
        exact = (self.target.sample(20 * self.n, seed=99) @ self.directions).sort(0)[0]
        self.quantiles = exact.reshape(self.n, 20, 64).mean(1)

    def network(self, config):
        return ExactNetwork(sde_lib.get_sde(config), self.target)

    def exact(self, seed):
        return self.target.sample(self.n, seed)

    def distance(self, x):
        error = (x.double() @ self.directions).sort(0)[0] - self.quantiles
        return error.square().mean().sqrt().item()


class Images:
    """Frechet distance in the first 64 principal components, whitened."""

    unit, shape, sigma_max = 'Frechet distance, 64 whitened components', (3, 32, 32), 50.0

    def __init__(self, args, sde_name):
        self.n = args.n
        images, labels = cifar10(args.npz) if args.npz else large_digits()
        if sde_name != 've':
            images = 2 * images - 1
        self.target = SubspaceMixture.fit(images, labels, rank=8)
        inside = self.target.inside
        variances, axes = (part[..., -64:] for part in torch.linalg.eigh(inside.covariance))
        self.whiten, self.centre = axes / variances.sqrt(), inside.mean
        self.mean = torch.zeros(3072)
        self.mean[: self.target.size] = images.mean() * self.target.constant
        self.mean = self.mean.reshape(self.shape)

    network = Plane.network
    exact = Plane.exact

    def distance(self, x):
        inside = x.flatten(1)[:, : self.target.size].double()
        found = metrics.statistics(((inside - self.centre) @ self.whiten).numpy())
        return metrics.frechet_distance(found, metrics.Statistics(np.zeros(64), np.eye(64), 10**9))


class Network:
    """Frechet distance in pixels, in units of [0, 1], to the training images."""

    unit, shape, sigma_max = 'Frechet distance in pixels', (1, 8, 8), None

    def __init__(self, args, sde_name):
        self.n, self.config = args.n, config_of(sde_name)
        self.config.training.n_iters = 3001
        if args.quick:
            shrink(self.config)
        workdir = pathlib.Path(args.runs, f'digits_{sde_name}')
        run_lib.train(self.config, workdir)
        logging.disable()
        checkpoint = workdir / 'checkpoints' / 'checkpoint_1.pth'
        self.model = load_averaged_model(self.config, checkpoint)
        train, self.held_out = (
            datasets.get_split(self.config, split).images / 16 for split in ('train', 'test')
        )
        self.statistics = metrics.statistics(train.reshape(len(train), -1))
        self.mean = train.mean().item()

    def network(self, config):
        return self.model

    def exact(self, seed):
        return torch.tensor(self.held_out)

    def distance(self, x):
        if x.shape[-1] != 1:  # samples of the network; held-out images are NHWC in [0, 1] already
            images = datasets.get_data_inverse_scaler(self.config)(x).permute(0, 2, 3, 1)
            x = (17 * images).floor().clamp(0, 16) / 16
        found = metrics.statistics(x.reshape(len(x), -1).double().numpy())
        return metrics.frechet_distance(found, self.statistics)


TARGETS = dict(plane=Plane, images=Images, network=Network)


def large_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Load scikit-learn's digits (N, 3, 32, 32), each in a random colour, and labels (N,)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    small = torch.tensor(found.images / 16)[:, None]
    images = torch.nn.functional.interpolate(small, (32, 32), mode='bicubic').clamp(0, 1)
    generator = torch.Generator().manual_seed(0)
    shades = torch.rand(len(images), 3, 1, 1, generator=generator, dtype=torch.float64)
    return images * (0.3 + 0.7 * shades), torch.tensor(found.target)


def cifar10(path) -> tuple[torch.Tensor, torch.Tensor]:
    """Load the first 10,000 training images (N, 3, 32, 32) of an NPZ file, and labels (N,)."""
    with np.load(path) as file:
        images, labels = torch.tensor(file['x_train']), torch.tensor(file['y_train'])
    return images.permute(0, 3, 1, 2)[:10000] / 255, labels.reshape(-1)[:10000]


def config_of(sde_name: str, sigma_max: float | None = None):
    config = importlib.import_module(CONFIGS[sde_name]).get_config()
    config.device = 'cpu'
    if sigma_max:  # exact targets; the digits configs have other samplers
        config.sampling.update(PC[sde_name])
        config.model.sigma_max = sigma_max
    return config


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--targets', default=','.join(TARGETS))
    parser.add_argument('--sdes', default=','.join(CONFIGS))
    parser.add_argument(
        '--solvers', default='', help='comma-separated prefixes of the solvers to run'
    )
    parser.add_argument('--npz', help='NPZ file with images and labels for the target `images`')
    parser.add_argument('-n', type=int, default=2000, help='samples (default: %(default)s)')
    parser.add_argument('--seeds', type=int, default=2)
    parser.add_argument(
        '--most',
        type=int,
        default=2000,
        help='maximum number of steps; for pc, of evaluations (default: %(default)s)',
    )
    parser.add_argument(
        '--runs',
        default='runs',
        help='folder of the work directories digits_ve, digits_vp and digits_subvp',
    )
    parser.add_argument('--json', metavar='PATH', help='write the rows to this file')
    parser.add_argument('--plots', metavar='FOLDER', help='draw ve.png, vp.png and subvp.png there')
    return parser


def main():
    parser = command_line()
    args = parse_args(parser, 'runs', sdes='ve', n=20, seeds=1)
    report = begun(parser, args)
    for sde_name in args.sdes.split(','):
        for name in args.targets.split(','):
            measure(report, sde_name, name, args)
    print(f'{report["machine"]}\n')
    print_table(args, table(report['rows']))
    if args.plots:
        draw(report['rows'], pathlib.Path(args.plots), args.sdes.split(','))


def begun(parser: argparse.ArgumentParser, args) -> dict:
    """Return the report in --json if it exists and has the same protocol, else an empty one."""
    protocol = dict(seeds=args.seeds, n=args.n, images='CIFAR-10' if args.npz else 'digits')
    if not args.json or not pathlib.Path(args.json).is_file():
        return dict(machine=machine(), **protocol, quick=args.quick, rows=[])
    report = json.loads(pathlib.Path(args.json).read_text())
    same = all(report[key] == value for key, value in protocol.items())
    if not same or args.quick != report.get('quick', False):
        parser.error(
            f'{args.json} has other settings: {report["seeds"]} seeds, n={report["n"]}, '
            f'{report["images"]}; choose another file for --json'
        )
    return report


def measure(report: dict, sde_name: str, target_name: str, args) -> None:
    """Add the missing rows of a target to the report, and write the report after each row."""
    known, target = {identity(row) for row in report['rows']}, None
    for solver, way in ways(sde_name, args.most, args.quick):
        row = dict(sde=sde_name, target=target_name, solver=solver, settings=way)
        if not solver.startswith(tuple(args.solvers.split(','))) or identity(row) in known:
            continue
        target = target or TARGETS[target_name](args, sde_name)
        report['rows'].append(row | measured(args, sde_name, target, way))
        show(report['rows'][-1])
        if args.json:
            pathlib.Path(args.json).write_text(json.dumps(report, indent=1) + '\n')


def table(rows: list[dict]) -> list[tuple]:
    return [
        ('SDE', 'target', 'solver', 'evaluations', 'distance', 'half the range', 'n'),
        *(
            (
                row['sde'],
                row['target'],
                row['solver'],
                f'{row["nfe"]:.0f}',
                f'{row["distance"]:.4g}',
                f'{row["spread"]:.1g}',
                str(row['n']),
            )
            for row in rows
        ),
    ]


def draw(rows: list[dict], folder: pathlib.Path, sdes: list[str]) -> None:
    """Plot distance against network evaluations for each SDE."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sdes:
        plots.quality([row for row in rows if row['sde'] == name], folder / f'{name}.png')


def ways(sde_name: str, most: int, quick: bool = False):
    """Yield (solver, settings) of every row of an SDE; the first row is exact samples.

    Args:
        sde_name: 've', 'vp' or 'subvp'.
        most: maximum number of steps times evaluations per step.
        quick: yield only the first settings of each solver, with three steps.
    """
    yield 'exact', {}
    for solver, settings in SOLVERS.items():
        if 'prior_mean' in solver and sde_name != 've':
            continue
        if quick:
            settings = [settings[0] | ({'steps': 3} if 'steps' in settings[0] else {})]
        for way in settings:
            corrected = way['method'] == 'pc' and sde_name == 've'
            if way.get('steps', 0) * (2 if corrected else 1) <= most:
                yield solver, way


def identity(row) -> str:
    return json.dumps([row[key] for key in ('sde', 'target', 'solver', 'settings')], sort_keys=True)


def show(row):
    print(
        f'{row["sde"]:6} {row["target"]:8} {row["solver"]:25} {row["nfe"]:6.0f} '
        f'{row["distance"]:10.4g} +- {row["spread"]:.1g}  '
        f'{row["seconds"]:.0f} s',
        file=sys.stderr,
        flush=True,
    )


def measured(args, sde_name, target, way) -> dict:
    """Measure distance (mean and half the range over seeds) and cost of samples.

    Args:
        way: settings of `config.sampling`; a prior_mean is replaced by the mean of the target. If
            empty, exact samples are measured.
    """
    distances, nfe, started = [], 0, time.perf_counter()
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        x, nfe = drawn(sde_name, target, way) if way else (target.exact(seed), 0)
        distances.append(target.distance(x) if torch.isfinite(x).all() else math.inf)
    return dict(
        unit=target.unit,
        nfe=nfe,
        n=len(x),
        distance=float(np.mean(distances)),
        spread=(max(distances) - min(distances)) / 2,
        seconds=time.perf_counter() - started,
    )


def drawn(sde_name, target, way):
    """Draw samples with the settings `way` of `config.sampling`; return them and the NFE."""
    config = config_of(sde_name, target.sigma_max)
    mean = {'prior_mean': target.mean} if 'prior_mean' in way else {}
    with config.ignore_type():  # prior_mean may be an image
        config.sampling.update(way | mean)
    sde = sde_lib.get_sde(config)
    shape = target.n, *target.shape
    draw = sampling.get_sampling_fn(config, sde, shape, lambda x: x, sde.sampling_eps)
    return draw(target.network(config))


if __name__ == '__main__':
    main()
