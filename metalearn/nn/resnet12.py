"""The ResNet-12 of few-shot learning, without drop-block.

Oreshkin et al. 2018, Lee et al. 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.nn.head import make_head


class ResidualBlock(nn.Module):
    """A block of three 3x3 convolutions beside a 1x1 shortcut, then 2x2 max pooling."""

    task_batchable: ClassVar[bool] = True

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(3):
            layers += [
                nn.Conv2d(inputs if i == 0 else outputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs, track_running_stats=False),
            ]
            if i < 2:
                layers.append(nn.LeakyReLU(0.1))
        self.body = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs, track_running_stats=False),
        )
        self.activation = nn.LeakyReLU(0.1)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.activation(self.body(x) + self.shortcut(x)))


class ResNet12(nn.Sequential):
    """A network of residual blocks, global average pooling and a linear layer.

    It maps (n, c, h, w) to (n, ways).

    Args:
        ways: the classes of a task; a symmetric head takes their number from each task instead.
        in_channels: 3 for colour.
        widths: the channels of the blocks, one block for each; the published network has four. They
            are (64, 160, 320, 640) in Lee et al., and (64, 128, 256, 512) in Oreshkin et al.
        head: "free", "zero", "tied", "prototypes" or "solved" (`SymmetricHead`).

    Raises:
        UsageError: no block, or a number below 1.
    """

    def __init__(
        self,
        ways: int,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 160, 320, 640),
        head: str = "free",
    ) -> None:
        if not widths or min(ways, in_channels, *widths) < 1:
            raise UsageError(
                f"ResNet12(ways={ways}, in_channels={in_channels}, widths={list(widths)}); "
                "expected at least one width, and each number at least 1"
            )
        blocks = [
            ResidualBlock(inputs, outputs)
            for inputs, outputs in zip((in_channels, *widths[:-1]), widths, strict=True)
        ]
        super().__init__(
            *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), make_head(head, widths[-1], ways)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.1, nonlinearity="leaky_relu")
        self.to(memory_format=torch.channels_last)  # the layout that nn.convolution prefers
