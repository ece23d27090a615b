"""Reports on evaluations: pictures and tables, made from the files of work directories alone.

    python -m reports runs/vp runs/subvp --output comparison

writes report.md, summary.csv and pictures; `--mode eval` ends with those of its own work directory.
Beside every number stand the n, the seed, the sampler and the features it rests on, and a warning
where n is too small for it. What a file does not tell is 'unknown'.
"""

import collections
import csv
import hashlib
import json
import pathlib
import re

from reports import plots
from reports.numbers import UNKNOWN
from reports.pictures import save_grid
from reports.reader import numbers_of, samples_of
from reports.tables import checkpoint_table, number_table
from runtime.errors import UserError

COMPARED = (
    'n',
    'Of, or compared with',
    'complete',
    'extractor',
    'reduce_mean',
    'likelihood_weighting',
    'rtol',
    'atol',
)


# How numbers came about, by their kind, in the words of `Number.words`.
METHODS = (
    (
        'loss',
        'Loss: the training objective (reduce_mean {reduce_mean}, likelihood_weighting '
        '{likelihood_weighting}), a random time for '
        'each of {n} of the {reference}. Seed {seed}, device {device}.',
    ),
    (
        'bits/dim',
        'Bits/dim: the probability flow ODE over {n} of the {reference}, solved to rtol '
        '{rtol} and atol {atol}, {NFE} network '
        'evaluations for a batch of {batch_size} on average; random vectors for the divergence: '
        '{probes}; {note}; an image counts with the '
        'mean of its passes. Seed {seed}, device {device}.',
    ),
    (
        'drawn',
        'Sampling: {n} by {Sampler} ({sampling}; num_scales {num_scales}); {NFE} network '
        'evaluations for a batch; '
        'brought to 8 bits by truncation. Seed {seed}, device {device}.',
    ),
    (
        'given',
        'Samples: {n} from `{name}` as they are, in {order} order. How they were drawn is '
        'not known.',
    ),
    (
        'frechet',
        'Metrics: features of all samples ({extractor}), compared with {n_reference} '
        '{reference} (`{file}`).',
    ),
    ('kernel', 'Kernel distance: polynomial kernel of degree 3, {note}.'),
    ('IS', 'IS: {note}.'),
    (
        'real',
        'Real to real: the same metrics between {n} and the reference. As many samples, as '
        'good as new data, would score the same.',
    ),
)
SUMMARY = (
    'Data: {dataset}, {image_size}x{image_size} pixels, channels: {num_channels}. SDE: '
    '{sde}, continuous training: {continuous}. '
    'Network: {name}, averaged weights (rate {ema_rate}). Newest checkpoint: '
    '`{checkpoint}`, digest of its weights `{weights}`.'
)
SUMMARY_OF_FILE = (
    'Samples: {n} from `{name}`, {image_size}x{image_size} pixels, channels: {num_channels}, '
    'digest of the images `{files}`.'
)
LEGEND = (
    'Lower is better, but for IS, precision and recall. ± is the standard error (bits/dim: '
    'over images; kernel distances: over '
    'blocks; IS: the standard deviation over parts). NFE: evaluations of the network for a '
    'batch of samples or images.'
)
# numbers: {checkpoint: list of Number}
Run = collections.namedtuple('Run', 'label workdir eval_dir numbers')


def write(workdirs, output, eval_folder: str = 'eval') -> pathlib.Path:
    """Writes report.md, summary.csv and pictures on one or several work directories into the folder
    `output`; returns the report's path.

    Reads the files in `eval_folder` of each, and its TensorBoard files; the same files give the
    same report. UserError without results.
    """
    workdirs, output = [pathlib.Path(workdir) for workdir in workdirs], pathlib.Path(output)
    names = [workdir.resolve().name for workdir in workdirs]
    runs = [
        _read(workdir, name if names.count(name) == 1 else str(workdir), eval_folder)
        for workdir, name in zip(workdirs, names)
    ]
    output.mkdir(parents=True, exist_ok=True)
    _write_summary(runs, output / 'summary.csv')
    text = '\n\n'.join(filter(None, _report(runs, plots.draw(runs, output), output))) + '\n'
    (output / 'report.md').write_text(text, encoding='utf-8', errors='backslashreplace')
    return output / 'report.md'


def _read(workdir, label, eval_folder) -> Run:
    eval_dir = workdir / eval_folder
    found = [
        re.match(r'(?:train_|test_)?(?:ckpt|report)_(\d+)', path.name)
        for path in eval_dir.glob('*')
    ]
    numbers = {
        checkpoint: numbers_of(eval_dir, checkpoint)
        for checkpoint in sorted({int(name[1]) for name in found if name})
    }
    if not any(numbers.values()):
        raise UserError(
            f'{eval_dir} has no results: python main.py --config ... --workdir '
            f'{workdir} --mode eval makes them'
        )
    return Run(
        label,
        workdir,
        eval_dir,
        {checkpoint: found for checkpoint, found in numbers.items() if found},
    )


