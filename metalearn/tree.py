"""The helpers that treat pytrees of tensors as vectors, shared by solvers and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import (
    TreeSpec,
    keystr,
    tree_flatten,
    tree_flatten_with_path,
    tree_unflatten,
)

from metalearn.autograd import Function, first_order, subtract, transformed

Tree = Any
"""A nest of dicts, lists, tuples and dataclasses of tensors."""


@dataclass(frozen=True)
class Raveler:
    """A converter between a pytree and a matrix (T, N), with one row for each task's system.

    Without a task axis (`batched=False`) the whole tree is the single row of a (1, N) matrix. An
    algorithm is therefore written once, for many systems.

    Args:
        like: the tree that fixes structure, shapes and types.
        batched: every leaf begins with the same task axis T.
        as_it_lies: True: a row holds each leaf in the memory order of that leaf in `like`, so that
            channels-last tensors need no rearranging. False: in the order of its axes.

    Raises:
        ValueError: the tree is empty, a leaf is not a floating-point tensor, or the leaves' task
            axes differ.
    """

    spec: TreeSpec
    shapes: tuple[torch.Size, ...]
    orders: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    dtype: torch.dtype
    tasks: int
    batched: bool

    @classmethod
    def of(cls, like: Tree, batched: bool, as_it_lies: bool = False) -> Raveler:
        leaves, spec = tree_flatten(like)
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                what = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ValueError(
                    f"a leaf of the pytree is {what}; expected a floating-point tensor"
                )
        if not leaves:
            raise ValueError("the pytree is empty; expected at least one tensor")
        tasks = 1
        if batched:
            axes = {leaf.shape[0] if leaf.dim() else 0 for leaf in leaves}
            if len(axes) != 1 or 0 in axes:
                raise ValueError(
                    f"leaves begin with axes of {sorted(axes)}; with batched=True every leaf "
                    "begins with the same task axis, of length at least 1"
                )
            tasks = axes.pop()
        dtypes = tuple(leaf.dtype for leaf in leaves)
        dtype = dtypes[0]
        for other in dtypes[1:]:
            dtype = torch.promote_types(dtype, other)
        shapes = tuple(leaf.shape for leaf in leaves)
        orders = tuple(
            memory_order(leaf, batched) if as_it_lies else tuple(range(leaf.dim()))
            for leaf in leaves
        )
        return cls(spec, shapes, orders, dtypes, dtype, tasks, batched)

    def ravel(self, tree: Tree) -> Tensor:
        """Return the tree as a (T, N) matrix of the widest of its types."""
        leaves, spec = tree_flatten(tree)
        shapes = tuple(getattr(leaf, "shape", None) for leaf in leaves)
        if spec != self.spec or shapes != self.shapes:
            raise ValueError(
                f"a pytree with leaves of shapes {[tuple(s or ()) for s in shapes]} came where one "
                f"with {[tuple(s) for s in self.shapes]} and the same structure was expected"
            )
        if any(leaf.is_complex() for leaf in leaves):
            raise ValueError(
                f"a pytree with leaves of types {[leaf.dtype for leaf in leaves]} came where real "
                "tensors were expected. Write a complex system by its real and imaginary parts"
            )
        rows = [
            leaf.permute(order).reshape(self.tasks, -1).to(self.dtype)
            for leaf, order in zip(leaves, self.orders, strict=True)
        ]
        return torch.cat(rows, dim=1)

    def unravel(self, matrix: Tensor) -> Tree:
        """Return the (T, N) matrix as a tree of the original structure, shapes and types."""
        sizes = [shape.numel() // self.tasks for shape in self.shapes]
        rows = matrix.split(sizes, dim=1)
        leaves = [
            row.reshape([shape[i] for i in order]).permute(inverse(order)).to(dtype)
            for row, shape, order, dtype in zip(
                rows, self.shapes, self.orders, self.dtypes, strict=True
            )
        ]
        return tree_unflatten(leaves, self.spec)

    def matvec(self, function: Callable[[Tree], Tree]) -> Callable[[Tensor], Tensor]:
        """Turn a map between trees into a map between (T, N) matrices.

        The map may use autograd, whatever the caller's grad mode. Its result is detached.
        """

        def on_matrices(matrix: Tensor) -> Tensor:
            with torch.enable_grad():
                image = function(self.unravel(matrix))
            return self.ravel(detached(image))

        return on_matrices

    def per_system(self, values: Tensor) -> Tensor:
        """Return a figure for each system, (T,), as the caller sees it: 0-d without a task axis."""
        return values if self.batched else values[0]


def memory_order(x: Tensor, batched: bool) -> tuple[int, ...]:
    """Return the axes of x from outermost to innermost in memory; the task axis stays first."""
    first = 1 if batched else 0
    strides = x.stride()
    return *range(first), *sorted(range(first, x.dim()), key=lambda axis: -strides[axis])


def inverse(order: Sequence[int]) -> list[int]:
    """Return the permutation that undoes `order`."""
    return [order.index(axis) for axis in range(len(order))]


def leaves_of(tree: Tree) -> list[Tensor]:
    """Return the tensors of a pytree, in its order."""
    return tree_flatten(tree)[0]


def named_leaves(tree: Tree) -> dict[str, Tensor]:
    """Return the tensors of a pytree by their paths in it, such as "['penalty']['log']"."""
    return {keystr(path): leaf for path, leaf in tree_flatten_with_path(tree)[0]}


def like_tree(tree: Tree, leaves: Sequence[Tensor]) -> Tree:
    """Return a pytree of the structure of `tree` with other leaves."""
    return tree_unflatten(list(leaves), tree_flatten(tree)[1])


def detached(tree: Tree) -> Tree:
    """Return the tree with every tensor detached."""
    return like_tree(tree, [x.detach() for x in leaves_of(tree)])


def requires_grad_copy(tree: Tree) -> Tree:
    """Return the tree with every tensor replaced by a detached leaf that requires grad."""
    return like_tree(tree, [x.detach().requires_grad_() for x in leaves_of(tree)])


def relative_error(found: Tree, exact: Tree) -> float:
    """Return |found - exact| / |exact| over all leaves, in float64."""
    a, b = (
        torch.cat([x.detach().flatten().double() for x in leaves_of(tree)])
        for tree in (found, exact)
    )
    return float((a - b).norm() / b.norm())


def task_dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return dot products of two lists of (T, ...) tensors over all axes but the first: (T,)."""
    return sum(
        ((x * y).flatten(1).sum(1) if x.dim() > 1 else x * y for x, y in zip(a, b, strict=True)),
        start=a[0].new_zeros(()),
    )


