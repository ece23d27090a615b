"""Operations that the networks need and PyTorch does not name: FIR resampling and a scaled, biased leaky ReLU."""
from .fused_act import FusedLeakyReLU, fused_leaky_relu
from .upfirdn2d import upfirdn2d

__all__ = ['FusedLeakyReLU', 'fused_leaky_relu', 'upfirdn2d']
