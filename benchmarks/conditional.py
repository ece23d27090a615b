"""Do conditional samples show what they were asked for? Handwritten digits, recognised by
classifiers that were trained on real ones.

    python benchmarks/conditional.py --runs runs

Inpainting: the right halves of held-out digits are drawn anew; how many results are recognised as
the digit that the left half is of.
Classes: how many samples are recognised as the class asked for. Codes: the error of images that
were encoded and decoded. The networks are those of
configs/vp/digits_{ddpmpp_continuous,ddpmpp_classes,wideresnet}.py in the folders quickstart,
classes and classifier of --runs; what is not there is trained first. Writes a table, and
conditional.json into --runs.
"""

import argparse
import json
import logging
import pathlib
import time

import numpy as np
import torch
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

import control
import datasets
import run_lib
import sampling
from checkpoints.loading import load_classifier
from configs.vp import digits_ddpmpp_classes, digits_ddpmpp_continuous, digits_wideresnet
from control import latents, measurements
from machine import machine
from score_model import ScoreModel
from timing import parse_args, print_table, shrink

# resample, consistency
INPAINTING = ((1, 0.0), (5, 0.0), (20, 0.0), (1, 2.0), (3, 2.0), (5, 2.0), (3, 4.0))
FREE_WEIGHTS, CLASSIFIER_WEIGHTS = (1.0, 1.5, 2.0, 3.0), (1.0, 2.0, 4.0)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--runs', default='runs', help='folder of the three work directories')
    parser.add_argument(
        '-n', type=int, default=100, help='held-out digits, and samples of all classes together'
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
    args = parse_args(
        parser,
        'runs',
        n=10,
        iterations=5,
        tolerance=0.1,
        inpainting=[(1, 0.0), (2, 2.0)],
        free_weights=[2.0],
        classifier_weights=[2.0],
    )
    runs, parts = pathlib.Path(args.runs), args.only.split(',')

    config, of_classes, of_classifier = (
        module.get_config()
        for module in (digits_ddpmpp_continuous, digits_ddpmpp_classes, digits_wideresnet)
    )
    for each in (config, of_classes, of_classifier) if args.quick else ():
        shrink(each)
    run_lib.train(config, runs / 'quickstart')
    run_lib.train(of_classes, runs / 'classes')
    run_lib.train_classifier(of_classifier, runs / 'classifier')
    logging.disable()
    plain, knowing = (
        ScoreModel.load(runs / folder / 'checkpoints' / 'checkpoint_1.pth', c)
        for c, folder in ((config, 'quickstart'), (of_classes, 'classes'))
    )
    classifier = load_classifier(runs / 'classifier', config)
    sde, options = plain.sde, plain.options()

    train, test = (datasets.get_split(config, split) for split in ('train', 'test'))
    real = {
        name: (images.images.reshape(len(images), 64) / 16, images.labels)
        for name, images in (('train', train), ('test', test))
    }
    recognisers = [
        SVC(gamma=0.05, C=10),
        MLPClassifier((128,), max_iter=args.iterations, random_state=0),
    ]
    rows, figures = [], []

    def row(what, how, n, *values, seconds=None):
        texts = [value if isinstance(value, str) else f'{value:.3f}' for value in values]
        rows.append((what, how, str(n), *texts, '' if seconds is None else f'{seconds:.0f}'))
        figures.append(dict(zip(('what', 'how', 'n', 'SVC', 'MLP'), (what, how, n, *values))))
        print('  '.join(rows[-1]), flush=True)

    def recognised(images, labels):
        """By each of the two; `images` as the network makes them."""
        levels = np.minimum(
            np.floor(17 * plain.unscale(images).permute(0, 2, 3, 1).cpu().numpy().clip(0, 1)), 16
        ).reshape(len(images), 64)
        return [judge.score(levels / 16, labels) for judge in recognisers]

    def measured(what, how, labels, draw):
        start = time.perf_counter()
        torch.manual_seed(args.seed)
        row(
            what, how, len(labels), *recognised(draw(), labels), seconds=time.perf_counter() - start
        )

    left = np.tile(np.arange(8) < 4, 8)
    row(
        'left halves alone',
        'recognisers of left halves',
        len(test),
        *(
            judge.fit(real['train'][0][:, left], real['train'][1]).score(
                real['test'][0][:, left], real['test'][1]
            )
            for judge in recognisers
        ),
    )
    for judge in recognisers:
        judge.fit(*real['train'])
    row(
        'real digits', 'held out', len(test), *(judge.score(*real['test']) for judge in recognisers)
    )
    filled = np.where(left, real['test'][0], real['train'][0].mean(0))
    row(
        'right half',
        'the mean of the training set',
        len(test),
        *(judge.score(filled, test.labels) for judge in recognisers),
    )

    labels = test.labels[: args.n]
    x = torch.from_numpy(test.images[: args.n]).permute(0, 3, 1, 2).float()
    torch.manual_seed(args.seed)
    x = datasets.get_data_scaler(config)((x + torch.rand_like(x)) / 17).to(config.device)
    known = measurements.Mask(measurements.named_mask('right', 8, 8))
    for resample, consistency in args.inpainting if 'inpainting' in parts else ():
        how = known, known(x), options, sampling.Loop(resample=resample), consistency
        measured(
            'right half',
            f'inpainted, resample {resample}, consistency {consistency:g}',
            labels,
            lambda how=how: control.sample_measured(plain, *how)[0],
        )

    classes = torch.arange(args.n) % 10
    for model, name, weights, guide in (
        ()
        if 'classes' not in parts
        else (
            (knowing, 'free of a classifier', args.free_weights, control.classifier_free_guidance),
            (
                plain,
                'by a classifier',
                args.classifier_weights,
                lambda *how: control.classifier_guidance(sde, classifier, *how),
            ),
        )
    ):
        for weight in weights:
            guided = model.guided_by(guide(classes, weight))
            measured(
                'classes',
                f'guidance {name}, weight {weight:g}',
                classes.numpy(),
                lambda guided=guided: sampling.sample(guided, x.shape, options)[0],
            )

    if 'codes' in parts:
        tolerances = dict(rtol=args.tolerance, atol=args.tolerance)
        flow = plain.options(method='ode', ode_method='RK45', **tolerances)
        z, there = latents.encode(plain, x, flow)
        y, back = latents.decode(plain, z, flow)
        mean, largest = latents.reconstruction_error(plain.unscale(x), plain.unscale(y))
        row(
            'codes',
            f'error in grey levels of 256: mean, largest; {there} and {back} evaluations',
            args.n,
            mean.mean().item(),
            largest.max().item(),
        )
    print(f'\n{machine()}; seed {args.seed}\n')
    print_table(args, [('what', 'how', 'n', 'SVC', 'MLP', 'seconds'), *rows])
    (runs / 'conditional.json').write_text(
        json.dumps(
            dict(machine=machine(), seed=args.seed, quick=args.quick, rows=figures), indent=1
        )
    )


if __name__ == '__main__':
    main()
