"""Dropout whose mask is drawn in less than half of PyTorch's time on a processor, which is a
twentieth of a training step of NCSN++.
"""

import torch
from torch import nn

from .upfirdn2d import _in_transform


class Dropout(nn.Dropout):
    """`nn.Dropout`: sets a share `p` of the values, in training, to zero and scales the others by 1
    / (1 - p).
    """

    def forward(self, input):
        as_usual = not self.training or self.inplace or self.p in (0, 1)
        if (
            as_usual
            or input.device.type != 'cpu'
            or torch.compiler.is_compiling()
            or _in_transform()
        ):
            return super().forward(input)
        bits = torch.empty_like(input, dtype=torch.int32).random_()  # uniform from 0 to 2^31 - 1
        return (input * (1 / (1 - self.p))).masked_fill_(bits < round(self.p * 2**31), 0)
