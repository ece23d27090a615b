r"""NCSN++ on FFHQ at 1024 pixels, trained with the continuous VE SDE.

The path to the data is that of the 2021 release: pass your own as
`--config.data.tfrecords_path=...`. Evaluation draws 1024 images at a time, as in the 2021 release:
reduce `--config.eval.batch_size` if they do not fit into memory.

    python main.py --config configs/ve/ffhq_ncsnpp_continuous.py \
        --workdir runs/ve/ffhq_ncsnpp_continuous --mode train

Expect: the paper shows samples, but gives no number.
"""

from ml_collections import ConfigDict

from configs.families import ffhq, ncsnpp_1024, ve


def get_config() -> ConfigDict:
    config = ffhq(1024, '/raid/song/ffhq-dataset/ffhq/ffhq-r10.tfrecords')
    ve(config, continuous=True)
    ncsnpp_1024(config)
    config.model.sigma_max = 1348.0
    config.training.reduce_mean = True  # as in the 2021 release; no other VE config has it
    return config
