r"""NCSN++ on CIFAR-10, with the continuous VE SDE ("NCSN++ cont. (VE)", Song et al. 2021).

    python main.py --config configs/ve/cifar10_ncsnpp_continuous.py \
        --workdir runs/ve/cifar10_ncsnpp_continuous --mode train

Cost in the 2021 release: 0.56 s per step on 4 V100 GPUs (20.6 GB in total), 8.4 days for 1.3
million steps. Expect: FID 2.38, IS 9.83 (Song et al. 2021, Table 3) at the best numbered
checkpoint.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ncsnpp, ve


def get_config() -> ConfigDict:
    config = cifar10()
    ve(config, continuous=True)
    ncsnpp(config)
    return config