def _write_summary(runs, path):
    """One row for each run, checkpoint and quantity, in full precision."""
    rows = [
        dict(
            workdir=run.label,
            checkpoint='' if x.given else checkpoint,
            quantity=x.quantity + x.real,
            value=x.value,
            error=x.error,
            n=x.n,
            reference=x.reference,
            n_reference=x.n_reference,
            seed=x.basis()['Seed'],
            sampler=x.sampler,
            nfe=x.nfe,
            backend=x.features[0],
            extractor=x.features[1],
            feature=x.features[2],
            protocol=hashlib.sha256(json.dumps(x.protocol, sort_keys=True).encode()).hexdigest()[
                :12
            ]
            if x.protocol
            else UNKNOWN,
            warning='; '.join(x.warnings()),
        )
        for run in runs
        for checkpoint, numbers in run.numbers.items()
        for x in numbers
    ]
    with open(path, 'w', newline='', encoding='utf-8', errors='backslashreplace') as file:
        csv.writer(file, lineterminator='\n').writerows(
            [rows[0].keys(), *(row.values() for row in rows)]
        )


def _report(runs, pictures, output) -> list[str]:
    """Paragraphs of Markdown."""
    rows = [
        ((run.label, '' if number.given else max(run.numbers)), number)
        for run in runs
        for number in run.numbers[max(run.numbers)]
    ]
    order = list(dict.fromkeys(number.quantity + number.real for _, number in rows))
    rows.sort(key=lambda row: order.index(row[1].quantity + row[1].real))
    shown = [line for name, caption in pictures for line in (f'![{name}]({name})', f'*{caption}*')]
    lines = [f'# Evaluation of {", ".join(run.label for run in runs)}']
    if len(runs) > 1:
        lines += [
            f'{len(runs)} runs side by side, each at its newest checkpoint; then each by itself.',
            '## Side by side',
            number_table(('Run', 'Checkpoint'), rows),
            LEGEND,
            _incomparable(number for _, number in rows if number.kind != 'samples'),
            *shown,
        ]
    for run in runs:
        lines += [f'## {run.label}', *_section(run, shown if len(runs) == 1 else [], output)]
    return [*lines, 'Numbers in full precision, of every checkpoint: [summary.csv](summary.csv).']


def _section(run, shown, output) -> list[str]:
    """On one run, with the pictures `shown` behind that of its samples."""
    newest, numbers = max(run.numbers), run.numbers[max(run.numbers)]
    for number in samples_of(run.eval_dir, newest, 100):
        columns = min(10, max(2, 1056 // max(64, number.parts.shape[1])))
        images, name = (
            number.parts[: columns**2],
            f'samples_{re.sub(r"[^0-9A-Za-z.-]+", "_", run.label)}_{newest}.png',
        )
        save_grid(output / name, images, columns)
        caption = (
            f'*The first {len(images)} samples of {number.given}, in {number.words()["order"]} '
            'order.*'
            if number.given
            else (
                f'*The first {len(images)} samples of checkpoint {newest}, not chosen: seed '
                f'{number.basis()["Seed"]}, sampler '
                f'{number.sampler}, {number.nfe} network evaluations.*'
            )
        )
        shown = [f'![{name}]({name})', caption, *shown]
    warnings = dict.fromkeys(
        f'- {number.quantity}: {sentence}.'
        for found in run.numbers.values()
        for number in found
        for sentence in number.warnings()
    )
    kinds = {
        'real' if number.real else number.kind: number.words()
        for number in numbers
        if number.protocol
    }
    for kind in {'samples', 'frechet'} & kinds.keys():
        kinds['given' if numbers[0].given else 'drawn'] = kinds[kind]
    methods = [
        f'- {text.format_map(kinds[kind])}'
        for of, text in METHODS
        for kind in of.split()
        if kind in kinds
    ]
    protocols = {
        number.quantity if number.counted == 'images' else 'samples': number.protocol
        for number in numbers
    }
    parts = {
        'Metrics' if numbers[0].given else f'Checkpoint {newest}': [
            number_table((), [((), number) for number in numbers]),
            LEGEND,
        ],
        'Every checkpoint': [checkpoint_table(run)] if len(run.numbers) > 1 else [],
        'Warnings': [
            '\n'.join(warnings) or 'None: no number rests on fewer images than its threshold.'
        ],
        'Pictures': shown,
        'How these numbers were made': [
            '\n'.join(methods) or 'The files do not tell.',
            '<details><summary>The protocols in full</summary>',
            f'```json\n{json.dumps(protocols, indent=1)}\n```',
            '</details>',
        ],
    }
    summary = (SUMMARY_OF_FILE if numbers[0].given else SUMMARY).format_map(numbers[0].words())
    return [
        summary,
        *(line for title, lines in parts.items() if lines for line in (f'### {title}', *lines)),
    ]


def _incomparable(numbers) -> str:
    """In what numbers of one quantity differ besides the run."""
    found = collections.defaultdict(set)
    for number in numbers:
        words = number.words()
        for key in COMPARED + ('training',) * (number.kind == 'loss'):
            found[number.quantity + number.real, key].add(str(words[key]))
    return '\n'.join(
        f'- {quantity} is not comparable between all of these runs: they differ in {key}.'
        for (quantity, key), values in found.items()
        if len(values) > 1
    )
