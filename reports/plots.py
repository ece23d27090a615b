"""Pictures of evaluations: the loss of training, every metric against the checkpoint, and bits/dim
of single images.

Drawn from the runs and numbers of reports.reports, which are read here and never computed; curves
come from the TensorBoard files.
"""

import contextlib
import logging
import math
import pathlib

import numpy as np

from runtime.tensorflow import stand_in

UNITS = {
    'loss': 'loss of an image',
    'bits/dim': 'bits per dimension',
    'frechet': 'squared distance',
    'kernel': 'squared distance',
    'coverage': 'fraction of images',
    'IS': 'score',
}
CURVES = {'training_loss': ('training set', '-'), 'eval_loss': ('test set', '--')}


def draw(runs, output) -> list[tuple[str, str]]:
    """Writes loss.png, metrics.png and bpd.png into the folder `output`, as far as there is
    anything to show: their names and captions.
    """
    names = [(run.label,) if len(runs) > 1 else () for run in runs]  # what a label begins with
    found = [picture(runs, names, pathlib.Path(output)) for picture in (_losses, _metrics, _bits)]
    return [picture for picture in found if picture]


def curves(workdir) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{tag: (steps, values)} of the scalars in the TensorBoard files of a work directory; {} where
    there are none.
    """
    folder = pathlib.Path(workdir, 'tensorboard')
    if not list(folder.glob('*tfevents*')):
        return {}
    logger = logging.getLogger('tensorboard')
    level = logger.level
    logger.setLevel(logging.WARNING)  # it logs every file that it opens
    try:
        # TensorBoard's own file reader: importing TensorFlow takes seconds
        with stand_in('tensorboard.compat.notf'):
            from tensorboard.backend.event_processing import event_accumulator

            sizes = {event_accumulator.SCALARS: 0, event_accumulator.IMAGES: 1}
            events = event_accumulator.EventAccumulator(str(folder), size_guidance=sizes)
            events.Reload()
    finally:
        logger.setLevel(level)
    return {
        tag: tuple(
            np.array(column)
            for column in zip(*((scalar.step, scalar.value) for scalar in events.Scalars(tag)))
        )
        for tag in events.Tags()['scalars']
    }


@contextlib.contextmanager
def _figure(path, width: float, height: float, rows: int = 1, columns: int = 1):
    """A figure without a window, its size in inches, and its axes; written to `path` at the end of
    the block.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {
            'font.size': 11,
            'axes.spines.top': False,
            'axes.spines.right': False,
            'axes.grid': True,
            'grid.alpha': 0.3,
            'legend.frameon': False,
            'legend.fontsize': 10,
        }
    ):
        figure = Figure((width, height), dpi=120, layout='constrained')
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
        yield figure, figure.subplots(rows, columns, squeeze=False).ravel()
        figure.savefig(path)


