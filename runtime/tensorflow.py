"""TensorFlow in a process with PyTorch: how to import it, and stubs of imported modules.

tf = tensorflow()                                 # never uses a GPU
with stub('tensorboard.compat.notf'):             # TensorBoard then does not import TensorFlow
    from torch.utils.tensorboard import SummaryWriter
"""

import contextlib
import functools
import importlib.util
import os
import sys
import types
from collections.abc import Iterator

from runtime.errors import UserError


@functools.cache
def tensorflow() -> types.ModuleType:
    """Import TensorFlow, without GPUs and with the Keras 2 that TF-GAN was written for.

    Raises:
        UserError: if TensorFlow is not installed.
    """
    os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
    # Importing torch._dynamo, which the first optimizer does, crashes if TensorFlow was imported
    # before Triton.
    if 'tensorflow' not in sys.modules and importlib.util.find_spec('triton'):
        importlib.import_module('triton')
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise UserError(
            'TensorFlow is not installed: pip install -e ".[tensorflow]". To work '
            'without it, use config.data.source=torchvision '
            'or your own data, and config.eval.metrics_backend=torch_fidelity or '
            'pixels'
        ) from error
    tf.config.set_visible_devices([], 'GPU')
    return tf


@contextlib.contextmanager
def stub(name: str, **attributes) -> Iterator[None]:
    """Let `import name` find an empty module with the given attributes until the block ends.

    A module that is already imported under this name is not replaced.
    """
    if name in sys.modules:
        yield
        return
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(attributes)
    try:
        yield
    finally:
        if sys.modules.get(name) is module:
            del sys.modules[name]
