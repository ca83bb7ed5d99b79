"""The Newton method for F(x) = 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.fixed_point.newton import jacobian_product
from metalearn.linear_solve import Dense, LinearSolver, Status
from metalearn.linear_solve.system import norms
from metalearn.nonlinear_solve.progress import (
    Progress,
    RowFunction,
    check_tolerances,
    finite_rows,
)
from metalearn.nonlinear_solve.result import Found, SolveStatus

HALVINGS = 20
"""The number of shorter steps that are tried before a direction is given up."""


@dataclass(frozen=True)
class Newton:
    """The Newton method with a line search; Kelley 1995, algorithm 8.2.1.

    `linear_solver` solves A d = -F, where A is the Jacobian at x. The step d is halved until |F|
    falls by the fraction 1e-4 of the step's length, where the full step has length 1. |F| never
    rises. A problem whose |F| no length lowers ends as STALLED, or as SINGULAR if A is.

    Args:
        linear_solver: the default forms A, for up to some hundred unknowns. `GMRES()` gives the
            Newton-Krylov method, which takes products with A alone.
        rtol: the tolerance on |F(x)| / |F(x0)|, and on |d| / |x|. None: eps^(2/3), which is 4e-11
            in float64.
        atol: the tolerance on |F(x)|.

    Raises:
        ValueError: a tolerance is negative or NaN.
    """

    linear_solver: LinearSolver = Dense()  # noqa: RUF009  (a frozen dataclass)
    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        check_tolerances(self)

    def __call__(self, residual: RowFunction, x0: Tensor, max_steps: int) -> Found:
        x, f = x0, residual(x0)
        progress = Progress(self, x0, norms(f))
        f = torch.where(progress.running[:, None], f, 0.0)
        for step in range(max_steps + 1):
            push = jacobian_product(residual, x)
            right = torch.where(progress.running[:, None], -f, 0.0)
            solved = self.linear_solver(push, right, batched=True)
            singular = solved.status == Status.SINGULAR  # its step leaves out a direction
            step_left = torch.where(singular[:, None], torch.inf, solved.value)
            progress.judge(x, norms(f), step_left, trusted=solved.converged)
            if step == max_steps or not progress.running.any():
                break
            x, f, moved = _line_search(residual, x, f, solved.value, progress.running)
            progress.steps += progress.running
            why = torch.where(singular, SolveStatus.SINGULAR, SolveStatus.STALLED)
            progress.stall(~moved, norms(f), why)
        failed = progress.status == SolveStatus.NON_FINITE
        return progress.found(x, torch.where(failed, torch.inf, norms(f)))


def _line_search(
    residual: RowFunction, x: Tensor, f: Tensor, step: Tensor, running: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x and f after the longest tried step that lowers |f|, and the mask of who moved."""
    before, seeking = norms(f), running
    for k in range(HALVINGS + 1):
        length = 0.5**k
        trial = torch.where(seeking[:, None], x + length * step, x)
        f_trial = residual(trial)
        lower = norms(f_trial) <= (1 - 1e-4 * length) * before
        fell = seeking & lower & finite_rows(trial)
        x = torch.where(fell[:, None], trial, x)
        f = torch.where(fell[:, None], f_trial, f)
        seeking = seeking & ~fell
        if not seeking.any():
            break
    return x, f, running & ~seeking
