r"""NCSN++ on CelebA-HQ at 256 pixels, trained with the continuous VE SDE.

The path to the data is that of the 2021 release: pass your own as
`--config.data.tfrecords_path=...`.

    python main.py --config configs/ve/celebahq_256_ncsnpp_continuous.py \
        --workdir runs/ve/celebahq_256_ncsnpp_continuous --mode train

Expect: the paper shows samples, but gives no number.
"""

from ml_collections import ConfigDict

from configs.families import celebahq, ncsnpp_256, ve


def get_config() -> ConfigDict:
    config = celebahq(256, '/home/yangsong/ncsc/celebahq/r08.tfrecords')
    ve(config, continuous=True)
    ncsnpp_256(config)
    config.model.sigma_max = 348.0
    return config
