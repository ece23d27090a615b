"""Grids of images with titles."""

import numpy as np
import pytest

import reports


def test_titles_stand_above_their_columns(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
    plain = reports.save_grid(tmp_path / 'plain.png', images, 3)
    titled = reports.save_grid(tmp_path / 'titled.png', images, 3, titles=['a', '', 'two words'])
    height = titled.shape[1] - plain.shape[1]
    assert height > 10 and titled.shape[2] == plain.shape[2] == 200
    assert (titled[:, height:] == plain).all()  # the images below the titles
    drawn = [(titled[:, :height, i : i + 66] < 0.5).any().item() for i in (0, 66, 132)]
    assert drawn == [True, False, True]
    with pytest.raises(ValueError, match='titles must have one entry for each of 3 columns'):
        reports.save_grid(tmp_path / 'wrong.png', images, 3, titles=['a'])
