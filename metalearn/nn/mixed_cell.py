"""The networks of the architecture search: a cell whose edges mix operations.

    node_j = SiLU(b_j + sum over i < j of K_ij * node_i),    node_0 = SiLU(stem * image).

The last node, averaged over the image, goes to a linear layer. Every operation is a linear filter.
An edge that mixes several is therefore one convolution, by K_ij = sum_k w_k K_ij^k.

There is no normalisation. It would leave the kernels' scale to the decay, which shrinks them until
the curvature is in the thousands. The theorem asks for a minimum that a descent reaches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.inner.solver import Params

OPERATIONS = {"none": 1, "skip": 1, "avg_pool": 3, "conv_1x1": 1, "conv_3x3": 3, "conv_5x5": 5}
"""The side of each operation's kernel. The operations named conv have weights."""
_FIXED = {"none": 0.0, "skip": 1.0, "avg_pool": 1 / 9}
"""The entries, from each channel to itself, in the kernels of the operations without weights."""

Architecture = tuple[str, ...]
"""An operation for each edge, in the order of `edges`."""
Alphas = dict[str, Tensor]
"""A tensor (K,) for each edge, by name: its K operations have the shares softmax(alpha)."""


def edges(nodes: int) -> list[tuple[int, int]]:
    """Return the pairs (i, j), i before j, of a cell with `nodes` nodes after its input."""
    return [(i, j) for j in range(1, nodes + 1) for i in range(j)]


class CellNetwork(nn.Module):
    """The network of a cell: (n, in_channels, H, W) to (n, classes).

    The edges that end in a node are one convolution of all nodes before it, side by side.

    Args:
        sides: the sides of the kernels of each node after the input; odd.
    """

    task_batchable: ClassVar[bool] = True

    def __init__(
        self, sides: Sequence[int], channels: int, classes: int, in_channels: int = 1
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.nodes = nn.Sequential(
            *(
                nn.Conv2d(j * channels, channels, side, padding=side // 2)
                for j, side in enumerate(sides, start=1)
            )
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        states = [F.silu(self.stem(x))]
        for node in self.nodes:
            states.append(F.silu(node(torch.cat(states, dim=-3))))
        return self.head(states[-1])


class MixedCell:
    """A `CellNetwork` whose kernels are made of the operations that each edge may be.

    Args:
        choices: the operations for each edge, in the order of `edges`. Several are mixed; one alone
            makes an architecture.
        channels: the channels of every node.
    """

    def __init__(
        self, choices: Sequence[Sequence[str]], nodes: int, channels: int, classes: int
    ) -> None:
        self.choices = dict(zip(edges(nodes), choices, strict=True))
        self.channels = channels
        self.sides = [
            max(OPERATIONS[op] for i in range(j) for op in self.choices[i, j])
            for j in range(1, nodes + 1)
        ]
        self.network = CellNetwork(self.sides, channels, classes)

    def alphas(self, device: torch.device) -> Alphas:
        """Return the alphas of equal mixtures."""
        return {_name(e): torch.zeros(len(ops), device=device) for e, ops in self.choices.items()}

    def chosen(self, alphas: Alphas) -> Architecture:
        """Return the operation of the largest share, for each edge."""
        return tuple(ops[int(alphas[_name(e)].argmax())] for e, ops in self.choices.items())

    def shares(self, alphas: Alphas) -> dict[str, float]:
        """Return the mean share of each operation over the edges that it is offered to."""
        found: dict[str, list[float]] = {}
        for _, operation, share in self.mixtures(alphas):
            found.setdefault(operation, []).append(share)
        return {operation: sum(own) / len(own) for operation, own in found.items()}

    def mixtures(self, alphas: Alphas) -> list[tuple[str, str, float]]:
        """Return edge, operation and share, for all edges and operations."""
        return [
            (_name(edge), op, share)
            for edge, ops in self.choices.items()
            for op, share in zip(ops, alphas[_name(edge)].softmax(0).tolist(), strict=True)
        ]

    def weights(self, tasks: int, device: torch.device) -> Params:
        """Draw random starts for `tasks` tasks.

        They are the operations' kernels, and the network's other weights.
        """
        shapes: dict[str, tuple[int, ...]] = {
            _name(e, op): (self.channels, self.channels, OPERATIONS[op], OPERATIONS[op])
            for e, ops in self.choices.items()
            for op in ops
            if op not in _FIXED
        }
        weights = {}
        for name, p in self.network.named_parameters():
            if name.endswith("bias"):
                weights[name] = torch.zeros(tasks, len(p))
            elif not name.startswith("nodes"):
                shapes[name] = tuple(p.shape)
        for name, shape in shapes.items():  # He et al. 2015
            weights[name] = math.sqrt(2 / math.prod(shape[1:])) * torch.randn(tasks, *shape)
        return {name: w.to(device) for name, w in weights.items()}

    def parameters(self, weights: Params, alphas: Alphas) -> Params:
        """Return the network's own parameters, (T, ...).

        The kernel of an edge is sum_k softmax(alpha)_k kernel_k.
        """
        own = {name: p for name, p in weights.items() if " " not in name}
        for j, side in enumerate(self.sides, start=1):
            kernels = [self._mixed((i, j), side, weights, alphas) for i in range(j)]
            own[f"nodes.{j - 1}.weight"] = torch.cat(kernels, dim=2)
        return own

    def _mixed(self, edge: tuple[int, int], side: int, weights: Params, alphas: Alphas) -> Tensor:
        """Return the mixed kernel of an edge, (T, channels, channels, side, side)."""
        shares = alphas[_name(edge)].softmax(0)
        bias = weights["stem.bias"]  # (T, channels)
        same = torch.diag_embed(torch.ones_like(bias))[..., None, None]
        total = torch.zeros_like(same).expand(-1, -1, -1, side, side)
        for share, op in zip(shares, self.choices[edge], strict=True):
            own = OPERATIONS[op]
            kernel = (
                _FIXED[op] * same.expand(-1, -1, -1, own, own)
                if op in _FIXED
                else weights[_name(edge, op)]
            )
            total = total + share * F.pad(kernel, [(side - own) // 2] * 4)
        return total


def _name(edge: tuple[int, int], operation: str = "") -> str:
    return f"{edge[0]} to {edge[1]} {operation}".strip()
