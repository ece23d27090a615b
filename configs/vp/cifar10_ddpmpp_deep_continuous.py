r"""Deep DDPM++ on CIFAR-10, with the VP SDE ("DDPM++ cont. (deep, VP)", Song et al. 2021).

    python main.py --config configs/vp/cifar10_ddpmpp_deep_continuous.py \
        --workdir runs/vp/cifar10_ddpmpp_deep_continuous --mode train

Expect: FID 2.41, IS 9.68 (Song et al. 2021, Table 3) at the best numbered checkpoint. FID 3.08 and
3.13 bits/dim with the ODE sampler (Song et al. 2021, Table 2) at the last checkpoint.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ddpmpp, vp


def get_config() -> ConfigDict:
    config = cifar10()
    vp(config, continuous=True)
    ddpmpp(config, num_res_blocks=8)
    config.training.n_iters = 950001
    return config
