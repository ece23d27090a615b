"""A small DDPM++ on handwritten digits of 8 pixels, trained with the continuous VP SDE: the quickstart, for two processor cores.

    python main.py --config configs/vp/digits_ddpmpp_continuous.py --workdir runs/quickstart --mode train
    python main.py --config configs/vp/digits_ddpmpp_continuous.py --workdir runs/quickstart --mode eval

RESULT_VP
"""

from configs.defaults import ddpmpp, digits, small, vp


def get_config():
    config = digits()
    vp(config, continuous=True)
    ddpmpp(config)
    small(config)
    config.sampling.update(predictor='reverse_diffusion', corrector='langevin')
    return config
