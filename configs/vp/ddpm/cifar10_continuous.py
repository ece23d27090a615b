r"""The U-Net of Ho et al. 2020 on CIFAR-10, VP SDE ("DDPM cont. (VP)", Song et al. 2021).

    python main.py --config configs/vp/ddpm/cifar10_continuous.py \
        --workdir runs/vp/ddpm/cifar10_continuous --mode train

Expect: FID 3.69 and 3.21 bits/dim with the ODE sampler (Song et al. 2021, Table 2) at the last
checkpoint.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ddpm, vp


def get_config() -> ConfigDict:
    config = cifar10()
    vp(config, continuous=True)
    ddpm(config)
    return config
