"""Do conditional samples show the requested digit? Classifiers trained on real digits decide.

    python benchmarks/conditional.py --runs runs

Inpainting: the right halves of held-out digits are sampled; the score is the share of results that
are recognised as the digit of the left half. Classes: the score is the share of samples that are
recognised as the requested class. Codes: the score is the error of images that were encoded and
decoded.

The networks are those of configs/vp/digits_{ddpmpp_continuous,ddpmpp_classes,wideresnet}.py, in the
folders quickstart, classes and classifier of --runs. Missing networks are trained first. The
results are printed and written to conditional.json in --runs.
"""

import argparse
import functools
import json
import logging
import pathlib
import time

import numpy as np
import torch
from machine import machine
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from timing import parse_args, print_table, shrink

import control
import datasets
import run_lib
import sampling
from checkpoints.trained import load_classifier
from configs.vp import digits_ddpmpp_classes, digits_ddpmpp_continuous, digits_wideresnet
from control import latents, measurements
from score_model import ScoreModel

# resample, consistency
INPAINTING = ((1, 0.0), (5, 0.0), (20, 0.0), (1, 2.0), (3, 2.0), (5, 2.0), (3, 4.0))
FREE_WEIGHTS, CLASSIFIER_WEIGHTS = (1.0, 1.5, 2.0, 3.0), (1.0, 2.0, 4.0)


class Table:
    """Rows of text for the table and of numbers for the file; each is printed when it is added."""

    def __init__(self):
        self.rows, self.figures = [], []

    def add(self, what: str, how: str, n: int, *values, seconds: float | None = None) -> None:
        texts = [f'{value:.3f}' for value in values]
        time_taken = '' if seconds is None else f'{seconds:.0f}'
        self.rows.append((what, how, str(n), *texts, time_taken))
        self.figures.append(dict(zip(('what', 'how', 'n', 'SVC', 'MLP'), (what, how, n, *values))))
        print('  '.join(self.rows[-1]), flush=True)


class Recognisers:
    """Two classifiers trained on real digits: a support vector machine and a perceptron.

    Attributes:
        train, test: images (N, 64) in [0, 1] and labels of each split.
    """

    def __init__(self, train, test, iterations: int):
        self.train, self.test = (
            (split.images.reshape(len(split), 64) / 16, split.labels) for split in (train, test)
        )
        self.classifiers = [
            SVC(gamma=0.05, C=10),
            MLPClassifier((128,), max_iter=iterations, random_state=0),
        ]

    def fit(self, pixels=slice(None)) -> 'Recognisers':
        """Train both classifiers on some pixels of the training images."""
        images, labels = self.train
        for classifier in self.classifiers:
            classifier.fit(images[:, pixels], labels)
        return self

    def scores(self, images, labels) -> list[float]:
        """Return the share of images (N, pixels) that each classifier recognises."""
        return [classifier.score(images, labels) for classifier in self.classifiers]


def grey_levels(images: torch.Tensor) -> np.ndarray:
    """Round images (N, 1, 8, 8) in [0, 1] to the 17 grey levels of the digits, shape (N, 64)."""
    levels = np.floor(17 * images.permute(0, 2, 3, 1).cpu().numpy().clip(0, 1))
    return np.minimum(levels, 16).reshape(len(images), 64) / 16


