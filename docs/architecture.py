"""Draws the figures of docs/architecture.md into docs/figures: from formulas, from networks that
are built without their numbers, and from docs/architecture.json, which benchmarks/architecture.py
writes.

    # ten seconds; or the names of some: python docs/architecture.py schedules fir
    python docs/architecture.py
"""

import contextlib
import importlib
import json
import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import sde_lib
from models.layerspp import ResnetBlockBigGANpp
from models.up_or_down_sampling import downsample_2d, naive_downsample_2d
from models.utils import create_model

ROOT = pathlib.Path(__file__).parents[1]
FIGURES = ROOT / 'docs' / 'figures'
CODE = dict(size=7.5, family='DejaVu Sans Mono', color='#444444', linespacing=1.3)
# Okabe & Ito's colours, which differ for the colour-blind as well
BLUE, SKY, GREEN, ORANGE, RED, PURPLE = (
    '#0072B2',
    '#56B4E9',
    '#009E73',
    '#E69F00',
    '#D55E00',
    '#CC79A7',
)
INK, GREY, PALE = '#222222', '#777777', '#F3F4F6'
STYLE = {
    'font.size': 10,
    'font.family': 'DejaVu Sans',
    'mathtext.fontset': 'dejavusans',
    'text.color': INK,
    'axes.edgecolor': INK,
    'axes.labelcolor': INK,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.alpha': 0.3,
    'axes.titlesize': 11,
    'axes.titlelocation': 'left',
    'legend.frameon': False,
    'figure.facecolor': 'white',
}


