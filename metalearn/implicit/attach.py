"""The autograd functions of an implicit derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metalearn.autograd import (
    carries_gradient,
    concrete,
    first_order,
    refuse_batched_gradients,
    transformed,
    without_saved_tensor_hooks,
)
from metalearn.errors import UsageError
from metalearn.implicit.check import Check, is_check, judge
from metalearn.implicit.equation import Equation, Leaves, Report, linearise, pull, push
from metalearn.linear_solve import LinearSolver
from metalearn.system.random_state import drawn_since, torch_states
from metalearn.tree import Tree


def attach(
    residual: Callable[..., Tree],
    solution: Tree,
    args: Sequence[Tree],
    solver: LinearSolver,
    batched: bool,
    report: Report | None,
    check: Check,
    symmetric: bool,
) -> Tree:
    """Return `solution` with the derivative that residual(x, *args) = 0 gives it; see `root`."""
    if not is_check(check):
        raise UsageError(
            f"check={check!r}: expected 'warn', 'raise', 'silent' or a function. Choose one."
        )
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
        if shapes != expected:
            raise ValueError(f"the residual has leaves of shapes {shapes}; expected {expected}")
        if found_spec != x_spec:
            raise ValueError(
                f"the residual has the structure {found_spec}; expected the solution's, {x_spec}"
            )
        if any(v.is_complex() for v in found):
            raise ValueError(
                f"the residual has leaves of types {[v.dtype for v in found]}: expected real "
                "tensors. Write a complex equation by its real and imaginary parts."
            )
        return tuple(found)

    x = [v.detach() for v in x]
    if batched:
        axes = {v.shape[0] if v.dim() else 0 for v in x}
        if len(axes) != 1 or 0 in axes:
            raise ValueError(
                f"leaves of the solution begin with axes of {sorted(axes)}; with batched=True each "
                "begins with the same axis of problems, of length at least 1"
            )
    c = tuple(leaves[i] for i in places)
    _check(on_leaves, tuple(x), c, batched, check)
    equation = Equation(on_leaves, solver, report, symmetric, batched, depth=int(batched))
    attached = _Attached.apply(equation, len(x), *x, *c)
    return tree_unflatten(list(attached), x_spec)


def _check(
    residual: Callable[[Leaves, Leaves], Leaves], x: Leaves, c: Leaves, batched: bool, check: Check
) -> None:
    """Evaluate the residual once, and judge the function and the solution by it.

    Raises:
        ValueError: the function closes over a tensor that carries a gradient, or it draws random
            numbers; or as in `judge`.
    """
    differentiable = torch.is_grad_enabled() or transformed()
    judged = check != "silent" and concrete() and differentiable and any(map(carries_gradient, c))
    still = tuple(v.detach() for v in c)
    states = torch_states()
    transposed: Callable[[Leaves], Leaves] | None = None
    if judged:
        found, transposed = linearise(lambda *x: residual(x, still), x)
    else:
        with without_saved_tensor_hooks():
            found = residual(x, still)
    if any(map(carries_gradient, found)):
        raise ValueError(
            "the function closes over a tensor that carries a gradient, which would be lost; hand "
            "it in as an argument (a module's parameters by torch.func.functional_call), or detach "
            "it"
        )
    if drawn_since(states):
        raise UsageError(
            "the function draws random numbers: expected the same equation at every call. Turn "
            "dropout off (eval()), or hand in its mask as an argument."
        )
    if transposed is not None:
        judge(check, found, transposed, x, batched)


class _Attached(torch.autograd.Function):
    """The solution x as a function of c."""

    @staticmethod
    def forward(equation: Equation, n: int, *leaves: Tensor) -> Leaves:
        return tuple(v.clone() for v in leaves[:n])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Leaves) -> None:
        ctx.equation, ctx.n, *leaves = inputs
        ctx.save_for_backward(*output, *leaves[ctx.n :])
        ctx.save_for_forward(*output, *leaves[ctx.n :])

    @staticmethod
    def backward(ctx: Any, *by_x: Tensor) -> Any:
        refuse_batched_gradients(by_x)
        n, equation = ctx.n, ctx.equation
        saved = ctx.saved_tensors  # read once: a hook may unpack it only once
        x, c = saved[:n], saved[n:]
        wanted = [i for i, need in enumerate(ctx.needs_input_grad[2 + n :]) if need]
        u = _Solved.apply(equation, True, n, *by_x, *x, *c)
        grads = pull(_in(lambda c: equation.residual(x, c), c, wanted), _pick(c, wanted))(u)
        return None, None, *[None] * n, *_place(grads, wanted, len(c))

    @staticmethod
    @first_order
    def jvp(ctx: Any, *tangents: Any) -> Leaves:
        refuse_batched_gradients(tangents)
        n, equation = ctx.n, ctx.equation
        saved = ctx.saved_tensors  # read once: a hook may unpack it only once
        x, c = saved[:n], saved[n:]
        dc = tangents[2 + n :]
        moved = [i for i, d in enumerate(dc) if d is not None]
        function = _in(lambda c: equation.residual(x, c), c, moved)
        b = push(function, _pick(c, moved))(_pick(dc, moved))
        return tuple(-v for v in _Solved.apply(equation, False, n, *b, *x, *c))

    @staticmethod
    def vmap(info: Any, in_dims: Any, equation: Equation, n: int, *leaves: Tensor) -> Any:
        mapped, dims = _in_front(info.batch_size, in_dims[2:], leaves, expand=n)
        out = _Attached.apply(equation.mapped(dims[n:]), n, *mapped)
        return out, (0,) * n


class _Solved(torch.autograd.Function):
    """The solution u of A(x, c) u = b, or of A' u = b. The leaves are those of b, x and c."""

    @staticmethod
    def forward(equation: Equation, transposed: bool, n: int, *leaves: Tensor) -> Leaves:
        return equation.solve(transposed, leaves[:n], leaves[n : 2 * n], leaves[2 * n :])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Leaves) -> None:
        ctx.equation, ctx.transposed, ctx.n, *leaves = inputs
        ctx.save_for_backward(*output, *leaves[ctx.n :])
        ctx.save_for_forward(*output, *leaves[ctx.n :])

    @staticmethod
    def product(ctx: Any, u: Leaves) -> Callable[[Leaves], Leaves]:
        """Return the map (x, c) -> A u."""
        n = ctx.n
        return lambda at: ctx.equation.operator(ctx.transposed, at[:n], at[n:])(u)

    @staticmethod
    def backward(ctx: Any, *by_u: Tensor) -> Any:
        refuse_batched_gradients(by_u)
        n = ctx.n
        saved = ctx.saved_tensors
        u, at = saved[:n], saved[n:]
        w = _Solved.apply(ctx.equation, not ctx.transposed, n, *by_u, *at)
        wanted = [i for i, need in enumerate(ctx.needs_input_grad[3 + n :]) if need]
        grads: Leaves = ()
        if wanted:
            grads = pull(_in(_Solved.product(ctx, u), at, wanted), _pick(at, wanted))(w)
        return None, None, None, *w, *_place(grads, wanted, len(at))

    @staticmethod
    @first_order
    def jvp(ctx: Any, *tangents: Any) -> Leaves:
        refuse_batched_gradients(tangents)
        n = ctx.n
        saved = ctx.saved_tensors
        u, at = saved[:n], saved[n:]
        db, dat = tangents[3 : 3 + n], tangents[3 + n :]
        b = [torch.zeros_like(v) if d is None else d for v, d in zip(u, db, strict=True)]
        moved = [i for i, d in enumerate(dat) if d is not None]
        if moved:
            forward = push(_in(_Solved.product(ctx, u), at, moved), _pick(at, moved))
            b = [v - d for v, d in zip(b, forward(_pick(dat, moved)), strict=True)]
        return _Solved.apply(ctx.equation, ctx.transposed, n, *b, *at)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, equation: Equation, transposed: bool, n: int, *leaves: Tensor
    ) -> Any:
        mapped, dims = _in_front(info.batch_size, in_dims[3:], leaves, expand=2 * n)
        out = _Solved.apply(equation.mapped(dims[2 * n :]), transposed, n, *mapped)
        return out, (0,) * n


