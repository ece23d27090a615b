r"""The U-Net of Ho et al. 2020 on CIFAR-10, without the time step as an input.

It is trained with their 1000 discrete steps.

    python main.py --config configs/vp/ddpm/cifar10_unconditional.py \
        --workdir runs/vp/ddpm/cifar10_unconditional --mode train

Expect: no number has been published.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ddpm, vp


def get_config() -> ConfigDict:
    config = cifar10()
    vp(config, continuous=False)
    ddpm(config)
    config.model.conditional = False
    return config
