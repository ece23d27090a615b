r"""NCSN of Song & Ermon 2019 on CIFAR-10, with a technique of Song & Ermon 2020.

An ablation between NCSN and NCSNv2. It uses only Technique 5 (EMA weights).

    python main.py --config configs/ve/ncsn/cifar10_5.py \
        --workdir runs/ve/ncsn/cifar10_5 --mode train

Expect: no number has been published.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ncsn


def get_config() -> ConfigDict:
    config = cifar10()
    ncsn(config)
    config.model.ema_rate = 0.999  # Technique 5
    return config
