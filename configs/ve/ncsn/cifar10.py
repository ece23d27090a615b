"""NCSN of Song & Ermon 2019 on CIFAR-10.

    python main.py --config configs/ve/ncsn/cifar10.py --workdir runs/ve/ncsn/cifar10 --mode train

Expect: no number has been published for this code; Song & Ermon 2019 report FID and IS of their own
model.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ncsn


def get_config() -> ConfigDict:
    config = cifar10()
    ncsn(config)
    return config