def _log_scale(axes, values, ratio: float):
    """Makes the vertical axis logarithmic, with plain numbers, where positive values differ by more
    than `ratio`.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > ratio * values.min():
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if values.max() < 100 * values.min() else (1,))
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """The exponential moving average over about `share` of the values, without bias at the start;
    what is not finite is passed over.
    """
    decay = 1 - 1 / max(1.0, share * len(values))
    total = weight = 0.0
    smooth = []
    for value in values:
        if math.isfinite(value):
            total, weight = decay * total + (1 - decay) * value, decay * weight + 1 - decay
        smooth.append(total / weight if weight else math.nan)
    return np.array(smooth)


def _losses(runs, names, output):
    """Training and evaluation loss against the step: of an image, and its mean over the values of
    an image where runs tell it.
    """
    drawn, to_mean = [], []
    for i, run in enumerate(runs):
        found = curves(run.workdir)
        for tag in [tag for tag in CURVES if tag in found]:
            drawn.append((i, tag, *found[tag]))
            if f'{tag}_per_value' in found:
                to_mean.append(float(np.median(found[f'{tag}_per_value'][1] / found[tag][1])))
    if not drawn:
        return None
    factor = (
        to_mean[0]
        if len(to_mean) == len(drawn) and np.allclose(to_mean, to_mean[0], rtol=1e-4)
        else None
    )
    with _figure(output / 'loss.png', 7.5, 4.5) as (_, (axes,)):
        for i, tag, steps, values in drawn:
            colour, (dataset, line) = (
                f'C{i if len(runs) > 1 else list(CURVES).index(tag)}',
                CURVES[tag],
            )
            axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
            axes.plot(
                steps,
                _smooth(values),
                line,
                color=colour,
                linewidth=1.6,
                label=', '.join((*names[i], dataset)),
            )
        _log_scale(axes, np.concatenate([_smooth(values) for *_, values in drawn]), 4)
        axes.set_xlabel('training step')
        if factor is None or math.isclose(factor, 1, rel_tol=1e-4):
            axes.set_ylabel(
                'loss of an image' if factor is None else 'loss: mean over the values of an image'
            )
        else:
            axes.set_ylabel('loss: half the sum over the values of an image')
            right = axes.secondary_yaxis(
                'right', functions=(lambda loss: loss * factor, lambda mean: mean / factor)
            )
            right.set_ylabel('mean over the values of an image')
            right.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
            right.yaxis.set_minor_formatter(lambda value, _: f'{value:g}')
        axes.legend()
    return 'loss.png', (
        'Loss against the training step, from the TensorBoard files. Each point is '
        'of one batch; lines are moving averages '
        'over 5% of the points, which stand behind them. On the test set the '
        'weights are averaged.'
    )


def _metrics(runs, names, output):
    """Every metric against the checkpoint, where there is more than one."""
    from matplotlib.ticker import MaxNLocator

    panels = {}
    for i, run in enumerate(runs):
        for checkpoint, numbers in run.numbers.items():
            for number in numbers:
                if number.kind in UNITS:
                    panel = panels.setdefault((number.kind, number.quantity), {})
                    panel.setdefault((i, number.real), []).append(
                        (checkpoint, number.value, number.error or 0)
                    )
    if not panels or max(len(run.numbers) for run in runs) < 2:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with _figure(output / 'metrics.png', 3.6 * columns, 2.9 * rows + 0.3, rows, columns) as (
        figure,
        grid,
    ):
        for ((kind, quantity), panel), axes in zip(panels.items(), grid):
            for (i, real), points in panel.items():
                checkpoints, values, errors = zip(*points)
                axes.errorbar(
                    checkpoints,
                    values,
                    None if real else errors,
                    fmt='--' if real else 'o-',
                    color=f'C{i}',
                    capsize=2,
                    alpha=0.6 if real else 1,
                    markersize=4,
                    linewidth=1.2,
                    label=', '.join((*names[i], 'real to real' if real else 'model')),
                )
            axes.set_title(quantity, fontsize=11)
            axes.set_xlabel('checkpoint')
            axes.set_ylabel(UNITS[kind])
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            if kind == 'frechet':
                _log_scale(
                    axes,
                    np.array([value for points in panel.values() for _, value, _ in points]),
                    10,
                )
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        handles = {
            label: handle
            for axes in grid
            for handle, label in zip(*axes.get_legend_handles_labels())
        }
        if len(handles) > 1:
            figure.legend(
                handles.values(), handles, loc='outside lower center', ncols=min(4, len(handles))
            )
    return 'metrics.png', (
        'Every metric against the number of the checkpoint; n, seed and errors '
        '(bars) as in the tables. Dashed: the '
        'same metric between real images.'
    )


def _bits(runs, names, output):
    """Histograms of bits/dim over images, of the newest checkpoint of each run."""
    found = {
        (i, number.quantity): (checkpoint, number)
        for i, run in enumerate(runs)
        for checkpoint, numbers in run.numbers.items()
        # later checkpoints take the place of earlier ones
        for number in numbers
        if number.kind == 'bits/dim'
    }
    values = np.concatenate(
        [number.parts[np.isfinite(number.parts)] for _, number in found.values()] or [[]]
    )
    if not len(values):
        return None
    edges = np.histogram_bin_edges(
        values, bins=int(min(60, max(10, 1.5 * (len(values) / len(found)) ** 0.5)))
    )
    with _figure(output / 'bpd.png', 7.5, 4.2) as (figure, (axes,)):
        for k, ((i, _), (checkpoint, number)) in enumerate(found.items()):
            share = np.full(number.n, 1 / number.n)
            axes.hist(number.parts, edges, weights=share, color=f'C{k}', alpha=0.35)
            axes.hist(number.parts, edges, weights=share, color=f'C{k}', histtype='step')
            axes.axvline(
                number.value,
                color=f'C{k}',
                linestyle='--',
                linewidth=1.5,
                label=', '.join(
                    (
                        *names[i],
                        f'checkpoint {checkpoint}',
                        number.reference,
                        f'n = {number.n}: mean {number.text()}',
                    )
                ),
            )
        axes.set_xlabel('bits/dim of an image')
        axes.set_ylabel(f'fraction of images per {edges[1] - edges[0]:.2g} bits/dim')
        figure.legend(loc='outside upper center')
    return (
        'bpd.png',
        'Bits/dim of single images, at the newest checkpoint that has them; dashed: the mean, with '
        'its standard error.',
    )


def quality(rows: list[dict], path):
    """Distance against evaluations, a panel for each target, of the rows of one SDE that
    benchmarks/quality.py made, to the file `path`.

    What is more than twenty times the least distance lies beyond the panel.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    targets = list(dict.fromkeys(row['target'] for row in rows))
    solvers = [
        solver for solver in dict.fromkeys(row['solver'] for row in rows) if solver != 'exact'
    ]
    bases = list(dict.fromkeys(solver.partition(', ')[0] for solver in solvers))
    with _figure(path, 5.6 * len(targets), 6.0, 1, len(targets)) as (figure, panels):
        for target, axes in zip(targets, panels):
            here = [row for row in rows if row['target'] == target]
            for i, solver in enumerate(solvers):
                own = [
                    row
                    for row in here
                    if row['solver'] == solver and math.isfinite(row['distance'])
                ]
                if own:
                    base, _, variant = solver.partition(', ')
                    axes.errorbar(
                        *zip(*sorted((row['nfe'], row['distance'], row['spread']) for row in own)),
                        color=f'C{bases.index(base)}',
                        linestyle='--' if variant else '-',
                        marker='os^vD'[i % 5],
                        markersize=4,
                        linewidth=1.2,
                        label=solver,
                    )
            exact = next((row['distance'] for row in here if row['solver'] == 'exact'), None)
            if exact is not None:
                axes.axhline(exact, color='black', linewidth=1, label='exact')
            best = min(row['distance'] for row in here)
            axes.set(
                xscale='log',
                yscale='log',
                xlabel='network evaluations',
                ylabel=here[0]['unit'],
                ylim=(0.7 * best, 20 * best),
            )
            axes.set_title(
                f'{target}, n = {max(row["n"] for row in here if row["solver"] != "exact")}',
                fontsize=11,
            )
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        handles = {
            label: handle
            for axes in panels
            for handle, label in zip(*axes.get_legend_handles_labels())
        }
        figure.legend(handles.values(), handles, loc='outside lower center', ncols=2 * len(targets))
