"""Reports on evaluations: numbers from result files as tables, plots and pictures."""

from reports.numbers import Number
from reports.pictures import save_grid, save_image
from reports.reader import numbers_of
from reports.report import write
from reports.tables import evaluation_rows, markdown, table

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
