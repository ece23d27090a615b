"""Training of class-conditional networks and of classifiers."""

import logging
import re

import numpy as np
import pytest
import torch

import checkpoints
import datasets
import run_lib
from checkpoints import trained
from commands.sample import sample
from conftest import run_main
from control_runs import CONFIGS, SIZE
from runtime.errors import UserError


def test_modes_reject_networks_of_the_other_kind(place, tmp_path):
    for train, name, words in (
        (run_lib.train, 'classifier', ["'wideresnet'", '--mode classifier']),
        (run_lib.train_classifier, 'plain', ["'ncsnpp'", '--mode classifier', 'wideresnet']),
        (sample, 'classifier', ["'wideresnet'", '--mode classifier']),
        (run_lib.evaluate, 'classifier', ["'wideresnet'", '--mode classifier']),
    ):
        with pytest.raises(UserError) as caught:
            train(CONFIGS[name](place), tmp_path / 'w')
        first = str(caught.value).splitlines()[0]
        assert all(word in first for word in words), first
        assert not list((tmp_path / 'w').glob('*'))


@pytest.mark.parametrize('name', ['classes', 'classifier'])
def test_a_label_above_the_number_of_classes_raises_an_error(place, tmp_path, name):
    config = CONFIGS[name](place)
    config.model.num_classes = 5
    with pytest.raises(
        UserError, match='has the label [5-9], but config.model.num_classes=5'
    ) as caught:
        (run_lib.train if name == 'classes' else run_lib.train_classifier)(config, tmp_path)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'changes, words',
    [
        (
            {'model.num_classes': -1},
            'config.model.num_classes must be an integer from 0 to 1000000, got -1',
        ),
        (
            {'model.label_dropout': 1.5},
            'config.model.label_dropout must be a number in [0, 1], got 1.5',
        ),
        (
            {'model.num_classes': 10, 'model.conditional': False},
            'config.model.conditional must be True for ncsnpp, got False',
        ),
        (
            {'model.num_classes': 10, 'model.label_dropout': 0.0, 'sampling.guidance': 1.5},
            'config.sampling.guidance=1.5',
        ),
    ],
)
def test_invalid_class_settings_raise_an_error_before_any_work(place, tmp_path, changes, words):
    config = CONFIGS['plain'](place)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        run_lib.train(config, tmp_path / 'w')
    assert '\n' not in str(caught.value) and not list((tmp_path / 'w').glob('*'))


def final_state(workdir):
    content = checkpoints.load(checkpoints.resume_path(workdir))
    return [
        *content['model'].values(),
        *content['ema']['shadow_params'],
        content['rng']['common'],
        torch.tensor(content['step']),
    ]


@pytest.mark.parametrize('name', ['classes', 'classifier'])
def test_interrupted_and_uninterrupted_training_with_classes_are_equal(place, tmp_path, name):
    """The final states are bit-identical, including label dropout, dropout and times."""
    for folder, steps in (('whole', (7,)), ('parts', (3, 7))):
        for n in steps:
            config = CONFIGS[name](place)
            config.training.n_iters = n
            (run_lib.train if name == 'classes' else run_lib.train_classifier)(
                config, tmp_path / folder
            )
    whole, parts = (final_state(tmp_path / folder) for folder in ('whole', 'parts'))
    assert all(map(torch.equal, whole, parts)) and whole[-1] == 7


def test_a_classifier_is_loaded_from_a_folder_or_a_file(place):
    """The loaded classifier has EMA weights, and fits a network with the same SDE and data."""
    file = place / 'classifier' / 'checkpoints' / 'checkpoint_1.pth'
    content = checkpoints.load(file)
    x, labels = torch.randn(3, 1, SIZE, SIZE), torch.tensor([1.0, 300.0, 999.0])
    for path in (
        place / 'classifier',
        str(place / 'classifier'),
        file,
        str(file),
        checkpoints.resume_path(place / 'classifier'),
    ):
        for config in (CONFIGS['plain'](place), CONFIGS['classes'](place)):
            network = trained.load_classifier(path, config)
            weights = [p for p in network.parameters() if p.requires_grad]
            assert (
                all(map(torch.equal, weights, content['ema']['shadow_params']))
                and not network.training
            )
            assert network(x, labels).shape == (3, 10) and network.module.shape == (1, SIZE, SIZE)


