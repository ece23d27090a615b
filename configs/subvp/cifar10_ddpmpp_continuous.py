r"""DDPM++ on CIFAR-10, trained with the sub-VP SDE ("DDPM++ cont. (sub-VP)", Song et al. 2021).

    python main.py --config configs/subvp/cifar10_ddpmpp_continuous.py \
        --workdir runs/subvp/cifar10_ddpmpp_continuous --mode train

Expect: FID 2.61, IS 9.56 (Song et al. 2021, Table 3) at the best numbered checkpoint. FID 3.16 and
3.02 bits/dim with the ODE sampler (Song et al. 2021, Table 2) at the last checkpoint.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ddpmpp, subvp


def get_config() -> ConfigDict:
    config = cifar10()
    subvp(config)
    ddpmpp(config)
    return config
