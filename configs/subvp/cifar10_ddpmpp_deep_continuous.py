r"""Deep DDPM++ on CIFAR-10, with the sub-VP SDE ("DDPM++ cont. (deep, sub-VP)", Song et al. 2021).

    python main.py --config configs/subvp/cifar10_ddpmpp_deep_continuous.py \
        --workdir runs/subvp/cifar10_ddpmpp_deep_continuous --mode train

Expect: FID 2.41, IS 9.57 (Song et al. 2021, Table 3) at the best numbered checkpoint. FID 2.92 and
2.99 bits/dim with the ODE sampler (Song et al. 2021, Table 2) at the last checkpoint.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ddpmpp, subvp


def get_config() -> ConfigDict:
    config = cifar10()
    subvp(config)
    ddpmpp(config, num_res_blocks=8)
    config.training.n_iters = 950001
    return config
