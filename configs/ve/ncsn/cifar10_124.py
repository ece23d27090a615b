r"""NCSN of Song & Ermon 2019 on CIFAR-10, with techniques of Song & Ermon 2020.

An ablation between NCSN and NCSNv2. Techniques 1 (largest noise from the data), 2 (number of noise
levels) and 4 (Langevin steps and their size): all but 3 (unconditional network, output divided by
sigma) and 5 (averaged weights).

    python main.py --config configs/ve/ncsn/cifar10_124.py \
        --workdir runs/ve/ncsn/cifar10_124 --mode train

Expect: no published number.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ncsn


def get_config() -> ConfigDict:
    config = cifar10()
    ncsn(config)
    config.model.sigma_max = 50.0  # Technique 1
    config.model.num_scales = 232  # Technique 2
    config.sampling.update(n_steps_each=5, snr=0.176)  # Technique 4
    return config
