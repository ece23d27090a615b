"""Draw the figures of docs/architecture.md into docs/figures.

    python docs/architecture.py                  # all figures, ten seconds
    python docs/architecture.py schedules fir    # only these figures

The figures use formulas, networks that are built without weights, and docs/architecture.json, which
benchmarks/architecture.py writes.
"""

import json
import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import sde_lib
from docs.drawing import (
    BLUE,
    CODE,
    GREEN,
    GREY,
    INK,
    PALE,
    PURPLE,
    RED,
    arrow,
    box,
    canvas,
    figure,
    label,
)
from docs.unet import unet
from models.up_or_down_sampling import downsample_2d, naive_downsample_2d

ROOT = pathlib.Path(__file__).parents[1]


# How the parts fit together -----------------------------------------------------------------------

# lower edge and height of each panel
PANELS = (
    (5.9, 1.8, GREEN, 'training'),
    (3.6, 1.75, BLUE, 'score function'),
    (0.2, 2.85, RED, 'sampling'),
)
TOP, MIDDLE, LOOP, FLOW = 6.05, 3.75, 1.5, 0.34  # lower edges of the rows of boxes
# lower edge of the formula, formula, and its name in the code below it
SDE = (
    (6.3, r'$x_t = m(t)\,x_0 + \mathrm{std}(t)\,z$', 'SDE.perturb\nSDE.marginal_prob'),
    (4.85, r'time $t \to$ label', 'SDE.network_label'),
    (4.15, r'output $\to$ score', 'SDE.score_from_output'),
    (2.5, r'$x_T \sim p_T$', 'SDE.prior_sampling'),
    (1.7, r'reverse SDE, ODE', 'SDE.reverse\nSDE.ancestral_step'),
    (0.75, r'Langevin $\alpha$', 'SDE.langevin_alpha'),
)
COLUMNS = ((3.0, 1.5), (5.0, 1.75), (7.25, 1.75), (9.5, 1.5))  # left edge, width
GAPS = ((4.5, 5.0), (6.75, 7.25), (9.0, 9.5))  # between them
# title, formula, code
TRAINING = (
    ('data', r'$x_0$', 'datasets'),
    ('perturb', r'$x_t = m x_0 + \mathrm{std}\,z$', 'SDE.perturb'),
    ('loss', r'$\|\mathrm{std}\,s + z\|^2$', 'losses.get_loss_fn'),
    ('update', 'Adam, average', 'losses.get_step_fn\nmodels.ema'),
)
SCORE = (
    (4.2, 1.6, 'label', r'$c(t)$', 'SDE.network_label'),
    (6.3, 1.75, 'network', r'$F_\theta(x, c)$', 'models.utils\n.create_model'),
    (
        8.55,
        2.45,
        'score',
        r'$s_\theta(x, t) \approx \nabla_x \log p_t(x)$',
        'SDE.score_from_output',
    ),
)
SAMPLING = (
    ('prior', r'$x_T \sim p_T$', 'SDE.prior_sampling'),
    ('corrector', r'Langevin, at $t$', 'sampling.Corrector'),
    ('predictor', r'$t \to t - T/N$', 'sampling.Predictor'),
    ('samples', r'$x_0$', 'sampling\n.get_pc_sampler'),
)
ODE = ('probability flow', 'ODE solver: samples, codes, likelihoods', 'solvers.ode.solve')


def overview():
    """Draw training, score function and sampling, with the SDE methods that each of them uses."""
    width, height = 11.4, 7.9
    with figure('overview', width, height, layout=None) as drawn:
        axes = canvas(drawn, width, height)
        for y, tall, colour, text in PANELS:
            box(axes, (2.75, y, 8.45, tall), colour, fill=0.05)
            style = dict(color=colour, weight='bold', size=10, va='center')
            axes.text(2.9, y + tall - 0.2, text, **style)
        sde_column(axes)
        training_row(axes)
        score_row(axes)
        sampling_rows(axes)
        between_rows(axes)


def sde_column(axes):
    box(axes, (0.2, 0.2, 2.05, 7.5), PURPLE)
    label(axes, 1.225, 7.35, 'SDE', weight='bold', size=13)
    label(axes, 1.225, 6.95, r'$dx = f\,dt + g\,dw$', size=11)
    for y, formula, code in SDE:
        label(axes, 1.225, y, formula, size=9.5, va='bottom')
        label(axes, 1.225, y - 0.06, code, va='top', **CODE)
    for y in (6.6, 4.45, 1.65):
        arrow(axes, (2.25, y), (2.75, y), colour=PURPLE)