def test_a_classifier_learns_digits(place, tmp_path, caplog):
    """After 150 steps it recognises most clean digits; its accuracy on noise is that of chance."""
    config = CONFIGS['classifier'](place)
    config.training.update(n_iters=151, snapshot_freq=75, batch_size=64, eval_freq=75, log_freq=75)
    config.model.ema_rate = 0.9
    config.optim.lr = 5e-3
    with caplog.at_level(logging.INFO, 'absl'):
        run_lib.train_classifier(config, tmp_path)
    lines = [
        record.getMessage()
        for record in caplog.records
        if 'accuracy on 359 test images' in record.getMessage()
    ]
    assert [line.partition(',')[0] for line in lines] == ['step: 75', 'step: 150']
    shares = {
        float(t): float(share) for t, share in re.findall(r'at t=([\d.]+): ([\d.]+)', lines[-1])
    }
    assert [*shares] == [0.001, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]
    # four standard errors for 359 images
    assert shares[0.001] > 0.7 and shares[0.001] > shares[0.5] and shares[1.0] < 0.1 + 4 * 0.016
    network = trained.load_classifier(tmp_path, CONFIGS['plain'](place))
    test = datasets.get_split(config, 'test')
    x = torch.from_numpy(2 * (test.images + 0.5) / 17 - 1).permute(0, 3, 1, 2).float()
    right = (network(x, torch.full((359,), 1.0)).argmax(1).numpy() == test.labels).mean()
    assert abs(right - shares[0.001]) < 0.05  # dequantization noise is different


def test_samples_of_a_class_conditional_network_have_labels(place, tmp_path):
    """Labels are drawn uniformly and stored with the samples, also in an evaluation."""
    config = CONFIGS['classes'](place)
    folder = sample(config, place / 'classes', num_samples=12, output=str(tmp_path / 'out'))
    found = dict(np.load(folder / 'samples.npz'))
    assert (
        found['samples'].shape == (12, SIZE, SIZE, 1)
        and found['labels'].shape == (12,)
        and found['labels'].dtype == np.int64
    )
    assert set(found['labels']) <= set(range(10)) and len(set(found['labels'])) > 3
    plain = sample(
        CONFIGS['plain'](place), place / 'plain', num_samples=2, output=str(tmp_path / 'plain')
    )
    assert set(np.load(plain / 'samples.npz').keys()) == {'samples'}

    config.eval.update(stats_dir=str(tmp_path / 'stats'), bpd_rtol=1.0, bpd_atol=1.0)
    run_lib.evaluate(config, place / 'classes', str(tmp_path / 'eval'))
    parts = np.load(tmp_path / 'eval' / 'ckpt_1' / 'samples_0.npz')
    assert parts['samples'].shape == (7, SIZE, SIZE, 1) and parts['labels'].shape == (7,)
    assert np.isfinite(np.load(tmp_path / 'eval' / 'ckpt_1_loss.npz')['mean_loss'])
    assert np.isfinite(np.load(tmp_path / 'eval' / 'test_ckpt_1_bpd_0.npz')['bpd']).all()


def test_classifier_by_command_line(tmp_path):
    done = run_main(
        tmp_path,
        'classifier',
        '--config.model.nf=8',
        '--config.model.widen=1',
        '--config.training.n_iters=3',
        '--config.training.snapshot_freq=2',
        '--config.device=cpu',
        config='configs/vp/digits_wideresnet.py',
    )
    assert done.returncode == 0, done.stderr
    assert 'accuracy on 359 test images' in done.stderr
    assert checkpoints.latest(tmp_path).name == 'checkpoint_1.pth'
