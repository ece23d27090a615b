"""Plots of evaluations: the loss in training, metrics against checkpoints, bits/dim of images.

They are drawn from the `Run`s of `reports.report`, which are read and never computed here; curves
come from TensorBoard files. All have the style of `reports.style`.
"""

import json
import logging
import math
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reports.numbers import UNKNOWN
from reports.style import figure, legend_below, log_scale, plain
from runtime.tensorflow import stub

UNITS = {
    'loss': 'loss of an image',
    'bits/dim': 'bits per dimension',
    'frechet': 'squared distance',
    'kernel': 'squared distance',
    'coverage': 'fraction of images',
    'IS': 'score',
}
DOTS = ' Dots are means over the test set, from `--mode eval`.'
CURVES = {'training_loss': ('training set', '-'), 'eval_loss': ('test set, single batches', '--')}


def draw(runs: Sequence, output: str | os.PathLike) -> list[tuple[str, str]]:
    """Write loss.png, metrics.png and bpd.png if there is anything to show.

    Args:
        runs: `reports.report.Run`s.
        output: Folder of the pictures.

    Returns:
        (name, caption) of each picture.
    """
    labels = [(run.label,) if len(runs) > 1 else () for run in runs]  # what a label begins with
    found = [
        picture(runs, labels, pathlib.Path(output)) for picture in (draw_loss, _metrics, _bits)
    ]
    return [picture for picture in found if picture]


