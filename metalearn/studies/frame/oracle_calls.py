"""What a meta-gradient costs, counted in derivatives of the inner objective."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from metalearn.linear_solve import LinearSolver, MatVec, Solution
from metalearn.problem import BilevelProblem, Meta, Params
from metalearn.tree import Tree

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """
    Args:
        gradients: evaluations of the inner objective, each with its gradient.
        products: products with the inner objective's second derivatives. Each passes through the
            Hessian, the mixed derivatives or both, as a step of the unrolled backward sweep does.
        seconds: without counting.
    """

    gradients: int
    products: int
    seconds: float

    @property
    def evaluations(self) -> int:
        """A product counted as one gradient, as the paper does; it costs between one and two."""
        return self.gradients + self.products

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.gradients + other.gradients,
            self.products + other.products,
            self.seconds + other.seconds,
        )


def spent(problem: BilevelProblem, work: Callable[[BilevelProblem], T]) -> tuple[T, Cost]:
    """What `work` makes of the problem, and its cost: it is done twice, to count and to take the
    time."""
    counted = Counted(problem)
    made = work(counted)
    began = time.perf_counter()
    work(problem)
    seconds = time.perf_counter() - began
    return made, Cost(counted.gradients, counted.products, seconds)


class Counted:
    """The same problem, which counts: see `Cost`. Gauss-Newton products are not seen."""

    def __init__(self, problem: BilevelProblem) -> None:
        self.problem = problem
        self.gradients = self.products = 0

    def init(self, meta: Meta, task: Any) -> Params:
        return self.problem.init(meta, task)

    def inner_objective(self, params: Params, meta: Meta, task: Any) -> Tensor:
        self.gradients += 1
        # All params share every backward sweep, so that one of them tells of all.
        name, first = next(iter(params.items()))
        watched = params | {name: _Watched.apply(first, self)}
        return self.problem.inner_objective(watched, meta, task)

    def outer_objective(
        self, params: Params, meta: Meta, task: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.problem.outer_objective(params, meta, task)


@dataclass(frozen=True)
class CountedSolver:
    """A solver that adds up the products it asks for, in the one number of `products`."""

    solver: LinearSolver
    products: list[int]

    def __call__(
        self, matvec: MatVec, b: Tree, x0: Tree | None = None, batched: bool = False
    ) -> Solution:
        def counted(v: Tree) -> Tree:
            self.products[0] += 1
            return matvec(v)

        return self.solver(counted, b, x0, batched)


class _Watched(torch.autograd.Function):
    """The identity, whose gradient is a `_WatchedGradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counted: Counted) -> Tensor:
        ctx.counted = counted
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _WatchedGradient.apply(gradient, ctx.counted), None


class _WatchedGradient(torch.autograd.Function):
    """The identity, which is differentiated once for each product."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, counted: Counted) -> Tensor:
        ctx.counted = counted
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:
        ctx.counted.products += 1
        return weights, None