def _in(
    function: Callable[[Leaves], Leaves], c: Leaves, places: Sequence[int]
) -> Callable[..., Leaves]:
    """Return `function` as a function of the tensors at `places` alone."""

    def of_some(*some: Tensor) -> Leaves:
        filled = list(c)
        for i, v in zip(places, some, strict=True):
            filled[i] = v
        return function(tuple(filled))

    return of_some


def _pick(leaves: Sequence[Any], places: Sequence[int]) -> Leaves:
    return tuple(leaves[i] for i in places)


def _place(grads: Sequence[Tensor], places: Sequence[int], length: int) -> list[Tensor | None]:
    """Return the gradients of the residual's root: minus `grads` at `places`, None elsewhere."""
    placed: list[Tensor | None] = [None] * length
    for i, g in zip(places, grads, strict=True):
        placed[i] = -g
    return placed


def _in_front(
    size: int, dims: Sequence[int | None], leaves: Sequence[Tensor], expand: int
) -> tuple[list[Tensor], list[int | None]]:
    """Move the mapped axis to the front. Add it to the first `expand` leaves that lack it."""
    moved = [v if d is None else v.movedim(d, 0) for v, d in zip(leaves, dims, strict=True)]
    placed = [None if d is None else 0 for d in dims]
    for i in range(expand):
        if placed[i] is None:
            moved[i], placed[i] = moved[i].expand(size, *moved[i].shape), 0
    return moved, placed
