"""The solvers of `inner` and `fixed_point` as solvers of rows."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor

from metalearn.fixed_point import Anderson, FixedPointSolver
from metalearn.inner import InnerSolver
from metalearn.linear_solve.system import norms
from metalearn.nonlinear_solve.descent import value_and_gradient
from metalearn.nonlinear_solve.progress import RowFunction, default_rtol, finite_rows
from metalearn.nonlinear_solve.result import FROM_LINEAR, Found, SolveStatus

S = TypeVar("S")


def run_inner(solver: InnerSolver, objective: RowFunction, x0: Tensor, max_steps: int) -> Found:
    """Minimise by an inner solver, which stops by its own `tol`.

    A problem is solved if the gradient's norm is at most `tol`, or eps^(2/3) of its first value.
    """
    value, g = value_and_gradient(objective, x0)
    first = norms(g)
    ended = _limited(solver, "steps", max_steps)(lambda p: objective(p["x"]), {"x": x0})
    x, norm = ended.params["x"], ended.grad_norm
    tol = getattr(solver, "tol", None) or 0.0
    solved = norm <= (default_rtol(x0.dtype) * first).clamp_min(tol)
    sound = finite_rows(x, norm, ended.objective, value)
    status = torch.where(solved, SolveStatus.CONVERGED, SolveStatus.MAX_STEPS)
    short = ended.steps < getattr(solver, "steps", 0)
    status = torch.where(short & ~solved & (ended.steps < max_steps), SolveStatus.STALLED, status)
    status = torch.where(sound, status, SolveStatus.NON_FINITE)
    x = torch.where(sound[:, None], x, x0)
    return Found(x, status, ended.steps, torch.where(sound, norm, torch.inf))


def run_fixed_point(
    solver: FixedPointSolver | None, function: RowFunction, x0: Tensor, max_steps: int
) -> Found:
    """Solve x = f(x); None: Anderson's method, to a relative residual of eps^(2/3)."""
    solver = solver or Anderson(rtol=default_rtol(x0.dtype))
    solution = _limited(solver, "max_iters", max_steps)(function, x0, batched=True)
    status = torch.zeros_like(solution.status)
    for linear, own in FROM_LINEAR.items():
        status = torch.where(solution.status == linear, own, status)
    return Found(solution.value, status, solution.iterations, solution.residual_norm)


def _limited(solver: S, field: str, limit: int) -> S:
    """Return the solver with its limit on steps, the field of this name, at most `limit`."""
    options: Any = solver
    own = getattr(solver, field, None)
    return solver if own is None or own <= limit else dataclasses.replace(options, **{field: limit})
