"""The small DDPM++ of digits_ddpmpp_continuous, told the digit: label-conditional, with guidance that needs no classifier.

    python main.py --config configs/vp/digits_ddpmpp_classes.py --workdir runs/classes --mode train
    python main.py --config configs/vp/digits_ddpmpp_classes.py --workdir runs/classes --mode control --task classes --labels 3,5,8
"""

from configs.vp import digits_ddpmpp_continuous


def get_config():
    config = digits_ddpmpp_continuous.get_config()
    config.model.num_classes = 10
    return config
