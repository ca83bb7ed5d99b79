"""The four-block convolutional network of few-shot learning (Vinyals et al. 2016)."""

from __future__ import annotations

import math

import torch
from torch import nn

from metalearn.errors import UsageError
from metalearn.nn.head import make_head

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


class Conv4(nn.Sequential):
    """A network of four blocks of 3x3 convolution, batch norm and ReLU, and a linear layer.

    It maps (n, in_channels, image_size, image_size) to (n, ways). A convolution before batch norm
    has no bias, which the norm would take out again. Weights are Xavier uniform with gain sqrt(3),
    biases zero.

    Args:
        ways: the classes of a task; a symmetric head takes their number from each task instead.
        channels: the channels of every block; 32 or 64 in the papers.
        in_channels: 1 for Omniglot, 3 for colour.
        strided: True: halve the size by a stride of 2 (Omniglot in MAML and iMAML). False: by 2x2
            max pooling (Mini-ImageNet).
        image_size: the height and width of the images. 28 gives 2x2 features if strided, 84 gives
            5x5 if pooled.
        norm: "batch" (the statistics of the current batch), "group" (8 groups) or "none".
        activation: "relu", or "silu", which is smooth. An inner problem with ReLU has its minima at
            kinks, where the gradient is not 0 and the implicit function theorem says nothing.
        head: "free" (`ways` learned class vectors), "zero", "tied", "prototypes" or "solved"
            (`SymmetricHead`).
        learn_scale: learn the scale of a symmetric head's outputs.
        feature_norm: a further batch norm between the last block and the head.
    """

    def __init__(
        self,
        ways: int,
        channels: int = 64,
        in_channels: int = 1,
        strided: bool = True,
        image_size: int = 28,
        norm: str = "batch",
        activation: str = "relu",
        head: str = "free",
        learn_scale: bool = False,
        feature_norm: bool = False,
    ) -> None:
        if ways < 1 or channels < 1 or in_channels < 1:
            raise UsageError(
                f"Conv4(ways={ways}, channels={channels}, in_channels={in_channels}); "
                "each must be at least 1"
            )
        if activation not in ACTIVATIONS:
            raise UsageError(f"activation={activation!r} is unknown; expected 'relu' or 'silu'")
        layers: list[nn.Module] = []
        side = image_size
        for block in range(4):
            inputs = channels if block else in_channels
            stride = 2 if strided else 1
            layers += [
                nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=norm != "batch"),
                *_norm(norm, channels),
                ACTIVATIONS[activation](),
            ]
            if not strided:
                layers.append(nn.MaxPool2d(2))
            side = (side + 1) // 2 if strided else side // 2
        if side < 1:
            raise UsageError(
                f"images of {image_size}x{image_size} are too small for Conv4(strided={strided}); "
                "expected at least 16x16"
            )
        if feature_norm:
            layers.append(nn.BatchNorm2d(channels, track_running_stats=False))
        layers += [nn.Flatten(), make_head(head, channels * side * side, ways, learn_scale)]
        super().__init__(*layers)
        for module in self:
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=math.sqrt(3))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)  # the layout that nn.convolution prefers


def _norm(kind: str, channels: int) -> list[nn.Module]:
    if kind == "batch":
        return [nn.BatchNorm2d(channels, track_running_stats=False)]
    if kind == "group":
        return [nn.GroupNorm(math.gcd(8, channels), channels)]
    if kind == "none":
        return []
    raise UsageError(f"norm={kind!r} is unknown; expected 'batch', 'group' or 'none'")
