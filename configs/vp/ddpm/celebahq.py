"""The U-Net of Ho et al. 2020 on CelebA-HQ at 256 pixels, trained with their 1000 discrete steps.

The path to the data is that of the 2021 release: pass your own as
`--config.data.tfrecords_path=...`. That path names a file of 1024-pixel images (r10), but
image_size is 256: train on the 256-pixel file (r08).

    python main.py --config configs/vp/ddpm/celebahq.py --workdir runs/vp/ddpm/celebahq --mode train

Expect: Ho et al. 2020 show samples, but give no number.
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
