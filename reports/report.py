"""Reports on evaluations: tables and pictures from the files of work directories.

    python -m reports runs/vp runs/subvp --output comparison

writes report.md, summary.csv, protocols.json and pictures. `--mode eval` ends with a report on its
work directory. Every number is shown with n, seed, sampler and features, and with a note if a set
is small. Values that a file does not contain are 'unknown'.
"""

import collections
import csv
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable
from typing import NamedTuple

from reports import plots
from reports.numbers import UNKNOWN, Number
from reports.pictures import save_grid
from reports.reader import numbers_of, samples_of
from reports.tables import checkpoint_table, number_table
from runtime.errors import UserError

COMPARED = (
    'n',
    'Real images',
    'complete',
    'extractor',
    'reduce_mean',
    'likelihood_weighting',
    'rtol',
    'atol',
)

# How numbers were computed: the kind of a number, and a sentence with fields of `Number.words`.
METHODS = (
    (
        'loss',
        'Loss: the training objective (reduce_mean {reduce_mean}, likelihood_weighting '
        '{likelihood_weighting}) at one random time for each of {n} of the {reference}. '
        'Seed {seed}, device {device}.',
    ),
    (
        'bits/dim',
        'Bits/dim: the probability flow ODE over {n} of the {reference}, solved to rtol {rtol} and '
        'atol {atol} with an average of {NFE} network evaluations per batch of {batch_size}. '
        'Hutchinson probes for the divergence: {probes}. Images are {note}; the value of an '
        'image is the mean of its passes. Seed {seed}, device {device}.',
    ),
    (
        'drawn',
        'Sampling: {n} with {Sampler}, num_scales {num_scales}, and {NFE} network evaluations per '
        'batch. Samples are truncated to 8 bits. Seed {seed}, device {device}.',
    ),
    ('given', 'Samples: {n} from `{name}`, unchanged, in {order} order. Their origin is unknown.'),
    (
        'frechet',
        'Metrics: features of all samples ({extractor}), compared with {n_reference} {reference} '
        '(`{file}`).',
    ),
    ('kernel', 'Kernel distance: polynomial kernel of degree 3, {note}.'),
    ('IS', 'IS: {note}.'),
    (
        'real',
        'Real to real: the same metrics for {n} instead of samples, compared with the same '
        'reference. A perfect model would get the same values with the same number of samples.',
    ),
)
SUMMARY = (
    'Data: {dataset}, {image_size}x{image_size} pixels, channels: {num_channels}. SDE: '
    '{sde}, continuous training: {continuous}. Network: {name}, EMA weights (rate {ema_rate}). '
    'Latest checkpoint: `{checkpoint}`, digest of the weights `{weights}`.'
)
SUMMARY_OF_FILE = (
    'Samples: {n} from `{name}`, {image_size}x{image_size} pixels, channels: {num_channels}, '
    'digest of the images `{files}`.'
)
LEGEND = (
    'Lower is better, except for IS, precision and recall. ± is the standard error over images '
    '(bits/dim) or blocks (kernel distances), and for IS the standard deviation over parts of the '
    'samples. NFE: network evaluations per batch of samples or images.'
)


class Run(NamedTuple):
    """A work directory with the numbers of its checkpoints.

    Attributes:
        label: Name in the report.
        workdir: The work directory.
        eval_dir: The folder of its evaluation.
        numbers: {checkpoint: [number, ...]}, sorted by checkpoint.
    """

    label: str
    workdir: pathlib.Path
    eval_dir: pathlib.Path
    numbers: dict[int, list[Number]]

    @property
    def newest(self) -> int:
        return max(self.numbers)


