"""Tables of numbers: aligned text for logs, Markdown for reports."""

import os
import pathlib
from collections.abc import Iterable, Sequence

from reports.numbers import UNKNOWN, Number
from reports.reader import numbers_of


def evaluation_rows(eval_dir: str | os.PathLike, checkpoint: int) -> list[tuple[str, str, str]]:
    """Return rows (quantity, value, remark) of a checkpoint, for `table`.

    The limits of a number follow in the rows below it; each sentence appears once.
    """
    rows, shown = [], set()
    for number in numbers_of(pathlib.Path(eval_dir), checkpoint):
        quantity = '  same, real to real' if number.real else number.quantity
        rows.append((quantity, number.text('+-', 5), _remark(number)))
        limits = [f'note: {sentence}' for sentence in number.limits()]
        rows += [('', '', sentence) for sentence in limits if sentence not in shown]
        shown.update(limits)
    return rows


def _remark(number: Number) -> str:
    """Describe in one line what a number depends on."""
    basis = number.basis()
    counted, images = basis['n'], basis['Real images']
    if number.counted == 'images':
        counted = f'{images.partition(" of ")[0]}, {counted}'
    elif images:
        counted = f'{counted} to {images}'
    nfe = f'{basis["NFE"]} evaluations' if basis['NFE'] else ''
    parts = (counted, basis['Features'], basis['Sampler'], nfe, number.note)
    return '; '.join(part for part in parts if part)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def markdown(header: Sequence, rows: Iterable[Sequence]) -> str:
    """Return a Markdown table; empty cells become '-'."""
    cells = [
        [str(cell).replace('|', '\\|') or '-' for cell in row]
        for row in (header, ['---'] * len(header), *rows)
    ]
    return '\n'.join(f'| {" | ".join(row)} |' for row in cells)


def number_table(header: Sequence[str], rows: Sequence[tuple[Sequence, Number]]) -> str:
    """Make a Markdown table of numbers with everything that they depend on.

    Args:
        header: Names of the extra columns after the quantity.
        rows: Pairs (cells of these columns, number).
    """
    cells = [
        (number.quantity + number.real, *first, number.text(), *number.basis().values())
        for first, number in rows
    ]
    return markdown(('Quantity', *header, 'Value', *rows[0][1].basis()), cells)


def checkpoint_table(numbers: dict[int, list[Number]]) -> str:
    """Make a Markdown table with a row for each checkpoint and a column for each quantity.

    The last rows list the parts of the basis in which the checkpoints differ.
    """
    quantities = dict.fromkeys(
        x.quantity for found in numbers.values() for x in found if not x.real
    )
    columns = {quantity: [] for quantity in quantities}
    for found in numbers.values():
        by_name = {number.quantity: number for number in found if not number.real}
        for quantity, column in columns.items():
            column.append(by_name.get(quantity))
    weights = [found[0].protocol.get('weights', UNKNOWN) for found in numbers.values()]
    rows = [
        (checkpoint, *(number.text() if number else '' for number in row), digest)
        for checkpoint, row, digest in zip(numbers, zip(*columns.values()), weights)
    ]
    return markdown(
        ('Checkpoint', *columns, 'Digest of the weights'), rows + _differences(columns.values())
    )


def _differences(columns) -> list[tuple]:
    """Return rows for the parts of the basis that differ within a column."""
    bases = [[number.basis() for number in column if number] for column in columns]
    rows = []
    for name in bases[0][0]:
        cells = ['; '.join(dict.fromkeys(basis[name] for basis in column)) for column in bases]
        if any(basis[name] != column[0][name] for column in bases for basis in column):
            rows.append((name, *cells, ''))
    return rows
