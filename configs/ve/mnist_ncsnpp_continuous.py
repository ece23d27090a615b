r"""A small NCSN++ on MNIST, trained with the continuous VE SDE.

    python main.py --config configs/ve/mnist_ncsnpp_continuous.py \
        --workdir runs/ve/mnist_ncsnpp_continuous --mode train

torchvision downloads the data set. From an NPZ file with x_train, y_train, x_test and y_test:
`--config.data.dataset=NPZ --config.data.path=mnist.npz`. Expect, after 4,428 steps (400 s on a
quarter of an H200, then 408 steps on a CPU): 1.326 +- 0.023 bits/dim (100 test images), and samples
of which a classifier is sure in 0.938 of the cases (test images: 0.986).
See docs/models/README.md for the weights that come with the library and samples of them.
"""

from ml_collections import ConfigDict

from configs.families import mnist, mnist_sized, ncsnpp, ve


def get_config() -> ConfigDict:
    config = mnist()
    ve(config, continuous=True)
    ncsnpp(config)
    mnist_sized(config)
    config.model.sigma_max = 16.0  # the largest distance between two images is 15.8 (--mode data)
    return config
