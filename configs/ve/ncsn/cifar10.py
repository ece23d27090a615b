"""NCSN of Song & Ermon 2019 on CIFAR-10.

    python main.py --config configs/ve/ncsn/cifar10.py --workdir runs/ve/ncsn/cifar10 --mode train

Expect: FID 25.32, IS 8.87 (Song & Ermon 2019, quoted in Song et al. 2021, Table 3) for the authors' model.
"""

from configs.defaults import cifar10, ncsn


def get_config():
    config = cifar10()
    ncsn(config)
    return config