@contextlib.contextmanager
def figure(name: str, width: float, height: float, layout: str | None = 'constrained'):
    """A figure of so many inches without a window, written to docs/figures at the end of the
    block.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        drawn = Figure((width, height), dpi=150, layout=layout)
        yield drawn
        FIGURES.mkdir(exist_ok=True)
        # the same file wherever it is drawn
        drawn.savefig(FIGURES / f'{name}.png', metadata={'Software': None})


def canvas(drawn, width: float, height: float):
    """Axes that are not to be seen, in inches."""
    axes = drawn.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height), aspect='equal')
    axes.axis('off')
    return axes


def box(axes, x, y, width, height, colour, title='', body='', code='', fill=0.12):
    """A rounded box with its lower left corner at (x, y): a title, a formula, and below it the
    names in the code.
    """
    from matplotlib.colors import to_rgba
    from matplotlib.patches import FancyBboxPatch

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
    lines = [
        (text, style)
        for text, style in (
            (title, dict(weight='bold', size=10)),
            (body, dict(size=10)),
            (code, CODE),
        )
        if text
    ]
    heights = [0.17 * (1 + text.count('\n')) for text, _ in lines]
    top = y + height / 2 + (sum(heights) + 0.07 * (len(lines) - 1)) / 2
    for (text, style), tall in zip(lines, heights):
        axes.text(
            x + width / 2,
            top - tall / 2,
            text,
            ha='center',
            va='center',
            **dict(linespacing=1.35) | style,
        )
        top -= tall + 0.07


def arrow(axes, *points, text='', colour=INK, beside=(0, 0), head='-|>'):
    """An arrow through the points (x, y), and a text `beside` the middle of its last part."""
    start, end = points[-2:]
    axes.plot(*zip(*points[:-1]), color=colour, linewidth=1.3, solid_joinstyle='miter')
    axes.annotate(
        '',
        end,
        start,
        arrowprops=dict(
            arrowstyle=f'{head},head_width=0.2,head_length=0.4',
            color=colour,
            linewidth=1.3,
            shrinkA=0,
            shrinkB=0,
        ),
    )
    axes.text(
        (start[0] + end[0]) / 2 + beside[0],
        (start[1] + end[1]) / 2 + beside[1],
        text,
        ha='center',
        va='center',
        size=9.5,
    )


# How the parts fit together -----------------------------------------------------------------------


def overview():
    width, height = 11.4, 7.9
    with figure('overview', width, height, layout=None) as drawn:
        axes = canvas(drawn, width, height)
        for y, tall, colour, text in (
            (5.9, 1.8, GREEN, 'training'),
            (3.6, 1.75, BLUE, 'score function'),
            (0.2, 2.85, RED, 'sampling'),
        ):
            box(axes, 2.75, y, 8.45, tall, colour, fill=0.05)
            axes.text(2.9, y + tall - 0.2, text, color=colour, weight='bold', size=10, va='center')

        box(axes, 0.2, 0.2, 2.05, 7.5, PURPLE)
        axes.text(1.225, 7.35, 'SDE', weight='bold', size=13, ha='center', va='center')
        axes.text(1.225, 6.95, r'$dx = f\,dt + g\,dw$', size=11, ha='center', va='center')
        for y, formula, code in (
            (6.3, r'$x_t = m(t)\,x_0 + \mathrm{std}(t)\,z$', 'SDE.perturb\nSDE.marginal_prob'),
            (4.85, r'time $t \to$ label', 'SDE.network_label'),
            (4.15, r'output $\to$ score', 'SDE.score_from_output'),
            (2.5, r'$x_T \sim p_T$', 'SDE.prior_sampling'),
            (1.7, r'reverse SDE, ODE', 'SDE.reverse\nSDE.ancestral_step'),
            (0.75, r'Langevin $\alpha$', 'SDE.langevin_alpha'),
        ):
            axes.text(1.225, y, formula, size=9.5, ha='center', va='bottom')
            axes.text(1.225, y - 0.06, code, ha='center', va='top', **CODE)
        for y in (6.6, 4.45, 1.65):
            arrow(axes, (2.25, y), (2.75, y), colour=PURPLE)

        top, middle, loop, flow = 6.05, 3.75, 1.5, 0.34
        for x, wide, *texts in (
            (3.0, 1.5, 'data', r'$x_0$', 'datasets'),
            (5.0, 1.75, 'perturb', r'$x_t = m x_0 + \mathrm{std}\,z$', 'SDE.perturb'),
            (7.25, 1.75, 'loss', r'$\|\mathrm{std}\,s + z\|^2$', 'losses.get_loss_fn'),
            (9.5, 1.5, 'update', 'Adam, average', 'losses.get_step_fn\nmodels.ema'),
        ):
            box(axes, x, top, wide, 1.15, GREEN, *texts)
        for left, right in ((4.5, 5.0), (6.75, 7.25), (9.0, 9.5)):
            arrow(axes, (left, top + 0.57), (right, top + 0.57))
        axes.text(7.0, top + 0.7, '$z$', size=9.5, ha='center')
        axes.text(
            5.875,
            top + 1.37,
            r'$t \sim U[\epsilon, T]$,  $z \sim N(0, I)$',
            size=9,
            ha='center',
            va='center',
        )

        box(axes, 4.2, middle, 1.6, 1.15, BLUE, 'label', r'$c(t)$', 'SDE.network_label')
        box(
            axes,
            6.3,
            middle,
            1.75,
            1.15,
            BLUE,
            'network',
            r'$F_\theta(x, c)$',
            'models.utils\n.create_model',
        )
        box(
            axes,
            8.55,
            middle,
            2.45,
            1.15,
            BLUE,
            'score',
            r'$s_\theta(x, t) \approx \nabla_x \log '
            r'p_t(x)$',
            'SDE.score_from_output',
        )
        arrow(axes, (5.8, middle + 0.57), (6.3, middle + 0.57))
        arrow(axes, (8.05, middle + 0.57), (8.55, middle + 0.57))
        axes.text(
            3.5, middle + 0.57, 'models.utils\n.get_score_fn', ha='center', va='center', **CODE
        )

        box(axes, 4.85, loop - 0.12, 4.3, 1.34, RED, fill=0.03)
        for x, wide, *texts in (
            (3.0, 1.5, 'prior', r'$x_T \sim p_T$', 'SDE.prior_sampling'),
            (5.0, 1.75, 'corrector', r'Langevin, at $t$', 'sampling.Corrector'),
            (7.25, 1.75, 'predictor', r'$t \to t - T/N$', 'sampling.Predictor'),
            (9.5, 1.5, 'samples', r'$x_0$', 'sampling\n.get_pc_sampler'),
        ):
            box(axes, x, loop, wide, 1.1, RED, *texts)
        for left, right in ((4.5, 5.0), (6.75, 7.25), (9.0, 9.5)):
            arrow(axes, (left, loop + 0.65), (right, loop + 0.65))
        arrow(axes, (7.25, loop + 0.32), (6.75, loop + 0.32))
        axes.text(7.0, loop + 0.13, r'$\times N$', size=9, ha='center', va='center')
        box(
            axes,
            5.0,
            flow,
            4.0,
            0.85,
            RED,
            'probability flow',
            'ODE solver: samples, codes, likelihoods',
            'solvers.ode.solve',
        )
        arrow(axes, (3.75, loop), (3.75, flow + 0.42), (5.0, flow + 0.42))
        arrow(axes, (9.0, flow + 0.42), (10.25, flow + 0.42), (10.25, loop))

        for x, text in ((5.4, '$t$'), (6.52, '$x_t$')):
            arrow(axes, (x, top), (x, middle + 1.15), text=text, colour=GREEN, beside=(-0.2, 0))
        arrow(axes, (8.78, middle + 1.15), (8.78, top), text='$s$', colour=GREEN, beside=(0.17, 0))
        for x, text in ((5.4, '$t$'), (6.52, '$x$')):
            arrow(axes, (x, loop + 1.22), (x, middle), text=text, colour=RED, beside=(-0.2, 0))
        arrow(axes, (8.78, middle), (8.78, loop + 1.22), text='$s$', colour=RED, beside=(0.17, 0))


# NCSN++ as a U ------------------------------------------------------------------------------------


def built(name: str):
    """The U-Net of a config of `configs`, without its numbers."""
    config = importlib.import_module(f'configs.{name}').get_config()
    config.device = 'meta'
    with torch.device('meta'):
        return config, create_model(config).module


class Picture:
    """Draws the blocks of a U-Net: as high as their maps are large (each level half of it), as wide
    as they have channels (in steps).
    """

    def __init__(self, axes, config, model, row):
        self.axes, self.model, self.row = axes, model, row
        self.sizes = [config.data.image_size // 2**i for i in range(len(model.down_levels))]
        self.channels = [config.model.nf * mult for mult in config.model.ch_mult]

    def height(self, level):
        return self.row * (0.86 - 0.58 * level / max(1, len(self.sizes) - 1))

    def width(self, level):
        return 0.14 + 0.2 * self.channels[level] / max(self.channels)

    def block(self, x, y, level, colour, width=None, hatch=None, height=None):
        """A block with its left edge at x, its middle at y; returns its right edge."""
        from matplotlib.patches import Rectangle

        width, height = width or self.width(level), height or self.height(level)
        place = (x, y - height / 2), width, height
        if hatch:  # its lines have the colour of the edge, which is drawn over them
            self.axes.add_patch(
                Rectangle(*place, facecolor=colour, edgecolor='white', hatch=hatch, linewidth=0)
            )
        self.axes.add_patch(
            Rectangle(*place, facecolor='none' if hatch else colour, edgecolor=INK, linewidth=0.7)
        )
        return x + width

    def resampling(self, x, y, level, position):
        inside = isinstance(self.model.all_modules[position], ResnetBlockBigGANpp)
        return self.block(x, y, level, BLUE if inside else GREY, hatch='////')

    def level(self, x, y, i, level):
        """The blocks of level i, with their attention, and the resampling behind them, from left to
        right from x.
        """
        for _, attention in level.blocks:
            x = self.block(x, y, i, SKY) + 0.04
            if attention is not None:
                x = self.block(x, y, i, ORANGE, width=0.09) + 0.04
        if level.resample is not None:
            self.resampling(x + 0.04, y, i, level.resample)

    def length(self, i, level):
        """The width of that."""
        attentions = sum(attention is not None for _, attention in level.blocks)
        return (
            len(level.blocks) * (self.width(i) + 0.04) + 0.13 * attentions - 0.04
            if level.resample is None
            else (len(level.blocks) + 1) * (self.width(i) + 0.04) + 0.13 * attentions
        )


def unet(name: str, config_name: str, row: float, shift: float, span: float):
    """The U of a config: `row` inches for each level, each `shift` to the right of the one above,
    and `span` inches between both sides.
    """
    config, model = built(config_name)
    depth, deep = len(model.down_levels), len(model.down_levels) - 1
    picture = Picture(None, config, model, row)
    left, foot = 1.95, 0.95
    lengths = [
        [picture.length(i, level) for i, level in zip(order, levels)]
        for order, levels in (
            (range(depth), model.down_levels),
            (range(deep, -1, -1), model.up_levels),
        )
    ]
    lengths[1].reverse()
    # where the down path ends, from where it begins
    inner = max(shift * i + length for i, length in enumerate(lengths[0]))
    width = (
        left + inner + span + max(shift * i + length for i, length in enumerate(lengths[1])) + left
    )
    height = (depth + 0.95) * row + foot + 0.6
    with figure(name, width, height, layout=None) as drawn:
        axes = picture.axes = canvas(drawn, width, height)
        middle = [height - 0.6 - row * (i + 0.5) for i in range(depth)] + [foot + 0.45 * row]
        above, below = (
            [y + side * picture.height(min(i, deep)) / 2 for i, y in enumerate(middle)]
            for side in (1, -1)
        )
        down = [
            (left + shift * i, left + shift * i + length) for i, length in enumerate(lengths[0])
        ]
        up = [
            (width - left - shift * i - length, width - left - shift * i)
            for i, length in enumerate(lengths[1])
        ]
        for i, level in enumerate(model.down_levels):
            picture.level(down[i][0], middle[i], i, level)
        for i, level in zip(range(deep, -1, -1), model.up_levels):
            picture.level(up[i][0], middle[i], i, level)
        picture.block(down[0][0] - 0.17, middle[0], 0, GREEN, width=0.1)
        if model.progressive != 'output_skip':
            picture.block(up[0][1] + 0.07, middle[0], 0, GREEN, width=0.1)

        centre = (down[deep][1] + up[deep][0]) / 2
        x = begin = centre - picture.width(deep) - 0.085
        for colour, wide in ((SKY, None), (ORANGE, 0.09), (SKY, None)):
            x = picture.block(x, middle[-1], deep, colour, width=wide) + 0.04
        half = picture.width(deep) / 2
        arrow(
            axes,
            (down[deep][1] - half, below[deep]),
            (down[deep][1] - half, middle[-1]),
            (begin, middle[-1]),
        )
        arrow(
            axes,
            (x - 0.04, middle[-1]),
            (up[deep][0] + half, middle[-1]),
            (up[deep][0] + half, below[deep]),
        )
        axes.text(centre, below[-1] - 0.13, 'bottom', size=8.5, ha='center', va='center')

        for i in range(depth):
            axes.annotate(
                '',
                (up[i][0] - 0.08, middle[i]),
                (down[i][1] + 0.08, middle[i]),
                arrowprops=dict(
                    arrowstyle='-|>',
                    color=GREY,
                    linewidth=1.1,
                    linestyle=(0, (4, 3)),
                    shrinkA=0,
                    shrinkB=0,
                ),
            )
            maps, side = len(model.up_levels[deep - i].blocks), picture.sizes[i]
            text = f'{side} × {side},  {picture.channels[i]} channels\n{maps} maps kept'
            axes.text(
                (down[i][1] + up[i][0]) / 2,
                middle[i],
                text,
                size=8.5,
                ha='center',
                va='center',
                linespacing=1.35,
                bbox=dict(facecolor='white', edgecolor='none', pad=2),
            )
        for i in range(deep):  # to the next level, between the rows
            gap, begin, end = (
                (below[i] + above[i + 1]) / 2,
                down[i][1] - picture.width(i) / 2,
                down[i + 1][0] + picture.width(i) / 2,
            )
            arrow(axes, (begin, below[i]), (begin, gap), (end, gap), (end, above[i + 1]))
            begin, end = up[i + 1][1] - picture.width(i + 1) / 2, up[i][0] + picture.width(i) / 2
            arrow(axes, (begin, above[i + 1]), (begin, gap), (end, gap), (end, below[i]))

        last = width - 0.6
        for x, kind, text in (
            (0.6, model.progressive_input, 'input $x$'),
            (last, model.progressive, 'output'),
        ):
            axes.text(x, above[0] + 0.1, text, size=9, ha='center', va='bottom')
            for i in range(depth if kind != 'none' else 1):
                tall, colour = (
                    picture.height(i) * 0.8,
                    INK if i == 0 and (kind == 'none' or x < last) else PURPLE,
                )
                picture.block(
                    x - tall / 2,
                    middle[i],
                    i,
                    '#FFFFFF' if i == 0 else PURPLE,
                    width=tall,
                    height=tall,
                )
                # the sum goes on in the pyramid as well
                head = '<|-|>' if kind == 'residual' and i else '-|>'
                if x < last:
                    arrow(
                        axes,
                        (x + tall / 2, middle[i]),
                        (down[i][0] - (0.2 if i == 0 else 0.03), middle[i]),
                        colour=colour,
                        head=head,
                    )
                else:
                    arrow(
                        axes,
                        (up[i][1] + (0.2 if i == 0 and kind != 'output_skip' else 0.03), middle[i]),
                        (x - tall / 2, middle[i]),
                        colour=colour,
                        head=head,
                    )
                if i:
                    ends = (
                        (x, middle[i - 1] - picture.height(i - 1) * 0.4),
                        (x, middle[i] + tall / 2),
                    )
                    arrow(axes, *(ends if x < last else ends[::-1]), colour=PURPLE)
        axes.text(
            width / 2,
            above[0] + 0.1,
            f'configs/{config_name.replace(".", "/")}.py',
            size=9.5,
            ha='center',
            va='bottom',
            family='DejaVu Sans Mono',
        )
        legend(axes, picture, width / 2, 0.42)


def legend(axes, picture, centre, y):
    """What the colours mean, in a line around `centre`."""
    model = picture.model
    inside = isinstance(model.all_modules[model.down_levels[0].resample], ResnetBlockBigGANpp)
    pyramid = model.progressive_input != 'none' or model.progressive != 'none'
    marks = [
        (GREEN, None, 'convolution'),
        (SKY, None, 'residual block'),
        (ORANGE, None, 'attention'),
        (
            BLUE if inside else GREY,
            '////',
            'residual block that resamples' if inside else 'resampling',
        ),
        *[(PURPLE, None, 'pyramid')] * pyramid,
        (None, None, 'kept, to be concatenated'),
    ]
    widths = [
        (0.5 if colour is None else 0.3) + 0.068 * len(text) + 0.25 for colour, _, text in marks
    ]
    x = centre - sum(widths) / 2
    for (colour, hatch, text), wide in zip(marks, widths):
        if colour is None:
            axes.plot([x, x + 0.4], [y, y], color=GREY, linewidth=1.1, linestyle=(0, (4, 3)))
        else:
            picture.block(x, y, 0, colour, width=0.2, hatch=hatch, height=0.22)
        axes.text(x + (0.5 if colour is None else 0.3), y, text, size=9, va='center')
        x += wide


# Noise schedules ----------------------------------------------------------------------------------


def schedules():
    t = torch.linspace(1e-5, 1, 2001, dtype=torch.float64)
    lines = (
        ('VE', sde_lib.VESDE(), BLUE, '-'),
        ('VP', sde_lib.VPSDE(), RED, '-'),
        ('sub-VP', sde_lib.subVPSDE(), GREEN, '--'),
    )
    with figure('schedules', 11, 3.6) as drawn:
        mean, std, snr = drawn.subplots(1, 3)
        for name, sde, colour, line in lines:
            m, deviation = (
                value.flatten().numpy()
                for value in sde.marginal_prob(torch.ones(len(t), 1, dtype=torch.float64), t)
            )
            style = (
                dict(color=colour, linestyle=line, linewidth=2, label=name, dashes=(5, 2))
                if line == '--'
                else dict(color=colour, linewidth=2, label=name)
            )
            mean.plot(t, m, **style)
            std.plot(t, deviation, **style)
            snr.plot(t, 2 * np.log(m / deviation), **style)
        std.set_yscale('log')
        std.set_ylim(3e-5, 100)
        snr.axhline(0, color=GREY, linewidth=0.8)
        snr.set_ylim(-11, 18)
        mean.set(title='mean coefficient $m(t)$', ylabel='$m$')
        std.set(title=r'standard deviation $\mathrm{std}(t)$', ylabel='std, in units of the data')
        snr.set(title=r'signal to noise $\log\,m^2/\mathrm{std}^2$', ylabel='log-SNR, nats')
        for axes in (mean, std, snr):
            axes.set(xlabel='time $t$', xlim=(0, 1))
        drawn.legend(*mean.get_legend_handles_labels(), loc='outside lower center', ncols=3)


# What options cost --------------------------------------------------------------------------------


def options():
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    report = json.loads((ROOT / 'docs' / 'architecture.json').read_text())
    rows = [row for row in report['rows'] if row['option'] != 'baseline']
    groups, places, place = [], [], 0.0
    for row in rows:  # a gap between options of different names
        group = row['option'].partition('=')[0]
        place += (
            1.0
            if not groups or group == groups[-1] or 'config' in group and 'config' in groups[-1]
            else 1.45
        )
        groups.append(group)
        places.append(place)
    names = [
        row['option']
        .removesuffix(', training.continuous=False')
        .replace(', progressive_combine=', ', ')
        .replace('configs.vp.cifar10_ddpmpp_continuous', 'DDPM++')
        .replace('configs.vp.ddpm.cifar10_continuous', 'DDPM')
        .replace('baseline, once more', 'baseline against itself')
        for row in rows
    ]
    panels = {
        'parameters': 'parameters',
        'operations': 'operations',
        'kept': 'memory kept',
        'forward': 'time, forward',
        'step': 'time, step',
    }
    with figure('options', 11, 7.6) as drawn:
        for axes, (key, title) in zip(drawn.subplots(1, len(panels), sharey=True), panels.items()):
            ratios = np.array([row['relative'][key] for row in rows])
            axes.barh(
                places,
                ratios - 1,
                left=1,
                height=0.72,
                color=[RED if ratio > 1 else BLUE for ratio in ratios],
            )
            axes.axvline(1, color=INK, linewidth=1)
            for ratio, place in zip(ratios, places):
                if round(ratio, 2) != 1:
                    axes.text(
                        ratio * (1.04 if ratio > 1 else 0.96),
                        place,
                        f'{ratio:.2f}',
                        size=7.5,
                        va='center',
                        color=INK,
                        ha='left' if ratio > 1 else 'right',
                    )
            axes.set_xscale('log', base=2)
            axes.set_xlim(0.12, 8.5)
            axes.xaxis.set_major_locator(FixedLocator([0.25, 1, 4]))
            axes.xaxis.set_minor_locator(FixedLocator([0.5, 2]))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
            axes.set_title(title)
            axes.set_yticks(places, names)
            axes.set_ylim(max(places) + 0.7, min(places) - 0.7)
            axes.tick_params(axis='y', length=0)
            axes.grid(axis='y', visible=False)
            axes.grid(axis='x', which='minor')
        drawn.supxlabel('times the baseline (logarithmic scale)', size=10)


# The FIR filter -----------------------------------------------------------------------------------


def response(taps, frequency):
    """|H| of a filter that is scaled to sum 1, at frequencies in cycles a pixel."""
    taps = np.asarray(taps, float) / np.sum(taps)
    return np.abs(np.exp(-2j * np.pi * np.outer(frequency, np.arange(len(taps)))) @ taps)


def fir():
    frequency = np.linspace(0, 0.5, 401)
    size = 128
    radius = np.hypot(*np.meshgrid(*[np.arange(size) - size / 2 + 0.5] * 2))
    phase = np.pi * radius**2 / size  # 0.5 cycles a pixel at the edge
    rings = torch.tensor(0.5 + 0.5 * np.cos(phase) * (radius < size / 2), dtype=torch.float32)[
        None, None
    ]
    small = {
        'means, 64 pixels': naive_downsample_2d(rings),
        '[1, 3, 3, 1], 64 pixels': downsample_2d(rings, [1, 3, 3, 1]),
    }
    with figure('fir', 11, 3.5) as drawn:
        axes, *panels = drawn.subplots(1, 4, width_ratios=(1.7, 1, 1, 1))
        axes.axvspan(0.25, 0.5, color=PALE, zorder=0)
        axes.text(0.375, 1.03, 'folds back', size=9, ha='center', va='bottom', color=GREY)
        axes.plot(
            frequency,
            response([1, 1], frequency),
            color=RED,
            linewidth=2,
            label='means, nearest: [1, 1]',
        )
        axes.plot(
            frequency,
            response([1, 3, 3, 1], frequency),
            color=BLUE,
            linewidth=2,
            label='FIR: [1, 3, 3, 1]',
        )
        axes.plot(
            [0, 0.25, 0.25, 0.5],
            [1, 1, 0, 0],
            color=GREY,
            linewidth=1.2,
            linestyle='--',
            label='ideal',
        )
        axes.set(
            xlabel='frequency, cycles per pixel of the larger map',
            ylabel='amplitude kept',
            xlim=(0, 0.5),
            ylim=(0, 1.12),
        )
        axes.legend(loc='lower left', fontsize=8.5)
        for panel, (title, image) in zip(panels, {'rings, 128 pixels': rings, **small}.items()):
            panel.imshow(image[0, 0], cmap='gray', vmin=0, vmax=1, interpolation='nearest')
            panel.set_title(title, fontsize=9.5)
            panel.axis('off')


DRAW = {
    'overview': overview,
    'unet_cifar10': lambda: unet('unet_cifar10', 've.cifar10_ncsnpp_continuous', 1.0, 0.42, 1.75),
    'unet_256': lambda: unet('unet_256', 've.ffhq_256_ncsnpp_continuous', 0.82, 0.25, 2.3),
    'schedules': schedules,
    'options': options,
    'fir': fir,
}


def main(names):
    for name in names or DRAW:
        DRAW[name]()


if __name__ == '__main__':
    main(sys.argv[1:])
