"""A small DDPM++ on handwritten digits of 8 pixels, trained with the continuous sub-VP SDE, for two processor cores.

    python main.py --config configs/subvp/digits_ddpmpp_continuous.py --workdir runs/subvp --mode train
    python main.py --config configs/subvp/digits_ddpmpp_continuous.py --workdir runs/subvp --mode eval

RESULT_SUBVP
"""

from configs.defaults import ddpmpp, digits, small, subvp


def get_config():
    config = digits()
    subvp(config)
    ddpmpp(config)
    small(config)
    config.sampling.update(predictor='reverse_diffusion', corrector='langevin')
    return config
