r"""DDPM++ on CIFAR-10, with the continuous VP SDE ("DDPM++ cont. (VP)", Song et al. 2021).

    python main.py --config configs/vp/cifar10_ddpmpp_continuous.py \
        --workdir runs/vp/cifar10_ddpmpp_continuous --mode train

Expect: FID 2.55, IS 9.58 (Song et al. 2021, Table 3) at the best numbered checkpoint. FID 3.93 and
3.16 bits/dim with the ODE sampler (Song et al. 2021, Table 2) at the last checkpoint.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ddpmpp, vp


def get_config() -> ConfigDict:
    config = cifar10()
    vp(config, continuous=True)
    ddpmpp(config)
    return config
