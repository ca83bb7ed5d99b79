"""The models of hyper-cleaning. Batch norm uses the statistics of each batch, and keeps none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metalearn.nn import MLP


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, by default a 1x1 convolution; He et al. 2016."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, shortcut: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs, track_running_stats=False),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs, track_running_stats=False),
        )
        if shortcut is None:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.shortcut = shortcut

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


def resnet18(classes: int, width: int = 64, in_channels: int = 1) -> nn.Module:
    """Return the ResNet-18 of He et al. 2016: four stages of two residual blocks.

    Images of 28x28 reach the first stage as 7x7, and the last stage has 1x1.

    Args:
        width: the channels of the first stage; each stage has twice those of the one before.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width, track_running_stats=False),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *(ResidualBlock(width, width, 1, nn.Identity()) for _ in range(2)),
    ]
    for inputs in (width, 2 * width, 4 * width):
        outputs = 2 * inputs
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, 2, bias=False),
            nn.BatchNorm2d(outputs, track_running_stats=False),
        )
        layers += [
            ResidualBlock(inputs, outputs, 2, shortcut),
            ResidualBlock(outputs, outputs, 1, nn.Identity()),
        ]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, classes)
    )


def linear(classes: int) -> nn.Module:
    """Return a softmax classifier of 8x8 images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def mlp(classes: int) -> nn.Module:
    """Return a network with one hidden layer for 8x8 images."""
    return nn.Sequential(nn.Flatten(), MLP([64, 64, classes]))
