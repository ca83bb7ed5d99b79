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

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

from metalearn.forward_mode import first_order
from metalearn.linear_solve import CG, GMRES, LinearSolver, Solution, Status
from metalearn.tree import Tree

Leaves = tuple[Tensor, ...]
Report = Callable[[Solution], None]


class InexactDerivative(UserWarning):
    """The linear solve of a derivative stopped before its tolerance."""


class NoDerivative(ArithmeticError):
    """The linear system of a derivative has no finite solution that was found."""


def root(
    residual: Callable[..., Tree],
    solution: Tree,
    *args: Tree,
    linear_solver: LinearSolver = GMRES(),  # noqa: B008  (a frozen dataclass)
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
    return _attach(residual, solution, args, linear_solver, report, symmetric=False)


def argmin(
    objective: Callable[..., Tensor],
    solution: Tree,
    *args: Tree,
    linear_solver: LinearSolver = CG(),  # noqa: B008
    report: Report | None = None,
) -> Tree:
    """`solution`, differentiable in `args` as a minimum of objective(x, *args): `root` of its
    gradient.

    `objective` returns a scalar. A is its Hessian, symmetric, and positive definite at a strict
    minimum, so that `CG` serves. Other arguments, errors and warnings as in `root`.
    """

    def gradient(x: Tree, *args: Tree) -> Tree:
        return torch.func.grad(scalar)(x, *args)

    def scalar(x: Tree, *args: Tree) -> Tensor:
        value = objective(x, *args)
        if not isinstance(value, Tensor) or value.dim():
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the objective gives {what}; expected a tensor without axes")
        return value

    return _attach(gradient, solution, args, linear_solver, report, symmetric=True)


def fixed_point(
    function: Callable[..., Tree],
    solution: Tree,
    *args: Tree,
    linear_solver: LinearSolver = GMRES(),  # noqa: B008
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

    return _attach(residual, solution, args, linear_solver, report, symmetric=False)


def _attach(
    residual: Callable[..., Tree],
    solution: Tree,
    args: Sequence[Tree],
    solver: LinearSolver,
    report: Report | None,
    symmetric: bool,
) -> Tree:
    x, x_spec = tree_flatten(solution)
    if not x or not all(isinstance(v, Tensor) and v.is_floating_point() for v in x):
        raise ValueError("the solution is no pytree of floating-point tensors, of at least one")
    leaves, spec = tree_flatten(tuple(args))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def on_leaves(x: Leaves, c: Leaves) -> Leaves:
        filled = list(leaves)
        for i, tensor in zip(places, c, strict=True):
            filled[i] = tensor
        found, found_spec = tree_flatten(
            residual(tree_unflatten(list(x), x_spec), *tree_unflatten(filled, spec))
        )
        shapes = [tuple(getattr(v, "shape", ())) for v in found]
        expected = [tuple(v.shape) for v in x]
        if found_spec != x_spec or shapes != expected:
            raise ValueError(
                f"the residual has leaves of shapes {shapes}; expected {expected}, with the "
                "structure of the solution"
            )
        return tuple(found)

    x = [v.detach() for v in x]
    c = tuple(leaves[i] for i in places)
    _refuse_hidden_gradients(on_leaves(tuple(x), tuple(v.detach() for v in c)))
    equation = _Equation(on_leaves, solver, report, symmetric)
    attached = _Attached.apply(equation, len(x), *x, *c)
    return tree_unflatten(list(attached), x_spec)


def _refuse_hidden_gradients(residual: Leaves) -> None:
    if any(v.requires_grad or forward_ad.unpack_dual(v).tangent is not None for v in residual):
        raise ValueError(
            "the function closes over a tensor that carries a gradient, which would be lost; hand "
            "it in as an argument (a module's parameters by torch.func.functional_call), or detach "
            "it"
        )


@dataclass(frozen=True)
class _Equation:
    """F(x, c) = 0 on tuples of tensors, and how to solve with its A.

    Under vmap the tensors of x, and those of c that are mapped, begin with `depth` more axes.
    """

    residual: Callable[[Leaves, Leaves], Leaves]
    solver: LinearSolver
    report: Report | None
    symmetric: bool
    depth: int = 0

    def operator(self, transposed: bool, x: Leaves, c: Leaves) -> Callable[[Leaves], Leaves]:
        """v -> A v or A' v, on one linearisation."""
        at = _pull if transposed or self.symmetric else _push
        return at(lambda *x: self.residual(x, c), x)

    def solve(self, transposed: bool, b: Leaves, x: Leaves, c: Leaves) -> Leaves:
        apply = self.operator(transposed, x, c)
        depth, lead = self.depth, b[0].shape[: self.depth]

        def fold(leaves: Leaves) -> list[Tensor]:
            return [v.reshape(-1, *v.shape[depth:]) if depth else v for v in leaves]

        def unfold(leaves: Sequence[Tensor]) -> Leaves:
            return tuple(v.reshape(*lead, *v.shape[1:]) if depth else v for v in leaves)

        solution = self.solver(lambda v: fold(apply(unfold(v))), fold(b), batched=depth > 0)
        self._judge(solution)
        return unfold(solution.value)

    def _judge(self, solution: Solution) -> None:
        if self.report is not None:
            self.report(solution)
            return
        if solution.converged.all():
            return
        worst = solution.relative_residual.argmax()
        residual = solution.relative_residual.flatten()[worst].item()
        name = Status(int(solution.status.flatten()[worst])).name.lower()
        truncated = (solution.status == Status.MAX_ITERS) | (
            solution.status == Status.NEGATIVE_CURVATURE
        )
        lost = ~(solution.converged | truncated) & (solution.relative_residual > 1e-3)
        what = f"the linear solve of a derivative ended {name} at relative residual {residual:.1e}"
        if lost.any():
            raise NoDerivative(
                f"{what}: the system is singular, not finite or beyond this solver; the theorem "
                "needs an invertible Jacobian"
            )
        warnings.warn(
            f"{what}; give linear_solver more iterations, or take its Solution by report=",
            InexactDerivative,
            stacklevel=2,
        )

    def mapped(self, dims: Sequence[int | None]) -> _Equation:
        """The equation with one more axis in x, and in those of c whose dim is not None."""
        residual = torch.func.vmap(self.residual, in_dims=(0, tuple(dims)))
        return replace(self, residual=residual, depth=self.depth + 1)


class _Attached(torch.autograd.Function):
    """x as a function of c."""

    @staticmethod
    def forward(equation: _Equation, n: int, *leaves: Tensor) -> Leaves:
        return tuple(v.clone() for v in leaves[:n])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Leaves) -> None:
        ctx.equation, ctx.n, *leaves = inputs
        ctx.save_for_backward(*output, *leaves[ctx.n :])
        ctx.save_for_forward(*output, *leaves[ctx.n :])

    @staticmethod
    def backward(ctx: Any, *by_x: Tensor) -> Any:
        n, equation = ctx.n, ctx.equation
        x, c = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        wanted = [i for i, need in enumerate(ctx.needs_input_grad[2 + n :]) if need]
        u = _Solved.apply(equation, True, n, *by_x, *x, *c)
        grads = _pull(_in(lambda c: equation.residual(x, c), c, wanted), _pick(c, wanted))(u)
        return None, None, *[None] * n, *_place(grads, wanted, len(c))

    @staticmethod
    @first_order
    def jvp(ctx: Any, *tangents: Any) -> Leaves:
        n, equation = ctx.n, ctx.equation
        x, c = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        dc = tangents[2 + n :]
        moved = [i for i, d in enumerate(dc) if d is not None]
        function = _in(lambda c: equation.residual(x, c), c, moved)
        b = _push(function, _pick(c, moved))(_pick(dc, moved))
        return tuple(-v for v in _Solved.apply(equation, False, n, *b, *x, *c))

    @staticmethod
    def vmap(info: Any, in_dims: Any, equation: _Equation, n: int, *leaves: Tensor) -> Any:
        mapped, dims = _in_front(info.batch_size, in_dims[2:], leaves, expand=n)
        out = _Attached.apply(equation.mapped(dims[n:]), n, *mapped)
        return out, (0,) * n


class _Solved(torch.autograd.Function):
    """u of A(x, c) u = b, or of A' u = b; leaves are those of b, of x, and of c."""

    @staticmethod
    def forward(equation: _Equation, transposed: bool, n: int, *leaves: Tensor) -> Leaves:
        return equation.solve(transposed, leaves[:n], leaves[n : 2 * n], leaves[2 * n :])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Leaves) -> None:
        ctx.equation, ctx.transposed, ctx.n, *leaves = inputs
        ctx.save_for_backward(*output, *leaves[ctx.n :])
        ctx.save_for_forward(*output, *leaves[ctx.n :])

    @staticmethod
    def product(ctx: Any, u: Leaves) -> Callable[[Leaves], Leaves]:
        """(x, c) -> A u"""
        n = ctx.n
        return lambda at: ctx.equation.operator(ctx.transposed, at[:n], at[n:])(u)

    @staticmethod
    def backward(ctx: Any, *by_u: Tensor) -> Any:
        n = ctx.n
        u, at = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        w = _Solved.apply(ctx.equation, not ctx.transposed, n, *by_u, *at)
        wanted = [i for i, need in enumerate(ctx.needs_input_grad[3 + n :]) if need]
        grads: Leaves = ()
        if wanted:
            grads = _pull(_in(_Solved.product(ctx, u), at, wanted), _pick(at, wanted))(w)
        return None, None, None, *w, *_place(grads, wanted, len(at))

    @staticmethod
    @first_order
    def jvp(ctx: Any, *tangents: Any) -> Leaves:
        n = ctx.n
        u, at = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        db, dat = tangents[3 : 3 + n], tangents[3 + n :]
        b = [torch.zeros_like(v) if d is None else d for v, d in zip(u, db, strict=True)]
        moved = [i for i, d in enumerate(dat) if d is not None]
        if moved:
            push = _push(_in(_Solved.product(ctx, u), at, moved), _pick(at, moved))
            b = [v - d for v, d in zip(b, push(_pick(dat, moved)), strict=True)]
        return _Solved.apply(ctx.equation, ctx.transposed, n, *b, *at)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, equation: _Equation, transposed: bool, n: int, *leaves: Tensor
    ) -> Any:
        mapped, dims = _in_front(info.batch_size, in_dims[3:], leaves, expand=2 * n)
        out = _Solved.apply(equation.mapped(dims[2 * n :]), transposed, n, *mapped)
        return out, (0,) * n


