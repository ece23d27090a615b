r"""NCSN++ on LSUN outdoor churches at 256 pixels, trained with the continuous VE SDE.

    python main.py --config configs/ve/church_ncsnpp_continuous.py \
        --workdir runs/ve/church_ncsnpp_continuous --mode train

Expect: the paper shows samples, but gives no number.
"""

from ml_collections import ConfigDict

from configs.families import lsun, ncsnpp_256, ve


def get_config() -> ConfigDict:
    config = lsun('church_outdoor')
    ve(config, continuous=True)
    ncsnpp_256(config)
    config.model.sigma_max = 380.0
    return config
