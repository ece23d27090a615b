r"""Deep NCSN++ on CIFAR-10, with the VE SDE ("NCSN++ cont. (deep, VE)", Song et al. 2021).

    python main.py --config configs/ve/cifar10_ncsnpp_deep_continuous.py \
        --workdir runs/ve/cifar10_ncsnpp_deep_continuous --mode train

Expect: FID 2.20, IS 9.89 (Song et al. 2021, Table 3) at the best numbered checkpoint.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ncsnpp, ve


def get_config() -> ConfigDict:
    config = cifar10()
    ve(config, continuous=True)
    ncsnpp(config, num_res_blocks=8)
    config.training.n_iters = 950001
    return config