def _pull(function: Callable[..., Leaves], at: Leaves) -> Callable[[Leaves], Leaves]:
    """w -> J' w, J the function's Jacobian."""
    linearised: Any = torch.func.vjp(function, *at)
    _, pull = linearised
    return lambda w: pull(tuple(w))


def _push(function: Callable[..., Leaves], at: Leaves) -> Callable[[Leaves], Leaves]:
    """v -> J v, as the transpose of w -> J' w: reverse mode alone."""
    linearised: Any = torch.func.vjp(function, *at)
    out, pull = linearised
    twice: Any = torch.func.vjp(lambda *w: pull(w), *(torch.zeros_like(v) for v in out))
    _, push = twice
    return lambda v: push(tuple(v))


def _in(
    function: Callable[[Leaves], Leaves], c: Leaves, places: Sequence[int]
) -> Callable[..., Leaves]:
    """The function of the tensors at `places` alone."""

    def of_some(*some: Tensor) -> Leaves:
        filled = list(c)
        for i, v in zip(places, some, strict=True):
            filled[i] = v
        return function(tuple(filled))

    return of_some


def _pick(leaves: Sequence[Any], places: Sequence[int]) -> Leaves:
    return tuple(leaves[i] for i in places)


def _place(grads: Sequence[Tensor], places: Sequence[int], length: int) -> list[Tensor | None]:
    """The gradients of the residual's root: minus those pulled back, None at the other places."""
    placed: list[Tensor | None] = [None] * length
    for i, g in zip(places, grads, strict=True):
        placed[i] = -g
    return placed


def _in_front(
    size: int, dims: Sequence[int | None], leaves: Sequence[Tensor], expand: int
) -> tuple[list[Tensor], list[int | None]]:
    """The mapped axis first; the first `expand` leaves get it where they had none."""
    moved = [v if d is None else v.movedim(d, 0) for v, d in zip(leaves, dims, strict=True)]
    placed = [None if d is None else 0 for d in dims]
    for i in range(expand):
        if placed[i] is None:
            moved[i], placed[i] = moved[i].expand(size, *moved[i].shape), 0
    return moved, placed
