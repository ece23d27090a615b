"""NCSN++ on CelebA at 64 pixels, trained with 1000 discrete noise levels of SMLD.

    python main.py --config configs/ve/celeba_ncsnpp.py --workdir runs/ve/celeba_ncsnpp --mode train

Expect: no number has been published.
"""

from ml_collections import ConfigDict

from configs.families import celeba, ncsnpp, ve


def get_config() -> ConfigDict:
    config = celeba()
    ve(config, continuous=False)
    ncsnpp(config, embedding_type='positional')
    config.sampling.snr = 0.17
    config.model.sigma_begin = 90.0  # an old name of sigma_max, without effect; forks read it
    return config
