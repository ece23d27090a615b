"""The U-Net and the 1000 steps of Ho et al. 2020 on CIFAR-10 ("DDPM", Song et al. 2021).

    python main.py --config configs/vp/ddpm/cifar10.py --workdir runs/vp/ddpm/cifar10 --mode train

Expect: FID 3.24 with ancestral sampling (Song et al. 2021, Table 1) at the best numbered
checkpoint. FID 3.37 and 3.28 bits/dim with the ODE sampler (Song et al. 2021, Table 2) at the last
checkpoint.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ddpm, vp


def get_config() -> ConfigDict:
    config = cifar10()
    vp(config, continuous=False)
    ddpm(config)
    return config
