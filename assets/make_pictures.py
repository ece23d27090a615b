"""Draw assets/digits.png, the picture of the README.

It shows real digits, followed by samples of the work directories on the command line, which must
have been evaluated.

    python assets/make_pictures.py runs/quickstart runs/subvp runs/ve
"""

import pathlib
import sys

import numpy as np

from data.levels import to_8_bits

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import datasets
import reports
from configs.vp.digits_ddpmpp_continuous import get_config

PATH = pathlib.Path(__file__).with_name('digits.png')
ROWS, COLUMNS, GAP = 8, 8, 1  # digits in each panel; empty columns between panels


def main(workdirs, path=PATH):
    """Write the picture with real digits and the first samples of each work directory to `path`."""
    config = get_config()
    test = datasets.get_split(config, 'test')
    real = to_8_bits(test.images, test.levels)
    panels = [
        real,
        *(
            np.load(pathlib.Path(workdir, 'eval', 'ckpt_1', 'samples_0.npz'))['samples']
            for workdir in workdirs
        ),
    ]
    blank = np.full((ROWS, GAP, 8, 8, 1), 255, np.uint8)
    rows = [
        part
        for panel in panels
        for part in (panel[: ROWS * COLUMNS].reshape(ROWS, COLUMNS, 8, 8, 1), blank)
    ][:-1]
    grid = np.concatenate(rows, 1)
    reports.save_grid(path, grid.reshape(-1, 8, 8, 1), columns=grid.shape[1])


if __name__ == '__main__':
    main(sys.argv[1:])
