r"""NCSN of Song & Ermon 2019 on CIFAR-10, with techniques of Song & Ermon 2020.

An ablation between NCSN and NCSNv2. It uses Techniques 1 (largest noise level chosen from the
data), 2 (number of noise levels) and 4 (number and size of Langevin steps), but not 3
(unconditional network, output divided by sigma) and 5 (EMA weights).

    python main.py --config configs/ve/ncsn/cifar10_124.py \
        --workdir runs/ve/ncsn/cifar10_124 --mode train

Expect: no number has been published.
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
