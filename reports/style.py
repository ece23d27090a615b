"""The style of all plots, and helper functions for figures, axes and legends."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = {
    'figure.dpi': 120,
    'savefig.dpi': 'figure',
    'font.size': 11,
    'axes.titlesize': 11,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.alpha': 0.3,
    'legend.frameon': False,
    'legend.fontsize': 10,
    'lines.linewidth': 1.4,
    'lines.markersize': 4,
    'errorbar.capsize': 2,
}


@contextlib.contextmanager
def figure(
    path: str | os.PathLike, width: float, height: float, rows: int = 1, columns: int = 1
) -> Iterator[tuple['Figure', np.ndarray]]:
    """Yield a figure and the flat array of its axes; write it to `path` at the end of the block.

    It works without a display.

    Args:
        path: The PNG file.
        width: Width of the figure in inches.
        height: Height of the figure in inches.
        rows: Number of rows of axes.
        columns: Number of columns of axes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        drawn = Figure((width, height), layout='constrained')
        drawn.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
        yield drawn, drawn.subplots(rows, columns, squeeze=False).ravel()
        drawn.savefig(path)


def log_scale(axes: 'Axes', values: np.ndarray, ratio: float) -> None:
    """Make the vertical axis logarithmic if values are positive and max / min exceeds `ratio`.

    Tick labels are plain numbers.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    values = values[np.isfinite(values)]
    if not len(values) or values.min() <= 0 or values.max() <= ratio * values.min():
        return
    axes.set_yscale('log')
    digits = (1, 2, 5) if values.max() < 100 * values.min() else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=digits))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())


def plain(value: float, _: float | None = None) -> str:
    """Format a tick label as 0.01, not 10^-2."""
    return f'{value:g}'


def legend_below(drawn: 'Figure', panels: Iterable['Axes'], columns: int, least: int = 1) -> None:
    """Draw one legend for all panels below them, if it has at least `least` entries."""
    handles = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            handles[label] = handle
    if len(handles) >= least:
        drawn.legend(
            handles.values(),
            handles,
            loc='outside lower center',
            ncols=min(columns, len(handles)),
        )
