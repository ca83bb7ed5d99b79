"""The minimisers: L-BFGS and gradient descent, by one line search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metalearn.autograd import gradients
from metalearn.inner.lbfgs import History
from metalearn.linear_solve.system import dot, norms, require
from metalearn.nonlinear_solve.progress import (
    Options,
    Progress,
    RowFunction,
    check_tolerances,
    finite_rows,
)
from metalearn.nonlinear_solve.result import Found, SolveStatus

TRIALS = 40
"""The limit on trials of a line search."""
PATIENCE = 20
"""The steps without a lower objective or gradient after which a problem has stalled."""


@dataclass(frozen=True)
class LBFGS:
    """The limited-memory BFGS method for a minimum; Nocedal & Wright 2006, algorithm 7.5.

    The step length meets the weak Wolfe conditions, found by bisection (Lewis & Overton 2013,
    algorithm 2.6). The objective never increases beyond rounding.

    Args:
        memory: the number of pairs of steps and gradient differences kept.
        rtol: the tolerance on |g(x)| / |g(x0)|, where g is the gradient, and on |d| / |x|, where d
            is the next step. None: eps^(2/3), which is 4e-11 in float64.
        atol: the tolerance on |g(x)|.

    Raises:
        ValueError: memory is below 1, or a tolerance is negative or NaN.
    """

    memory: int = 10
    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        require(self, 1, "memory")
        check_tolerances(self)

    def __call__(self, objective: RowFunction, x0: Tensor, max_steps: int) -> Found:
        return _descend(self, objective, x0, max_steps, History(self.memory), curved=True)


@dataclass(frozen=True)
class GradientDescent:
    """The descent along -g, at a rate that the line search of `LBFGS` finds for each problem.

    Args:
        rate: the first rate that is tried. Each step begins with the rate of the step before.
        rtol: the tolerance on |g(x)| / |g(x0)|; None: eps^(2/3).
        atol: the tolerance on |g(x)|.

    Raises:
        ValueError: the rate is not above 0, or a tolerance is negative or NaN.
    """

    rate: float = 1.0
    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < float("inf"):
            raise ValueError(
                f"GradientDescent(rate={self.rate}): expected a finite rate above 0. Change it."
            )
        check_tolerances(self)

    def __call__(self, objective: RowFunction, x0: Tensor, max_steps: int) -> Found:
        return _descend(self, objective, x0, max_steps, _Rate(self.rate), curved=False)


class _Directions(Protocol):
    """The rule of the next step, from the gradient and the earlier steps."""

    def direction(self, g: Tensor) -> Tensor: ...

    def add(self, s: Tensor, y: Tensor) -> None: ...


class _Rate:
    def __init__(self, rate: float) -> None:
        self.rate, self.last = torch.tensor(rate), torch.tensor(0.0)

    def direction(self, g: Tensor) -> Tensor:
        self.last = g
        self.rate = self.rate.to(g).expand(len(g))
        return -self.rate[:, None] * g

    def add(self, s: Tensor, y: Tensor) -> None:
        moved, slope = norms(s), norms(self.last)
        usable = (moved > 0) & (slope > 0)
        self.rate = torch.where(usable, moved / torch.where(usable, slope, 1.0), self.rate)


def value_and_gradient(objective: RowFunction, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values, (T,), and their gradients, (T, N), of an objective on rows."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = objective(x)
        (g,) = gradients(value.sum(), [x])
    return value.detach(), g.detach()


def _descend(
    solver: Options,
    objective: RowFunction,
    x0: Tensor,
    max_steps: int,
    directions: _Directions,
    curved: bool,
) -> Found:
    """Descend; `curved` says that a step estimates the distance left, once curvature is known."""
    x = x0
    value, g = value_and_gradient(objective, x)
    progress = Progress(solver, x0, torch.where(value.isfinite(), norms(g), torch.nan))
    value, g = (torch.where(progress.running, value, 0.0), _kept(progress.running, g))
    learned = torch.zeros_like(progress.running)
    least, idle = norms(g), torch.zeros_like(progress.steps)
    for step in range(max_steps + 1):
        d = directions.direction(g)
        d = torch.where((dot(g, d) < 0)[:, None], d, -g)
        progress.judge(x, norms(g), d, trusted=learned)
        if step == max_steps or not progress.running.any():
            break
        before = value
        reached, value, slope, moved = _line_search(objective, x, value, g, d, progress.running)
        s, y = reached - x, slope - g
        directions.add(s, y)
        learned = (dot(s, y) > 0) & curved
        x, g = reached, slope
        progress.steps += progress.running
        rounding = 4 * torch.finfo(value.dtype).eps * before.abs()
        better = (value < before - rounding) | (norms(g) < least)
        least, idle = least.minimum(norms(g)), torch.where(better, 0, idle + 1)
        progress.stall(~moved | (idle >= PATIENCE), norms(g))
    failed = progress.status == SolveStatus.NON_FINITE
    return progress.found(x, torch.where(failed, torch.inf, norms(g)))


def _kept(mask: Tensor, matrix: Tensor) -> Tensor:
    return torch.where(mask[:, None], matrix, 0.0)


def _line_search(
    objective: RowFunction, x: Tensor, value: Tensor, g: Tensor, d: Tensor, running: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Search each problem's step length t for the weak Wolfe conditions.

    Returns:
        x, the value and the gradient at the best length, and the mask of problems that moved. If
        no length meets both conditions, the last one that lowers the objective enough is taken.
    """
    slope = dot(g, d)
    rounding = 4 * torch.finfo(value.dtype).eps * value.abs()
    low, high = torch.zeros_like(value), torch.full_like(value, torch.inf)
    t = torch.ones_like(value)
    seeking, moved = running, torch.zeros_like(running)
    best = (x, value, g)
    for _ in range(TRIALS):
        trial = torch.where(seeking[:, None], x + t[:, None] * d, x)
        v, grad = value_and_gradient(objective, trial)
        falls = seeking & finite_rows(v, grad, trial) & (v <= value + 1e-4 * t * slope + rounding)
        flat = dot(grad, d) >= 0.9 * slope
        best = (
            torch.where(falls[:, None], trial, best[0]),
            torch.where(falls, v, best[1]),
            torch.where(falls[:, None], grad, best[2]),
        )
        moved = moved | falls
        low = torch.where(falls & ~flat, t, low)
        high = torch.where(seeking & ~falls, t, high)
        seeking = seeking & ~(falls & flat)
        if not seeking.any():
            break
        t = torch.where(high.isinf(), 2 * t, (low + high) / 2)
    return *best, moved
