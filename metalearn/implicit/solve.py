"""The calls that find a solution and attach its derivative: roots, minima and fixed points.

Each takes a start, a solver and the arguments, and gives a `Result` whose value is differentiable
in the arguments, as `root`, `argmin` and `fixed_point` attach it. The solver's path has no
derivative and keeps no memory.

All the transforms that `root` supports work here: reverse and forward mode, `torch.func.vmap` (each
problem stops on its own) and their nests. A solver's path depends on the numbers, so that
`torch.compile`, `torch.export` and meta tensors do not work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from metalearn import implicit
from metalearn.errors import UsageError, is_count
from metalearn.fixed_point import FixedPointSolver
from metalearn.implicit.equation import Report
from metalearn.implicit.search import Result, search
from metalearn.inner import InnerSolver
from metalearn.linear_solve import CG, GMRES, LinearSolver
from metalearn.nonlinear_solve import (
    LBFGS,
    Bisection,
    Found,
    GaussNewton,
    GradientDescent,
    LevenbergMarquardt,
    Newton,
    run_fixed_point,
    run_inner,
)
from metalearn.tree import Tree

RowFunction = Callable[[Tensor], Tensor]

ROOTS = (Newton, Bisection)
MINIMISERS = (LBFGS, GradientDescent)
SQUARES = (LevenbergMarquardt, GaussNewton)


class Solver(Protocol):
    """A frozen dataclass whose fields are the solver's options; see `metalearn.nonlinear_solve`."""

    def __call__(self, function: RowFunction, x0: Tensor, max_steps: int, /) -> Found: ...


def root_find(
    residual: Callable[..., Tree],
    x0: Tree,
    *args: Tree,
    solver: Solver = Newton(),  # noqa: B008  (a frozen dataclass)
    linear_solver: LinearSolver = GMRES(),  # noqa: B008
    max_steps: int = 100,
    batched: bool = False,
    report: Report | None = None,
) -> Result:
    """Find x with residual(x, *args) = 0, differentiable in `args`.

    Args:
        residual: maps (x, *args) to a pytree of the structure and shapes of x. All that carries a
            gradient or is mapped by `torch.func.vmap` must come in through `args`.
        x0: the start, a pytree of floating-point tensors; no gradient flows into it.
        args: pytrees; leaves that are not tensors are passed on as they are.
        solver: `Newton()`, `Newton(GMRES())` for many unknowns, or `Bisection(low, high)`.
        linear_solver: the solver of the derivative's systems, as in `root`.
        max_steps: the limit on each problem's steps, at least 0.
        batched: every leaf of x0 begins with the same axis T, and the residual treats the T
            problems one by one. Each problem stops on its own.
        report: called with the `Solution` of every linear solve of a derivative.

    Raises:
        ValueError: max_steps is negative, the solver is of another kind of problem, x0 has no
            floating-point tensors, or as in `root`.

    Warns:
        NotSolved: a problem's status is not CONVERGED. Its derivative is then wrong.
    """
    _check(max_steps)
    _check_kind(solver, "Newton()", *MINIMISERS, *SQUARES, InnerSolver)

    def run(function: RowFunction, start: Tensor) -> Found:
        return solver(_square(function), start, max_steps)

    found = search("root_find", run, residual, x0, args, batched)
    return _attach(implicit.root, residual, found, args, linear_solver, batched, report)


def minimise(
    objective: Callable[..., Tensor],
    x0: Tree,
    *args: Tree,
    solver: Solver | InnerSolver = LBFGS(),  # noqa: B008
    linear_solver: LinearSolver = CG(max_iters=100),  # noqa: B008
    max_steps: int = 1000,
    batched: bool = False,
    report: Report | None = None,
) -> Result:
    """Find a local minimum x of objective(x, *args), differentiable in `args`.

    Args:
        objective: returns a scalar, or (T,) if `batched`.
        solver: `LBFGS()`, `GradientDescent()`, or a solver of `metalearn.inner`. The latter stops
            by its own `tol`, and has a limit of its own on steps; the smaller limit counts.

    The other arguments, errors and warnings are as in `root_find`. `linear_solver` solves with the
    Hessian, as in `argmin`.
    """
    _check(max_steps)
    _check_kind(solver, "LBFGS()", *ROOTS, *SQUARES)

    def values(x: Tree, *args: Tree) -> Tensor:
        value = objective(x, *args)
        problems = tree_flatten(x)[0][0].shape[:1] if batched else ()
        if not isinstance(value, Tensor) or value.shape != problems:
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the objective gives {what}: expected a tensor of shape {tuple(problems)}. "
                "Return one value for each problem."
            )
        return value

    def run(function: RowFunction, start: Tensor) -> Found:
        def of_rows(x: Tensor) -> Tensor:
            return function(x)[:, 0]

        if isinstance(solver, InnerSolver):
            return run_inner(solver, of_rows, start, max_steps)
        return solver(of_rows, start, max_steps)

    found = search("minimise", run, values, x0, args, batched)
    return _attach(implicit.argmin, objective, found, args, linear_solver, batched, report)


