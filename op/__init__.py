"""Operations that the networks need and PyTorch does not have, or not so fast: FIR resampling, 3x3
convolutions and their kin.
"""

import importlib.util
import sys

from .conv3x3 import Conv3x3, conv3x3
from .dropout import Dropout
from .fused_act import FusedLeakyReLU, fused_leaky_relu
from .upfirdn2d import upfirdn2d

__all__ = ['Conv3x3', 'Dropout', 'FusedLeakyReLU', 'conv3x3', 'fused_leaky_relu', 'upfirdn2d']

# Importing torch._dynamo, which the first optimizer does, crashes if TensorFlow was imported before
# Triton. Triton alone takes 0.1 s.
if 'tensorflow' not in sys.modules and all(map(importlib.util.find_spec, ('tensorflow', 'triton'))):
    importlib.import_module('triton')
