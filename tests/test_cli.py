"""The main program from end to end on the digits of scikit-learn, in a separate process."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch

import checkpoints
import reports
import run_lib
from configs.vp import digits_ddpmpp_continuous
from conftest import run_main as run
from runtime.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = {
    sde: f'configs/{sde}/digits_{network}_continuous.py'
    for sde, network in (('vp', 'ddpmpp'), ('subvp', 'ddpmpp'), ('ve', 'ncsnpp'))
}
TINY = [
    '--config.model.nf=8',
    '--config.model.num_res_blocks=1',
    '--config.model.num_scales=25',
    '--config.training.batch_size=16',
    '--config.training.n_iters=5',
    '--config.training.snapshot_freq=4',
    '--config.training.snapshot_freq_for_preemption=2',
    '--config.training.log_freq=1',
    '--config.training.eval_freq=2',
    '--config.device=cpu',
]
QUICK = [
    '--config.eval.num_samples=70',
    '--config.eval.batch_size=40',
    '--config.eval.bpd_rtol=0.1',
    '--config.eval.bpd_atol=0.1',
]


def stats(tmp_path):
    return f'--config.eval.stats_dir={tmp_path / "stats"}'


def check(result):
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.mark.parametrize('sde', CONFIGS)
def test_train_evaluate_sample(tmp_path, sde):
    log = check(run(tmp_path, 'train', *TINY, config=CONFIGS[sde]))
    assert 'step: 4, training_loss' in log and 'step: 4, eval_loss' in log
    assert '\r' not in log  # no progress bar without a terminal
    assert 'tensorflow' not in log.lower()
    assert (tmp_path / 'checkpoints' / 'checkpoint_1.pth').is_file() and (
        tmp_path / 'checkpoints-meta' / 'checkpoint.pth'
    ).is_file()
    assert np.load(tmp_path / 'samples' / 'iter_4' / 'sample.np').shape == (16, 8, 8, 1)
    assert (tmp_path / 'samples' / 'iter_4' / 'sample.png').is_file()

    log = check(run(tmp_path, 'eval', *TINY, *QUICK, stats(tmp_path), config=CONFIGS[sde]))
    results = tmp_path / 'eval'
    assert np.isfinite(np.load(results / 'ckpt_1_loss.npz')['mean_loss'])
    bpd = np.concatenate([np.load(path)['bpd'] for path in results.glob('test_ckpt_1_bpd_*.npz')])
    assert len(bpd) == 359 and np.isfinite(bpd).all()
    samples = [
        np.load(path)['samples'] for path in sorted((results / 'ckpt_1').glob('samples_*.npz'))
    ]
    assert (
        [len(part) for part in samples] == [40, 30]
        and samples[0].dtype == np.uint8
        and samples[0].shape[1:] == (8, 8, 1)
    )
    report = np.load(results / 'report_1.npz')
    assert (
        report['n_samples'] == 70
        and report['n_reference'] == 1438
        and report['fid'] > report['floor_fid'] > 0
    )
    for quantity in ('loss', 'bits/dim', 'Frechet distance, pixels', 'real to real'):
        assert quantity in log
    assert (results / 'report.md').is_file() and (results / 'summary.csv').is_file()

    check(
        run(
            tmp_path,
            'sample',
            *TINY,
            '--num_samples=3',
            f'--output={tmp_path / "out"}',
            config=CONFIGS[sde],
        )
    )
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        '00000.png',
        '00001.png',
        '00002.png',
        'grid.png',
        'samples.npz',
    ]
    assert np.load(tmp_path / 'out' / 'samples.npz')['samples'].shape == (3, 8, 8, 1)


def test_a_second_evaluation_removes_the_files_of_the_first(tmp_path):
    """If a second evaluation writes fewer files, none of the first evaluation remain.

    Likelihoods are averaged over repeats before their error is computed.
    """
    check(run(tmp_path, 'train', *TINY))
    check(run(tmp_path, 'eval', *TINY, *QUICK, stats(tmp_path), '--config.eval.bpd_repeats=2'))
    rows = dict((row[0], row) for row in reports.evaluation_rows(tmp_path / 'eval', 1))
    assert '359 images' in rows['bits/dim'][2] and '2 passes' in rows['bits/dim'][2]
    check(
        run(
            tmp_path,
            'eval',
            *TINY,
            *QUICK,
            stats(tmp_path),
            '--config.eval.batch_size=400',
            '--config.eval.num_samples=20',
        )
    )
    assert len(list((tmp_path / 'eval').glob('test_ckpt_1_bpd_*.npz'))) == 1
    assert [
        np.load(path)['samples'].shape[0]
        for path in (tmp_path / 'eval' / 'ckpt_1').glob('samples_*.npz')
    ] == [20]


def test_number_of_steps_can_be_chosen(tmp_path):
    check(run(tmp_path, 'train', *TINY))
    log = check(run(tmp_path, 'sample', *TINY, '--num_samples=2', '--config.sampling.steps=40'))
    assert 'with 80 network evaluations' in log  # each step is a corrector and a predictor step


def test_data_and_stats_modes_need_no_workdir(tmp_path):
    command = [
        sys.executable,
        'main.py',
        '--config',
        CONFIGS['ve'],
        '--config.device=cpu',
        '--mode',
    ]
    done = subprocess.run([*command, 'data'], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (
        'train set' in check(done)
        and '1438 images' in done.stderr
        and '--config.model.sigma_max=4.8' in done.stderr
    )
    check(run(tmp_path, 'data'))
    assert (tmp_path / 'data.png').is_file()
    check(
        subprocess.run(
            [*command, 'stats', stats(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
    )
    assert np.load(tmp_path / 'stats' / 'digits_pixels_stats.npz')['pool_3'].shape == (1438, 64)
    assert (
        '--workdir is required'
        in subprocess.run([*command, 'train'], cwd=ROOT, capture_output=True, text=True).stderr
    )


def test_training_to_report_with_a_folder_of_pictures(tmp_path):
    """The pictures are random, 12 pixels high and of several widths, in two classes."""
    from PIL import Image

    digits = np.random.default_rng(0).integers(0, 256, (120, 12, 16), np.uint8)
    for i, image in enumerate(digits):
        path = tmp_path / 'pictures' / str(i % 2) / f'{i}.{("png", "JPG")[i % 3 == 0]}'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:, : 12 + i % 4]).save(
            path, format='PNG' if path.suffix == '.png' else 'JPEG'
        )
    data = [
        '--config.data.dataset=folder',
        f'--config.data.path={tmp_path / "pictures"}',
        '--config.data.test_fraction=0.25',
        stats(tmp_path),
    ]
    check(run(tmp_path / 'run', 'train', *TINY, *data))
    log = check(run(tmp_path / 'run', 'eval', *TINY, *QUICK, *data, '--config.eval.num_samples=20'))
    assert 'test set, 30 images' in log and '90 training images' in log
    assert len(list((tmp_path / 'stats').glob('folder_pictures_8_*_pixels_stats.npz'))) == 1


def config_for(n_iters):
    config = digits_ddpmpp_continuous.get_config()
    config.device = 'cpu'
    config.model.update(nf=8, num_res_blocks=1, num_scales=25, dropout=0.1)
    config.training.update(
        batch_size=16,
        n_iters=n_iters,
        snapshot_freq=100,
        snapshot_freq_for_preemption=100,
        log_freq=1,
        eval_freq=2,
        snapshot_sampling=False,
    )
    return config


def final_state(workdir):
    content = torch.load(workdir / 'checkpoints-meta' / 'checkpoint.pth', weights_only=True)
    return [
        *content['model'].values(),
        *content['ema']['shadow_params'],
        content['rng']['common'],
        torch.tensor(content['step']),
    ]


def test_interrupted_and_uninterrupted_training_are_equal(tmp_path):
    run_lib.train(config_for(7), tmp_path / 'whole')
    run_lib.train(config_for(3), tmp_path / 'parts')
    run_lib.train(config_for(7), tmp_path / 'parts')
    assert all(
        torch.equal(a, b)
        for a, b in zip(final_state(tmp_path / 'whole'), final_state(tmp_path / 'parts'))
    )


def test_training_depends_only_on_the_seed(tmp_path):
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        config = config_for(2)
        config.seed = seed
        run_lib.train(config, tmp_path / name)
    a, b, c = (final_state(tmp_path / name) for name in 'abc')
    assert all(map(torch.equal, a, b)) and not all(map(torch.equal, a, c))


def test_restarting_finished_training_changes_nothing_but_the_log(tmp_path):
    check(run(tmp_path, 'train', *TINY))
    checkpoint = tmp_path / 'checkpoints' / 'checkpoint_1.pth'
    before = checkpoint.read_bytes()
    check(run(tmp_path, 'train', *TINY))
    log = (tmp_path / 'stdout.txt').read_text()
    assert log.count('step: 0, training_loss') == 1 and 'Resumed from step 5' in log
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--config.model.foo=1'], ['model.foo', 'not a known key']),
        (
            ['--config.sampling.predictor=eulr'],
            ['config.sampling.predictor', 'eulr', 'euler_maruyama'],
        ),
        (['--config.training.batch_size=5000'], ['config.training.batch_size', '1438']),
        (['stray'], ['stray']),
    ],
)
def test_bad_arguments_raise_a_one_line_error_before_any_work(tmp_path, arguments, words):
    result = run(tmp_path / 'w', 'train', *TINY, *arguments)
    assert result.returncode != 0 and 'Traceback' not in result.stderr
    complaints = [line for line in result.stderr.splitlines() if line.startswith('error:')]
    assert len(complaints) == 1 and all(word in complaints[0] for word in words), result.stderr
    assert (
        not (tmp_path / 'w' / 'checkpoints').exists()
        and not (tmp_path / 'w' / 'tensorboard').exists()
    )


def test_bad_files_raise_a_one_line_error_and_are_not_overwritten(tmp_path):
    def complaint(result):
        assert result.returncode != 0 and 'Traceback' not in result.stderr
        return result.stderr.strip().splitlines()[-1]

    assert 'not found' in complaint(run(tmp_path / 'w', 'train', config='configs/none.py'))
    (tmp_path / 'file').write_text('')
    assert '--workdir' in complaint(run(tmp_path / 'file', 'train', *TINY))
    assert 'config.eval.begin_ckpt=1' in complaint(run(tmp_path / 'w', 'eval', *TINY))
    assert 'train first' in complaint(run(tmp_path / 'w', 'sample', *TINY))
    resume = tmp_path / 'w' / 'checkpoints-meta' / 'checkpoint.pth'
    resume.parent.mkdir(parents=True)
    resume.write_bytes(b'PK half a checkpoint')
    assert str(resume) in complaint(run(tmp_path / 'w', 'train', *TINY))
    assert (
        resume.read_bytes() == b'PK half a checkpoint'
        and not (tmp_path / 'w' / 'checkpoints').exists()
    )


def test_all_faults_are_reported_at_once(tmp_path):
    result = run(
        tmp_path,
        'train',
        '--config.model.name=unet',
        '--config.data.dataset=IMAGENET',
        '--config.device=nowhere',
    )
    assert result.stderr.count('error:') == 3


def test_help_exits_with_0():
    done = subprocess.run(
        [sys.executable, 'main.py', '--help'], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0 and '--workdir' in done.stdout and 'Traceback' not in done.stderr


def evaluated(workdir, caplog, eval_folder='eval', **settings) -> str:
    """Evaluate the loss and return the log."""
    config = config_for(3)
    config.eval.update(
        enable_sampling=False, enable_bpd=False, metrics_floor=False, most_images=50, **settings
    )
    caplog.clear()
    with caplog.at_level('INFO'):
        run_lib.evaluate(config, workdir, eval_folder)
    return caplog.text


def test_existing_checkpoints_are_evaluated_by_one_process_at_a_time(tmp_path, caplog):
    config = config_for(3)
    config.training.snapshot_freq = 1
    run_lib.train(config, tmp_path)
    (tmp_path / 'checkpoints' / 'checkpoint_1.pth').rename(
        tmp_path / 'checkpoints' / 'checkpoint_3.pth'
    )
    log = evaluated(tmp_path, caplog, begin_ckpt=1, end_ckpt=6)
    assert (
        'Skipped 4 missing checkpoints of config.eval.begin_ckpt=1 to config.eval.end_ckpt=6: 1, '
        '4-6.' in log
    )
    assert sorted(path.name for path in (tmp_path / 'eval').glob('ckpt_*')) == [
        'ckpt_2_loss.npz',
        'ckpt_3_loss.npz',
    ]
    assert 'Skipped' not in evaluated(tmp_path, caplog, begin_ckpt=2, end_ckpt=3)
    with pytest.raises(
        UserError,
        match='has no checkpoint from config.eval.begin_ckpt=4 to '
        'config.eval.end_ckpt=26, only 2-3: change '
        'these keys, or wait .* --config.eval.wait_minutes=60$',
    ):
        evaluated(tmp_path, caplog, begin_ckpt=4, end_ckpt=26)
    with pytest.raises(UserError, match='checkpoint .*checkpoint_4.pth does not exist after'):
        evaluated(tmp_path, caplog, begin_ckpt=3, end_ckpt=4, wait_minutes=1e-4)

    folder = tmp_path / 'eval'
    with checkpoints.only_writer(folder, 'evaluation', '--eval_folder'):
        with pytest.raises(
            UserError,
            match=f'another evaluation is running in {folder} .process '
            f'{os.getpid()} on .* --eval_folder$',
        ):
            evaluated(tmp_path, caplog, begin_ckpt=2, end_ckpt=3)
        evaluated(tmp_path, caplog, 'other', begin_ckpt=2, end_ckpt=3)
    evaluated(tmp_path, caplog, begin_ckpt=2, end_ckpt=3)
