"""Progress of long loops: a bar on a terminal, log lines otherwise; and the log of training."""

import io
import re
import sys
import types

import numpy as np
import pytest
import torch

import run_lib
import sampling
import sde_lib
from commands import control, drawing, training_log
from conftest import load_config
from models.score import Score
from reports import plots
from runtime import progress
from runtime.progress import duration
from score_model import ScoreModel


def config_for(module='configs.vp.digits_ddpmpp_continuous', **model):
    config = load_config(
        module, **dict(nf=8, num_res_blocks=1, num_scales=25, init_scale=0.5) | model
    )
    config.training.update(
        batch_size=8,
        n_iters=3,
        snapshot_freq=2,
        snapshot_freq_for_preemption=2,
        log_freq=1,
        eval_freq=2,
        snapshot_sampling=False,
    )
    config.eval.update(
        begin_ckpt=1,
        end_ckpt=1,
        batch_size=180,
        num_samples=8,
        enable_loss=False,
        enable_sampling=False,
        bpd_repeats=1,
        bpd_rtol=0.1,
        bpd_atol=0.1,
        metrics_backend='none',
    )
    return config


@pytest.mark.parametrize(
    'seconds, text',
    [
        (0.4, '0 s'),
        (45, '45 s'),
        (60, '1 min 0 s'),
        (200, '3 min 20 s'),
        (7500, '2 h 5 min'),
        (4 * 86400 + 3 * 3600 + 59, '4 d 3 h'),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_log_line_every_thirty_seconds(monkeypatch, caplog):
    """A line has the items done, the total and the time left, estimated from the items so far."""
    now = [100.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])

    def items():
        for i in range(50):
            now[0] += 7
            yield i

    with caplog.at_level('INFO', logger='absl'):
        assert list(progress.progress(items(), 'sampling', 50, 'batch')) == [*range(50)]
    assert len(caplog.messages) == 350 // 35
    assert caplog.messages[:2] == [
        'Reached batch 5 of 50 in sampling, 5 min 15 s left.',
        'Reached batch 10 of 50 in sampling, 4 min 40 s left.',
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal(monkeypatch, caplog):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    monkeypatch.setattr(progress, 'BAR_SECONDS', 0.0)
    config = config_for()
    config.sampling.method = 'pc'
    with caplog.at_level('INFO', logger='absl'):
        drawing.draw(ScoreModel.from_config(config), ('x',), 0, 2)
    shown = sys.stderr.getvalue()
    assert (
        all(text in shown for text in ('drawing samples 1 to 2', ' 0/25', ' 12/25', ' 24/25'))
        and 'Reached' not in caplog.text
    )


METHODS = {'pc': 24, 'heun': 17, 'dpmpp_2m': None, 'ode': None, 'adaptive': None}


@pytest.mark.parametrize(
    'module', ['configs.vp.digits_ddpmpp_continuous', 'configs.ve.digits_ncsnpp_continuous']
)
@pytest.mark.parametrize('method', METHODS)
def test_sampling_is_logged(monkeypatch, caplog, method, module):
    """Progress counts steps up to the last one; adaptive solvers count network evaluations.

    At the end, the estimated total of evaluations is right up to 30 %.
    """
    monkeypatch.setattr(progress, 'LOG_SECONDS', 0.0)
    config = config_for(module)
    config.sampling.method = method
    model = ScoreModel.from_config(config)
    with caplog.at_level('INFO', logger='absl'):
        nfe = drawing.draw(model, ('x',), 0, 2)['nfe']
    lines = [
        re.fullmatch(r'Reached (.+) (\d+) of (about )?(.+) in drawing samples 1 to 2, (.+)\.', line)
        for line in caplog.messages
        if line.startswith('Reached')
    ]
    assert all(lines) and len(lines) == nfe
    units, numbers, totals = (
        {line[1] for line in lines},
        [int(line[2]) for line in lines],
        [line[4] for line in lines],
    )
    assert numbers == sorted(numbers) and ' left' in lines[-1][5]
    if method in ('ode', 'adaptive'):
        assert (
            units == {'network evaluation'}
            and numbers[-1] == nfe
            and 0.8 * nfe < int(totals[-1]) < 1.3 * nfe
        )
    else:
        assert (
            units == {'step'}
            and len(set(totals)) == 1
            and int(totals[0]) - 1 <= numbers[-1] <= int(totals[0])
        )
        assert METHODS[method] is None or numbers[-1] == METHODS[method]


def test_discrete_labels_count_too(monkeypatch, caplog):
    """Sampling from a discrete network with fewer steps than noise levels is logged too."""
    monkeypatch.setattr(progress, 'LOG_SECONDS', 0.0)
    network = torch.nn.Module()
    network.sigmas, network.forward = torch.linspace(50, 0.01, 100), lambda x, labels: -x
    model, options = (
        Score(network, sde_lib.VESDE(N=10), continuous=False),
        sampling.Options(method='pc', predictor='reverse_diffusion'),
    )
    with (
        caplog.at_level('INFO', logger='absl'),
        drawing.shown_evaluations(model, 'drawing', sampling.times_of(model.sde, options)),
    ):
        sampling.sample(model, (2, 1), options)
    assert [int(line.split()[2]) for line in caplog.messages] == pytest.approx([*range(10)], abs=1)


def test_likelihoods_and_codes_are_logged(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(progress, 'LOG_SECONDS', 0.0)
    config = config_for()
    run_lib.train(config, tmp_path)
    config.control.update(images=2, rtol=0.1, atol=0.1)
    config.eval.update(batch_size=10, most_images=20)
    with caplog.at_level('INFO', logger='absl'):
        run_lib.evaluate(config, tmp_path)
        control.control(config, tmp_path, 'reconstruct')
        config.sampling.method = 'heun'
        control.control(config, tmp_path, 'reconstruct')
        control.control(config, tmp_path, 'inpaint', mask='left')
    for text in (
        r'network evaluation \d+ of about \d+ in computing likelihoods, batch 2 of 2, \d+ '
        r's left',
        r'network evaluation \d+ of about \d+ in encoding 2 images, batch 1 of 1, \d+ s '
        r'left',
        r'step 18 of 18 in encoding 2 images, batch 1 of 1',
        r'step 18 of 18 in decoding '
        r'2 images, batch 1 of 1',
        r'step 17 of 17 in drawing \d+ images',
    ):
        assert re.search('Reached ' + text, caplog.text), text


@pytest.mark.parametrize('reduce_mean', [False, True])
def test_training_logs_facts_and_progress(tmp_path, caplog, reduce_mean):
    """The log has a block of facts, then lines with loss, its meaning, steps, total and time left.

    The lines also contain the mean of the loss per value.
    """
    config = config_for()
    config.training.reduce_mean = reduce_mean
    with caplog.at_level('INFO', logger='absl'):
        run_lib.train(config, tmp_path)
    (facts,) = [message for message in caplog.messages if message.startswith('Started training:')]
    parameters = sum(
        parameter.numel() for parameter in run_lib.create_state(config)['model'].parameters()
    )
    for text in (
        'cpu, processes: 1',
        'float32',
        f'ncsnpp, {parameters:,} parameters',
        'VPSDE(beta_min=0.1, beta_max=20.0, N=25), continuous time',
        'DIGITS, 8x8 pixels, channels: 1, 1438 training and 359 test images',
        '0 to 3, batch size 8, learning rate 0.002',
        'every 2 steps',
        str(tmp_path),
        'mean over 64 values' if reduce_mean else 'half the sum over 64 values',
    ):
        assert text in facts, text
    lines = [
        re.fullmatch(
            r'step: (\d+), training_loss: (\S+) \((.+)\), per value: (\S+), '
            r'images/s: \d+, (\d+) of 3 steps(, \d+ s left)?',
            line,
        )
        for line in caplog.messages
        if 'training_loss' in line
    ]
    assert [(int(line[1]), int(line[5]), bool(line[6])) for line in lines] == [
        (0, 1, False),
        (1, 2, True),
        (2, 3, True),
    ]
    found = plots.curves(tmp_path)
    for line in lines:
        loss, mean = float(line[2]), float(line[4])
        assert mean == pytest.approx(loss * (1 if reduce_mean else 2 / 64), abs=1e-5)
        assert line[3] == ('mean' if reduce_mean else 'half the sum') + ' over 64 values'
    for tag in ('training_loss', 'eval_loss'):
        np.testing.assert_allclose(
            found[f'{tag}_per_value'][1], found[tag][1] * (1 if reduce_mean else 2 / 64), rtol=1e-6
        )
    assert 'eval_loss' in caplog.text and caplog.text.count('per value') == 3 + 2


def test_the_mean_per_value_is_drawn(tmp_path, monkeypatch):
    """The mean per value has a second axis, unless its factor to the sum differs between runs."""
    from matplotlib.axes import Axes

    axes = []
    secondary = Axes.secondary_yaxis
    monkeypatch.setattr(
        Axes,
        'secondary_yaxis',
        lambda *arguments, **settings: axes.append(secondary(*arguments, **settings)) or axes[-1],
    )
    for name, meaning in (
        ('sum', training_log.LossMeaning('half', 2 / 64)),
        ('mean', training_log.LossMeaning('mean', 1.0)),
    ):
        with training_log.tensorboard(tmp_path / name, 0) as writer:
            for step in range(5):
                training_log.write(writer, step, **meaning.scalars('training_loss', 32.0 - step))
    runs = [types.SimpleNamespace(workdir=tmp_path / name, label=name) for name in ('sum', 'mean')]
    for chosen, number in ((runs[:1], 1), (runs[1:], 0), (runs, 0)):
        axes.clear()
        assert plots.draw_loss(chosen, [(run.label,) for run in chosen], tmp_path)
        assert len(axes) == number
        if axes:
            assert axes[0].get_ylabel() == 'mean over the values of an image'
            np.testing.assert_allclose(axes[0]._functions[0](32.0), 1.0)
