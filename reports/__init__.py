"""From numbers in files to tables, plots and pictures."""

from reports.reports import (
    Number,
    evaluation_rows,
    markdown,
    numbers_of,
    save_grid,
    save_image,
    table,
    write,
)

__all__ = [
    'Number',
    'evaluation_rows',
    'markdown',
    'numbers_of',
    'save_grid',
    'save_image',
    'table',
    'write',
]
