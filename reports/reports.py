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
import math
import pathlib
import re
from typing import NamedTuple

import numpy as np
import torch

from reports import results
from runtime.errors import UserError

UNKNOWN = 'unknown'
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
# where not 0; (): of all methods
TOLD_SETTINGS = {'eta': ('ddim',), 'churn': ('heun',), 'prior_mean': (), 'thresholding': ()}
SPLITS = {'train': 'training', 'test': 'test'}

# Metrics by their key in a file: kind, name, name in the features of FID (the 2021 release had no
# others), key of the error, note.
FID_FEATURES = (('Inception (2015)', 'pool_3'), ('inception-v3-compat', '2048'), (UNKNOWN, UNKNOWN))
METRICS = {
    'fid': ('frechet', 'Frechet distance', 'FID', None, ''),
    'kid': (
        'kernel',
        'kernel distance',
        'KID',
        'kid_error',
        'mean of {kid_blocks} blocks, error from {kid_error_blocks}',
    ),
    'precision': ('coverage', 'precision', 'precision', None, ''),
    'recall': ('coverage', 'recall', 'recall', None, ''),
    'IS': ('IS', 'IS', 'IS', 'IS_std', 'parts of the samples: {IS_splits}'),
}

# What is too few: kind or name of a number, what is counted (the least decides), how many there
# should be, what it means to have less.
SETS = ('samples', 'reference images')
LEAST = (
    # since Heusel et al. 2017
    ('FID', ('samples',), 50_000, 'not comparable with published FIDs, which are of 50000'),
    (
        'frechet',
        SETS,
        10_000,
        'the distance is biased upwards, roughly as 1/n (Chong & Forsyth '
        '2020), and can be compared only with '
        'those of the same n',
    ),  # 10000: Heusel et al. 2017
    (
        'kernel',
        SETS,
        1000,
        'Binkowski et al. 2018 take blocks of 1000, and the error grows as the number falls',
    ),
    (
        'kernel',
        ('blocks behind the error',),
        10,
        'the standard error is itself uncertain by a quarter or more',
    ),
    (
        'IS',
        ('samples',),
        5000,
        'the score is biased downwards (Chong & Forsyth 2020), and published ones are of 50000',
    ),
    (
        'coverage',
        SETS,
        1000,
        'the balls around few features are wide and cover too much '
        '(Kynkaanniemi et al. 2019 take 50000)',
    ),
    (
        'bits/dim',
        ('images',),
        1000,
        'published values are of whole test sets, of 10000 images for CIFAR10',
    ),
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


class Number(NamedTuple):
    """A number of an evaluation with all that it rests on, in words: '' where a thing does not
    apply, 'unknown' where no file tells it.
    """

    kind: str
    quantity: str
    value: float
    protocol: dict
    n: int | str
    counted: str  # what n counts
    reference: str = ''  # the real images that it is of, or compared with
    n_reference: int | str = ''
    sampler: str = ''
    nfe: str = ''
    features: tuple = ('', '', '')  # backend, extractor, feature
    error: float | None = None
    blocks: int | str = ''  # behind the error of a kernel distance
    note: str = ''
    complete: bool = True
    real: str = ''  # ', real to real' between two sets of real images, for scale
    parts: np.ndarray | None = None  # bits/dim of each image; the first samples

    def text(self, sign: str = '±', digits: int = 4) -> str:
        """The value in so many digits, or with its error in two; fractions of images in three
        decimals.
        """
        size, digits = (self.error, 2) if self.error else (self.value, digits)
        decimals = (
            digits - 1 - math.floor(math.log10(abs(size))) if size and math.isfinite(size) else 3
        )
        decimals = {'coverage': 3, 'samples': 0}.get(self.kind, min(10, max(0, decimals)))
        error = f' {sign} {self.error:.{decimals}f}' if self.error else ''
        return f'{self.value:.{decimals}f}{error}' + ' (so far)' * (not self.complete)

    def basis(self) -> dict[str, str]:
        """The columns that stand beside the value in every table."""
        against = (
            ' '.join(dict.fromkeys(('to', str(self.n_reference), self.reference)))
            if self.n_reference
            else self.reference
        )
        features = ' '.join(
            dict.fromkeys(part for part in self.features if part not in ('none', ''))
        )
        return {
            'n': f'{self.n} {self.counted}',
            'Of, or compared with': against,
            'Sampler': self.sampler,
            'NFE': self.nfe,
            'Features': features,
            'Seed': '' if self.real or self.given else str(self.protocol.get('seed', UNKNOWN)),
        }

    @property
    def given(self) -> str:
        """The name of the file or folder that samples of --mode metrics came from; '' for
        others.
        """
        return self.protocol['input']['name'] if 'input' in self.protocol else ''

    def words(self) -> dict[str, str]:
        """All that is known of it and of its protocol, by name."""
        p = self.protocol
        parts = {
            name: value
            for part in ('data', 'model', 'training', 'input', 'reference')
            for name, value in p.get(part, {}).items()
        }
        texts = {
            key: ', '.join(f'{name} {value}' for name, value in p.get(key, {}).items())
            for key in ('sampling', 'extractor')
        }
        return collections.defaultdict(
            lambda: UNKNOWN, parts | p | self._asdict() | self.basis() | texts
        )

    def warnings(self) -> list[str]:
        """A sentence for everything that there is too little of."""
        # those of the published statistics, which do not tell
        dimensions = self.protocol.get('reference', {}).get('dimensions', 2048)
        rank = (
            'frechet',
            SETS,
            dimensions + 1,
            f'their covariance in {dimensions} feature dimensions is without full rank',
        )
        counts = {
            self.counted: self.n,
            'reference images': self.n_reference,
            'blocks behind the error': self.blocks,
        }
        said = (
            []
            if self.protocol
            else ['the file tells no protocol: what this number rests on is unknown']
        )
        for of, names, least, meaning in () if self.real else (*LEAST, rank):
            count, name = min(
                ((counts[name], name) for name in names if isinstance(counts.get(name), int)),
                default=(least, ''),
            )
            if of in (self.kind, self.quantity) and count < least:
                said.append(f'{count} {name} are fewer than {least}: {meaning}')
        return said


def numbers_of(eval_dir, checkpoint: int) -> list[Number]:
    """All that the files in `eval_dir` say of a checkpoint."""
    bits = [number for split in ('test', 'train') for number in _bits(eval_dir, checkpoint, split)]
    return (
        _loss(eval_dir, checkpoint)
        + bits
        + (_metrics(eval_dir, checkpoint) or _samples(eval_dir, checkpoint))
    )


def _loss(eval_dir, checkpoint) -> list[Number]:
    file = results.load(eval_dir / f'ckpt_{checkpoint}_loss.npz')
    if file is None:
        return []
    sizes, p = file.get('batch_sizes'), file['protocol']
    value, n = (
        float(np.average(file['all_losses'], weights=sizes)),
        UNKNOWN if sizes is None else int(sizes.sum()),
    )
    return [
        Number(
            'loss',
            'loss',
            value,
            p,
            n,
            'images',
            _images(p.get('images'), 'set'),
            complete='mean_loss' in file,
        )
    ]


def _bits(eval_dir, checkpoint, split) -> list[Number]:
    """Bits/dim: each image averaged over its passes, then the mean over images."""
    files, passes = list(_batches(eval_dir, f'{split}_ckpt_{checkpoint}_bpd_*.npz')), {}
    if not files:
        return []
    for i, file in enumerate(files):  # the 2021 release gave the array no name and told no batch
        passes.setdefault(file.get('batch', i), []).append(
            np.ravel(file['bpd'] if 'bpd' in file else file['arr_0'])
        )
    parts = np.concatenate([np.mean(passes[i], axis=0, dtype=np.float64) for i in sorted(passes)])
    p, times = (
        files[0]['protocol'],
        ' to '.join(map(str, sorted({len(batch) for batch in passes.values()}))),
    )
    return [
        Number(
            'bits/dim',
            'bits/dim' if split == 'test' else 'bits/dim, train',
            float(parts.mean()),
            p,
            len(parts),
            'images',
            _images(p.get('images'), 'set'),
            nfe=_mean_nfe(files),
            error=float(parts.std(ddof=1) / len(parts) ** 0.5),
            parts=parts,
            note=f'uniformly dequantised, {times} time{"s" * (times != "1")}'
            if p
            else 'passes over the data unknown',
            complete=len(files) >= max(file.get('files', 0) for file in files),
        )
    ]


def _metrics(eval_dir, checkpoint) -> list[Number]:
    """The metrics of the samples, each followed by the same between real images, where there is
    one.
    """
    file, found = results.load(eval_dir / f'report_{checkpoint}.npz') or {}, []
    p = file.pop('protocol', {})
    features = tuple(
        p.get('extractor', {}).get(part, UNKNOWN) for part in ('backend', 'extractor', 'feature')
    )
    # a network, or a layer of FID's
    space = next(part for part in features[1:] if part not in ('none', 'inception-v3-compat'))
    # 'origin': a file, published or given
    data, origin = (p.get('reference', {}).get(key) for key in ('data', 'origin'))
    of = f'images of {origin}' if origin else _images(data, 'images')
    sets = {
        '': dict(
            counted='samples', sampler=_sampler(p), nfe='' if 'input' in p else _mean_nfe([file])
        ),
        'floor_': dict(
            counted='training images' if data and data['split'] == 'test' else 'test images',
            real=', real to real',
        ),
    }
    for key, (kind, name, name_of_fid, error, note) in METRICS.items():
        for prefix, basis in sets.items():
            values = collections.defaultdict(
                lambda: UNKNOWN,
                {
                    name.removeprefix(prefix): value.item()
                    for name, value in file.items()
                    if name.startswith(prefix)
                },
            )
            if key in values:
                against = (
                    {} if key == 'IS' else dict(reference=of, n_reference=values['n_reference'])
                )
                found.append(
                    Number(
                        kind,
                        name_of_fid if features[1:] in FID_FEATURES else f'{name}, {space}',
                        values[key],
                        p,
                        values['n_samples'],
                        features=features,
                        error=values.get(error) or None,
                        blocks=values['kid_error_blocks'],
                        note=note.format_map(values),
                        **against,
                        **basis,
                    )
                )
    return found


def _samples(eval_dir, checkpoint, most: float = math.inf) -> list[Number]:
    """The number of samples, which are counted until there are `most`, with the first hundred of
    them.
    """
    files, images, n = [], [], 0
    for file in _batches(eval_dir / f'ckpt_{checkpoint}', 'samples_*.npz'):
        n += len(file['samples'])
        images.extend(file.pop('samples')[: 100 - len(images)])
        files.append(file)
        if n >= most:
            break
    return (
        [
            Number(
                'samples',
                'samples',
                n,
                file['protocol'],
                n,
                'samples',
                note='without metrics',
                sampler=_sampler(file['protocol']),
                nfe=_mean_nfe(files),
                parts=np.stack(images),
            )
        ]
        if files
        else []
    )


def _batches(folder, pattern):
    """The files of a pattern in the order of their numbers, as far as they are parts of what the
    first is a part of.
    """
    whole = None
    for path in sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name)):
        file = results.load(path)
        if file is not None:
            file |= {
                key: file['protocol'].pop(key)
                for key in ('repeat', 'batch', 'size')
                if key in file['protocol']
            }
            whole = file['protocol'] if whole is None else whole
            if file['protocol'] == whole:
                yield file


