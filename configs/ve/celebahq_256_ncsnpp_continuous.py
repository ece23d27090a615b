r"""NCSN++ on CelebA-HQ at 256 pixels, trained with the continuous VE SDE.

The published path to the data is kept: give your own with `--config.data.tfrecords_path=...`.

    python main.py --config configs/ve/celebahq_256_ncsnpp_continuous.py \
        --workdir runs/ve/celebahq_256_ncsnpp_continuous --mode train

Expect: samples only in the paper, no number.
"""

from ml_collections import ConfigDict

from configs.families import celebahq, ncsnpp_256, ve


def get_config() -> ConfigDict:
    config = celebahq(256, '/home/yangsong/ncsc/celebahq/r08.tfrecords')
    ve(config, continuous=True)
    ncsnpp_256(config)
    config.model.sigma_max = 348.0
    return config
