r"""NCSN++ on LSUN bedrooms at 256 pixels, trained with the continuous VE SDE.

    python main.py --config configs/ve/bedroom_ncsnpp_continuous.py \
        --workdir runs/ve/bedroom_ncsnpp_continuous --mode train

Expect: the paper shows samples, but gives no number.
"""

from ml_collections import ConfigDict

from configs.families import lsun, ncsnpp_256, ve


def get_config() -> ConfigDict:
    config = lsun('bedroom')
    ve(config, continuous=True)
    ncsnpp_256(config)
    config.model.sigma_max = 378.0
    return config
