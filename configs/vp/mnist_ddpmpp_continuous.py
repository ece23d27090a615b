r"""A small DDPM++ on MNIST, with the continuous VP SDE.

    python main.py --config configs/vp/mnist_ddpmpp_continuous.py \
        --workdir runs/vp/mnist_ddpmpp_continuous --mode train

torchvision downloads the data set. From an NPZ file with x_train, y_train, x_test and y_test:
`--config.data.dataset=NPZ --config.data.path=mnist.npz`. Expect, after 4,240 steps (400 s on a
quarter of an H200): 1.448 +- 0.024 bits/dim (100 test images), a Frechet distance in pixels of 3.59
between 500 samples and 10,000 training images (3.45 between 500 test images and these). See
docs/models/README.md for the weights that come with the library and samples of them.
"""

from ml_collections import ConfigDict

from configs.families import ddpmpp, mnist, mnist_sized, vp


def get_config() -> ConfigDict:
    config = mnist()
    vp(config, continuous=True)
    ddpmpp(config)
    mnist_sized(config)
    return config
