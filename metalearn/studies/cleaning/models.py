"""The models of hyper-cleaning. Batch norm uses the statistics of each batch, and keeps none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metalearn.nn import MLP


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a 1x1 shortcut; He et al. 2016."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs, track_running_stats=False),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs, track_running_stats=False),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.body(x))


def resnet(classes: int, width: int = 16) -> nn.Module:
    """Return a network of three residual blocks for 28x28 images."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2, 1),
        nn.ReLU(),
        ResidualBlock(width, width, 1),
        ResidualBlock(width, 2 * width, 2),
        ResidualBlock(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.BatchNorm1d(16 * width, track_running_stats=False),
        nn.Linear(16 * width, classes),
    )


def linear(classes: int) -> nn.Module:
    """Return a softmax classifier of 8x8 images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def mlp(classes: int) -> nn.Module:
    """Return a network with one hidden layer for 8x8 images."""
    return nn.Sequential(nn.Flatten(), MLP([64, 64, classes]))
