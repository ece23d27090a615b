r"""NCSN++ on CIFAR-10, trained with the 1000 discrete steps of DDPM.

    python main.py --config configs/vp/cifar10_ncsnpp.py \
        --workdir runs/vp/cifar10_ncsnpp --mode train

Expect: no number has been published.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ncsnpp, vp


def get_config() -> ConfigDict:
    config = cifar10()
    vp(config, continuous=False)
    ncsnpp(config, embedding_type='positional')
    config.sampling.predictor = 'reverse_diffusion'
    return config
