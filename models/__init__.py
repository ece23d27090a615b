"""Score networks and a classifier of noisy images; `models.utils.create_model` builds them."""

from . import ddpm, ncsnpp, ncsnv2, wideresnet  # noqa: F401 (they register their networks)