def training_row(axes):
    for (x, wide), texts in zip(COLUMNS, TRAINING):
        box(axes, (x, TOP, wide, 1.15), GREEN, *texts)
    for left, right in GAPS:
        arrow(axes, (left, TOP + 0.57), (right, TOP + 0.57))
    label(axes, 7.0, TOP + 0.7, '$z$', size=9.5, va='baseline')
    label(axes, 5.875, TOP + 1.37, r'$t \sim U[\epsilon, T]$,  $z \sim N(0, I)$', size=9)


def score_row(axes):
    for x, wide, *texts in SCORE:
        box(axes, (x, MIDDLE, wide, 1.15), BLUE, *texts)
    for left, right in ((5.8, 6.3), (8.05, 8.55)):
        arrow(axes, (left, MIDDLE + 0.57), (right, MIDDLE + 0.57))
    label(axes, 3.5, MIDDLE + 0.57, 'models.utils\n.get_score_fn', **CODE)


def sampling_rows(axes):
    """Draw the predictor-corrector loop, and the probability flow ODE below it."""
    box(axes, (4.85, LOOP - 0.12, 4.3, 1.34), RED, fill=0.03)
    for (x, wide), texts in zip(COLUMNS, SAMPLING):
        box(axes, (x, LOOP, wide, 1.1), RED, *texts)
    for left, right in GAPS:
        arrow(axes, (left, LOOP + 0.65), (right, LOOP + 0.65))
    arrow(axes, (7.25, LOOP + 0.32), (6.75, LOOP + 0.32))
    label(axes, 7.0, LOOP + 0.13, r'$\times N$', size=9)
    box(axes, (5.0, FLOW, 4.0, 0.85), RED, *ODE)
    arrow(axes, (3.75, LOOP), (3.75, FLOW + 0.42), (5.0, FLOW + 0.42))
    arrow(axes, (9.0, FLOW + 0.42), (10.25, FLOW + 0.42), (10.25, LOOP))


def between_rows(axes):
    """Draw the arrows to the score function and back."""
    above, below = MIDDLE + 1.15, LOOP + 1.22
    for x, text in ((5.4, '$t$'), (6.52, '$x_t$')):
        arrow(axes, (x, TOP), (x, above), text=text, colour=GREEN, beside=(-0.2, 0))
    arrow(axes, (8.78, above), (8.78, TOP), text='$s$', colour=GREEN, beside=(0.17, 0))
    for x, text in ((5.4, '$t$'), (6.52, '$x$')):
        arrow(axes, (x, below), (x, MIDDLE), text=text, colour=RED, beside=(-0.2, 0))
    arrow(axes, (8.78, MIDDLE), (8.78, below), text='$s$', colour=RED, beside=(0.17, 0))


# Noise schedules ----------------------------------------------------------------------------------

SCHEDULES = (
    ('VE', sde_lib.VESDE(), dict(color=BLUE)),
    ('VP', sde_lib.VPSDE(), dict(color=RED)),
    ('sub-VP', sde_lib.subVPSDE(), dict(color=GREEN, linestyle='--', dashes=(5, 2))),
)


def schedules():
    """Plot mean, standard deviation and signal-to-noise ratio of the three SDEs over time."""
    t = torch.linspace(1e-5, 1, 2001, dtype=torch.float64)
    one = torch.ones(len(t), 1, dtype=torch.float64)
    with figure('schedules', 11, 3.6) as drawn:
        mean, std, snr = drawn.subplots(1, 3)
        for name, sde, style in SCHEDULES:
            m, deviation = (value.flatten().numpy() for value in sde.marginal_prob(one, t))
            for axes, values in (
                (mean, m),
                (std, deviation),
                (snr, 2 * np.log(m / deviation)),
            ):
                axes.plot(t, values, linewidth=2, label=name, **style)
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

MEASURES = {
    'parameters': 'parameters',
    'operations': 'operations',
    'kept': 'memory kept',
    'forward': 'time, forward',
    'step': 'time, step',
}
SHORTER = {
    ', training.continuous=False': '',
    ', progressive_combine=': ', ',
    'configs.vp.cifar10_ddpmpp_continuous': 'DDPM++',
    'configs.vp.ddpm.cifar10_continuous': 'DDPM',
    'baseline, once more': 'baseline against itself',
}


def options():
    """Plot size, memory and time of NCSN++ with each option, relative to the baseline."""
    report = json.loads((ROOT / 'docs' / 'architecture.json').read_text())
    rows = [row for row in report['rows'] if row['option'] != 'baseline']
    places = spaced([row['option'] for row in rows])
    with figure('options', 11, 7.6) as drawn:
        panels = drawn.subplots(1, len(MEASURES), sharey=True)
        for axes, (key, title) in zip(panels, MEASURES.items()):
            bars(axes, places, np.array([row['relative'][key] for row in rows]))
            logarithmic(axes)
            axes.set_title(title)
            axes.set_yticks(places, [shorter(row['option']) for row in rows])
            axes.set_ylim(max(places) + 0.7, min(places) - 0.7)
            axes.tick_params(axis='y', length=0)
            axes.grid(axis='y', visible=False)
        drawn.supxlabel('times the baseline (logarithmic scale)', size=10)


