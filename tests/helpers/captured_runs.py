"""Meta-gradients of problems that are captured and of the same problems run as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from zoo import relative_difference

from metalearn.inner import Adam, GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.tree import leaves_of

STEPS = GradientDescent(4, 0.1)
METHODS: dict[str, MetaGradient] = {
    "implicit": Implicit(STEPS, CG(3)),
    "implicit, no solver": Implicit(STEPS, None),
    "implicit, Gauss-Newton": Implicit(STEPS, CG(3), curvature="gauss_newton"),
    "implicit, Adam": Implicit(Adam(4, 0.01), CG(3)),
    "first-order": FirstOrder(STEPS),
    "unrolled": Unrolled(STEPS, "batched"),
    "unrolled, momentum": Unrolled(GradientDescent(4, 0.1, momentum=0.5), "batched"),
    "unrolled, Adam": Unrolled(Adam(4, 0.01), "batched"),
    "unrolled, truncated": Unrolled(STEPS, "batched", truncate=2),
    "unrolled, checkpointed": Unrolled(STEPS, "batched", checkpoint=2),
    "unrolled, multi-step": Unrolled(STEPS, "batched", multi_step=10),
    "unrolled, mixed mode": Unrolled(STEPS, "batched", mode="mixed"),
}


def gradients(
    method: MetaGradient, problem: Any, tasks: Sequence[Any], meta: Any = None
) -> list[list[Tensor]]:
    torch.manual_seed(1)
    meta = problem.begin() if meta is None else meta
    return [leaves_of(method(problem, meta, task).grads) for task in tasks]


def agree(found: list[list[Tensor]], expected: list[list[Tensor]], within: float = 1e-12) -> None:
    for a, b in zip(found, expected, strict=True):
        assert relative_difference(a, b) < within
