r"""A wide residual network 28-10 that classifies noisy images of CIFAR-10.

It guides the networks of the VP SDE.

    python main.py --config configs/vp/cifar10_wideresnet.py \
        --workdir runs/vp/classifier --mode classifier

Size: 36.8 million parameters. Expect the log to show how the accuracy on test images falls with t;
the accuracy of this size has not been measured yet.
"""

from ml_collections import ConfigDict

from configs.families import cifar10, vp, wideresnet


def get_config() -> ConfigDict:
    config = cifar10()
    vp(config, continuous=True)
    wideresnet(config, num_classes=10)
    config.training.update(n_iters=100001, snapshot_freq=20000)
    return config
