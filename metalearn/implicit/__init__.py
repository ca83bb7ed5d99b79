"""The derivatives of implicitly defined solutions: roots, minima and fixed points.

A solution x of F(x, c) = 0 moves with c, by the implicit function theorem, as

    dx = -A^-1 (dF/dc) dc,   A = dF/dx at x,

wherever F is continuously differentiable near (x, c) and A is invertible. `root`, `argmin` and
`fixed_point` attach this derivative to a solution that any solver has found, with or without a
graph. A `linear_solve` solver solves with A' in reverse mode, and with A in forward mode. A linear
solve is itself a root, of A u - b. Its A contains x with the derivative of x attached, so that the
derivative has derivatives of any order.

Only products with A, A' and the mixed partials are formed, all by reverse mode. The memory is that
of the solution and of one linearisation of F, whatever found the solution.

The derivative is that of an exact solution. Take it at x with |F(x, c)| = r, where A's least
singular value is m. To first order x is r / m from the solution. The derivative is off by its own
Lipschitz constant times r / m.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metalearn.implicit.attach import attach
from metalearn.implicit.check import Check, InexactSolution
from metalearn.implicit.equation import InexactDerivative, NoDerivative, Report
from metalearn.implicit.solve import find_fixed_point, least_squares, minimise, root_find
from metalearn.linear_solve import CG, GMRES, LinearSolver
from metalearn.tree import Tree

__all__ = [
    "InexactDerivative",
    "InexactSolution",
    "NoDerivative",
    "argmin",
    "find_fixed_point",
    "fixed_point",
    "least_squares",
    "minimise",
    "root",
    "root_find",
]


def root(
    residual: Callable[..., Tree],
    solution: Tree,
    *args: Tree,
    linear_solver: LinearSolver = GMRES(),  # noqa: B008  (a frozen dataclass)
    batched: bool = False,
    report: Report | None = None,
    check: Check = "warn",
) -> Tree:
    """Return `solution`, differentiable in the tensors of `args` by residual(x, *args) = 0.

    Every floating tensor of `args` can have a gradient; tensors that need none cost nothing.
    Reverse mode, forward mode (`torch.func.jvp`), `torch.func.vmap`, and derivatives of derivatives
    work.

    Args:
        residual: maps (x, *args), where x is a pytree like `solution`, to a pytree of the same
            shapes. All that carries a gradient must come in through `args`.
        solution: a pytree of tensors at which the residual is (nearly) zero; taken as a constant.
        args: pytrees; leaves that are not tensors are passed on as they are.
        linear_solver: the solver of systems with A or its transpose; A need not be symmetric.
        batched: every leaf of the solution begins with the same axis T, and the residual treats the
            T problems one by one. Each problem is solved as its own system, which stops on its own.
        report: called with the `Solution` of every linear solve. Without it, a solve that ends
            before its tolerance is a warning, and a solve that fails is an error.
        check: what follows if `solution` leaves a residual F: "warn", "raise" a UsageError, or
            "silent". |F|^2 / |A'F| is, to first order, at most the distance to a solution. It is
            held to 1e-3 of the solution's norm, for each problem if `batched`. A function is called
            with the relative distance, () or (T,), in place of a warning. The check takes one
            evaluation of the residual and one product with A'. It is left out where no derivative
            can follow, and inside `torch.func.vmap`, where no number can be read.

    Raises:
        ValueError: `solution` has no floating tensors, or the residual differs from it in structure
            or shapes, is complex, draws random numbers, closes over a tensor that carries a
            gradient, or mixes the problems of a batch. The last is seen in the backward pass.
        UsageError: `is_grads_batched=True` or `vectorize=True` of `torch.autograd` was used.
        NoDerivative: in the backward (or forward-mode) pass, if A is singular or not finite, or if
            the solver broke down with a residual left.

    Warns:
        InexactSolution: the solution leaves a residual, see `check`.
        InexactDerivative: the solver stopped at a relative residual above its tolerance; the
            warning gives the residual. To first order the derivative's error is at most the
            residual times A's condition number.
    """
    return attach(residual, solution, args, linear_solver, batched, report, check, symmetric=False)


def argmin(
    objective: Callable[..., Tensor],
    solution: Tree,
    *args: Tree,
    linear_solver: LinearSolver = CG(),  # noqa: B008
    batched: bool = False,
    report: Report | None = None,
    check: Check = "warn",
) -> Tree:
    """Return `solution`, differentiable in `args` as a minimum of objective(x, *args).

    This is `root` of the objective's gradient. `objective` returns a scalar, or (T,) if `batched`.
    A is its Hessian, which is symmetric, and positive definite at a strict minimum, so that `CG`
    serves. The other arguments, errors and warnings are as in `root`.
    """

    def gradient(x: Tree, *args: Tree) -> Tree:
        return torch.func.grad(scalar)(x, *args)

    def scalar(x: Tree, *args: Tree) -> Tensor:
        value = objective(x, *args)
        shape = tree_flatten(x)[0][0].shape[: int(batched)]
        if not isinstance(value, Tensor) or value.shape != shape:
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            expected = "a value for each problem, (T,)" if batched else "a tensor without axes"
            raise ValueError(f"the objective gives {what}; expected {expected}")
        return value.sum()

    return attach(gradient, solution, args, linear_solver, batched, report, check, symmetric=True)


def fixed_point(
    function: Callable[..., Tree],
    solution: Tree,
    *args: Tree,
    linear_solver: LinearSolver = GMRES(),  # noqa: B008
    batched: bool = False,
    report: Report | None = None,
    check: Check = "warn",
) -> Tree:
    """Return `solution`, differentiable in `args` as a fixed point: function(x, *args) = x.

    This is `root` of x - function(x, *args), whose A is I - J. The other arguments, errors and
    warnings are as in `root`.
    """

    def residual(x: Tree, *args: Tree) -> Tree:
        leaves, spec = tree_flatten(x)
        image, image_spec = tree_flatten(function(x, *args))
        if image_spec != spec:
            raise ValueError(
                f"the function gives a pytree of structure {image_spec}; expected {spec}, the "
                "solution's"
            )
        shapes = [tuple(getattr(v, "shape", ())) for v in image]
        if shapes != (expected := [tuple(v.shape) for v in leaves]):
            raise ValueError(f"the function gives leaves of shapes {shapes}; expected {expected}")
        return tree_unflatten([a - b for a, b in zip(leaves, image, strict=True)], spec)

    return attach(residual, solution, args, linear_solver, batched, report, check, symmetric=False)
