from configs.defaults import ddpmpp, digits, small, vp


def get_config():
    config = digits()
    vp(config, continuous=True)
    ddpmpp(config)
    small(config)
    return config
