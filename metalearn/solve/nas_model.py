"""The networks of the architecture search: a cell whose edges are operations, or mixtures of them.

    node_j = norm(SiLU(sum over i < j of edge_ij(node_i))),   node_0 = the stem's output,

and the last node, averaged over the image, goes to a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    "skip": lambda channels: nn.Identity(),
    "avg_pool": lambda channels: nn.AvgPool2d(3, stride=1, padding=1),
    "max_pool": lambda channels: nn.MaxPool2d(3, stride=1, padding=1),
    "conv_1x1": lambda channels: nn.Conv2d(channels, channels, 1),
    "conv_3x3": lambda channels: nn.Conv2d(channels, channels, 3, padding=1),
    "dilated_3x3": lambda channels: nn.Conv2d(channels, channels, 3, padding=2, dilation=2),
}
"""By name, each from `channels` to as many, on images of one size."""

Architecture = tuple[str, ...]
"""An operation for each edge, in the order of `edges`."""


def edges(nodes: int) -> list[tuple[int, int]]:
    """Pairs (i, j) of a cell with `nodes` nodes after its input, i before j."""
    return [(i, j) for j in range(1, nodes + 1) for i in range(j)]


class Mixture(nn.Module):
    """sum_k softmax(alpha)_k operation_k(x), alpha beginning at zero (Liu et al. 2019, eq. 2).

    It maps (n, C, H, W), and inside `TaskBatched`, where alpha is (T, K), (n, T, C, H, W).
    """

    task_batchable: ClassVar[bool] = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, make in OPERATIONS.items():
            self.add_module(name, make(channels))
        self.alpha = nn.Parameter(torch.zeros(len(OPERATIONS)))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.alpha.softmax(dim=-1).unbind(dim=-1)
        mixed = [
            w[..., None, None, None] * op(x) for w, op in zip(weights, self.children(), strict=True)
        ]
        return torch.stack(mixed).sum(0)


class CellNetwork(nn.Module):
    """One cell between a stem and a linear layer: (n, in_channels, H, W) to (n, classes).

    Args:
        edge: makes the module of edge number k.
        nodes: of the cell, after its input.
    """

    task_batchable: ClassVar[bool] = True

    def __init__(
        self,
        edge: Callable[[int], nn.Module],
        nodes: int,
        channels: int,
        classes: int,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        self.nodes = nodes
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
        for k, (i, j) in enumerate(edges(nodes)):
            self.add_module(f"edge_{i}_{j}", edge(k))
        for j in range(1, nodes + 1):
            self.add_module(f"norm_{j}", nn.GroupNorm(1, channels))
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        states = [self.stem(x)]
        for j in range(1, self.nodes + 1):
            total = torch.stack(
                [self.get_submodule(f"edge_{i}_{j}")(states[i]) for i in range(j)]
            ).sum(0)
            states.append(self.get_submodule(f"norm_{j}")(F.silu(total)))
        return self.head(states[-1])