def _mean_nfe(files) -> str:
    nfe = np.mean([file.get('nfe', np.nan) for file in files])
    return UNKNOWN if np.isnan(nfe) else f'{nfe:.10g}'


def _sampler(protocol) -> str:
    """The sampler and the settings that change what it draws: 'pc reverse_diffusion + langevin',
    'heun, churn 7, guidance 4'.
    """
    if 'input' in protocol:
        return f'from {protocol["input"]["name"]}'
    s = protocol.get('sampling', {})
    if 'method' not in s:
        return UNKNOWN
    method = name = s['method'].lower()
    if method == 'pc':
        name = f'pc {s["predictor"]} + {s["corrector"]}'.lower() + ' (probability flow)' * bool(
            s.get('probability_flow')
        )
    told = [
        (key, value)
        for key, methods in TOLD_SETTINGS.items()
        if method in methods or not methods
        for value in [s.get(key)]
        if value
    ]
    if protocol.get('model', {}).get('num_classes'):
        told.append(('guidance', s.get('guidance', 1.0)))
    return ', '.join([name, *(key if value is True else f'{key} {value:g}' for key, value in told)])


def _images(data, noun, unknown=UNKNOWN) -> str:
    """'test set of DIGITS', 'training images of CIFAR10'."""
    return (
        f'{SPLITS[data["split"]]} {noun} of {data["dataset"]} {data.get("category") or ""}'.strip()
        if data
        else unknown
    )


