"""Classes and functions that users register by name, and the page docs/extending.md."""

import re
import sys

import numpy as np
import pytest
import torch

import checkpoints
import datasets
import run_lib
import sampling
import sde_lib
from commands import command_line, preflight
from commands.control import control
from commands.sample import sample
from conftest import ROOT, load_config
from control import Measurement, register_measurement
from models.score import Score
from oracles import ExactNoise, marginal
from runtime.errors import UserError
from score_model import ScoreModel

EXAMPLE = ROOT / 'examples' / 'own_process.py'


def test_the_description_of_a_data_set_depends_on_its_images(unregistered, example):
    """Name and digest of a data set depend on the images that its function returns."""
    before = datasets.describe(example, 'train')
    assert (
        before['dataset'] == 'SHAPES'
        and datasets.get_name(example) == 'shapes_8'
        and len(before['digest']) == 16
    )
    assert datasets.describe(example, 'train') == before != datasets.describe(example, 'test')
    example.data.image_size = 12
    images, labels = datasets.get_split(example, 'train').read(np.arange(2000))
    assert (
        images.shape == (2000, 12, 12, 1)
        and images.dtype == np.uint8
        and labels.dtype == np.int64
        and set(labels) == {0, 1}
    )
    # discs are filled, crosses are not
    assert images[labels == 0].mean() > 1.3 * images[labels == 1].mean() > 0
    assert (
        datasets.describe(example, 'train')['digest'] != before['digest']
        and datasets.get_name(example) == 'shapes_12'
    )


def test_a_data_set_with_custom_grey_levels_and_keys(unregistered, tmp_path):
    @datasets.register_dataset(levels=4, keys=('brightness',))
    def flat(config, split):
        return np.full((6, 8, 8, 1), config.data.brightness), np.arange(6)

    config = load_config(
        'configs.vp.digits_ddpmpp_continuous', dict(dataset='Flat', uniform_dequantization=False)
    )
    config.data.brightness = 3
    preflight.check(config, tmp_path, 'data')
    assert (
        datasets.get_levels(config) == 4 and datasets.describe(config, 'train')['brightness'] == 3
    )
    train, _, _ = datasets.get_dataset(config, evaluation=True)
    assert (next(iter(train))['image'] == 1).all()
    for images, got in (
        (np.full((6, 8, 8, 1), 4), r'got int64 \(6, 8, 8, 1\) and 6 labels'),
        (
            np.zeros((6, 8, 8, 3), np.uint8),
            r'got uint8 \(6, 8, 8, 3\) and 6 '
            r'labels',
        ),
        (
            np.zeros((5, 8, 8, 1), np.uint8),
            r'got uint8 \(5, 8, 8, 1\) and 6 '
            r'labels',
        ),
        (np.zeros((6, 8, 8, 1)), r'got float64 \(6, 8, 8, 1\) and 6 labels'),
    ):
        datasets.register_dataset(
            lambda config, split, images=images: (images, np.arange(6)), name='wrong', levels=4
        )
        config.data.dataset = 'wrong'
        with pytest.raises(
            UserError,
            match=r'^the data set WRONG must be integer images of shape \(6, 8, 8, 1\) '
            rf'with values from 0 to 3 .*, {got}$',
        ):
            datasets.get_split(config, 'train')
    assert datasets.register_dataset(flat, levels=4) is flat  # registered again, as in a notebook
    with pytest.raises(
        UserError, match="the data set name 'FLAT' is taken by .*flat: choose another"
    ):
        datasets.register_dataset(lambda config, split: None, name='flat')
    with pytest.raises(
        UserError,
        match="the data set name 'DIGITS' is taken by data.digits.load: choose another",
    ):
        datasets.register_dataset(flat, name='digits')


