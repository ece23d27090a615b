r"""NCSN++ on CIFAR-10, trained with the sub-VP SDE.

    python main.py --config configs/subvp/cifar10_ncsnpp_continuous.py \
        --workdir runs/subvp/cifar10_ncsnpp_continuous --mode train

Expect: no number has been published.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ncsnpp, subvp


def get_config() -> ConfigDict:
    config = cifar10()
    subvp(config)
    ncsnpp(config, embedding_type='positional')
    return config
