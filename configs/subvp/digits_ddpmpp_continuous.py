from configs.defaults import ddpmpp, digits, small, subvp


def get_config():
    config = digits()
    subvp(config)
    ddpmpp(config)
    small(config)
    return config
