r"""A small DDPM++ on Fashion-MNIST, with the continuous sub-VP SDE.

    python main.py --config configs/subvp/fashion_mnist_ddpmpp_continuous.py \
        --workdir runs/subvp/fashion_mnist --mode train

torchvision downloads the data set. From an NPZ file with x_train, y_train, x_test and y_test:
`--config.data.dataset=NPZ --config.data.path=fashion_mnist.npz`. Expect, after 4,158 steps (400 s
on a quarter of an H200): 3.108 +- 0.080 bits/dim (100 test images), and samples of which a
classifier is sure in 0.726 of the cases (test images: 0.781).
See docs/models/README.md for the weights that come with the library and samples of them.
"""

from ml_collections import ConfigDict

from configs.families import ddpmpp, mnist, mnist_sized, subvp


def get_config() -> ConfigDict:
    config = mnist('FashionMNIST')
    subvp(config)
    ddpmpp(config)
    mnist_sized(config)
    return config
