"""Score networks. `models.utils.create_model(config)` builds the one that a config names."""
