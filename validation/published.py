"""The published checkpoints of Song et al. 2021: their folders, configs and numbers in the paper.

They are training states of the 2021 PyTorch release (`{'optimizer', 'model', 'ema', 'step'}`) in
folders of Google Drive. If a folder has two checkpoints, the smaller number gave the paper's Table
3 (FID and IS of the predictor-corrector or ancestral sampler, best over snapshots every 50,000
iterations). The larger number, the last of training, gave Table 2 (FID of the ODE sampler,
bits/dim).

    published('vp/cifar10_ddpm').config   # 'configs/vp/ddpm/cifar10.py'
"""

from typing import NamedTuple

from runtime.errors import UserError

FOLDER_OF_ALL = '1tFmF_uh57O6lx9ggtZT_5LdonVK2cV-e'
FOLDER_ADDRESS = 'https://drive.google.com/drive/folders/{}'
DRIVE_PAGE = 'https://drive.google.com/file/d/{}/view'
ELSEWHERE = {  # models whose config has a different name
    've/ffhq_1024_ncsnpp_continuous': 've/ffhq_ncsnpp_continuous',
    'vp/cifar10_ddpm': 'vp/ddpm/cifar10',
    'vp/cifar10_ddpm_continuous': 'vp/ddpm/cifar10_continuous',
}


class DriveFile(NamedTuple):
    """A file on Google Drive. `sha256` is None if the authors did not publish it."""

    file_id: str
    name: str
    sha256: str | None = None


class Published(NamedTuple):
    """A model and its numbers in the paper; a number is None if the paper has none.

    `folder` is the id of a folder on Google Drive. `file` is a checkpoint of this folder that was
    also published as a single file.
    """

    name: str
    folder: str
    fid: float | None = None
    inception_score: float | None = None
    fid_ode: float | None = None
    bpd: float | None = None
    file: DriveFile | None = None

    @property
    def config(self) -> str:
        """The path of its config, relative to the root of the repository."""
        return f'configs/{ELSEWHERE.get(self.name, self.name)}.py'

    @property
    def module(self) -> str:
        """The module of its config."""
        return self.config.removesuffix('.py').replace('/', '.')

    @property
    def address(self) -> str:
        """The web address of its folder."""
        return FOLDER_ADDRESS.format(self.folder)


# Inception features of the training images, key 'pool_3'; `evaluation` reads assets/stats.
CIFAR10_STATISTICS = DriveFile('14UB27-Spi8VjZYKST3ZcT8YVhAluiFWI', 'cifar10_stats.npz')

PUBLISHED = {
    entry.name: entry
    for entry in (
        Published('ve/cifar10_ncsnpp', '1sP4GwvrYiI-sDPTp7sKYzsxJLGVamVMZ', 2.45, 9.73),
        Published(
            've/cifar10_ncsnpp_continuous',
            '1b0gy_LLgO_DaQBgoWXwlVnL_rcAUgREh',
            2.38,
            9.83,
            file=DriveFile('1JInV8bPGy18QiIzZcS1iECGHCuXL6_Nz', 'checkpoint_24.pth'),
        ),
        Published(
            've/cifar10_ncsnpp_deep_continuous', '11s6A_xM7qiztdj8AHQWqaIAUSC3I7uX2', 2.20, 9.89
        ),
        Published('vp/cifar10_ddpm', '1zDKcy3xbsN3F4AfyB_DfY_1oho89iKcf', 3.24, None, 3.37, 3.28),
        Published(
            'vp/cifar10_ddpm_continuous',
            '1RHNxW1qY-mTr0JMAE5t4V181Hi_aVWXK',
            None,
            None,
            3.69,
            3.21,
        ),
        Published('vp/cifar10_ddpmpp', '1zOVj03ZBcq339p5QEKJPh2bBrxR_HOCM', 2.78, 9.64),
        Published(
            'vp/cifar10_ddpmpp_continuous',
            '1xYjVMx10N9ivQQBIsEoXEeu9nvSGTBrC',
            2.55,
            9.58,
            3.93,
            3.16,
            file=DriveFile('1ranuAMcmX45SBJ9PTToPACBwJYtrBjZn', 'checkpoint_26.pth'),
        ),
        Published(
            'vp/cifar10_ddpmpp_deep_continuous',
            '1ZMLBiu9j7-rpdTQu8M2LlHAEQq4xRYrj',
            2.41,
            9.68,
            3.08,
            3.13,
        ),
        Published(
            'subvp/cifar10_ddpm_continuous',
            '1DeebpmBkCxlZx89t3z45Te37T7BPOzd2',
            None,
            None,
            3.56,
            3.05,
        ),
        Published(
            'subvp/cifar10_ddpmpp_continuous',
            '1bLgmnEAZnysRZfWt8qN3omGfijJ_B884',
            2.61,
            9.56,
            3.16,
            3.02,
        ),
        Published(
            'subvp/cifar10_ddpmpp_deep_continuous',
            '16QGkviGcizSbIPRk37-YksUhlNIna4Ys',
            2.41,
            9.57,
            2.92,
            2.99,
        ),
        Published('ve/bedroom_ncsnpp_continuous', '18GmxDvfGR8se9uFucc9uweeVrX_GzuUG'),
        Published('ve/church_ncsnpp_continuous', '1zVChA0HrnJU66Jkt4P6KOnlREhBMc4Yh'),
        Published('ve/ffhq_1024_ncsnpp_continuous', '1ZqLNr_kH0o9DxvwSlrQPMmkrhEnXhBm2'),
        Published('ve/ffhq_256_ncsnpp_continuous', '1KG72ZKUCUa8dDcA03hOf1BsnK8kBcdPD'),
        Published('ve/celebahq_256_ncsnpp_continuous', '19VJ7UZTE-ytGX6z5rl-tumW9c0Ps3itk'),
    )
}

DEFAULT = ('ve/cifar10_ncsnpp_continuous', 'vp/cifar10_ddpmpp_continuous')


def published(name: str) -> Published:
    """Return the published model `name`; raise UserError with all names if it does not exist."""
    if name not in PUBLISHED:
        raise UserError(
            f'{name!r} is not a published checkpoint: expected one of {", ".join(PUBLISHED)}'
        )
    return PUBLISHED[name]
