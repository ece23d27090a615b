from configs.defaults import digits, ncsnpp, small, ve


def get_config():
    config = digits()
    ve(config, continuous=True)
    ncsnpp(config)
    small(config)
    return config
