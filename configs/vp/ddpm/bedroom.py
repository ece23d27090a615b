"""The U-Net of Ho et al. 2020 on LSUN bedrooms at 256 pixels, with their 1000 discrete steps.

    python main.py --config configs/vp/ddpm/bedroom.py --workdir runs/vp/ddpm/bedroom --mode train

Expect: no number has been published for this code and schedule; Ho et al. 2020 report the FID of
their own model.
"""

from ml_collections import ConfigDict

from configs.families import ddpm, lsun, vp


def get_config() -> ConfigDict:
    config = lsun('bedroom')
    vp(config, continuous=False)
    ddpm(config)
    config.model.ch_mult = (1, 1, 2, 2, 4, 4)
    config.optim.lr = 2e-5
    return config
