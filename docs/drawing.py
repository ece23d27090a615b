"""A small vocabulary for the figures of the documentation: figures, boxes, arrows and labels.

    with figure('name', 4, 2, layout=None) as drawn:
        axes = canvas(drawn, 4, 2)
        box(axes, (0.5, 0.5, 1, 1), BLUE, 'network', r'$F_\\theta(x, c)$', 'models.utils')
        arrow(axes, (1.5, 1), (2.5, 1), text='score')

Lengths and places are in inches. A place (x, y, width, height) has its lower left corner at (x, y).
"""

import contextlib
import pathlib

from reports import style

FIGURES = pathlib.Path(__file__).parent / 'figures'
# the colours of Okabe & Ito, which colour-blind readers can tell apart
BLUE = '#0072B2'
SKY = '#56B4E9'
GREEN = '#009E73'
ORANGE = '#E69F00'
RED = '#D55E00'
PURPLE = '#CC79A7'
INK = '#222222'
GREY = '#777777'
PALE = '#F3F4F6'
WHITE = '#FFFFFF'
CODE = dict(size=7.5, family='DejaVu Sans Mono', color='#444444', linespacing=1.3)
STYLE = style.STYLE | {
    'font.size': 10,
    'font.family': 'DejaVu Sans',
    'mathtext.fontset': 'dejavusans',
    'text.color': INK,
    'axes.edgecolor': INK,
    'axes.labelcolor': INK,
    'axes.titlelocation': 'left',
    'figure.facecolor': 'white',
    'figure.dpi': 150,
}


@contextlib.contextmanager
def figure(name: str, width: float, height: float, layout: str | None = 'constrained'):
    """A figure without a window, written to docs/figures at the end of the block."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        drawn = Figure((width, height), layout=layout)
        yield drawn
        FIGURES.mkdir(exist_ok=True)
        # without the version of Matplotlib the file is the same wherever it is drawn
        drawn.savefig(FIGURES / f'{name}.png', metadata={'Software': None})


def canvas(drawn, width: float, height: float):
    """Invisible axes over the whole figure, in inches."""
    axes = drawn.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height), aspect='equal')
    axes.axis('off')
    return axes


def label(axes, x: float, y: float, text: str, **style):
    """Text centred at (x, y)."""
    axes.text(x, y, text, **dict(ha='center', va='center') | style)


def box(axes, place, colour: str, title='', body='', code='', fill: float = 0.12):
    """A rounded box with a title, a formula, and below it the names in the code."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import FancyBboxPatch

    x, y, width, height = place
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle='round,pad=0,rounding_size=0.1',
            facecolor=to_rgba(colour, fill),
            edgecolor=to_rgba(colour, min(1, 8 * fill)),
            linewidth=1.2,
        )
    )
    styles = (title, dict(weight='bold', size=10)), (body, dict(size=10)), (code, CODE)
    lines = [(text, font) for text, font in styles if text]
    heights = [0.17 * (1 + text.count('\n')) for text, _ in lines]
    top = y + height / 2 + (sum(heights) + 0.07 * (len(lines) - 1)) / 2
    for (text, font), tall in zip(lines, heights):
        label(axes, x + width / 2, top - tall / 2, text, **dict(linespacing=1.35) | font)
        top -= tall + 0.07


def arrow(axes, *points, text: str = '', colour: str = INK, beside=(0, 0), head: str = '-|>'):
    """An arrow through the points (x, y), with a text `beside` the middle of its last part."""
    start, end = points[-2:]
    axes.plot(*zip(*points[:-1]), color=colour, linewidth=1.3, solid_joinstyle='miter')
    style = f'{head},head_width=0.2,head_length=0.4'
    line = dict(arrowstyle=style, color=colour, linewidth=1.3, shrinkA=0, shrinkB=0)
    axes.annotate('', end, start, arrowprops=line)
    x, y = (start[0] + end[0]) / 2 + beside[0], (start[1] + end[1]) / 2 + beside[1]
    label(axes, x, y, text, size=9.5)
