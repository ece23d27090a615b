"""A small wide residual network that tells noisy digits apart, for guidance of the networks with the VP SDE.

    python main.py --config configs/vp/digits_wideresnet.py --workdir runs/classifier --mode classifier
"""

from configs.defaults import digits, vp, wideresnet


def get_config():
    config = digits()
    vp(config, continuous=True)
    wideresnet(config, num_classes=10)
    config.training.update(n_iters=2001, snapshot_freq=2000)
    config.optim.lr = 1e-3
    config.model.update(widen=2, num_res_blocks=1, dropout=0.2, ema_rate=0.995)
    return config
