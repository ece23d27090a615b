"""The pretrained networks of the library sample without further settings or a data set."""

import numpy as np
import pytest

from commands.sample import sample
from configs import stored
from conftest import ROOT

FOLDER = ROOT / 'assets' / 'pretrained'


@pytest.mark.parametrize('name', sorted(path.stem for path in FOLDER.glob('*.json')))
def test_samples_are_pictures_on_black(name, tmp_path):
    """Digits and clothes have black corners; noise and samples with another SDE do not."""
    config = stored.get_config(FOLDER / f'{name}.json')
    config.device = 'cpu'
    sample(config, tmp_path, FOLDER / f'{name}.safetensors', 8)
    images = np.load(tmp_path / 'generated' / 'samples.npz')['samples']
    assert images.shape == (8, 28, 28, 1) and np.median(images[:, :3, :3]) < 3
    assert 20 < images.mean() < 120 and images.max(axis=(1, 2, 3)).min() > 150


def test_files_are_small():
    assert all(path.stat().st_size < 4 * 2**20 for path in FOLDER.iterdir())
