"""The cost of a meta-gradient, counted in derivatives of the inner objective."""

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
class OracleCalls:
    """The cost of a meta-gradient.

    Args:
        gradients: the number of evaluations of the inner objective, each with its gradient.
        products: the number of products with second derivatives of the inner objective. A product
            involves the Hessian, the mixed derivatives or both, as in a step of the unrolled
            backward pass.
        seconds: the time without counting.
    """

    gradients: int
    products: int
    seconds: float

    @property
    def evaluations(self) -> int:
        """The number of gradients and products together.

        A product counts as one gradient, as in the paper. It costs as much as one to two gradients.
        """
        return self.gradients + self.products

    def __add__(self, other: OracleCalls) -> OracleCalls:
        return OracleCalls(
            self.gradients + other.gradients,
            self.products + other.products,
            self.seconds + other.seconds,
        )


def spent(problem: BilevelProblem, work: Callable[[BilevelProblem], T]) -> tuple[T, OracleCalls]:
    """Return `work(problem)` and its cost.

    The work runs twice: once for the counts, and once for the time.
    """
    counted = Counted(problem)
    made = work(counted)
    began = time.perf_counter()
    work(problem)
    seconds = time.perf_counter() - began
    return made, OracleCalls(counted.gradients, counted.products, seconds)


class Counted:
    """A problem that counts its derivatives (`Cost`); Gauss-Newton products are not counted."""

    def __init__(self, problem: BilevelProblem) -> None:
        self.problem = problem
        self.gradients = self.products = 0

    def init(self, meta: Meta, task: Any) -> Params:
        return self.problem.init(meta, task)

    def inner_objective(self, params: Params, meta: Meta, task: Any) -> Tensor:
        self.gradients += 1
        # All params share every backward pass, so that it is enough to count those of the first.
        name, first = next(iter(params.items()))
        watched = params | {name: _Watched.apply(first, self)}
        return self.problem.inner_objective(watched, meta, task)

    def outer_objective(
        self, params: Params, meta: Meta, task: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.problem.outer_objective(params, meta, task)


@dataclass(frozen=True)
class CountedSolver:
    """A linear solver that adds the number of its products to `products[0]`."""

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
    """The identity with a `_WatchedGradient` as its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counted: Counted) -> Tensor:
        ctx.counted = counted
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _WatchedGradient.apply(gradient, ctx.counted), None


class _WatchedGradient(torch.autograd.Function):
    """The identity that counts its derivatives; each product differentiates it once."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, counted: Counted) -> Tensor:
        ctx.counted = counted
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:
        ctx.counted.products += 1
        return weights, None
