"""The arithmetic that a workload's method needs, and how fast this machine multiplies matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from metalearn.studies.speed.workloads import Workload

SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the square matrices whose product is timed: large enough to come near the machine's best."""


def operations(w: Workload) -> int:
    """Additions and multiplications of one meta-gradient, less what is of lower order.

    With F a network's forward pass over some images and F1 its first layer's part, a gradient takes
    3 F - F1: forward, by the weights, by the inputs but for the images themselves. Its derivative
    along a vector, the graph being there, takes two such products for each of those: 6 F - 4 F1
    (Pearlmutter 1994). iMAML makes a gradient for each inner step, one of the query loss, one at
    the solution to linearise, and a product for each CG iteration. MAML makes a gradient and, on
    the way back, a product for each inner step, and the gradient of the query loss.

    Of the layers only convolutions and products with matrices count, padding as if it were image.
    """
    first, whole = _forward(w, w.ways * w.shots)
    query_first, query_whole = _forward(w, w.ways * w.queries)
    gradient, product = 3 * whole - first, 6 * whole - 4 * first
    if w.method == "imaml":
        inner = (w.steps + 1) * gradient + w.cg * product
    else:
        inner = w.steps * (gradient + product)
    return w.tasks * (inner + 3 * query_whole - query_first)


def _forward(w: Workload, images: int) -> tuple[int, int]:
    """Of the strided Conv4: its first layer's operations, and all layers'."""
    side, inputs, layers = 28, 1, []
    for _ in range(4):
        side = (side + 1) // 2
        layers.append(2 * images * side * side * w.channels * inputs * 9)
        inputs = w.channels
    layers.append(2 * images * side * side * w.channels * w.ways)
    return layers[0], sum(layers)


def counted(run: Callable[[], Any]) -> int:
    """The operations that `run` makes by `torch.utils.flop_counter`."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def matrix_product(device: torch.device) -> tuple[Callable[[], Any], int]:
    """A product of two large float32 matrices, and its operations."""
    n = SIDE[device.type]
    a, b = torch.rand(2, n, n, device=device)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2 * n**3