def write(
    workdirs: Iterable[str | os.PathLike], output: str | os.PathLike, eval_folder: str = 'eval'
) -> pathlib.Path:
    """Write report.md, summary.csv, protocols.json and pictures on one or several work directories.

    The report depends only on the files of the work directories.

    Args:
        workdirs: Work directories with evaluations and TensorBoard files.
        output: Folder for the report, created if it does not exist.
        eval_folder: Folder of the evaluation in each work directory.

    Returns:
        The path of report.md.

    Raises:
        UserError: if a work directory has no results.
    """
    workdirs, output = [pathlib.Path(workdir) for workdir in workdirs], pathlib.Path(output)
    names = [workdir.resolve().name for workdir in workdirs]
    runs = [
        _read(workdir, name if names.count(name) == 1 else str(workdir), eval_folder)
        for workdir, name in zip(workdirs, names)
    ]
    output.mkdir(parents=True, exist_ok=True)
    _write_summary(runs, output / 'summary.csv')
    _write_protocols(runs, output / 'protocols.json')
    paragraphs = _report(runs, plots.draw(runs, output), output)
    text = '\n\n'.join(filter(None, paragraphs)) + '\n'
    (output / 'report.md').write_text(text, encoding='utf-8', errors='backslashreplace')
    return output / 'report.md'


def _read(workdir, label, eval_folder) -> Run:
    eval_dir = workdir / eval_folder
    names = [
        re.match(r'(?:train_|test_)?(?:ckpt|report)_(\d+)', path.name)
        for path in eval_dir.glob('*')
    ]
    checkpoints = sorted({int(name[1]) for name in names if name})
    numbers = {checkpoint: numbers_of(eval_dir, checkpoint) for checkpoint in checkpoints}
    numbers = {checkpoint: found for checkpoint, found in numbers.items() if found}
    if not numbers:
        raise UserError(
            f'{eval_dir} has no results: run python main.py --config ... --workdir '
            f'{workdir} --mode eval first'
        )
    return Run(label, workdir, eval_dir, numbers)


# The files next to the report ---------------------------------------------------------------------


def _write_summary(runs, path):
    """Write one row for each run, checkpoint and quantity, in full precision."""
    rows = [
        _summary(run, checkpoint, number)
        for run in runs
        for checkpoint, numbers in run.numbers.items()
        for number in numbers
    ]
    with open(path, 'w', newline='', encoding='utf-8', errors='backslashreplace') as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def _summary(run, checkpoint, number) -> dict:
    protocol = json.dumps(number.protocol, sort_keys=True).encode()
    backend, extractor, feature = number.features
    return dict(
        workdir=run.label,
        checkpoint='' if number.given else checkpoint,
        quantity=number.quantity + number.real,
        value=number.value,
        error=number.error,
        n=number.n,
        reference=number.reference,
        n_reference=number.n_reference,
        seed=number.basis()['Seed'],
        sampler=number.sampler,
        nfe=number.nfe,
        backend=backend,
        extractor=extractor,
        feature=feature,
        protocol=hashlib.sha256(protocol).hexdigest()[:12] if number.protocol else UNKNOWN,
        warning='; '.join(number.limits()),
    )


def _write_protocols(runs, path):
    """Write the protocols as JSON, by run, checkpoint and quantity ('samples' for all metrics)."""
    protocols = {
        run.label: {
            checkpoint: {
                number.quantity if number.counted == 'images' else 'samples': number.protocol
                for number in numbers
            }
            for checkpoint, numbers in run.numbers.items()
        }
        for run in runs
    }
    path.write_text(json.dumps(protocols, indent=1) + '\n')


# The report, as paragraphs of Markdown ------------------------------------------------------------


def _report(runs, pictures, output) -> list[str]:
    shown = [line for name, caption in pictures for line in _picture(name, caption)]
    lines = [f'# Evaluation of {", ".join(run.label for run in runs)}']
    if len(runs) == 1:
        lines += _section(runs[0], shown, output, '##')
    else:
        lines += [f'Latest checkpoints of {len(runs)} runs, first side by side, then separately.']
        lines += ['## Side by side', *_side_by_side(runs), *shown]
        for run in runs:
            lines += [f'## {run.label}', *_section(run, [], output, '###')]
    return [
        *lines,
        'All checkpoints in full precision: [summary.csv](summary.csv). '
        'The settings of every number: [protocols.json](protocols.json).',
    ]


