"""REPORT.md, summary.csv and pictures of a validation, from what was found."""

import csv
import pathlib
import re

import numpy as np

import reports
from reports import style

VERDICTS = {True: 'yes', False: '**NO**', None: '-'}
SUMMARY = (
    'checkpoint',
    'config',
    'file',
    'dialect',
    'sha256',
    'step',
    'quantity',
    'value',
    'error',
    'n',
    'counted',
    'compared_with',
    'sampler',
    'nfe',
    'features',
    'seed',
    'seconds_per_sample',
    'paper',
    'remark',
)


def slug(name: str) -> str:
    """The name of a model as the name of a file."""
    return re.sub(r'[^\w.-]+', '_', name)


def of_paper(paper, quantity: str, method: str) -> float | None:
    """The paper's number for a quantity of ours; None where it has none."""
    if paper is None:
        return None
    return {
        'FID': paper.fid_ode if method == 'ode' else paper.fid,
        'IS': None if method == 'ode' else paper.inception_score,
        'bits/dim': paper.bpd,
    }.get(quantity)


def _beside(result, number) -> tuple[str, str]:
    """The paper's number, and what stands between it and ours."""
    theirs = of_paper(result.model.paper, number.quantity, result.config.sampling.method.lower())
    if theirs is None:
        none = 'no number in the paper' if result.model.paper else 'no config of the paper'
        return '', none if number.kind in ('frechet', 'IS', 'bits/dim') else ''
    reasons = number.limits()
    return f'{theirs:g}', 'not comparable: ' + '; '.join(
        reasons
    ) if reasons else f'{number.value - theirs:+.3g} from the paper'


def _result_rows(results) -> list[tuple]:
    rows = []
    for result in results:
        shown = [
            number for number in result.numbers if not number.real and number.kind != 'samples'
        ]
        real = {number.quantity: number.text() for number in result.numbers if number.real}
        rows += [
            (
                result.model.name,
                number.quantity,
                number.text(),
                f'{number.n} {number.counted}',
                real.get(number.quantity, ''),
                *_beside(result, number),
            )
            for number in shown
        ]
        have, method = {number.quantity for number in shown}, result.config.sampling.method.lower()
        for quantity, part in (
            ('FID', 'metrics of samples'),
            ('IS', 'metrics of samples'),
            ('bits/dim', 'bits/dim'),
        ):
            theirs = of_paper(result.model.paper, quantity, method)
            if theirs is not None and quantity not in have:
                known = part in result.left_out or 'denoising' in result.left_out
                rows.append(
                    (
                        result.model.name,
                        quantity,
                        'not measured',
                        '',
                        '',
                        f'{theirs:g}',
                        'left out: see the checks' if known else 'these features do not give it',
                    )
                )
    return rows


def _cost_rows(results) -> list[tuple]:
    return [
        (
            result.model.name,
            what,
            f'{seconds:.3g}',
            f'{nfe:.10g}',
            f'{1e3 * seconds / nfe:.3g}',
            n,
            _steps(result, what),
        )
        for result in results
        for what, (seconds, nfe, n) in result.costs.items()
    ]


def _steps(result, what) -> str:
    sampling, evaluation = result.config.sampling, result.config.eval
    if what == 'likelihood':
        return f'{evaluation.bpd_method}, rtol {evaluation.bpd_rtol:g}'
    if sampling.method.lower() == 'ode':
        return f'{sampling.ode_method}, rtol {sampling.rtol or 1e-5:g}'
    if sampling.method.lower() != 'pc':
        return f'{sampling.method}, {sampling.steps} steps' if sampling.steps else sampling.method
    steps = sampling.steps or result.config.model.num_scales
    return f'{sampling.predictor} + {sampling.corrector}, {steps} steps'


def write(found, output) -> pathlib.Path:
    """Writes everything to the folder `output`; returns the path of REPORT.md."""
    output = pathlib.Path(output)
    measured = [result.workdir for result in found if result.numbers]
    details = [
        f'With samplers, features and all that these rest on: [{path}]({path}); in full '
        'precision: [summary.csv](summary.csv).'
        for path in (
            [reports.write(measured, output / 'details').relative_to(output).as_posix()]
            if measured
            else []
        )
    ]
    pictures = _grids(found, output)
    _summary(found, output / 'summary.csv')
    done = [check for result in found for check in result.checks]
    failed, skipped = (
        sum(check.passed is False for check in done),
        sum(check.passed is None for check in done),
    )
    environment_of = dict(
        line.split(': ', 1)
        for line in (output / 'RUN_ENV.txt').read_text().split('\n\n')[0].splitlines()
    )
    seeds = sorted({result.config.seed for result in found})
    lines = [
        '# Validation of checkpoints',
        f'{len(found)} checkpoint{"s" * (len(found) > 1)}, {len(done) - skipped} checks: '
        + (f'**{failed} failed**' if failed else 'all passed')
        + f', {skipped} could not be made' * bool(skipped)
        + f'. {environment_of["date"][:10]}, {environment_of["device"]}, PyTorch '
        f'{_version(output)}, '
        f'seed {", ".join(map(str, seeds))}; everything else in [RUN_ENV.txt](RUN_ENV.txt).',
        reports.markdown(
            ('Checkpoint', 'Config', 'File', 'Kind', 'Step', 'Parameters', 'SHA-256, first digits'),
            [
                (
                    result.model.name,
                    f'`{result.model.config_path}`',
                    f'`{result.about["source"]}`',
                    result.about['dialect'],
                    result.about['step'],
                    f'{result.about["parameters"] / 1e6:.3g} million',
                    f'`{result.about["digest"]}`',
                )
                for result in found
            ],
        ),
        '## Numbers',
        reports.markdown(
            ('Checkpoint', 'Quantity', 'Here', 'n', 'Real to real', 'Paper', 'Beside the paper'),
            _result_rows(found),
        ),
        ' '.join(
            [
                'Averaged weights. ± is the standard error. *Real to real*: between held-out and '
                'training images, for scale.',
                *details,
            ]
        ),
        '## Time',
        reports.markdown(
            (
                'Checkpoint',
                'Of a',
                'Seconds an image',
                'Evaluations of the network',
                'ms of each, an image',
                'n',
                'By',
            ),
            _cost_rows(found),
        ),
        'Seconds an image: of whole batches, divided by their images, on the device above.',
        '## Checks',
        reports.markdown(
            ('Checkpoint', 'Check', 'Passed', 'By'),
            [
                (result.model.name, check.name, VERDICTS[check.passed], check.detail)
                for result in found
                for check in result.checks
            ],
        ),
        '## Samples',
        *(line for name, caption in pictures for line in (f'![{name}]({name})', f'*{caption}*')),
    ]
    (output / 'REPORT.md').write_text('\n\n'.join(lines) + '\n', encoding='utf-8')
    return output / 'REPORT.md'