def test_a_measurement_is_a_task(unregistered, example, tmp_path):
    """A registered measurement becomes a task.

    Its result, five weighted sums of the pixels, is not a picture, so A^+ y is shown as known.
    """
    weights = torch.linalg.qr(torch.randn(64, 5))[0].T

    @register_measurement(name='sums')
    class Sums(Measurement):
        def __init__(self, config):
            assert config.data.image_size == 8

        def __call__(self, x):
            return x.flatten(1) @ weights.to(x).T

        def pinv(self, y):
            return (y @ weights.to(y)).reshape(-1, 1, 8, 8)

    example.control.update(images=2, results=3)
    example.data.uniform_dequantization = False
    example.model.num_scales = 20
    checkpoints.save(tmp_path / 'checkpoints' / 'checkpoint_1.pth', run_lib.create_state(example))
    folder = control(example, tmp_path, 'Sums', output=str(tmp_path / 'out'))
    found = np.load(folder / 'results.npz')
    assert found['samples'].shape == (2, 3, 8, 8, 1) and found['known'].shape == (2, 8, 8, 1)
    x = torch.from_numpy(found['inputs']).permute(0, 3, 1, 2) / 255 * 2 - 1
    known = ((x.flatten(1) @ weights.T @ weights + 1) / 2).clamp(0, 1).reshape(2, 8, 8, 1) * 255
    assert abs(found['known'] - known.numpy()).max() <= 1
    with pytest.raises(
        UserError, match="the task name 'Inpaint' is used by this library: choose another"
    ):
        register_measurement(Sums, name='Inpaint')
    with pytest.raises(UserError, match="the task name 'SUMS' is taken by .*Sums: choose another"):
        register_measurement(lambda config: None, name='SUMS')
    with pytest.raises(
        UserError, match="^--task must be one of inpaint, .*, mix, sums, got 'sum'$"
    ):
        control(example, tmp_path, 'sum')


PAGE = (ROOT / 'docs' / 'extending.md').read_text()


@pytest.fixture(scope='module')
def page_file(tmp_path_factory):
    """Write the Python blocks of the page as one config file."""
    path = tmp_path_factory.mktemp('page') / 'page.py'
    path.write_text('\n\n'.join(re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)))
    return path


def test_the_blocks_of_the_page_work_together(page_file, unregistered, tmp_path):
    config = command_line.load_config(str(page_file))
    config.device, config.model.num_scales = 'cpu', 10
    # with samples from the predictor and the corrector
    config.training.update(n_iters=3, snapshot_freq=2)
    config.eval.update(enable_bpd=True, bpd_repeats=1, bpd_rtol=0.1, bpd_atol=0.1)
    config.control.update(images=2, results=2)
    run_lib.train(config, tmp_path)
    run_lib.evaluate(config, tmp_path)
    control(config, tmp_path, 'odd_rows')
    found = np.load(tmp_path / 'control_odd_rows' / 'results.npz')
    assert (found['samples'][:, :, ::2] == found['inputs'][:, None, ::2]).all()
    config.sampling.update(method='euler', steps=5)
    folder = sample(config, tmp_path, num_samples=3)
    assert np.load(folder / 'samples.npz')['samples'].shape == (3, 8, 8, 1)
    assert ScoreModel.load(tmp_path, device='cpu').sample(2, steps=2).shape == (2, 1, 8, 8)
    images, labels = datasets.get_split(config, 'test').read(np.arange(100))
    assert (
        set(np.unique(images)) == {0, 255}
        and (images[labels == 0] == images[labels == 0][:, :, :1]).all()
    )


def test_the_solver_of_the_page_has_order_one(page_file, unregistered):
    """For Gaussian data, whose flow is known, half the steps give twice the error."""
    command_line.load_config(str(page_file))
    sde, z = sde_lib.SDES.get('ou')(rate=12.0), torch.randn(50, 1, 2, 2, dtype=torch.float64)
    (start, start_std), (end, end_std) = marginal(sde, 1), marginal(sde, 1e-3)
    errors = []
    for steps in (40, 80):
        options = sampling.Options(method='euler', steps=steps, noise_removal=False)
        samples, _ = sampling.sample(Score(ExactNoise(sde), sde), z.shape, options, z=z)
        errors.append((samples - end - end_std * (z - start) / start_std).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.3)


def test_the_page_lists_all_registries():
    """The table of the page has all registries, and the members of an SDE that it lists exist."""
    for function in (
        'sde_lib.register_sde',
        'models.utils.register_model',
        'sampling.register_predictor',
        'sampling.register_corrector',
        'solvers.register_solver',
        'datasets.register_dataset',
        'control.register_measurement',
    ):
        module, _, name = function.rpartition('.')
        assert f'`{function}`' in PAGE and callable(getattr(sys.modules[module], name))
    for names in re.findall(r'^\| (`[a-z_]+`(?:, `[a-z_]+`)*) \|', PAGE, re.MULTILINE):
        assert all(hasattr(sde_lib.SDE, name) for name in re.findall('`(.+?)`', names)), names
    assert 'docs/extending.md' in EXAMPLE.read_text()
