"""The inner objective linearised once at a point: its gradient, curvature products, mixed partials.

Both classes serve one implicit gradient: `matvec` is called for each Krylov iteration on one
retained graph, `mixed` once at the end.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.problem import BilevelProblem, CompositeProblem, Meta, Params
from metalearn.tree import gradients, leaves_of, like_tree


class Curvature(Protocol):
    objective: Tensor
    """(T,)"""
    gradient: list[Tensor]
    """d inner / d params, each (T, ...)"""

    def matvec(self, v: list[Tensor]) -> list[Tensor]:
        """Each task's curvature matrix times its v."""
        ...

    def mixed(self, x: list[Tensor]) -> list[Tensor]:
        """x' d2 inner / (d params d meta), summed over tasks, one tensor for each leaf of meta."""
        ...


class Hessian:
    """The Hessian itself, by double backward. Indefinite where the objective is not convex."""

    def __init__(self, problem: BilevelProblem, params: Params, meta: Meta, task: Any) -> None:
        self._params, self._meta = list(params.values()), leaves_of(meta)
        with torch.enable_grad():
            objective = problem.inner_objective(params, meta, task)
            self._graph = gradients(objective.sum(), self._params, create_graph=True)
        self.objective = objective.detach()
        self.gradient = [g.detach() for g in self._graph]

    def matvec(self, v: list[Tensor]) -> list[Tensor]:
        return gradients(self._graph, self._params, v, retain_graph=True)

    def mixed(self, x: list[Tensor]) -> list[Tensor]:
        return gradients(self._graph, self._meta, x)


class GaussNewton:
    """J' (d2 loss / d outputs2) J: positive semi-definite wherever the loss is convex in outputs.

    With dl = d loss / d outputs and g(w) = J' w, the inner gradient is g(dl). J v is the derivative
    of g, which is linear, in w (double backward); Schraudolph 2002. The mixed partials are exact:
    only the curvature is approximated.
    """

    def __init__(self, problem: BilevelProblem, params: Params, meta: Meta, task: Any) -> None:
        if not isinstance(problem, CompositeProblem):
            raise UsageError(
                f"{type(problem).__name__} does not split its inner objective into inner_outputs "
                "and inner_loss, which curvature='gauss_newton' needs; use curvature='hessian'"
            )
        self._params, self._meta = list(params.values()), leaves_of(meta)
        with torch.enable_grad():
            outputs = problem.inner_outputs(params, meta, task)
            self._outputs = leaves_of(outputs)
            self._points = [o.detach().requires_grad_() for o in self._outputs]
            loss = problem.inner_loss(like_tree(outputs, self._points), meta, task)
            self._dloss = gradients(loss.sum(), self._points, create_graph=True)
            self._weights = [w.detach().requires_grad_() for w in self._dloss]
            self._pulled = gradients(self._outputs, self._params, self._weights, create_graph=True)
        self.objective = loss.detach()
        self.gradient = [g.detach() for g in self._pulled]

    def matvec(self, v: list[Tensor]) -> list[Tensor]:
        pushed = self._jvp(v)
        curved = gradients(self._dloss, self._points, pushed, retain_graph=True)
        return gradients(self._outputs, self._params, curved, retain_graph=True)

    def mixed(self, x: list[Tensor]) -> list[Tensor]:
        through_loss = gradients(self._dloss, self._meta, self._jvp(x), retain_graph=True)
        through_outputs = gradients(self._pulled, self._meta, x)
        return [a + b for a, b in zip(through_loss, through_outputs, strict=True)]

    def _jvp(self, v: list[Tensor]) -> list[Tensor]:
        return gradients(self._pulled, self._weights, v, retain_graph=True)