def evaluation_rows(eval_dir, checkpoint: int) -> list[tuple[str, str, str]]:
    """What an evaluation folder says of a checkpoint: rows of quantity, value and remark; warnings
    stand in rows below their number.
    """
    rows, said = [], set()
    for number in numbers_of(pathlib.Path(eval_dir), checkpoint):
        counted, against, sampler, nfe, features, _ = number.basis().values()
        counted = (
            f'{against.partition(" of ")[0]}, {counted}'
            if number.counted == 'images'
            else f'{counted} {against}'.strip()
        )
        told = [
            '; '.join(
                filter(
                    None, (counted, features, sampler, nfe and f'{nfe} evaluations', number.note)
                )
            ),
            *(f'! {sentence}' for sentence in number.warnings()),
        ]
        remark, *warnings = told[:1] + ['' if text in said else text for text in told[1:]]
        rows.append(
            (
                '  same, real to real' if number.real else number.quantity,
                number.text('+-', 5),
                remark,
            )
        )
        rows += [('', '', warning) for warning in warnings if warning]
        said.update(told)
    return rows


def table(rows) -> str:
    """Rows of text as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def write(workdirs, output, eval_folder: str = 'eval') -> pathlib.Path:
    """Writes report.md, summary.csv and pictures on one or several work directories into the folder
    `output`; returns the report's path.

    Reads the files in `eval_folder` of each, and its TensorBoard files; the same files give the
    same report. UserError without results.
    """
    from reports import plots

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
            _number_table(('Run', 'Checkpoint'), rows),
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
    for number in _samples(run.eval_dir, newest, 100):
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
            _number_table((), [((), number) for number in numbers]),
            LEGEND,
        ],
        'Every checkpoint': [_checkpoint_table(run)] if len(run.numbers) > 1 else [],
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


def markdown(header, rows) -> str:
    cells = [
        [str(cell).replace('|', '\\|') or '-' for cell in row]
        for row in (header, ['---'] * len(header), *rows)
    ]
    return '\n'.join(f'| {" | ".join(row)} |' for row in cells)


def _number_table(header, rows) -> str:
    """Rows ((what stands under `header`), number), with all that the number rests on."""
    cells = [
        (number.quantity + number.real, *first, number.text(), *number.basis().values())
        for first, number in rows
    ]
    return markdown(('Quantity', *header, 'Value', *rows[0][1].basis()), cells)


def _checkpoint_table(run) -> str:
    """Checkpoints against quantities; below, what the numbers of all checkpoints rest on."""
    found = {
        (checkpoint, x.quantity): x
        for checkpoint, numbers in run.numbers.items()
        for x in numbers
        if not x.real
    }
    columns = {
        quantity: [found.get((checkpoint, quantity)) for checkpoint in run.numbers]
        for _, quantity in found
    }
    rows = [
        (
            checkpoint,
            *(column[i].text() if column[i] else '' for column in columns.values()),
            numbers[0].protocol.get('weights', UNKNOWN),
        )
        for i, (checkpoint, numbers) in enumerate(run.numbers.items())
    ]
    rows += [
        (
            name,
            *(
                '; '.join(dict.fromkeys(number.basis()[name] for number in column if number))
                for column in columns.values()
            ),
            '',
        )
        for name in next(iter(found.values())).basis()
    ]
    return markdown(('Checkpoint', *columns, 'Digest of its weights'), rows)


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


def save_grid(path, images: np.ndarray, columns: int | None = None) -> torch.Tensor:
    """Writes 8-bit images (n, H, W, C) as one PNG, in rows of `columns` (a square); small ones are
    enlarged, pixel by pixel.

    Returns the picture (3, height, width), in [0, 1].
    """
    import torchvision  # late: it imports PyTorch's compiler, which takes a second

    enlarge = max(1, 64 // images.shape[1])
    tiles = (
        torch.from_numpy(images)
        .permute(0, 3, 1, 2)
        .repeat_interleave(enlarge, 2)
        .repeat_interleave(enlarge, 3)
        .float()
        / 255
    )
    grid = torchvision.utils.make_grid(
        tiles, nrow=columns or max(1, int(len(images) ** 0.5)), padding=2, pad_value=0.5
    )
    torchvision.utils.save_image(grid, path)
    return grid


def save_image(path, image: np.ndarray):
    """Writes one 8-bit image (H, W, C) as a PNG."""
    import torchvision  # late, as above

    torchvision.utils.save_image(torch.from_numpy(image).permute(2, 0, 1).float() / 255, path)