def spaced(options: list[str]) -> list[float]:
    """Return the positions of the bars, with a gap where the name of the option changes."""
    groups = ['config' if 'config' in name else name.partition('=')[0] for name in options]
    steps = [1.0, *(1.0 if a == b else 1.45 for a, b in zip(groups, groups[1:]))]
    return np.cumsum(steps).tolist()


def shorter(option: str) -> str:
    for long, short in SHORTER.items():
        option = option.replace(long, short)
    return option


def bars(axes, places, ratios):
    """Draw bars from 1 to each ratio; write the ratio next to the bar unless it is 1.00."""
    colours = [RED if ratio > 1 else BLUE for ratio in ratios]
    axes.barh(places, ratios - 1, left=1, height=0.72, color=colours)
    axes.axvline(1, color=INK, linewidth=1)
    style = dict(size=7.5, va='center', color=INK)
    for ratio, place in zip(ratios, places):
        if round(ratio, 2) != 1:
            beside, side = (1.04, 'left') if ratio > 1 else (0.96, 'right')
            axes.text(ratio * beside, place, f'{ratio:.2f}', ha=side, **style)


def logarithmic(axes):
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    axes.set_xscale('log', base=2)
    axes.set_xlim(0.12, 8.5)
    axes.xaxis.set_major_locator(FixedLocator([0.25, 1, 4]))
    axes.xaxis.set_minor_locator(FixedLocator([0.5, 2]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    axes.grid(axis='x', which='minor')


# The FIR filter -----------------------------------------------------------------------------------


def fir():
    """Plot the response of both filters, and rings of growing frequency that they downsample."""
    large = rings()
    images = {
        'rings, 128 pixels': large,
        'means, 64 pixels': naive_downsample_2d(large),
        '[1, 3, 3, 1], 64 pixels': downsample_2d(large, [1, 3, 3, 1]),
    }
    with figure('fir', 11, 3.5) as drawn:
        axes, *panels = drawn.subplots(1, 4, width_ratios=(1.7, 1, 1, 1))
        responses(axes)
        for panel, (title, image) in zip(panels, images.items()):
            panel.imshow(image[0, 0], cmap='gray', vmin=0, vmax=1, interpolation='nearest')
            panel.set_title(title, fontsize=9.5)
            panel.axis('off')


def rings(size: int = 128) -> torch.Tensor:
    """Make rings (1, 1, size, size) with a frequency of 0.5 cycles per pixel at the edge."""
    radius = np.hypot(*np.meshgrid(*[np.arange(size) - size / 2 + 0.5] * 2))
    phase = np.pi * radius**2 / size
    image = 0.5 + 0.5 * np.cos(phase) * (radius < size / 2)
    return torch.tensor(image, dtype=torch.float32)[None, None]


def response(taps, frequency):
    """Return |H| of a filter, scaled to sum 1, at frequencies in cycles per pixel."""
    taps = np.asarray(taps, float) / np.sum(taps)
    return np.abs(np.exp(-2j * np.pi * np.outer(frequency, np.arange(len(taps)))) @ taps)


def responses(axes):
    frequency = np.linspace(0, 0.5, 401)
    axes.axvspan(0.25, 0.5, color=PALE, zorder=0)
    label(axes, 0.375, 1.03, 'folds back', size=9, va='bottom', color=GREY)
    for taps, colour, name in (
        ([1, 1], RED, 'means, nearest: [1, 1]'),
        ([1, 3, 3, 1], BLUE, 'FIR: [1, 3, 3, 1]'),
    ):
        axes.plot(frequency, response(taps, frequency), color=colour, linewidth=2, label=name)
    ideal = dict(color=GREY, linewidth=1.2, linestyle='--', label='ideal')
    axes.plot([0, 0.25, 0.25, 0.5], [1, 1, 0, 0], **ideal)
    axes.set(xlabel='frequency, cycles per pixel of the larger map', ylabel='amplitude kept')
    axes.set(xlim=(0, 0.5), ylim=(0, 1.12))
    axes.legend(loc='lower left', fontsize=8.5)


DRAW = {
    'overview': overview,
    'unet_cifar10': lambda: unet('unet_cifar10', 've.cifar10_ncsnpp_continuous', 1.0, 0.42, 1.75),
    'unet_256': lambda: unet('unet_256', 've.ffhq_256_ncsnpp_continuous', 0.82, 0.25, 2.3),
    'schedules': schedules,
    'options': options,
    'fir': fir,
}


def main(names: list[str]) -> None:
    for name in names or DRAW:
        DRAW[name]()


if __name__ == '__main__':
    main(sys.argv[1:])