def _side_by_side(runs) -> list[str]:
    """Make one table of all runs, sorted by quantity."""
    rows = [
        ((run.label, '' if number.given else run.newest), number)
        for run in runs
        for number in run.numbers[run.newest]
    ]
    order = list(dict.fromkeys(number.quantity + number.real for _, number in rows))
    rows.sort(key=lambda row: order.index(row[1].quantity + row[1].real))
    compared = [number for _, number in rows if number.kind != 'samples']
    return [number_table(('Run', 'Checkpoint'), rows), LEGEND, _incomparable(compared)]


def _incomparable(numbers) -> str:
    """List settings that differ between the numbers of the same quantity."""
    found = collections.defaultdict(set)
    for number in numbers:
        words = number.words()
        keys = (*COMPARED, 'training') if number.kind == 'loss' else COMPARED
        for key in keys:
            found[number.quantity + number.real, key].add(str(words[key]))
    return '\n'.join(
        f'- {quantity} is not comparable between all of these runs: they differ in {key}.'
        for (quantity, key), values in found.items()
        if len(values) > 1
    )


def _section(run: Run, pictures: list[str], output, level: str) -> list[str]:
    """Make the paragraphs on one run.

    Args:
        run: The run.
        pictures: Paragraphs that follow the picture of its samples.
        output: Folder of the report.
        level: Markdown prefix of its headings, such as '##'.
    """
    numbers = run.numbers[run.newest]
    given = numbers[0].given
    parts = {
        'Metrics' if given else f'Checkpoint {run.newest}': [
            number_table((), [((), number) for number in numbers]),
            LEGEND,
        ],
        'Limits of these numbers': _limits(run),
        'Every checkpoint': _checkpoints(run),
        'Pictures': [*_samples(run, output), *pictures],
        'How these numbers were computed': _methods(numbers),
    }
    lines = [(SUMMARY_OF_FILE if given else SUMMARY).format_map(numbers[0].words())]
    for title, part in parts.items():
        if part:
            lines += [f'{level} {title}', *part]
    return lines


def _limits(run: Run) -> list[str]:
    """List the limits of the numbers; each sentence appears once, with all its quantities."""
    found = collections.defaultdict(dict)
    for numbers in run.numbers.values():
        for number in numbers:
            for sentence in number.limits():
                found[sentence][number.quantity] = None
    lines = [f'- {"; ".join(quantities)}: {sentence}.' for sentence, quantities in found.items()]
    return ['\n'.join(lines)] if lines else []


def _checkpoints(run: Run) -> list[str]:
    if len(run.numbers) == 1:
        return []
    return [
        checkpoint_table(run.numbers),
        f'Everything else is as in the table of checkpoint {run.newest}.',
    ]


def _methods(numbers: list[Number]) -> list[str]:
    """Describe how the numbers were computed, in one line for each kind."""
    words = {
        'real' if number.real else number.kind: number.words()
        for number in numbers
        if number.protocol
    }
    for kind in {'samples', 'frechet'} & words.keys():
        words['given' if numbers[0].given else 'drawn'] = words[kind]
    lines = [f'- {text.format_map(words[kind])}' for kind, text in METHODS if kind in words]
    return ['\n'.join(lines) or 'The files have no protocols.']


def _samples(run: Run, output) -> list[str]:
    """Write the picture of the first samples; return its paragraphs, none without samples."""
    found = samples_of(run.eval_dir, run.newest, 100)
    if not found:
        return []
    number, images = found[0], found[0].parts
    columns = min(10, max(2, 1056 // max(64, images.shape[1])), max(2, int(len(images) ** 0.5)))
    images = images[: columns**2]
    name = f'samples_{re.sub(r"[^0-9A-Za-z.-]+", "_", run.label)}_{run.newest}.png'
    save_grid(output / name, images, columns)
    first = f'The first {len(images)} samples of'
    if number.given:
        caption = f'{first} {number.given}, in {number.words()["order"]} order.'
    else:
        caption = (
            f'{first} checkpoint {run.newest}, not selected: seed {number.basis()["Seed"]}, '
            f'sampler {number.sampler}, {number.nfe} network evaluations.'
        )
    return _picture(name, caption)


def _picture(name: str, caption: str) -> list[str]:
    return [f'![{name}]({name})', f'*{caption}*']
