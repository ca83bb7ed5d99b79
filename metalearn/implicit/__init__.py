"""Derivatives of what is defined implicitly: roots, minima and fixed points.

A solution x of F(x, c) = 0 moves with c, by the implicit function theorem, as

    dx = -A^-1 (dF/dc) dc,   A = dF/dx at x,

wherever F is continuously differentiable near (x, c) and A is invertible. `root`, `argmin` and
`fixed_point` attach this derivative to a solution that any solver has found, with or without a
graph. Reverse mode solves with A', forward mode with A, by a `linear_solve` solver. A linear
solve is itself a root, of A u - b, and x appears in its A with its own derivative attached: so the
derivative has derivatives, of any order.

Only products with A, A' and the mixed partials are formed, all by reverse mode. The memory is that
of the solution and of one linearisation of F, whatever found the solution.

The derivative is that of an exact solution. Taken at x with |F(x, c)| = r, where A's least singular
value is m, x is r / m from the solution to first order, and its derivative as far off as the
derivative's own Lipschitz constant times that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metalearn.implicit.attach import attach
from metalearn.implicit.equation import InexactDerivative, NoDerivative, Report
from metalearn.linear_solve import CG, GMRES, LinearSolver
from metalearn.tree import Tree

__all__ = ["InexactDerivative", "NoDerivative", "argmin", "fixed_point", "root"]


def root(
    residual: Callable[..., Tree],
    solution: Tree,
    *args: Tree,
    linear_solver: LinearSolver = GMRES(),  # noqa: B008  (a frozen dataclass)
    batched: bool = False,
    report: Report | None = None,
) -> Tree:
    """`solution`, differentiable in every floating tensor of `args` through residual(x, *args) = 0.

    Reverse mode, forward mode (`torch.func.jvp`), `torch.func.vmap`, and derivatives of
    derivatives. Tensors of `args` that need no gradient cost nothing.

    Args:
        residual: maps (x, *args), x a pytree like `solution`, to a pytree of the same shapes. All
            that carries a gradient must come in through `args`.
        solution: a pytree of tensors at which the residual is (nearly) zero; taken as a constant.
        args: pytrees; leaves that are no tensors are handed on as they are.
        linear_solver: of systems with A or its transpose; A need not be symmetric.
        batched: every leaf of the solution begins with the same axis T, and the residual treats the
            T problems one by one: each is solved as a system of its own, which stops on its own.
        report: called with the `Solution` of every such system. Without it a solve that ends before
            its tolerance is a warning, and one that fails an error.

    Raises:
        ValueError: `solution` has no floating tensors, the residual differs from it in structure
            or shapes, or the residual closes over a tensor that carries a gradient.
        NoDerivative: in the backward (or forward-mode) pass, where A is singular, not finite, or
            the solver broke down with a residual left.

    Warns:
        InexactDerivative: the solver stopped at a relative residual above its tolerance, which is
            named; to first order it is the derivative's error times A's condition number, at most.
    """
    return attach(residual, solution, args, linear_solver, batched, report, symmetric=False)


def argmin(
    objective: Callable[..., Tensor],
    solution: Tree,
    *args: Tree,
    linear_solver: LinearSolver = CG(),  # noqa: B008
    batched: bool = False,
    report: Report | None = None,
) -> Tree:
    """`solution`, differentiable in `args` as a minimum of objective(x, *args): `root` of its
    gradient.

    `objective` returns a scalar, or (T,) if `batched`. A is its Hessian, symmetric, and positive
    definite at a strict minimum, so that `CG` serves. Other arguments, errors and warnings as in
    `root`.
    """

    def gradient(x: Tree, *args: Tree) -> Tree:
        return torch.func.grad(scalar)(x, *args)

    def scalar(x: Tree, *args: Tree) -> Tensor:
        value = objective(x, *args)
        if not isinstance(value, Tensor) or value.dim() != int(batched):
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            expected = "a value for each problem, (T,)" if batched else "a tensor without axes"
            raise ValueError(f"the objective gives {what}; expected {expected}")
        return value.sum()

    return attach(gradient, solution, args, linear_solver, batched, report, symmetric=True)


def fixed_point(
    function: Callable[..., Tree],
    solution: Tree,
    *args: Tree,
    linear_solver: LinearSolver = GMRES(),  # noqa: B008
    batched: bool = False,
    report: Report | None = None,
) -> Tree:
    """`solution`, differentiable in `args` as a fixed point, function(x, *args) = x: `root` of
    x - function(x, *args), whose A is I - J. Other arguments, errors and warnings as in `root`.
    """

    def residual(x: Tree, *args: Tree) -> Tree:
        leaves, spec = tree_flatten(x)
        image, image_spec = tree_flatten(function(x, *args))
        if image_spec != spec:
            raise ValueError(
                f"the function gives a pytree of structure {image_spec}; expected {spec}, the "
                "solution's"
            )
        return tree_unflatten([a - b for a, b in zip(leaves, image, strict=True)], spec)

    return attach(residual, solution, args, linear_solver, batched, report, symmetric=False)