def _version(output) -> str:
    lines = (output / 'RUN_ENV.txt').read_text().splitlines()
    return next(line.partition(' ')[2] for line in lines if line.startswith('torch '))


def _summary(found, path):
    with open(path, 'w', newline='', encoding='utf-8') as file:
        rows = csv.DictWriter(file, SUMMARY, lineterminator='\n')
        rows.writeheader()
        for result in found:
            about = dict(
                checkpoint=result.model.name,
                config=result.model.config_path,
                file=result.about['source'],
                dialect=result.about['dialect'],
                sha256=result.about['digest'],
                step=result.about['step'],
            )
            seconds = result.costs.get('sample', ('',))[0]
            for number in result.numbers:
                basis = number.basis()
                theirs, remark = ('', 'real to real') if number.real else _beside(result, number)
                rows.writerow(
                    about
                    | dict(
                        quantity=number.quantity + number.real,
                        value=number.value,
                        error=number.error,
                        n=number.n,
                        counted=number.counted,
                        compared_with=basis['Real images'],
                        sampler=number.sampler,
                        nfe=number.nfe,
                        features=basis['Features'],
                        seed=result.config.seed,
                        seconds_per_sample=seconds if number.sampler else '',
                        paper=theirs,
                        remark=remark,
                    )
                )


def _grids(found, output) -> list[tuple[str, str]]:
    """A picture of each checkpoint's samples, one of all side by side, and the denoising errors:
    their names and captions.
    """
    pictures, panels = [], []
    for result in found:
        if len(result.images):
            name = f'samples_{slug(result.model.name)}.png'
            columns = min(10, int(len(result.images) ** 0.5))
            reports.save_grid(output / name, result.images[: columns**2], columns)
            panels.append((result.model.name, result.images))
            pictures.append(
                (
                    name,
                    f'The first {columns**2} samples of {result.model.name}, not '
                    f'chosen: seed {result.config.seed}, '
                    f'{_steps(result, "sample")}.',
                )
            )
    real = {
        tuple(result.config.data[key] for key in ('dataset', 'image_size')): result.real
        for result in found
        if result.real is not None
    }
    panels += [(f'real images of {dataset}', images) for (dataset, _), images in real.items()]
    if len(panels) > 1:
        _side_by_side(output / 'side_by_side.png', panels)
        pictures.insert(
            0, ('side_by_side.png', f'Side by side: {", ".join(name for name, _ in panels)}.')
        )
    profiles = [
        (result.model.name, result.denoising) for result in found if result.denoising is not None
    ]
    if profiles:
        _denoising(output / 'denoising.png', profiles)
        pictures.append(
            (
                'denoising.png',
                'Squared error of the denoised image, a pixel, against '
                'time: of the network, and of the best '
                f'estimate that is linear in the pixel; {profiles[0][1].n} test images. '
                'At the right x_t holds hardly a trace of '
                'the image, and a small error of the predicted noise is many times as '
                'large in the image.',
            )
        )
    return pictures


def _side_by_side(path, panels):
    """Draw up to 6 x 6 images of each (title, images)."""
    with style.figure(path, 3.4 * len(panels), 3.7, 1, len(panels)) as (_, grid):
        for axes, (name, images) in zip(grid, panels):
            side = min(6, int(len(images) ** 0.5))
            tiles = images[: side**2].reshape(side, side, *images.shape[1:]).swapaxes(1, 2)
            if images.shape[1] < 64:
                margins = ((0, 0), (0, 1), (0, 0), (0, 1), (0, 0))
                tiles = np.pad(tiles, margins, constant_values=128)
            rows, height, columns, width, channels = tiles.shape
            picture = tiles.reshape(rows * height, columns * width, channels)
            axes.imshow(picture, cmap='gray', vmin=0, vmax=255, interpolation='nearest')
            axes.set_title(name)
            axes.axis('off')


def _denoising(path, profiles):
    """Draw the error of the denoised image against time, for each (title, profile)."""
    with style.figure(path, 4.6 * len(profiles), 3.6, 1, len(profiles)) as (_, grid):
        for axes, (name, found) in zip(grid, profiles):
            axes.plot(found.t, found.linear, '--', color='0.45', label='best linear estimate')
            axes.plot(found.t, found.network, 'o-', color='#0072b2', label='network')
            axes.set(title=name, xlabel='time t', yscale='log', ylabel='squared error a pixel')
            axes.legend()
