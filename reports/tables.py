"""Rows of numbers as aligned text and as Markdown."""

import pathlib

from reports.numbers import UNKNOWN
from reports.reader import numbers_of


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


def markdown(header, rows) -> str:
    cells = [
        [str(cell).replace('|', '\\|') or '-' for cell in row]
        for row in (header, ['---'] * len(header), *rows)
    ]
    return '\n'.join(f'| {" | ".join(row)} |' for row in cells)


def number_table(header, rows) -> str:
    """Rows ((what stands under `header`), number), with all that the number rests on."""
    cells = [
        (number.quantity + number.real, *first, number.text(), *number.basis().values())
        for first, number in rows
    ]
    return markdown(('Quantity', *header, 'Value', *rows[0][1].basis()), cells)


def checkpoint_table(run) -> str:
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
