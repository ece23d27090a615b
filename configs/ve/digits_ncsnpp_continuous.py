"""A small NCSN++ on handwritten digits of 8 pixels, trained with the continuous VE SDE, for two processor cores.

    python main.py --config configs/ve/digits_ncsnpp_continuous.py --workdir runs/ve --mode train
    python main.py --config configs/ve/digits_ncsnpp_continuous.py --workdir runs/ve --mode eval

RESULT_VE
"""

from configs.defaults import digits, ncsnpp, small, ve


def get_config():
    config = digits()
    ve(config, continuous=True)
    ncsnpp(config)
    small(config)
    config.model.sigma_max = 5.0  # the largest distance between two of the images is 4.8
    return config
