r"""NCSNv2 of Song & Ermon 2020 on LSUN bedrooms at 128 pixels, with all five of their techniques.

As in the 2021 release, training is continuous: sigma itself is the label of the network. The
discrete SMLD training of Song & Ermon 2020 is `--config.training.continuous=False`.

    python main.py --config configs/ve/ncsnv2/bedroom.py \
        --workdir runs/ve/ncsnv2/bedroom --mode train

Expect: the paper shows samples, but gives no number.
"""

from ml_collections import ConfigDict

from configs.families import lsun, ncsnv2


def get_config() -> ConfigDict:
    config = lsun('bedroom', size=128)
    ncsnv2(config, name='ncsnv2_128')
    config.model.sigma_max = 190.0  # Technique 1
    config.model.num_scales = 1086  # Technique 2
    config.model.ema_rate = 0.9999  # Technique 5
    config.sampling.update(n_steps_each=3, snr=0.095)  # Technique 4
    config.training.batch_size = 128
    config.training.continuous = True
    config.training.continuouse = False  # misspelt in the 2021 release, no effect; forks read it
    return config
