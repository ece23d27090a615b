"""NCSN of Song & Ermon 2019 on CelebA at 64 pixels.

    python main.py --config configs/ve/ncsn/celeba.py --workdir runs/ve/ncsn/celeba --mode train

Expect: no number has been published.
"""

from ml_collections import ConfigDict

from configs.families import celeba, ncsn


def get_config() -> ConfigDict:
    config = celeba()
    ncsn(config)
    config.training.loss = 'vesde'  # an old name of training.sde, without effect; forks read it
    return config
