"""Networks with a few parameters."""

import torch
from torch import nn


class Toy(nn.Module):
    """A small network that uses all its inputs."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, -0.3]))
        self.slope = nn.Parameter(torch.tensor(0.01))
        self.in_training = None

    def forward(self, x, labels):
        self.in_training = self.training
        return self.scale * torch.tanh(x) + self.slope * labels.to(x.dtype)[:, None]


class ToyOfClasses(Toy):
    """`Toy` with three classes, which records the keyword arguments of its calls."""

    def __init__(self):
        super().__init__()
        self.shifts, self.conditions = nn.Parameter(torch.zeros(3, 2)), []

    def forward(self, x, labels, **condition):
        self.conditions.append(condition)
        return super().forward(x, labels) + (self.shifts[condition['classes']] if condition else 0)
