"""The arithmetic that a method needs, and the rate of a matrix product on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from metalearn.studies.speed.workloads import Workload

SIDE = {"cpu": 2048, "cuda": 8192}
"""The side of the square matrices whose product is timed, large enough for the best rate."""


def operations(w: Workload) -> int:
    """Return the additions and multiplications of one meta-gradient, without lower orders.

    Let F be the operations of a network's forward pass over some images, and F1 those of its first
    layer. A gradient takes 3 F - F1: the forward pass, the derivatives by the weights, and the
    derivatives by the inputs of all layers but the first. The derivative of the gradient along a
    vector takes 6 F - 4 F1 when the graph exists (Pearlmutter 1994).

    iMAML takes:
    - a gradient for each inner step, one of the query loss and one to linearise at the solution;
    - a product for each CG iteration.

    MAML takes:
    - a gradient and a product for each inner step;
    - a gradient of the query loss.

    Only convolutions and matrix products count. Padding counts as image.
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
    """Return the operations of the strided Conv4: of its first layer, and of all layers."""
    side, inputs, layers = 28, 1, []
    for _ in range(4):
        side = (side + 1) // 2
        layers.append(2 * images * side * side * w.channels * inputs * 9)
        inputs = w.channels
    layers.append(2 * images * side * side * w.channels * w.ways)
    return layers[0], sum(layers)


def count_operations(run: Callable[[], Any]) -> int:
    """Count the operations of `run` by `torch.utils.flop_counter`."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def matrix_product(device: torch.device) -> tuple[Callable[[], Any], int]:
    """Return a product of two large float32 matrices, and its number of operations."""
    n = SIDE[device.type]
    a, b = torch.rand(2, n, n, device=device)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2 * n**3
