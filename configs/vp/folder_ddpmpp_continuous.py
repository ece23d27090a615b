r"""DDPM++ for your own pictures at 64 pixels, with the continuous VP SDE.

    python main.py --config configs/vp/folder_ddpmpp_continuous.py \
        --workdir runs/pictures --mode train --config.data.path=pictures

See docs/data.md for what to expect, and for smaller and larger pictures.
"""

from ml_collections import ConfigDict

from configs.families import ddpmpp, folder, folder_sized, vp


def get_config() -> ConfigDict:
    config = folder(64)
    vp(config, continuous=True)
    ddpmpp(config)
    folder_sized(config)
    return config
