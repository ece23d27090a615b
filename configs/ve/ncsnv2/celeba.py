"""NCSNv2 of Song & Ermon 2020 on CelebA at 64 pixels, with all five of their techniques.

    python main.py --config configs/ve/ncsnv2/celeba.py --workdir runs/ve/ncsnv2/celeba --mode train

Expect: no number has been published.
"""

from ml_collections import ConfigDict

from configs.families import celeba, ncsnv2


def get_config() -> ConfigDict:
    config = celeba()
    ncsnv2(config)
    config.model.sigma_max = 90.0  # Technique 1
    config.model.num_scales = 500  # Technique 2
    config.sampling.update(n_steps_each=5, snr=0.128)  # Technique 4
    return config
