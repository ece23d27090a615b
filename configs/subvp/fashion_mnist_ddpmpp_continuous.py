"""A small DDPM++ on Fashion-MNIST, trained with the continuous sub-VP SDE.

    python main.py --config configs/subvp/fashion_mnist_ddpmpp_continuous.py --workdir runs/subvp/fashion_mnist --mode train

`config.data.path` is an NPZ file with x_train, y_train, x_test and y_test. See docs/models/README.md for the weights that come with the
library, how they were trained, and samples of them.
"""

from configs.defaults import ddpmpp, mnist, mnist_sized, subvp


def get_config():
    config = mnist()
    subvp(config)
    ddpmpp(config)
    mnist_sized(config)
    config.data.path = 'fashion_mnist.npz'
    return config
