r"""DDPM++ for your own pictures at 64 pixels, with the continuous VP SDE.

    python main.py --config configs/vp/folder_ddpmpp_continuous.py \
        --workdir runs/pictures --mode train --config.data.path=pictures

Expect, after 1,000 steps of 16 images on a CPU (`--config.model.nf=32`), plausible colours without
recognisable objects; longer trainings have not been measured. docs/data.md shows these samples and
the overrides for smaller, larger or grey pictures.
"""

from ml_collections import ConfigDict

from configs.families import ddpmpp, folder, vp


def get_config() -> ConfigDict:
    config = folder(64)
    vp(config, continuous=True)
    ddpmpp(config, num_res_blocks=2)
    config.model.update(nf=64, ema_rate=0.9995)
    config.sampling.update(method='dpmpp_2m_sde', steps=24)  # 25 network evaluations
    return config
