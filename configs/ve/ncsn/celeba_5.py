"""NCSN of Song & Ermon 2019 on CelebA at 64 pixels, with a technique of Song & Ermon 2020.

An ablation between NCSN and NCSNv2. It uses only Technique 5 (EMA weights).

    python main.py --config configs/ve/ncsn/celeba_5.py --workdir runs/ve/ncsn/celeba_5 --mode train

Expect: no number has been published.
"""

from ml_collections import ConfigDict

from configs.families import celeba, ncsn


def get_config() -> ConfigDict:
    config = celeba()
    ncsn(config)
    config.model.ema_rate = 0.999  # Technique 5
    return config
