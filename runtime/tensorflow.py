"""TensorFlow."""

import functools
import importlib.util
import os
import sys

from runtime.errors import UserError


@functools.cache
def tensorflow():
    """TensorFlow, which never takes a GPU, with the Keras that its other packages were written
    for.
    """
    os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
    # behind TensorFlow, where PyTorch imports it, it crashes
    if 'tensorflow' not in sys.modules and importlib.util.find_spec('triton'):
        importlib.import_module('triton')
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise UserError(
            'TensorFlow is not installed: pip install -e ".[tensorflow]". To do '
            'without it use config.data.source=torchvision '
            'or data of your own, and config.eval.metrics_backend=torch_fidelity or '
            'pixels'
        ) from error
    tf.config.set_visible_devices([], 'GPU')
    return tf