def curves(workdir: str | os.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read the scalars in the TensorBoard files of a work directory.

    Returns:
        {tag: (steps, values)}, {} without files.
    """
    folder = pathlib.Path(workdir, 'tensorboard')
    if not list(folder.glob('*tfevents*')):
        return {}
    logger = logging.getLogger('tensorboard')
    level = logger.level
    logger.setLevel(logging.WARNING)  # it logs every file that it opens
    try:
        # TensorBoard's own file reader: importing TensorFlow takes seconds
        with stub('tensorboard.compat.notf'):
            from tensorboard.backend.event_processing import event_accumulator

            sizes = {event_accumulator.SCALARS: 0, event_accumulator.IMAGES: 1}
            events = event_accumulator.EventAccumulator(str(folder), size_guidance=sizes)
            events.Reload()
    finally:
        logger.setLevel(level)
    found = {}
    for tag in events.Tags()['scalars']:
        scalars = events.Scalars(tag)
        steps = np.array([scalar.step for scalar in scalars])
        found[tag] = steps, np.array([scalar.value for scalar in scalars])
    return found


# The loss -----------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """A loss of one run. `to_mean`: factor to its mean over values of an image, None if unknown."""

    run: int
    tag: str
    steps: np.ndarray
    values: np.ndarray
    to_mean: float | None


def _loss_curves(runs) -> list[Curve]:
    found = []
    for i, run in enumerate(runs):
        scalars = curves(run.workdir)
        for tag in [tag for tag in CURVES if tag in scalars]:
            steps, values = scalars[tag]
            per_value = scalars.get(f'{tag}_per_value')
            to_mean = None if per_value is None else float(np.median(per_value[1] / values))
            found.append(Curve(i, tag, steps, values, to_mean))
    return found


def _common_factor(drawn: list[Curve]) -> float | None:
    """The factor from the losses to their means over values, None if it is not the same for all."""
    factors = [curve.to_mean for curve in drawn]
    if None in factors or not np.allclose(factors, factors[0], rtol=1e-4):
        return None
    return factors[0]


def draw_loss(
    runs: Sequence, labels: Sequence[tuple[str, ...]], output: pathlib.Path
) -> tuple[str, str] | None:
    """Draw training and evaluation loss against the step.

    If the files contain it, a second axis has the mean over the values of an image.
    """
    drawn = _loss_curves(runs)
    if not drawn:
        return None
    smooth = [_smooth(curve.values) for curve in drawn]
    whole = [_whole_losses(run) for run in runs]
    with figure(output / 'loss.png', 7.5, 4.5) as (_, (axes,)):
        for curve, average in zip(drawn, smooth):
            dataset, line = CURVES[curve.tag]
            colour = f'C{curve.run if len(runs) > 1 else list(CURVES).index(curve.tag)}'
            label = ', '.join((*labels[curve.run], dataset))
            axes.plot(curve.steps, curve.values, color=colour, alpha=0.2, linewidth=0.8)
            axes.plot(curve.steps, average, line, color=colour, label=label)
        for i, points in enumerate(whole):
            if points:
                colour = f'C{i if len(runs) > 1 else len(CURVES) - 1}'
                n = max(n for _, _, n in points)
                label = ', '.join((*labels[i], f'test set, mean of {n} images'))
                steps, values, _ = zip(*points)
                axes.plot(steps, values, 'o', color=colour, markersize=7, zorder=3, label=label)
        log_scale(axes, np.concatenate(smooth), 4)
        axes.set(title='Loss in training', xlabel='training step')
        _label_loss(axes, _common_factor(drawn))
        axes.legend()
    return 'loss.png', (
        'Loss against the training step, from the TensorBoard files. Pale lines are single '
        'batches, the others moving averages over 5% of the points. The test loss is that of the '
        'EMA weights.' + (DOTS if any(whole) else '')
    )


def _whole_losses(run) -> list[tuple[int, float, int]]:
    """Return (step, loss, number of images) for each checkpoint with a complete test loss.

    Steps follow from the config in the work directory. Without one there are none.
    """
    path = run.workdir / 'config.json'
    if not path.is_file():
        return []
    settings = json.loads(path.read_text())['training']
    every, last = settings['snapshot_freq'], settings['n_iters'] - 1
    return [
        (min(checkpoint * every, last), number.value, number.n)
        for checkpoint, numbers in run.numbers.items()
        for number in numbers
        if number.kind == 'loss' and number.complete and number.n != UNKNOWN
    ]


def _label_loss(axes, factor: float | None):
    """Name the loss, and add an axis of its mean over values where that is another number."""
    if factor is None:
        axes.set_ylabel(UNITS['loss'])
        return
    if math.isclose(factor, 1, rel_tol=1e-4):
        axes.set_ylabel('loss: mean over the values of an image')
        return
    axes.set_ylabel('loss: half the sum over the values of an image')
    right = axes.secondary_yaxis(
        'right', functions=(lambda loss: loss * factor, lambda mean: mean / factor)
    )
    right.set_ylabel('mean over the values of an image')
    right.yaxis.set_major_formatter(plain)
    right.yaxis.set_minor_formatter(plain)


def _smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Exponential moving average over a share of the values, without bias at the start.

    Values that are not finite are left out.
    """
    decay = 1 - 1 / max(1.0, share * len(values))
    total = weight = 0.0
    smooth = []
    for value in values:
        if math.isfinite(value):
            total = decay * total + (1 - decay) * value
            weight = decay * weight + 1 - decay
        smooth.append(total / weight if weight else math.nan)
    return np.array(smooth)


# Metrics ------------------------------------------------------------------------------------------


def _panels(runs) -> dict:
    """{(kind, quantity): {(run, real): [(checkpoint, value, error), ...]}}."""
    panels = {}
    for i, run in enumerate(runs):
        for checkpoint, numbers in run.numbers.items():
            for number in numbers:
                if number.kind in UNITS:
                    panel = panels.setdefault((number.kind, number.quantity), {})
                    point = checkpoint, number.value, number.error or 0
                    panel.setdefault((i, number.real), []).append(point)
    return panels


def _metrics(runs, labels, output):
    """Draw every metric against the checkpoint, if there is more than one."""
    panels = _panels(runs)
    if not panels or max(len(run.numbers) for run in runs) < 2:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = 3.6 * columns, 2.9 * rows + 0.3
    with figure(output / 'metrics.png', *size, rows, columns) as (drawn, grid):
        for ((kind, quantity), panel), axes in zip(panels.items(), grid):
            axes.set(title=quantity, xlabel='checkpoint', ylabel=UNITS[kind])
            _draw_panel(axes, kind, panel, labels)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        legend_below(drawn, grid, 4, least=2)
    return 'metrics.png', (
        'Every metric against the number of the checkpoint, with errors as bars; n and seed are '
        'those of the tables. Dashed: the same metric between real images.'
    )


def _draw_panel(axes, kind: str, panel: dict, labels):
    """Draw one metric of all runs."""
    from matplotlib.ticker import MaxNLocator

    for (i, real), points in panel.items():
        checkpoints, values, errors = np.array(points).T
        label = ', '.join((*labels[i], 'real to real' if real else 'model'))
        if real:
            axes.plot(checkpoints, values, '--', color=f'C{i}', alpha=0.6, label=label)
        else:
            axes.errorbar(checkpoints, values, errors, fmt='o-', color=f'C{i}', label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if kind == 'frechet':
        log_scale(axes, np.concatenate([np.array(points)[:, 1] for points in panel.values()]), 10)


# Bits/dim -----------------------------------------------------------------------------------------


def _bits(runs, labels, output):
    """Draw histograms of bits/dim over images, of the newest checkpoint of each run."""
    found = {}  # later checkpoints replace earlier ones
    for i, run in enumerate(runs):
        for checkpoint, numbers in run.numbers.items():
            for number in numbers:
                if number.kind == 'bits/dim':
                    found[i, number.quantity] = checkpoint, number
    parts = [number.parts[np.isfinite(number.parts)] for _, number in found.values()]
    if not sum(map(len, parts)):
        return None
    values = np.concatenate(parts)
    bins = min(60, max(10, 1.5 * (len(values) / len(found)) ** 0.5))
    edges = np.histogram_bin_edges(values, bins=int(bins))
    with figure(output / 'bpd.png', 7.5, 4.2) as (drawn, (axes,)):
        for k, ((i, _), (checkpoint, number)) in enumerate(found.items()):
            share = np.full(number.n, 1 / number.n)
            axes.hist(number.parts, edges, weights=share, color=f'C{k}', alpha=0.35)
            axes.hist(number.parts, edges, weights=share, color=f'C{k}', histtype='step')
            words = (
                *labels[i],
                f'checkpoint {checkpoint}',
                number.reference,
                f'n = {number.n}: mean {number.text()}',
            )
            axes.axvline(number.value, color=f'C{k}', linestyle='--', label=', '.join(words))
        width = f'{edges[1] - edges[0]:.2g}'
        axes.set(
            title='Bits/dim of single images',
            xlabel='bits/dim of an image',
            ylabel=f'fraction of images per {width} bits/dim',
        )
        legend_below(drawn, [axes], 1)
    return 'bpd.png', (
        'Bits/dim of single images at the newest checkpoint that has them. Dashed: the mean, with '
        'its standard error.'
    )


# Solvers ------------------------------------------------------------------------------------------


def quality(rows: list[dict], path: str | os.PathLike) -> None:
    """Draw distance against network evaluations, a panel for each target.

    Values above twenty times the least distance are outside of the panel.

    Args:
        rows: Rows of one SDE from benchmarks/quality.py.
        path: The PNG file.
    """
    targets = list(dict.fromkeys(row['target'] for row in rows))
    solvers = dict.fromkeys(row['solver'] for row in rows if row['solver'] != 'exact')
    with figure(path, 5.6 * len(targets), 6.0, 1, len(targets)) as (drawn, panels):
        for target, axes in zip(targets, panels):
            _draw_target(axes, [row for row in rows if row['target'] == target], list(solvers))
        legend_below(drawn, panels, 2 * len(targets))


def _draw_target(axes, rows: list[dict], solvers: list[str]):
    """Draw the solvers on one target: a colour for each solver, dashes for variants of it."""
    from matplotlib.ticker import LogLocator, NullFormatter

    bases = list(dict.fromkeys(solver.partition(', ')[0] for solver in solvers))
    for i, solver in enumerate(solvers):
        own = [row for row in rows if row['solver'] == solver and math.isfinite(row['distance'])]
        if not own:
            continue
        base, _, variant = solver.partition(', ')
        points = sorted((row['nfe'], row['distance'], row['spread']) for row in own)
        axes.errorbar(
            *zip(*points),
            color=f'C{bases.index(base)}',
            linestyle='--' if variant else '-',
            marker='os^vD'[i % 5],
            label=solver,
        )
    exact = next((row['distance'] for row in rows if row['solver'] == 'exact'), None)
    if exact is not None:
        axes.axhline(exact, color='black', linewidth=1, label='exact')
    best = min(row['distance'] for row in rows)
    n = max(row['n'] for row in rows if row['solver'] != 'exact')
    axes.set(
        title=f'{rows[0]["target"]}, n = {n}',
        xscale='log',
        yscale='log',
        xlabel='network evaluations',
        ylabel=rows[0]['unit'],
        ylim=(0.7 * best, 20 * best),
    )
    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
