"""Scikit-learn's handwritten digits."""

import numpy as np
from ml_collections import ConfigDict

from data.images import Images


def load(config: ConfigDict, split: str) -> Images:
    """Return a split of 1,797 images of 8x8 pixels and 17 grey levels; a fifth is the test set."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    held_out = len(order) // 5
    chosen = order[:held_out] if split == 'test' else order[held_out:]
    images = data.images[chosen].astype(np.uint8)[..., None]
    return Images(images, data.target[chosen].astype(np.int64), 17)
