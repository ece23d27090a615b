"""Plots of reports: the points that they show."""

import json

from reports import Number, plots
from reports.report import Run


def loss(value: float, complete: bool = True) -> list[Number]:
    return [Number('loss', 'loss', value, protocol={}, n=10, counted='images', complete=complete)]


def test_the_loss_plot_has_the_means_over_the_test_set(tmp_path):
    """Each checkpoint with a complete evaluation has a dot at its step: 300 k, or the last one."""
    run = Run('run', tmp_path, tmp_path / 'eval', {1: loss(0.6), 2: loss(0.5), 3: loss(1.0, False)})
    assert plots._whole_losses(run) == []  # without a config the steps are unknown
    training = dict(snapshot_freq=300, n_iters=501)
    (tmp_path / 'config.json').write_text(json.dumps(dict(training=training)))
    assert plots._whole_losses(run) == [(300, 0.6, 10), (500, 0.5, 10)]
