"""The U-Net of Ho et al. 2020 on CelebA-HQ at 256 pixels, trained with their 1000 discrete steps.

The published path to the data is kept: give your own with `--config.data.tfrecords_path=...`. It
names a file of 1024 pixels (r10), while image_size is 256: train on the 256-pixel file (r08).

    python main.py --config configs/vp/ddpm/celebahq.py --workdir runs/vp/ddpm/celebahq --mode train

Expect: no published number; samples only in Ho et al. 2020.
"""

from ml_collections import ConfigDict

from configs.families import celebahq, ddpm, vp


def get_config() -> ConfigDict:
    config = celebahq(256, '/atlas/u/yangsong/celeba_hq/-r10.tfrecords')
    vp(config, continuous=False)
    ddpm(config)
    config.model.ch_mult = (1, 1, 2, 2, 4, 4)
    config.optim.lr = 2e-5
    return config