class Study:
    """The trained networks, the recognisers, and the held-out digits to inpaint and encode."""

    def __init__(self, args):
        self.args, self.table = args, Table()
        self.load_models(pathlib.Path(args.runs))
        config = self.plain.config
        train, test = (datasets.get_split(config, split) for split in ('train', 'test'))
        self.recognisers = Recognisers(train, test, args.iterations)
        self.labels = test.labels[: args.n]
        x = torch.from_numpy(test.images[: args.n]).permute(0, 3, 1, 2).float()
        torch.manual_seed(args.seed)
        dequantized = (x + torch.rand_like(x)) / 17
        self.x = datasets.get_data_scaler(config)(dequantized).to(config.device)

    def load_models(self, runs: pathlib.Path) -> None:
        """Load the three networks from --runs; train the missing ones first."""
        modules = digits_ddpmpp_continuous, digits_ddpmpp_classes, digits_wideresnet
        config, of_classes, of_classifier = (module.get_config() for module in modules)
        for each in (config, of_classes, of_classifier) if self.args.quick else ():
            shrink(each)
        run_lib.train(config, runs / 'quickstart')
        run_lib.train(of_classes, runs / 'classes')
        run_lib.train_classifier(of_classifier, runs / 'classifier')
        logging.disable()
        self.plain, self.conditional = (
            ScoreModel.load(runs / folder / 'checkpoints' / 'checkpoint_1.pth', each)
            for each, folder in ((config, 'quickstart'), (of_classes, 'classes'))
        )
        self.classifier = load_classifier(runs / 'classifier', config)

    def references(self) -> None:
        """Add rows for left halves alone, real digits, and digits with a mean right half."""
        found, add = self.recognisers, self.table.add
        images, labels = found.test
        left = np.tile(np.arange(8) < 4, 8)
        scores = found.fit(left).scores(images[:, left], labels)
        add('left halves alone', 'recognisers of left halves', len(labels), *scores)
        found.fit()
        add('real digits', 'held out', len(labels), *found.scores(images, labels))
        filled = np.where(left, images, found.train[0].mean(0))
        scores = found.scores(filled, labels)
        add('right half', 'the mean of the training set', len(labels), *scores)

    def measure(self, what: str, how: str, labels, draw) -> None:
        """Call `draw` for samples, and add a row with the share of them that show their labels."""
        start = time.perf_counter()
        torch.manual_seed(self.args.seed)
        scores = self.recognisers.scores(grey_levels(self.plain.unscale(draw())), labels)
        self.table.add(what, how, len(labels), *scores, seconds=time.perf_counter() - start)

    def inpainting(self) -> None:
        known = measurements.Mask(measurements.named_mask('right', 8, 8))
        for resample, consistency in self.args.inpainting:
            self.measure(
                'right half',
                f'inpainted, resample {resample}, consistency {consistency:g}',
                self.labels,
                functools.partial(self.inpainted, known, resample, consistency),
            )

    def inpainted(self, known, resample: int, consistency: float) -> torch.Tensor:
        options, loop = self.plain.options(), sampling.Loop(resample=resample)
        how = known, known(self.x), options, loop, consistency
        return control.sample_measured(self.plain, *how)[0]

    def classes(self) -> None:
        classes = torch.arange(self.args.n) % 10
        for weight in self.args.free_weights:
            how = f'classifier-free guidance, weight {weight:g}'
            guidance = control.classifier_free_guidance(classes, weight)
            self.of_classes(how, classes, self.conditional.guided_by(guidance))
        for weight in self.args.classifier_weights:
            how = f'classifier guidance, weight {weight:g}'
            guidance = control.classifier_guidance(self.plain.sde, self.classifier, classes, weight)
            self.of_classes(how, classes, self.plain.guided_by(guidance))

    def of_classes(self, how: str, classes, guided) -> None:
        options = self.plain.options()
        self.measure(
            'classes',
            how,
            classes.numpy(),
            lambda: sampling.sample(guided, self.x.shape, options)[0],
        )

    def codes(self) -> None:
        """Add a row with the error of images that were encoded and decoded."""
        model, tolerance = self.plain, self.args.tolerance
        flow = model.options(method='ode', ode_method='RK45', rtol=tolerance, atol=tolerance)
        z, there = latents.encode(model, self.x, flow)
        y, back = latents.decode(model, z, flow)
        mean, largest = latents.reconstruction_error(model.unscale(self.x), model.unscale(y))
        how = f'mean and maximum error in grey levels (of 256); NFE {there} + {back}'
        self.table.add('codes', how, self.args.n, mean.mean().item(), largest.max().item())


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--runs', default='runs', help='folder with the three work directories')
    parser.add_argument(
        '-n', type=int, default=100, help='number of held-out digits and of class samples'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', default='inpainting,classes,codes')
    parser.set_defaults(
        iterations=400,
        tolerance=1e-5,
        inpainting=INPAINTING,
        free_weights=FREE_WEIGHTS,
        classifier_weights=CLASSIFIER_WEIGHTS,
    )
    return parse_args(
        parser,
        'runs',
        n=10,
        iterations=5,
        tolerance=0.1,
        inpainting=[(1, 0.0), (2, 2.0)],
        free_weights=[2.0],
        classifier_weights=[2.0],
    )


def main():
    args = command_line()
    study = Study(args)
    study.references()
    for name in ('inpainting', 'classes', 'codes'):
        if name in args.only.split(','):
            getattr(study, name)()
    print(f'\n{machine()}; seed {args.seed}\n')
    print_table(args, [('what', 'how', 'n', 'SVC', 'MLP', 'seconds'), *study.table.rows])
    report = dict(machine=machine(), seed=args.seed, quick=args.quick, rows=study.table.figures)
    pathlib.Path(args.runs, 'conditional.json').write_text(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
