"""`--mode metrics`: samples from files of every kind get the numbers of `--mode eval`.

Errors name the expected kind of file.
"""

import os
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

import checkpoints
import evaluation
import reports
import run_lib
from commands import sample_metrics
from configs.vp import digits_ddpmpp_continuous
from conftest import ROOT
from metrics.reference import get_reference
from reports import results
from runtime.errors import UserError

VALUES = ('fid', 'kid', 'kid_error', 'precision', 'recall')


@pytest.fixture
def config(tmp_path):
    config = digits_ddpmpp_continuous.get_config()
    config.device = 'cpu'
    config.eval.stats_dir = str(tmp_path / 'stats')
    return config


@pytest.fixture(scope='module')
def digits():
    """Return 1797 8-bit images (N, 8, 8, 1) and their classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.round(data.images * (255 / 16)).astype(np.uint8)[..., None], data.target


def report_of(folder, number=0) -> dict:
    found = results.load(folder / f'report_{number}.npz')
    return found | {key: value.item() for key, value in found.items() if key != 'protocol'}


def test_samples_of_an_evaluation_have_its_numbers(config, tmp_path):
    config.model.update(nf=8, num_res_blocks=1, num_scales=25)
    config.eval.update(num_samples=130, batch_size=130, enable_loss=False, enable_bpd=False)
    checkpoints.save(checkpoints.snapshot_path(tmp_path / 'run', 1), run_lib.create_state(config))
    run_lib.evaluate(config, tmp_path / 'run')
    expected = report_of(tmp_path / 'run' / 'eval', 1)
    config.eval.batch_size = 50
    folder = sample_metrics.measure(
        config, tmp_path / 'w', str(tmp_path / 'run' / 'eval' / 'ckpt_1' / 'samples_0.npz')
    )
    found = report_of(folder)
    assert folder == tmp_path / 'w' / 'metrics_samples_0'
    assert {key: value for key, value in found.items() if key != 'protocol'} == {
        key: value for key, value in expected.items() if key not in ('protocol', 'nfe')
    }
    for key in ('reference', 'floor', 'extractor', 'num_samples', 'is_splits', 'part'):
        assert found['protocol'][key] == expected['protocol'][key]
    rows, rows_of_eval = (
        reports.evaluation_rows(folder, 0),
        reports.evaluation_rows(tmp_path / 'run' / 'eval', 1),
    )
    assert [row[:2] for row in rows] == [row[:2] for row in rows_of_eval] and len(rows) >= 8
    report = (folder / 'report.md').read_text()
    assert (
        'Samples: 130 samples from `samples_0.npz`, 8x8 pixels' in report
        and '| from samples_0.npz | - | pixels | - |' in report
    )
    assert (
        '![samples_metrics_samples_0_0.png]' in report
        and 'Checkpoint' not in report
        and '| 1438 training images of DIGITS |' in report
    )


def test_every_kind_of_file_gives_the_same_numbers(config, tmp_path, digits):
    images, labels = digits
    for i, (image, label) in enumerate(zip(images[:200], labels)):
        (tmp_path / 'folder' / str(label)).mkdir(parents=True, exist_ok=True)
        reports.save_image(tmp_path / 'folder' / str(label) / f'{i}.png', image)
    with zipfile.ZipFile(tmp_path / 'archive.zip', 'w') as archive:
        for path in (tmp_path / 'folder').rglob('*.png'):
            archive.write(path, path.relative_to(tmp_path))
    for name in ('samples', 'images', 'arr_0'):
        np.savez(tmp_path / f'{name}.npz', **{name: images[:200]})
    # the names arr_0 and arr_1 of other diffusion libraries
    np.savez(tmp_path / 'adm.npz', images[:200], labels[:200])
    np.savez(tmp_path / 'real.npz', images=images[300:900])
    references = {'folder': 'folder', 'archive.zip': 'archive.zip', 'samples.npz': 'images.npz'}
    found = {
        name: report_of(
            sample_metrics.measure(
                config, tmp_path, str(tmp_path / name), str(tmp_path / 'real.npz')
            )
        )
        for name in ('folder', 'archive.zip', 'samples.npz', 'images.npz', 'arr_0.npz', 'adm.npz')
    }
    for name, numbers in found.items():
        assert [numbers[key] for key in VALUES if key != 'kid_error'] == pytest.approx(
            [found['samples.npz'][key] for key in VALUES if key != 'kid_error'], rel=1e-9
        ), name
        assert (
            numbers['n_samples'] == 200
            and numbers['n_reference'] == 600
            and 'floor_fid' not in numbers
        )
        assert numbers['protocol']['input']['order'] == (
            'file' if name == 'samples.npz' else 'random'
        )
        assert (
            numbers['protocol']['reference']['origin'] == 'real.npz'
            and numbers['protocol']['input']['name'] == name
        )
    for name, reference in references.items():
        numbers = report_of(
            sample_metrics.measure(
                config, tmp_path, str(tmp_path / name), str(tmp_path / reference)
            )
        )
        assert (
            numbers['fid'] == pytest.approx(0, abs=1e-9)
            and numbers['precision'] == numbers['recall'] == 1
        )


def test_a_reference_with_splits_gives_the_chosen_split_and_a_floor(config, tmp_path, digits):
    images, _ = digits
    np.savez(tmp_path / 'samples.npz', samples=images[:100])
    np.savez(tmp_path / 'real.npz', x_train=images[100:700], x_test=images[700:1000])
    config.eval.stats_split = 'test'
    samples, real = str(tmp_path / 'samples.npz'), str(tmp_path / 'real.npz')
    found = report_of(
        sample_metrics.measure(config, tmp_path, samples, real, str(tmp_path / 'results'))
    )
    assert (
        found['n_reference'] == 300 and found['floor_n_samples'] == 100 and found['floor_fid'] > 0
    )
    with pytest.raises(
        UserError,
        match='--input: .*real.npz has a training set and a test set: expected one set of samples',
    ):
        sample_metrics.measure(config, tmp_path, real)


def test_samples_sorted_by_class_do_not_change_the_kernel_distance(config, tmp_path, digits):
    """The kernel distance is averaged over blocks, for which the samples are shuffled.

    In the order of classes, the distance of equal sets would differ from 0 by many standard errors.
    """
    images, labels = digits
    np.savez(tmp_path / 'sorted.npz', arr_0=images[np.argsort(labels)])
    found = report_of(sample_metrics.measure(config, tmp_path, str(tmp_path / 'sorted.npz')))
    assert found['kid_blocks'] == 2 and abs(found['kid']) < 4 * found['kid_error']
    features = images[np.argsort(labels)].reshape(len(images), -1) / 255
    real = get_reference(config, evaluation.get_extractor(config), 'train')
    in_order = evaluation.measure({'pool_3': features}, real)
    assert in_order['kid'] > 10 * found['kid_error']


def test_batches_are_computed_once_and_other_samples_replace_them(
    config, tmp_path, digits, monkeypatch
):
    images, _ = digits
    config.eval.update(batch_size=60, metrics_floor=False)
    np.savez(tmp_path / 'a.npz', samples=images[:200])
    np.savez(tmp_path / 'b.npz', samples=images[200:300])
    get_extractor, seen = evaluation.get_extractor, []

    def counting(config):
        extractor = get_extractor(config)
        return extractor._replace(
            run=lambda images: seen.append(len(images)) or extractor.run(images)
        )

    folder = tmp_path / 'results'
    sample_metrics.measure(config, tmp_path, str(tmp_path / 'a.npz'), output=str(folder))
    first = report_of(folder)
    (folder / 'ckpt_0' / 'statistics_2.npz').unlink()
    monkeypatch.setattr(evaluation, 'get_extractor', counting)
    sample_metrics.measure(config, tmp_path, str(tmp_path / 'a.npz'), output=str(folder))
    assert seen == [60] and report_of(folder) == first
    sample_metrics.measure(config, tmp_path, str(tmp_path / 'b.npz'), output=str(folder))
    assert seen == [60, 60, 40] and len([*(folder / 'ckpt_0').glob('statistics_*.npz')]) == 2
    assert report_of(folder)['n_samples'] == 100 and report_of(folder)['fid'] != first['fid']


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    'make, words',
    [
        (
            lambda path: path / 'nowhere',
            '--input=.*nowhere not found: expected a folder or a zip file '
            'of pictures, or an .npz file',
        ),
        (lambda path: '', '--input is missing: expected a folder'),
        (
            lambda path: path.joinpath('notes.txt').write_text('x') and path / 'notes.txt',
            'notes.txt is not supported: expected a folder',
        ),
        (lambda path: path, '--input=.*no pictures'),
        (
            lambda path: write(path / 'a.npz', latents=np.zeros(3)),
            '--input=.*no array called .*samples, arr_0.*: it has latents',
        ),
        (
            lambda path: write(path / 'a.npz', arr_0=np.zeros((5, 8, 8, 1), np.float32)),
            r'float32 .*expected uint8 or uint16 of shape \(N, 8, 8, 1\)',
        ),
        (
            lambda path: write(path / 'a.npz', arr_0=np.zeros((5, 16, 16, 1), np.uint8)),
            r'16.*expected '
            r'uint8 or uint16 of shape \(N, 8, 8, 1\)',
        ),
        (
            lambda path: write(path / 'a.npz', arr_0=np.zeros((3, 8, 8, 1), np.uint8)),
            'has 3 images: expected 4 or more',
        ),
        (
            lambda path: (
                [
                    reports.save_image(path / f'{i}.png', np.zeros((9, 9, 1), np.uint8))
                    for i in range(5)
                ]
                and path
            ),
            r'--input: .*\d.png has 9x9 pixels.*image_size is 8: expected images of that size, '
            r'because '
            r'samples are never resized',
        ),
    ],
    ids=[
        'missing',
        'empty',
        'text',
        'no pictures',
        'no array',
        'float',
        'size',
        'few',
        'picture size',
    ],
)
def test_unusable_samples_raise_an_error_before_any_work(config, tmp_path, make, words):
    (tmp_path / 'given').mkdir()
    with pytest.raises(UserError, match=words) as caught:
        sample_metrics.measure(config, tmp_path / 'w', str(make(tmp_path / 'given')))
    assert '\n' not in str(caught.value) and 'config.data.path' not in str(caught.value)
    assert not [*tmp_path.glob('w/*')] and not (tmp_path / 'stats').exists()


def test_a_wrong_reference_raises_an_error_before_any_work(config, tmp_path, digits):
    samples = write(tmp_path / 'samples.npz', samples=digits[0][:10])
    for reference, words in (
        (tmp_path / 'nowhere', '--reference=.*nowhere not found: expected a folder'),
        (
            write(tmp_path / 'a.npz', images=np.zeros((9, 8, 8, 3), np.uint8)),
            r'--reference: .*expected uint8 .*8, 8, 1',
        ),
    ):
        with pytest.raises(UserError, match=words):
            sample_metrics.measure(config, tmp_path / 'w', str(samples), str(reference))
    assert not [*tmp_path.glob('w/*')] and not (tmp_path / 'stats').exists()


def test_with_a_reference_the_data_set_is_not_needed(config, tmp_path, digits):
    with config.unlocked():
        config.data.update(dataset='NPZ', path=str(tmp_path / 'nowhere.npz'))
    samples, reference = (
        str(write(tmp_path / f'{name}.npz', samples=digits[0][:10])) for name in 'ab'
    )
    assert report_of(sample_metrics.measure(config, tmp_path, samples, reference))[
        'fid'
    ] == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match='nowhere.npz'):
        sample_metrics.measure(config, tmp_path, samples)


def test_images_of_64_pixels_need_little_time_and_memory(tmp_path):
    """The test has 270 reference images and 64 samples of 64x64x3 and includes program start."""
    rng = np.random.default_rng(0)
    for name, n in (('real', 270), ('samples', 64)):
        np.savez(tmp_path / f'{name}.npz', rng.integers(0, 256, (n, 64, 64, 3), np.uint8))
    command = [
        sys.executable,
        'main.py',
        '--config',
        'configs/vp/digits_ddpmpp_continuous.py',
        '--workdir',
        tmp_path / 'w',
        '--mode',
        'metrics',
        '--input',
        tmp_path / 'samples.npz',
        '--reference',
        tmp_path / 'real.npz',
        '--config.data.dataset=CELEBA',
        '--config.data.image_size=64',
        '--config.data.num_channels=3',
        '--config.device=cpu',
        f'--config.eval.stats_dir={tmp_path}',
    ]
    with open(tmp_path / 'log', 'w') as log:
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {'OMP_NUM_THREADS': '1'}, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    text = (tmp_path / 'log').read_text()
    assert process.returncode == 0 and time.monotonic() - started < 100 and usage.ru_utime < 30, (
        text
    )
    assert usage.ru_maxrss * (1 if sys.platform == 'darwin' else 1024) < 2 * 2**30
    assert (
        'Frechet distance, pixels' in text
        and '64 samples to 270 images of real.npz; pixels; from samples.npz' in text
    )
    assert report_of(tmp_path / 'w' / 'metrics_samples')['fid'] > 0


def test_corrupt_samples_are_named_or_skipped(config, tmp_path, digits):
    for i, image in enumerate(digits[0][:20]):
        (tmp_path / 'given').mkdir(exist_ok=True)
        reports.save_image(tmp_path / 'given' / f'{i}.png', image)
    (tmp_path / 'given' / '7.png').write_bytes(b'not a picture')
    with pytest.raises(
        UserError, match='--input: .*7.png is not a picture; --config.data.on_error=skip'
    ):
        sample_metrics.measure(config, tmp_path, str(tmp_path / 'given'))
    config.data.on_error = 'skip'
    assert (
        report_of(sample_metrics.measure(config, tmp_path, str(tmp_path / 'given')))['n_samples']
        == 19
    )


def test_several_processes_share_the_work(config, tmp_path, digits):
    np.savez(tmp_path / 'samples.npz', samples=digits[0][:100])
    config.eval.batch_size = 30
    alone = report_of(
        sample_metrics.measure(
            config, tmp_path, str(tmp_path / 'samples.npz'), output=str(tmp_path / 'alone')
        )
    )
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc_per_node=2',
        'main.py',
        '--mode',
        'metrics',
        '--config',
        'configs/vp/digits_ddpmpp_continuous.py',
        '--workdir',
        tmp_path / 'w',
        '--input',
        tmp_path / 'samples.npz',
        '--config.device=cpu',
        f'--config.eval.stats_dir={tmp_path / "stats"}',
        '--config.eval.batch_size=30',
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    shared = report_of(tmp_path / 'w' / 'metrics_samples')
    assert all(np.array_equal(shared[key], alone[key]) for key in alone if key != 'protocol')
    assert shared['protocol'] == alone['protocol']