def least_squares(
    residuals: Callable[..., Tree],
    x0: Tree,
    *args: Tree,
    solver: Solver = LevenbergMarquardt(),  # noqa: B008
    linear_solver: LinearSolver = CG(max_iters=100),  # noqa: B008
    max_steps: int = 500,
    batched: bool = False,
    report: Report | None = None,
) -> Result:
    """Find a local minimum x of half the sum of squares of residuals(x, *args).

    Args:
        residuals: maps (x, *args) to a pytree of tensors, whose leaves begin with T if `batched`.
        solver: `LevenbergMarquardt()`, or `GaussNewton()` for many unknowns.

    The derivative is that of the minimum, with the residuals' second derivatives. `residual_norm`
    is the norm of the gradient J'r. The other arguments, errors and warnings are as in `root_find`.
    """
    _check(max_steps)
    _check_kind(solver, "LevenbergMarquardt()", *ROOTS, *MINIMISERS, InnerSolver)

    def run(function: RowFunction, start: Tensor) -> Found:
        return solver(function, start, max_steps)

    def half_squares(x: Tree, *args: Tree) -> Tensor:
        problems = tree_flatten(x)[0][0].shape[:1] if batched else ()
        halves = [
            r.square().reshape(*problems, -1).sum(-1) / 2
            for r in tree_flatten(residuals(x, *args))[0]
        ]
        return torch.stack(halves).sum(0)

    found = search("least_squares", run, residuals, x0, args, batched)
    return _attach(implicit.argmin, half_squares, found, args, linear_solver, batched, report)


def find_fixed_point(
    function: Callable[..., Tree],
    x0: Tree,
    *args: Tree,
    solver: FixedPointSolver | None = None,
    linear_solver: LinearSolver = GMRES(),  # noqa: B008
    max_steps: int = 100,
    batched: bool = False,
    report: Report | None = None,
) -> Result:
    """Find x with function(x, *args) = x, differentiable in `args`.

    Args:
        solver: a solver of `metalearn.fixed_point`, with a tolerance and a limit of its own; the
            smaller limit counts. None: `Anderson` with rtol at eps^(2/3), 4e-11 in float64.

    The other arguments, errors and warnings are as in `root_find`.
    """
    _check(max_steps, least=1)
    _check_kind(solver, "Anderson()", *ROOTS, *MINIMISERS, *SQUARES, InnerSolver)

    def run(of_rows: RowFunction, start: Tensor) -> Found:
        return run_fixed_point(solver, _square(of_rows), start, max_steps)

    found = search("find_fixed_point", run, function, x0, args, batched)
    return _attach(implicit.fixed_point, function, found, args, linear_solver, batched, report)


def _attach(
    derivative: Callable[..., Tree],
    function: Callable[..., Any],
    found: Result,
    args: tuple[Tree, ...],
    linear_solver: LinearSolver,
    batched: bool,
    report: Report | None,
) -> Result:
    """Return the result with its value differentiable in `args`; its status says how good it is."""
    options: dict[str, Any] = {"linear_solver": linear_solver, "batched": batched, "report": report}
    value = derivative(function, found.value, *args, check="silent", **options)
    return replace(found, value=value)


def _check(max_steps: int, least: int = 0) -> None:
    if not is_count(max_steps, least):
        raise ValueError(
            f"max_steps={max_steps!r}: expected a whole number of at least {least}. Change it."
        )


def _check_kind(solver: object, right: str, *others: type) -> None:
    """Raise UsageError for a solver of another kind of problem, or a class without its options."""
    if isinstance(solver, (type, *others)):
        shown = f"the class {solver.__name__}" if isinstance(solver, type) else solver
        raise UsageError(
            f"solver={shown}: expected a solver of this kind of problem, with its options. Give "
            f"{right}."
        )


def _square(function: RowFunction) -> RowFunction:
    """Return the function, which must give as many numbers a problem as it takes."""

    def checked(x: Tensor) -> Tensor:
        out = function(x)
        if out.shape != x.shape:
            raise ValueError(
                f"the function gives {out.shape[1]} numbers for {x.shape[1]} unknowns a problem: "
                "expected as many. Return a pytree like x, or take least_squares."
            )
        return out

    return checked
