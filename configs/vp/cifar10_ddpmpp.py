r"""DDPM++ on CIFAR-10, trained with the 1000 discrete steps of DDPM ("DDPM++", Song et al. 2021).

    python main.py --config configs/vp/cifar10_ddpmpp.py \
        --workdir runs/vp/cifar10_ddpmpp --mode train

Expect: FID 2.78, IS 9.64 (Song et al. 2021, Table 3) at the best numbered checkpoint.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ddpmpp, vp


def get_config() -> ConfigDict:
    config = cifar10()
    vp(config, continuous=False)
    ddpmpp(config)
    return config
