"""Score networks. `models.utils.create_model(config)` builds the one that a config names."""
from . import ddpm, ncsnpp, ncsnv2  # noqa: F401 (they register their networks)
