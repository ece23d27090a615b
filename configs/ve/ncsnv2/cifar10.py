r"""NCSNv2 of Song & Ermon 2020 on CIFAR-10, with all five of their techniques.

    python main.py --config configs/ve/ncsnv2/cifar10.py \
        --workdir runs/ve/ncsnv2/cifar10 --mode train

Expect: no number has been published for this code; Song & Ermon 2020 report FID and IS of their own
model.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, ncsnv2


def get_config() -> ConfigDict:
    config = cifar10()
    ncsnv2(config)
    config.model.sigma_max = 50.0  # Technique 1
    config.model.num_scales = 232  # Technique 2
    config.sampling.update(n_steps_each=5, snr=0.176)  # Technique 4
    return config
