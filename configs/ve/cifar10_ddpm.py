"""The U-Net of Ho et al. 2020 on CIFAR-10, trained with the 1000 discrete noise levels of SMLD.

    python main.py --config configs/ve/cifar10_ddpm.py --workdir runs/ve/cifar10_ddpm --mode train

Expect: no number has been published.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ddpm, ve


def get_config() -> ConfigDict:
    config = cifar10()
    ve(config, continuous=False)
    ddpm(config)
    config.model.conv_size = 3  # as in the 2021 release; has no effect
    return config
