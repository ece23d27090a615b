r"""NCSN++ on CIFAR-10, with the 1000 discrete noise levels of SMLD ("NCSN++", Song et al. 2021).

    python main.py --config configs/ve/cifar10_ncsnpp.py \
        --workdir runs/ve/cifar10_ncsnpp --mode train

Expect: FID 2.45, IS 9.73 (Song et al. 2021, Table 3) at the best numbered checkpoint.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ncsnpp, ve


def get_config() -> ConfigDict:
    config = cifar10()
    ve(config, continuous=False)
    ncsnpp(config, embedding_type='positional')
    return config
