"""What every meta-gradient is, and what it gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.inner import InnerSolution, InnerSolver
from metalearn.linear_solve import Solution
from metalearn.problem import BilevelProblem, Meta
from metalearn.tree import fixed, gradients, leaves_of, like_tree, live


class NonFiniteGradient(ArithmeticError):
    """A meta-gradient or an outer loss is not finite; it is never handed on."""


@dataclass(frozen=True)
class Certificate:
    """How far an implicit gradient can be trusted, per task, all fields (T,).

    Args:
        inner_grad_norm: norm of the inner objective's gradient where it was linearised; the theorem
            wants 0.
        relative_residual, iterations, status, eigenvalue_bounds, solve_error: of the linear solve
            (`Solution`'s fields and its error estimate); None where nothing was solved.
    """

    inner_grad_norm: Tensor
    relative_residual: Tensor | None = None
    iterations: Tensor | None = None
    status: Tensor | None = None
    eigenvalue_bounds: tuple[Tensor, Tensor] | None = None
    solve_error: Tensor | None = None

    @classmethod
    def of(cls, inner_grad_norm: Tensor, solution: Solution) -> Certificate:
        return cls(
            inner_grad_norm,
            solution.relative_residual,
            solution.iterations,
            solution.status,
            solution.eigenvalue_bounds,
            solution.error_estimate,
        )


@dataclass(frozen=True)
class MetaGradientResult:
    """
    Args:
        grads: a pytree like meta, the mean over the tasks of d outer / d meta.
        outer_loss: (T,).
        metrics: the problem's further figures, each (T,).
        inner: the inner solution that the tasks reached.
        certificate: of an implicit gradient; None for the others.
    """

    grads: Any
    outer_loss: Tensor
    metrics: dict[str, Tensor]
    inner: InnerSolution
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        if not self.outer_loss.isfinite().all():
            bad = int((~self.outer_loss.isfinite()).sum())
            raise NonFiniteGradient(
                f"the outer loss of {bad} of {len(self.outer_loss)} tasks is not finite; "
                "a smaller inner learning rate is the usual cure"
            )
        if not all(g.isfinite().all() for g in leaves_of(self.grads)):
            raise NonFiniteGradient(
                "the meta-gradient is not finite though the outer loss is; try fewer inner steps, "
                "a smaller inner learning rate, or more damping"
            )


class MetaGradient(ABC):
    """A way to differentiate a bilevel problem: `meta_gradient(problem, meta, task)`."""

    inner: InnerSolver

    @abstractmethod
    def __call__(self, problem: BilevelProblem, meta: Meta, task: Any) -> MetaGradientResult: ...

    def adapt(self, problem: BilevelProblem, meta: Meta, task: Any) -> InnerSolution:
        """The inner loop alone, as evaluation runs it."""
        meta = fixed(meta)
        return self.inner(
            lambda params: problem.inner_objective(params, meta, task), problem.init(meta, task)
        )


def outer_gradient(
    problem: BilevelProblem, params: dict[str, Tensor], meta: Meta, task: Any
) -> tuple[Tensor, dict[str, Tensor], list[Tensor], list[Tensor]]:
    """The outer loss (T,), metrics, d outer / d params (each task's own) and the direct
    d outer / d meta (summed over tasks), at params and meta that are leaves."""
    with torch.enable_grad():
        loss, metrics = problem.outer_objective(params, meta, task)
        leaves = list(params.values())
        found = gradients(loss.sum(), leaves + leaves_of(meta))
    detached = {name: value.detach() for name, value in metrics.items()}
    return loss.detach(), detached, found[: len(leaves)], found[len(leaves) :]


def through_init(
    problem: BilevelProblem, meta: Meta, task: Any, weights: list[Tensor]
) -> list[Tensor]:
    """weights' d init / d meta, summed over tasks: right if the inner loop is a translation."""
    with torch.enable_grad():
        meta = live(meta)
        start = list(problem.init(meta, task).values())
        return gradients(start, leaves_of(meta), weights)


def mean_over_tasks(meta: Meta, summed: list[Tensor], tasks: int) -> Any:
    return like_tree(meta, [g / tasks for g in summed])
