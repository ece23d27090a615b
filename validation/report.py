"""Write the report of a validation: REPORT.md, summary.csv and pictures."""

import csv
import os
import pathlib
import re
from collections.abc import Sequence

import reports
from reports import Number

from . import pictures
from .published import Published
from .result import Result

VERDICTS = {True: 'yes', False: '**NO**', None: '-'}
SUMMARY = (
    'checkpoint',
    'config',
    'file',
    'format',
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
# Quantities reported in the paper, and the part of an evaluation that measures each.
OF_PAPER = {'FID': 'metrics of samples', 'IS': 'metrics of samples', 'bits/dim': 'bits/dim'}


def write(results: Sequence[Result], output: str | os.PathLike) -> pathlib.Path:
    """Write the report to a folder that already contains RUN_ENV.txt.

    Args:
        results: results of the checkpoints.
        output: the folder.

    Returns:
        The path of REPORT.md.
    """
    output = pathlib.Path(output)
    shown = pictures.draw(results, output)
    _write_summary(results, output / 'summary.csv')
    lines = [
        '# Validation of checkpoints',
        _headline(results, output),
        _models(results),
        '## Numbers',
        _numbers(results),
        _explanation(results, output),
        '## Time',
        _times(results),
        'Seconds per image: the time of whole batches / number of images, on the device above.',
        '## Checks',
        _checks(results),
        '## Samples',
    ]
    for name, caption in shown:
        lines += [f'![{name}]({name})', f'*{caption}*']
    (output / 'REPORT.md').write_text('\n\n'.join(lines) + '\n', encoding='utf-8')
    return output / 'REPORT.md'


# Parts of the report ------------------------------------------------------------------------------


def _headline(results: Sequence[Result], output: pathlib.Path) -> str:
    """Return a sentence with the outcome, and one with date, device and seeds."""
    verdicts = [check.passed for result in results for check in result.checks]
    failed, skipped = verdicts.count(False), verdicts.count(None)
    facts, _, versions = (output / 'RUN_ENV.txt').read_text().partition('\n\n')
    facts = dict(line.split(': ', 1) for line in facts.splitlines())
    pytorch = re.search(r'(?m)^torch (.*)$', versions)[1]
    seeds = sorted({result.config.seed for result in results})
    outcome = f'**{failed} failed**' if failed else 'all passed'
    outcome += f', {skipped} could not be made' if skipped else ''
    return (
        f'{len(results)} checkpoint{"s" if len(results) > 1 else ""}, '
        f'{len(verdicts) - skipped} checks: {outcome}. '
        f'{facts["date"][:10]}, {facts["device"]}, PyTorch {pytorch}, '
        f'seed {", ".join(map(str, seeds))}; all other details are in [RUN_ENV.txt](RUN_ENV.txt).'
    )


def _models(results: Sequence[Result]) -> str:
    return reports.markdown(
        ('Checkpoint', 'Config', 'File', 'Format', 'Step', 'Parameters', 'SHA-256, first digits'),
        [
            (
                result.model.name,
                f'`{result.model.config_path}`',
                f'`{result.about["source"]}`',
                result.about['format'],
                result.about['step'],
                f'{result.about["parameters"] / 1e6:.3g} million',
                f'`{result.about["digest"]}`',
            )
            for result in results
        ],
    )


def _numbers(results: Sequence[Result]) -> str:
    return reports.markdown(
        ('Checkpoint', 'Quantity', 'Here', 'n', 'Real to real', 'Paper', 'Comparison'),
        [row for result in results for row in (*_measured(result), *_not_measured(result))],
    )


def _shown(result: Result) -> list[Number]:
    """Return the numbers of the network, without those that compare real images only."""
    return [number for number in result.numbers if not number.real and number.kind != 'samples']


def _measured(result: Result) -> list[tuple]:
    real = {number.quantity: number.text() for number in result.numbers if number.real}
    return [
        (
            result.model.name,
            number.quantity,
            number.text(),
            f'{number.n} {number.counted}',
            real.get(number.quantity, ''),
            *compared(result, number),
        )
        for number in _shown(result)
    ]


def _not_measured(result: Result) -> list[tuple]:
    """Return a row for each number in the paper that was not measured."""
    measured = {number.quantity for number in _shown(result)}
    rows = []
    for quantity, part in OF_PAPER.items():
        theirs = of_paper(result.model.paper, quantity, result.method)
        if theirs is None or quantity in measured:
            continue
        left_out = part in result.left_out or 'denoising' in result.left_out
        reason = 'left out: see the checks' if left_out else 'not defined for these features'
        rows.append((result.model.name, quantity, 'not measured', '', '', f'{theirs:g}', reason))
    return rows


def _explanation(results: Sequence[Result], output: pathlib.Path) -> str:
    """Return an explanation of the table of numbers; write the detailed report that it links to."""
    text = (
        'All numbers are for the EMA weights. ± is the standard error. *Real to real* compares '
        'held-out with training images, for scale.'
    )
    measured = [result.workdir for result in results if result.numbers]
    if not measured:
        return text
    details = reports.write(measured, output / 'details').relative_to(output).as_posix()
    return (
        f'{text} [{details}]({details}) lists samplers, features and all other settings; '
        '[summary.csv](summary.csv) has the numbers in full precision.'
    )


def _times(results: Sequence[Result]) -> str:
    return reports.markdown(
        (
            'Checkpoint',
            'Quantity',
            'Seconds per image',
            'NFE',
            'ms per image and evaluation',
            'n',
            'Method',
        ),
        [
            (
                result.model.name,
                what,
                f'{seconds:.3g}',
                f'{nfe:.10g}',
                f'{1e3 * seconds / nfe:.3g}',
                n,
                result.solver(what),
            )
            for result in results
            for what, (seconds, nfe, n) in result.costs.items()
        ],
    )


def _checks(results: Sequence[Result]) -> str:
    return reports.markdown(
        ('Checkpoint', 'Check', 'Passed', 'Evidence'),
        [
            (result.model.name, check.name, VERDICTS[check.passed], check.detail)
            for result in results
            for check in result.checks
        ],
    )


# The paper ----------------------------------------------------------------------------------------


def of_paper(paper: Published | None, quantity: str, method: str) -> float | None:
    """Return the paper's number for a quantity; None if the paper has none.

    Args:
        paper: the published model.
        quantity: 'FID', 'IS' or 'bits/dim'; other quantities have no number.
        method: sampling method; the paper has separate numbers for 'ode'.
    """
    if paper is None:
        return None
    if quantity == 'bits/dim':
        return paper.bpd
    if method == 'ode':
        return paper.fid_ode if quantity == 'FID' else None
    return {'FID': paper.fid, 'IS': paper.inception_score}.get(quantity)


def compared(result: Result, number: Number) -> tuple[str, str]:
    """Return the paper's number, and our difference to it or why it is not comparable."""
    theirs = of_paper(result.model.paper, number.quantity, result.method)
    if theirs is None:
        if number.kind not in ('frechet', 'IS', 'bits/dim'):
            return '', ''
        return '', 'not in the paper' if result.model.paper else 'config is not in the paper'
    if reasons := number.limits():
        return f'{theirs:g}', 'not comparable: ' + '; '.join(reasons)
    return f'{theirs:g}', f'{number.value - theirs:+.3g} from the paper'


# summary.csv --------------------------------------------------------------------------------------


def _write_summary(results: Sequence[Result], path: pathlib.Path):
    with open(path, 'w', newline='', encoding='utf-8') as file:
        rows = csv.DictWriter(file, SUMMARY, lineterminator='\n')
        rows.writeheader()
        for result in results:
            rows.writerows(_summary_row(result, number) for number in result.numbers)


def _summary_row(result: Result, number: Number) -> dict:
    basis = number.basis()
    theirs, remark = ('', 'real to real') if number.real else compared(result, number)
    seconds = result.costs.get('sample', ('',))[0]
    return dict(
        checkpoint=result.model.name,
        config=result.model.config_path,
        file=result.about['source'],
        format=result.about['format'],
        sha256=result.about['digest'],
        step=result.about['step'],
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
