"""The check that a solution solves its equation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.implicit.equation import Leaves

Check = Literal["warn", "raise", "silent"] | Callable[[Tensor], None]

TOLERANCE = 1e-3
"""The largest relative distance from a solution that is no warning."""


class InexactSolution(UserWarning):
    """The warning that the given solution leaves a residual in its equation."""


def is_check(check: object) -> bool:
    return check in ("warn", "raise", "silent") or callable(check)


def judge(
    check: Check,
    residual: Leaves,
    transposed: Callable[[Leaves], Leaves],
    x: Leaves,
    batched: bool,
) -> None:
    """Warn, raise or report by the distance of x from a solution.

    A step d to the solution has A d = -F to first order, so that |d| >= |F|^2 / |A'F|. This bound
    over |x| is the distance. It is 0 where |d| may be the rounding of numbers near 1.

    Args:
        residual: F, at x.
        transposed: the map w -> A'w.

    Raises:
        UsageError: check="raise", and a distance is above `TOLERANCE`.
    """
    size = _lengths(residual, batched)
    unit = tuple((v / _against(torch.where(size > 0, size, 1.0), v)).to(v.dtype) for v in residual)
    step = size / _lengths(transposed(unit), batched)
    # A residual of 0 is solved, whatever A is, and one that is not finite is not.
    step = torch.where(size == 0, 0.0, step.nan_to_num(nan=torch.inf))
    eps = max(torch.finfo(v.dtype).eps for v in x)
    numbers = sum(v.numel() for v in x) / max(size.numel(), 1)
    rounding = step <= 4 * eps * numbers**0.5
    distance = torch.where(rounding, 0.0, step / _lengths(x, batched))
    distance = torch.where(distance.isnan(), torch.inf, distance)
    if callable(check):
        check(distance)
        return
    tolerance = max(TOLERANCE, 10 * eps)
    unsolved = distance > tolerance
    if not unsolved.any():
        return
    worst = torch.where(unsolved, distance, -1.0).argmax()
    left, away = (v.flatten()[worst].item() for v in (size, distance))
    of = f" of {int(unsolved.sum())} of {distance.numel()} problems" if distance.dim() else ""
    sentence = (
        f"the solution{of} leaves a residual of {left:.1e} and is {away:.1e} of its norm or more "
        f"from a solution: expected at most {tolerance:.0e}, for the derivative is that of a "
        "solution. Solve the equation further, or set check='silent'."
    )
    if check == "raise":
        raise UsageError(sentence)
    warnings.warn(sentence, InexactSolution, stacklevel=5)


def _lengths(leaves: Leaves, batched: bool) -> Tensor:
    """Return the norm of all leaves, (), or of each problem's, (T,), in float64."""
    squares = [
        torch.linalg.vector_norm(
            v.reshape(len(v), -1) if batched else v.reshape(-1), dim=-1, dtype=torch.float64
        ).square()
        for v in leaves
    ]
    return torch.stack(squares).sum(0).sqrt()


def _against(per_problem: Tensor, v: Tensor) -> Tensor:
    """Reshape a (T,) or () tensor so that it broadcasts against v."""
    return per_problem.reshape(-1, *[1] * (v.dim() - 1)) if per_problem.dim() else per_problem
