"""The backtracking line search for many tasks at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metalearn.inner.solver import broadcast


@torch.no_grad()
def backtrack(
    objective: Callable[[list[Tensor]], Tensor],
    start: list[Tensor],
    value: Tensor,
    step: list[Tensor],
    slope: Tensor,
    moving: Tensor,
    halvings: int,
    rounding: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """Halve each task's step until its objective falls by Armijo's rule (c = 1e-4), or rounding.

    Args:
        objective: maps leaves, each (T, ...), to (T,).
        start: the leaves to start from.
        value: (T,), the objective at `start`.
        step: the full step, a list like `start`.
        slope: (T,), the derivative of the objective along `step`, below 0.
        moving: (T,) bool; the other tasks stay where they are.
        halvings: the limit on halvings.
        rounding: (T,), the size below which a change of the objective is its own rounding.

    Returns:
        the leaves reached, and the mask (T,) of tasks that moved. A task that finds no decrease
        stays.
    """
    size = torch.ones_like(value)
    accepted = ~moving
    reached = start
    for _ in range(halvings + 1):
        trial = [x + broadcast(size, x) * s for x, s in zip(start, step, strict=True)]
        # A decrease below the objective's own rounding is invisible. A step that promises less
        # would always be refused, with the gradient still at the square root of the precision.
        falls = objective(trial) <= value + 1e-4 * size * slope + rounding
        now = falls & ~accepted
        reached = [
            torch.where(broadcast(now, y), x, y) for x, y in zip(trial, reached, strict=True)
        ]
        accepted = accepted | falls
        if accepted.all():
            break
        size = torch.where(accepted, size, size / 2)
    return reached, moving & accepted
