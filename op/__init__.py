"""Operations of the networks that PyTorch does not have: FIR resampling, fused leaky ReLU."""

import importlib.util
import sys

from .fused_act import FusedLeakyReLU, fused_leaky_relu
from .upfirdn2d import upfirdn2d

__all__ = ['FusedLeakyReLU', 'fused_leaky_relu', 'upfirdn2d']

# Importing torch._dynamo, which the first optimizer does, crashes if TensorFlow was imported before
# Triton. Importing Triton alone takes 0.1 s.
if 'tensorflow' not in sys.modules and all(map(importlib.util.find_spec, ('tensorflow', 'triton'))):
    importlib.import_module('triton')
