r"""The U-Net of Ho et al. 2020 on CIFAR-10, sub-VP SDE ("DDPM cont. (sub-VP)", Song et al. 2021).

    python main.py --config configs/subvp/cifar10_ddpm_continuous.py \
        --workdir runs/subvp/cifar10_ddpm_continuous --mode train

Expect: FID 3.56 and 3.05 bits/dim with the ODE sampler (Song et al. 2021, Table 2) at the last
checkpoint.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ddpm, subvp


def get_config() -> ConfigDict:
    config = cifar10()
    subvp(config)
    ddpm(config)
    return config
