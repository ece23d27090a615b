"""Are samples of the pretrained models recognised, as varied as real images, and new?

    python benchmarks/recognition.py --data FOLDER          # mnist.npz and fashion_mnist.npz in it
    python benchmarks/recognition.py --only solvers -n 300  # one part; torchvision fetches the data

A small convolutional network is trained on the real training images and judges the samples:

samples     the share of images with a class probability above 0.9 ("sure"), for samples and for
            real test images; the Frechet distance to 10,000 training images in the 128 features
            of the network, for samples and for the same number of test images; the median
            distance to the nearest training image
solvers     these three numbers for other solvers and numbers of network evaluations
classes     the share of samples of a class-conditional model that show the class asked for
inpainting  the share of test digits that are recognised after their right halves were replaced
bits        bits/dim of test images and of training images

Finished rows are kept in recognition.json in --runs; the same command resumes with the others.
"""

import argparse
import functools
import json
import pathlib
import time
from typing import NamedTuple

import numpy as np
import torch
from machine import machine
from timing import parse_args, print_table
from torch import Tensor, nn

import datasets
from checkpoints.trained import locate
from data.levels import to_uint8
from metrics.distances import frechet_distance, statistics
from reports import results
from score_model import ScoreModel

MODELS = 'mnist-vp', 'fashion-mnist-subvp', 'mnist-ve', 'mnist-vp-classes'
SETS = {'mnist': 'MNIST', 'fashion_mnist': 'FashionMNIST'}
SURE = 0.9
SOLVERS = (
    dict(method='dpmpp_2m_sde', steps=12),
    dict(method='dpmpp_2m_sde', steps=24),
    dict(method='dpmpp_2m_sde', steps=24, skip_type='time_uniform'),
    dict(method='dpmpp_2m_sde', steps=48),
    dict(method='dpmpp_2m_sde', steps=48, skip_type='time_uniform'),
    dict(method='dpmpp_2m', steps=24),
    dict(method='unipc', steps=12),
    dict(method='unipc', steps=24),
    dict(method='heun', steps=18),
    dict(method='heun', steps=18, churn=7.0),
    dict(method='pc', predictor='reverse_diffusion', corrector='none', steps=100),
)
INPAINTING = ((1, 0.0), (5, 0.0), (1, 2.0), (5, 2.0))  # resample, consistency
COLUMNS = (
    'model',
    'part',
    'how',
    'n',
    'NFE',
    'sure',
    'correct',
    'Frechet',
    'nearest',
    'bits/dim',
    'seconds',
)


class Real(NamedTuple):
    """8-bit images (N, 1, 28, 28) and labels (N,) of a split."""

    images: Tensor
    labels: Tensor


