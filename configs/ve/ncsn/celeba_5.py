"""NCSN of Song & Ermon 2019 on CelebA at 64 pixels, with a technique of Song & Ermon 2020.

An ablation between NCSN and NCSNv2. Technique 5 (averaged weights) alone.

    python main.py --config configs/ve/ncsn/celeba_5.py --workdir runs/ve/ncsn/celeba_5 --mode train

Expect: no published number.
"""

from ml_collections import ConfigDict

from configs.families import celeba, ncsn


def get_config() -> ConfigDict:
    config = celeba()
    ncsn(config)
    config.model.ema_rate = 0.999  # Technique 5
    return config
