r"""NCSN++ on CIFAR-10, with the continuous VP SDE.

    python main.py --config configs/vp/cifar10_ncsnpp_continuous.py \
        --workdir runs/vp/cifar10_ncsnpp_continuous --mode train

Expect: no number has been published.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ncsnpp, vp


def get_config() -> ConfigDict:
    config = cifar10()
    vp(config, continuous=True)
    ncsnpp(config, embedding_type='positional')
    return config
