r"""NCSN of Song & Ermon 2019 on CelebA at 64 pixels, with techniques of Song & Ermon 2020.

An ablation between NCSN and NCSNv2. It uses Techniques 1 (largest noise level chosen from the
data), 2 (number of noise levels), 4 (number and size of Langevin steps) and 5 (EMA weights), but
not 3 (unconditional network, output divided by sigma).

    python main.py --config configs/ve/ncsn/celeba_1245.py \
        --workdir runs/ve/ncsn/celeba_1245 --mode train

Expect: no number has been published.
"""

from ml_collections import ConfigDict

from configs.families import celeba, ncsn


def get_config() -> ConfigDict:
    config = celeba()
    ncsn(config)
    config.model.sigma_max = 90.0  # Technique 1
    config.model.num_scales = 500  # Technique 2
    config.sampling.update(n_steps_each=5, snr=0.128)  # Technique 4
    config.model.ema_rate = 0.999  # Technique 5
    return config
