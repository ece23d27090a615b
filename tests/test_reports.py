"""Reports on evaluation folders made by hand: the numbers of the files, and their origin."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

import reports
from conftest import ROOT
from reports import results
from reports.__main__ import main

BASE = dict(
    checkpoint='checkpoint_1.pth',
    weights='0123456789abcdef',
    seed=7,
    device='cpu',
    training=dict(sde='vpsde', continuous=True),
    model=dict(name='ncsnpp', ema_rate=0.999, num_scales=25),
    data=dict(dataset='CIFAR10', image_size=8, num_channels=3),
)
SAMPLING = dict(
    method='pc',
    predictor='reverse_diffusion',
    corrector='langevin',
    snr=0.16,
    n_steps_each=1,
    steps=0,
    noise_removal=True,
)
TFGAN = dict(backend='tfgan', extractor='Inception (2015)', feature='pool_3', input='[-1, 1]')
FIDELITY = dict(
    backend='torch_fidelity', extractor='inception-v3-compat', feature='2048', input='RGB'
)
PIXELS = dict(backend='pixels', extractor='none', feature='pixels', input='pixels divided by 255')
IMAGES = dict(dataset='CIFAR10', split='test', image_size=8, num_channels=3)


def write_metrics(
    folder,
    checkpoint=1,
    n=50000,
    n_reference=50000,
    extractor=TFGAN,
    dimensions=2048,
    error_blocks=49,
    **arrays,
):
    reference = dict(
        data=IMAGES | dict(split='train'),
        n=n_reference,
        dimensions=dimensions,
        file='cifar10_stats.npz',
    )
    protocol = BASE | dict(
        part='metrics', sampling=SAMPLING, extractor=extractor, num_samples=n, reference=reference
    )
    results.save(
        folder / f'report_{checkpoint}.npz',
        protocol,
        **dict(
            fid=2.34123456,
            kid=0.001234,
            kid_error=0.000123,
            kid_blocks=error_blocks,
            kid_error_blocks=error_blocks,
            precision=0.75,
            recall=0.625,
            IS=9.875,
            IS_std=0.0,
            IS_splits=1,
            n_samples=n,
            n_reference=n_reference,
            nfe=2000.0,
        )
        | arrays,
    )


def write_samples(folder):
    for r, size in enumerate((5, 3)):
        protocol = BASE | dict(sampling=SAMPLING, batch=r, size=size)
        results.save(
            folder / 'ckpt_1' / f'samples_{r}.npz',
            protocol,
            samples=np.full((size, 8, 8, 3), 99, np.uint8),
            nfe=50,
        )


def write_loss(folder, checkpoint=1, complete=True, **protocol):
    results.save(
        folder / f'ckpt_{checkpoint}_loss.npz',
        BASE | dict(part='loss', images=IMAGES, reduce_mean=True) | protocol,
        all_losses=np.array([0.5, 1.0]),
        batch_sizes=np.array([8, 2]),
        **(dict(mean_loss=0.6) if complete else {}),
    )


def write_bits(folder, values, **protocol):
    """Write bits/dim `values` (passes, batches, images); a batch of None is not written."""
    for k, (repeat, batch) in enumerate(np.ndindex(len(values), len(values[0]))):
        if values[repeat][batch] is not None:
            results.save(
                folder / f'test_ckpt_1_bpd_{k}.npz',
                BASE
                | dict(
                    part='bpd',
                    images=IMAGES,
                    batch_size=8,
                    rtol=1e-5,
                    atol=1e-5,
                    probes=1,
                    repeat=repeat,
                    batch=batch,
                )
                | protocol,
                bpd=np.array(values[repeat][batch], np.float32),
                nfe=40 + repeat,
                files=len(values) * len(values[0]),
            )


def rows_of(folder) -> dict:
    return {row[0]: row[1:] for row in reports.evaluation_rows(folder, 1)}


def summary(output) -> dict:
    with open(output / 'summary.csv', newline='') as file:
        return {row['quantity']: row for row in csv.DictReader(file)}


def test_numbers_equal_those_of_the_files(tmp_path):
    folder, values = tmp_path / 'run' / 'eval', np.random.default_rng(0).normal(3, 0.2, (2, 2, 600))
    write_metrics(folder, floor_fid=1.25, floor_n_samples=10000, floor_n_reference=50000)
    write_samples(folder)
    write_loss(folder)
    write_bits(folder, values)
    report, found = (
        reports.write([tmp_path / 'run'], tmp_path / 'out').read_text(),
        summary(tmp_path / 'out'),
    )
    # the mean over both passes, for each image
    images = values.astype(np.float32).astype(float).mean(0).ravel()
    assert {name: float(row['value']) for name, row in found.items()} == {
        'loss': 0.6,
        'bits/dim': pytest.approx(images.mean(), rel=1e-12),
        'FID': 2.34123456,
        'FID, real to real': 1.25,
        'KID': 0.001234,
        'precision': 0.75,
        'recall': 0.625,
        'IS': 9.875,
    }
    assert float(found['bits/dim']['error']) == pytest.approx(
        images.std(ddof=1) / 1200**0.5, rel=1e-12
    )
    assert ';'.join([*found['FID'].values()][:3] + [*found['FID'].values()][5:-2]) == (
        'run;1;FID;50000;training images of CIFAR10;50000;7;pc reverse_diffusion + '
        'langevin;2000;tfgan;Inception (2015);pool_3'
    )
    assert (
        '| FID | 2.341 | 50000 samples | 50000 training images of CIFAR10 | pc '
        'reverse_diffusion + langevin | 2000 | '
        'tfgan Inception (2015) pool_3 | 7 |'
    ) in report
    assert (
        f'± {images.std(ddof=1) / 1200**0.5:.4f} | 1200 images | test set of CIFAR10 | - | 40.5 | '
        '- | 7 |' in report
    )
    assert '| KID | 0.00123 ± 0.00012 |' in report and str(tmp_path) not in report
    assert rows_of(folder)['FID'] == (
        '2.3412',
        '50000 samples to 50000 training images of '
        'CIFAR10; tfgan Inception (2015) pool_3; '
        'pc reverse_diffusion + langevin; 2000 evaluations',
    )
    assert all(
        f']({name})' in report and (tmp_path / 'out' / name).stat().st_size
        for name in ('bpd.png', 'samples_run_1.png')
    )
    # without TensorBoard files and with one checkpoint there are no such plots
    assert 'loss.png' not in report and 'metrics.png' not in report


@pytest.mark.parametrize(
    'extractor, space',
    [
        (TFGAN, ''),
        (FIDELITY, ''),
        (PIXELS, 'pixels'),
        (FIDELITY | dict(feature='768'), '768'),
        (TFGAN | dict(extractor='Inception V3'), 'Inception V3'),
        (FIDELITY | dict(extractor='vgg16', feature='fc2_relu'), 'vgg16'),
    ],
)
def test_only_the_inception_features_of_2015_give_an_fid(tmp_path, extractor, space):
    write_metrics(tmp_path, extractor=extractor)
    assert [*rows_of(tmp_path)][:2] == (
        [f'Frechet distance, {space}', f'kernel distance, {space}'] if space else ['FID', 'KID']
    )


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(), []),
        (dict(floor_fid=1.0, floor_n_samples=10), []),
        (
            dict(n_reference=9999),
            ['9999 reference images (< 10000): comparable only with values for the same n'],
        ),
        (dict(n=20000), ['20000 samples (< 50000): comparable only with values for the same n']),
        (dict(error_blocks=9), ['9 blocks (< 10): the standard error']),
        (
            dict(extractor=PIXELS, dimensions=10000, n=10000),
            ['10000 samples (< 10001): the covariance matrix'],
        ),
        (
            dict(n=999, dimensions=900),
            [
                '999 samples (< 50000)',
                '999 samples (< 1000): the standard error',
                '999 samples (< 1000): comparable only with values for the same n',
                '(< 5000)',
            ],
        ),
    ],
)
def test_warnings_depend_on_the_settings(tmp_path, settings, words):
    write_metrics(tmp_path, **settings)
    write_bits(tmp_path, np.ones((1, 1, 1000)))  # a sufficient number of images
    found = [row[2] for row in reports.evaluation_rows(tmp_path, 1) if not row[0]]
    assert len(found) == len(words) and all(
        word in sentence for word, sentence in zip(words, found)
    ), found


def test_an_incomplete_evaluation_is_marked(tmp_path):
    write_loss(tmp_path, complete=False)
    write_samples(tmp_path)
    write_bits(tmp_path, [[[1, 1], [2, 2]], [[3, 3], None]])
    rows = rows_of(tmp_path)
    assert (
        rows['loss'] == ('0.60000 (so far)', 'test set, 10 images')
        and '4 images (< 1000)' in rows[''][1]
    )
    assert rows['samples'] == (
        '8',
        '8 samples; pc reverse_diffusion + langevin; 50 evaluations; without metrics',
    )
    assert rows['bits/dim'] == (
        '2.0000 (so far)',
        'test set, 4 images; 40.33333333 evaluations; uniformly dequantized, 1 to 2 passes',
    )


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(method='heun', guidance=4.0), 'heun, guidance 4'),
        (dict(method='ode', guidance=0.5), 'ode, guidance 0.5'),
        (
            dict(method='dpmpp_2m', guidance=1.0, thresholding=True),
            'dpmpp_2m, thresholding, guidance 1',
        ),
        (dict(guidance=4.0), 'pc reverse_diffusion + langevin, guidance 4'),
        (dict(method='unipc'), 'unipc, guidance 1'),
        (
            dict(method='heun', churn=7.0, eta=1.0, prior_mean=0.47),
            'heun, churn 7, prior_mean 0.47, guidance 1',
        ),
        (dict(method='ddim', churn=7.0, eta=1.0), 'ddim, eta 1, guidance 1'),
    ],
)
def test_the_name_of_a_sampler_has_the_settings_that_change_samples(tmp_path, settings, words):
    protocol = BASE | dict(
        part='samples',
        sampling=SAMPLING | settings,
        model=BASE['model'] | dict(num_classes=10),
        batch=0,
        size=2,
    )
    results.save(
        tmp_path / 'ckpt_1' / 'samples_0.npz',
        protocol,
        samples=np.zeros((2, 8, 8, 3), np.uint8),
        nfe=35,
    )
    assert rows_of(tmp_path)['samples'][1] == f'2 samples; {words}; 35 evaluations; without metrics'


def test_files_of_the_2021_release_are_read(tmp_path):
    folder = tmp_path / 'run' / 'eval'
    folder.mkdir(parents=True)
    np.savez(folder / 'report_2.npz', IS=9.5, fid=2.5, kid=0.5)
    np.savez(folder / 'ckpt_2_loss.npz', all_losses=np.ones(3), mean_loss=1.0)
    np.savez(folder / 'test_ckpt_2_bpd_0.npz', np.array([3.0, 4.0]))
    report, found = (
        reports.write([tmp_path / 'run'], tmp_path / 'out').read_text(),
        summary(tmp_path / 'out'),
    )
    assert (
        '| FID | 2.500 | unknown samples | unknown | unknown | unknown | unknown | unknown |'
        in report
    )
    assert [found['bits/dim']['value'], found['loss']['value'], found['loss']['n']] == [
        '3.5',
        '1.0',
        'unknown',
    ]


def test_several_runs_in_one_report_and_reproducible_bytes(tmp_path):
    for (i, name), k in ((run, k) for run in enumerate('ab') for k in (1, 2)):
        write_metrics(tmp_path / name / 'eval', k, n=50000 - 40000 * i, fid=5.0 - k + i / 4)
        write_loss(
            tmp_path / name / 'eval', k, training=dict(sde=('vpsde', 'vesde')[i], continuous=True)
        )
    outputs = [
        reports.write([tmp_path / 'a', tmp_path / 'b'], tmp_path / name) for name in ('x', 'y')
    ]
    assert all(
        len({(path.parent / name).read_bytes() for path in outputs}) == 1
        for name in ('report.md', 'summary.csv', 'metrics.png')
    )
    report = outputs[0].read_text()
    assert all(
        text in report
        for text in (
            '| FID | a | 2 | 3.000 | 50000 samples |',
            '| FID | b | 2 | 3.250 | 10000 samples |',
            '| 1 | 0.6000 | 4.250 |',
            '](metrics.png)',
            '- FID is not comparable between all of these runs: they differ in n.',
            '- loss is not comparable',
            'differ in training.',
        )
    )


def test_curves_are_read_without_tensorflow(tmp_path):
    from commands.training_log import tensorboard, write

    with tensorboard(tmp_path, 0) as writer:
        [write(writer, step, training_loss=1 / (step + 1)) for step in range(0, 40, 4)]
    write_loss(tmp_path / 'eval')
    code = (
        'import sys, reports; from reports import plots; (steps, values), = '
        'plots.curves(sys.argv[1]).values(); '
        'print(*steps, values[2]); assert not {"tensorflow", "matplotlib"} & {*sys.modules}'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.split() == [*map(str, range(0, 40, 4)), str(float(np.float32(1 / 9)))], (
        done.stderr
    )
    assert '](loss.png)' in reports.write([tmp_path], tmp_path / 'out').read_text()


def test_missing_results_raise_a_one_line_error(tmp_path):
    with pytest.raises(SystemExit, match='^error: [^\n]*no results[^\n]*$'):
        main([str(tmp_path), '--output', str(tmp_path / 'out')])


def test_settings_are_in_a_separate_file_and_each_limit_is_stated_once(tmp_path):
    for checkpoint in (1, 2):
        write_metrics(tmp_path / 'run' / 'eval', checkpoint, n=999)
        write_loss(tmp_path / 'run' / 'eval', checkpoint)
    path = reports.write([tmp_path / 'run'], tmp_path / 'out')
    report, protocols = path.read_text(), json.loads((tmp_path / 'out/protocols.json').read_text())
    assert '](protocols.json)' in report and 'num_scales": 25' not in report
    assert protocols['run'].keys() == {'1', '2'}
    assert protocols['run']['2']['samples']['sampling'] == SAMPLING
    assert protocols['run']['2']['loss']['images'] == IMAGES
    sentence = (
        '- precision; recall: 999 samples (< 1000): comparable only with values for the same n'
    )
    assert report.count(sentence) == report.count('(< 50000)') == 1
    assert 'Everything else is as in the table of checkpoint 2.' in report


def test_settings_that_differ_between_checkpoints_are_in_the_table(tmp_path):
    for checkpoint, n in ((1, 50000), (2, 60000)):
        write_metrics(tmp_path / 'run' / 'eval', checkpoint, n=n)
    lines = reports.write([tmp_path / 'run'], tmp_path / 'out').read_text().splitlines()
    rows = [line for line in lines if line.startswith('| n |')]
    assert len(rows) == 1 and rows[0].startswith('| n | 50000 samples; 60000 samples |')
    assert not [line for line in lines if line.startswith('| Seed |')]