def task_norm(a: Sequence[Tensor]) -> Tensor:
    """Return Euclidean norms of a list of (T, ...) tensors over all axes but the first: (T,)."""
    return task_dot(a, a).sqrt()


def task_half_square(x: Tensor) -> Tensor:
    """Return half the squared norm of a (T, ...) tensor over all axes but the first: (T,)."""
    return half_squared_distance([x], [x.new_zeros(x.shape[1:])])


def half_squared_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return half the squared distance of two lists of tensors over all axes but the first, (T,).

    Each tensor of `a` is (T, ...). Each tensor of `b` has the same shape, or lacks the task axis
    and is common to all tasks. The derivative recomputes the difference: one pass, and no further
    tensor kept.
    """
    return _HalfSquaredDistance.apply(len(a), *a, *b)


class _HalfSquaredDistance(Function):
    @staticmethod
    def forward(number: int, *tensors: Tensor) -> Tensor:
        a, b = tensors[:number], tensors[number:]
        total = a[0].new_zeros(len(a[0]))
        for x, y in zip(a, b, strict=True):
            gap = x - y
            norm = (
                torch.linalg.vector_norm(gap, dim=list(range(1, x.dim()))) if x.dim() > 1 else gap
            )
            total = torch.addcmul(total, norm, norm)
        return 0.5 * total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.number, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> Any:
        tensors = ctx.saved_tensors
        a, b = tensors[: ctx.number], tensors[ctx.number :]
        factors = [weights.view(-1, *[1] * (x.dim() - 1)) for x in a]
        gaps = [x - y for x, y in zip(a, b, strict=True)]
        if torch.is_grad_enabled() or transformed():
            pulls = [gap * factor for gap, factor in zip(gaps, factors, strict=True)]
        else:
            pulls = [gap.mul_(factor) for gap, factor in zip(gaps, factors, strict=True)]
        needs_b = ctx.needs_input_grad[1 + ctx.number :]
        pushes = [
            -(pull if y.dim() == x.dim() else pull.sum(0)) if needed else None
            for x, y, pull, needed in zip(a, b, pulls, needs_b, strict=True)
        ]
        return None, *pulls, *pushes

    @staticmethod
    @first_order
    def jvp(ctx: Any, _: None, *moves: Tensor | None) -> Tensor:
        tensors = ctx.saved_tensors
        total = tensors[0].new_zeros(len(tensors[0]))
        for i in range(ctx.number):
            x, y = tensors[i], tensors[ctx.number + i]
            dx, dy = moves[i], moves[ctx.number + i]
            move = subtract(dx, dy)
            if move is not None:
                total = total + ((x - y) * move).reshape(len(x), -1).sum(1)
        return total
