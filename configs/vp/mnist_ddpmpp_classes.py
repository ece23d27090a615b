r"""A small class-conditional DDPM++ on MNIST, with the continuous VP SDE.

    python main.py --config configs/vp/mnist_ddpmpp_classes.py \
        --workdir runs/vp/mnist_ddpmpp_classes --mode train

torchvision downloads the data set. From an NPZ file with x_train, y_train, x_test and y_test:
`--config.data.dataset=NPZ --config.data.path=mnist.npz`. Expect, after 4,002 steps (400 s on a
quarter of an H200): 1.415 +- 0.024 bits/dim (100 test images), and digits of which a classifier
recognises 0.994 as the class asked for.
See docs/models/README.md for the weights that come with the library and samples of them.
"""

from ml_collections import ConfigDict

from configs.families import ddpmpp, mnist, mnist_sized, vp


def get_config() -> ConfigDict:
    config = mnist()
    vp(config, continuous=True)
    ddpmpp(config)
    mnist_sized(config)
    config.model.num_classes = 10
    return config