class Judge:
    """A convolutional network trained on real images.

    Args:
        train: the training images; the first 10,000 are the reference of distances.
        path: file of its weights; if it does not exist, they are trained from seed 0.
        epochs: passes over the training images.
    """

    def __init__(self, train: Real, path: pathlib.Path, epochs: int):
        torch.manual_seed(0)
        self.features = nn.Sequential(
            *self._level(1, 32), *self._level(32, 64), nn.Flatten(), nn.Linear(64 * 49, 128)
        )
        self.last = nn.Sequential(nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10))
        self.network = nn.Sequential(self.features, self.last)
        if not path.is_file():
            self._train(train, epochs)
            torch.save(self.network.state_dict(), path)
        self.network.load_state_dict(torch.load(path, weights_only=True))
        self.network.eval()
        self.train = train
        self.reference = statistics(self.judge(train.images[:10000])[0])

    def _level(self, inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        convolutions = (
            layer
            for channels in (inputs, outputs)
            for layer in (nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU())
        )
        return *convolutions, nn.MaxPool2d(2), nn.Dropout(0.1)

    def _train(self, train: Real, epochs: int, batch: int = 128) -> None:
        """Train with AdamW and a learning rate that rises to 0.003 and falls to zero."""
        steps = epochs * (len(train.images) // batch)
        optimizer = torch.optim.AdamW(self.network.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1)
        for epoch in range(epochs):
            for rows in torch.randperm(len(train.images)).split(batch)[: steps // epochs]:
                loss = nn.functional.cross_entropy(
                    self.network(train.images[rows] / 255), train.labels[rows]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            print(f'epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}', flush=True)

    @torch.no_grad()
    def judge(self, images: Tensor) -> tuple[np.ndarray, Tensor]:
        """Return features (N, 128) and class probabilities (N, 10) of 8-bit images."""
        features = torch.cat([self.features(part / 255) for part in images.split(500)])
        return features.double().numpy(), self.last(features).softmax(1)

    def scores(self, images: Tensor, labels: Tensor | None = None) -> dict:
        """Return the columns 'n', 'sure', 'Frechet' and 'nearest'; with labels also 'correct'."""
        features, probabilities = self.judge(images)
        found = dict(
            n=len(images),
            sure=(probabilities.max(1).values > SURE).float().mean().item(),
            Frechet=frechet_distance(statistics(features), self.reference),
            nearest=self.nearest(images).median().item(),
        )
        if labels is not None:
            found['correct'] = self.correct(images, labels)
        return found

    def correct(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images that the network assigns to their labels."""
        return (self.judge(images)[1].argmax(1) == labels).float().mean().item()

    def nearest(self, images: Tensor) -> Tensor:
        """Return distances (N,) to the nearest training image: Euclidean, values in [0, 1]."""
        known = self.train.images.flatten(1) / 255
        parts = (images.flatten(1) / 255).split(100)
        return torch.cat([torch.cdist(part, known).amin(1) for part in parts])


class Study:
    """The models with their real images and judges, and the rows found so far."""

    def __init__(self, args):
        self.args = args
        self.path = pathlib.Path(args.runs, 'recognition.json')
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = json.loads(self.path.read_text())['rows'] if self.path.is_file() else []

    @functools.cache  # noqa: B019  one study a process
    def model(self, name: str) -> ScoreModel:
        return ScoreModel.load(name)

    @functools.cache  # noqa: B019
    def real(self, name: str, split: str) -> Real:
        """Return the images of the data set of a model."""
        config = self.model(name).config.copy_and_resolve_references()
        key = 'fashion_mnist' if name.startswith('fashion') else 'mnist'
        own = dict(dataset='NPZ', path=f'{self.args.data}/{key}.npz')
        config.data.update(own if self.args.data else dict(dataset=SETS[key], path=''))
        found = datasets.get_split(config, split)
        images = torch.from_numpy(np.asarray(found.images)).permute(0, 3, 1, 2)
        return Real(images, torch.from_numpy(np.asarray(found.labels)).long())

    def some(self, name: str, split: str, n: int) -> Real:
        """Return `n` images of a split, drawn at random.

        The first test images of MNIST are easier than the others.
        """
        real = self.real(name, split)
        generator = torch.Generator().manual_seed(self.args.seed)
        rows = torch.randperm(len(real.images), generator=generator)[:n]
        return Real(real.images[rows], real.labels[rows])

    @functools.cache  # noqa: B019
    def judge(self, name: str) -> Judge:
        key = name.partition('-')[0]
        path = self.path.with_name(f'{key}.pth')
        return Judge(self.real(name, 'train'), path, self.args.epochs)

    def row(self, name: str, part: str, how: str, compute) -> None:
        """Compute a row and store it, unless it is known for these weights, this n and seed."""
        weights = results.digest(locate(name))
        asked = dict(asked=self.args.n, seed=self.args.seed, weights=weights)
        key = dict(model=name, part=part, how=how) | asked
        if any(key.items() <= row.items() for row in self.rows):
            return
        start = time.perf_counter()
        row = key | compute() | dict(seconds=time.perf_counter() - start)
        self.rows.append(row)
        print('  '.join(text(row)), flush=True)
        report = dict(machine=machine(), quick=self.args.quick, rows=self.rows)
        self.path.write_text(json.dumps(report, indent=1) + '\n')

    def drawn(self, name: str, labels: Tensor | None = None, **settings) -> dict:
        """Return the scores of samples; labels are 0 to 9 in turn for a class-conditional model."""
        model, parts, nfe, n = self.model(name), [], 0, self.args.n
        torch.manual_seed(self.args.seed)
        if labels is None and model.num_classes:
            labels = torch.arange(n) % 10
        guidance = settings.pop('guidance', 1.0)
        for first in range(0, n, 125):
            count = min(125, n - first)
            rows = slice(first, first + count)
            guided = model if labels is None else model.guided(labels[rows], guidance)
            x, nfe = guided.draw(count, **settings)
            parts.append(eight_bits(x))
        return self.judge(name).scores(torch.cat(parts), labels) | dict(NFE=nfe)


def eight_bits(x: Tensor) -> Tensor:
    """Convert images in [0, 1] to 8-bit images; the training images were dequantized."""
    return torch.from_numpy(to_uint8(x.cpu().numpy(), dequantized=True))


# Parts --------------------------------------------------------------------------------------------


def samples(study: Study, name: str) -> None:
    judge, real = study.judge(name), study.real(name, 'test')
    few = study.some(name, 'test', study.args.n)
    study.row(name, 'real', 'all test images', lambda: judge.scores(*real))
    study.row(name, 'real', 'some of them', lambda: judge.scores(*few))
    study.row(name, 'samples', 'sampler of the config', lambda: study.drawn(name))


def solvers(study: Study, name: str) -> None:
    if name.endswith('classes'):
        return
    for settings in study.args.solvers:
        how = ', '.join(f'{key}={value}' for key, value in settings.items())
        study.row(name, 'solvers', how, functools.partial(study.drawn, name, **settings))


def classes(study: Study, name: str) -> None:
    if not name.endswith('classes'):
        return
    for weight in study.args.weights:
        drawn = functools.partial(study.drawn, name, guidance=weight)
        study.row(name, 'classes', f'guidance={weight:g}', drawn)


def inpainting(study: Study, name: str) -> None:
    """Replace the right halves of `n // 5` test images in several ways."""
    if name != 'mnist-vp':
        return
    model, judge, n = study.model(name), study.judge(name), max(1, study.args.n // 5)
    images, labels = study.some(name, 'test', n)
    mean = images.clone()
    mean[..., 14:] = study.real(name, 'train').images.float().mean(0)[..., 14:].byte()

    def score(changed: Tensor) -> dict:
        return dict(n=n, correct=judge.correct(changed, labels))

    def inpainted(resample: int, consistency: float) -> dict:
        how = dict(resample=resample, consistency=consistency, seed=study.args.seed)
        return score(eight_bits(model.inpaint((images + 0.5) / 256, 'right', **how)))

    study.row(name, 'inpainting', 'unchanged', lambda: score(images))
    study.row(name, 'inpainting', 'right half of the mean image', lambda: score(mean))
    for resample, consistency in study.args.inpainting:
        how = f'resample={resample}, consistency={consistency:g}'
        study.row(name, 'inpainting', how, functools.partial(inpainted, resample, consistency))


def bits(study: Study, name: str) -> None:
    """Compute bits/dim of `n // 5` images, dequantized once, with dopri5 and one probe."""
    for split in ('test', 'train'):
        images = study.some(name, split, max(2, study.args.n // 5)).images
        tolerance = study.args.tolerance

        def compute(images=images, tolerance=tolerance):
            how = dict(rtol=tolerance, atol=tolerance, probes=1, seed=study.args.seed)
            found = study.model(name).log_likelihood(images, **how)
            error = found.bpd.std().item() / len(images) ** 0.5
            return dict(n=len(images), NFE=found.nfe, bpd=found.bpd.mean().item(), bpd_error=error)

        study.row(name, 'bits', f'{split} images', compute)


PARTS = dict(samples=samples, classes=classes, bits=bits, inpainting=inpainting, solvers=solvers)


def text(row: dict) -> tuple[str, ...]:
    """Return a row of the table."""

    def number(key: str, form: str) -> str:
        return '' if key not in row else format(row[key], form)

    bpd = f'{row["bpd"]:.3f} ± {row["bpd_error"]:.3f}' if 'bpd' in row else ''
    return (
        *(row[key] for key in ('model', 'part', 'how')),
        *(
            number(*each)
            for each in (('n', 'd'), ('NFE', 'd'), ('sure', '.3f'), ('correct', '.3f'))
        ),
        *(number(*each) for each in (('Frechet', '.2f'), ('nearest', '.2f'))),
        bpd,
        number('seconds', '.0f'),
    )


def random_images(folder: str) -> None:
    """Write random images in the format of the real files, for quick runs."""
    rng = np.random.default_rng(0)
    for name in SETS:
        arrays = {
            f'x_{split}': rng.integers(0, 256, (300, 28, 28), np.uint8)
            for split in ('train', 'test')
        }
        labels = {f'y_{split}': np.arange(300) % 10 for split in ('train', 'test')}
        np.savez(pathlib.Path(folder, f'{name}.npz'), **arrays, **labels)


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', help='folder of mnist.npz and fashion_mnist.npz')
    parser.add_argument(
        '--runs', default='runs/recognition', help='folder of the results (default: %(default)s)'
    )
    parser.add_argument('-n', type=int, default=500, help='samples (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed (default: %(default)s)')
    parser.add_argument('--only', nargs='+', choices=PARTS, default=[*PARTS], help='parts to run')
    parser.add_argument(
        '--models', nargs='+', choices=MODELS, default=MODELS, help='models to judge'
    )
    parser.set_defaults(
        epochs=4,
        tolerance=1e-3,
        solvers=SOLVERS,
        weights=(1.5, 2.0),  # the part `samples` has weight 1
        inpainting=INPAINTING,
    )
    return parse_args(
        parser,
        'runs',
        n=20,
        epochs=1,
        tolerance=0.5,
        models=('mnist-vp', 'mnist-vp-classes'),
        solvers=[dict(method='unipc', steps=2)],
        weights=[2.0],
        inpainting=[(1, 0.0)],
    )


def main():
    args = command_line()
    if args.quick:
        args.data = args.runs
        random_images(args.data)
    study = Study(args)
    for name in args.models:
        for part in args.only:
            PARTS[part](study, name)
    print(f'\n{machine()}; seed {args.seed}\n')
    print_table(args, [COLUMNS, *map(text, study.rows)])


if __name__ == '__main__':
    main()
