"""The inner objective linearised at a point: its gradient, curvature products, mixed partials.

A `Curvature` serves one implicit gradient. Each Krylov iteration calls `matvec`; the end calls
`mixed` once. `Hessian` and `GaussNewton` make one graph and keep it for all products. `Recomputed`
makes either of them anew for each product, which takes more time and less memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from metalearn.autograd import add, gradients, partials, without_saved_tensor_hooks
from metalearn.errors import UsageError
from metalearn.problem import BilevelProblem, CompositeProblem, Meta, Params
from metalearn.system.random_state import drawn_since, torch_states
from metalearn.tree import detached, leaves_of, like_tree, requires_grad_copy


class Curvature(Protocol):
    objective: Tensor
    """The inner objective, (T,)."""
    gradient: list[Tensor]
    """The gradient d inner / d params, each (T, ...)."""

    def matvec(self, v: list[Tensor], last: bool = False) -> list[Tensor]:
        """Return each task's curvature matrix times its v.

        After a product with `last` no other is asked for, so that the graph is freed as it is used.
        """
        ...

    def mixed(self, x: list[Tensor]) -> list[Tensor | None]:
        """Return x' d2 inner / (d params d meta), summed over tasks, for each leaf of meta.

        It is None for a leaf on which the inner gradient does not depend.
        """
        ...


class Hessian:
    """The Hessian itself, by double backward; indefinite where the objective is not convex."""

    def __init__(self, problem: BilevelProblem, params: Params, meta: Meta, task: Any) -> None:
        self._params, self._meta = list(params.values()), leaves_of(meta)
        with torch.enable_grad():
            objective = problem.inner_objective(params, meta, task)
            self._graph = gradients(objective.sum(), self._params, create_graph=True)
        self.objective = objective.detach()
        self.gradient = [g.detach() for g in self._graph]

    def matvec(self, v: list[Tensor], last: bool = False) -> list[Tensor]:
        return gradients(self._graph, self._params, v, retain_graph=not last)

    def mixed(self, x: list[Tensor]) -> list[Tensor | None]:
        return partials(self._graph, self._meta, x)


class GaussNewton:
    """The matrix J' (d2 loss / d outputs2) J, for a loss that is convex in the outputs.

    It is positive semi-definite. J v is the derivative in w of the linear map w -> J' w (double
    backward; Schraudolph 2002). `torch.func.vjp` keeps the parameters out of that map's graph, so
    that nothing but this derivative is computed. Only the curvature is approximated. The mixed
    partials are exact: those of the loss, of J and of the outputs, where the latter two depend on
    meta.
    """

    def __init__(self, problem: BilevelProblem, params: Params, meta: Meta, task: Any) -> None:
        if not isinstance(problem, CompositeProblem):
            raise UsageError(
                f"{type(problem).__name__} does not split its inner objective into inner_outputs "
                "and inner_loss, which curvature='gauss_newton' needs; use curvature='hessian'"
            )
        self._meta = leaves_of(meta)
        with torch.enable_grad():
            with without_saved_tensor_hooks():
                linearised: Any = torch.func.vjp(
                    lambda params: problem.inner_outputs(params, meta, task), detached(params)
                )
            self._outputs, self._pull = outputs, _ = linearised
            self._points = [o.detach().requires_grad_() for o in leaves_of(outputs)]
            loss = problem.inner_loss(like_tree(outputs, self._points), meta, task)
            self._dloss = gradients(loss.sum(), self._points, create_graph=True)
            self._weights = [w.detach().requires_grad_() for w in self._dloss]
            self._pulled = self._transposed(self._weights)
        self.objective = loss.detach()
        self.gradient = [g.detach() for g in self._pulled]

    def matvec(self, v: list[Tensor], last: bool = False) -> list[Tensor]:
        with torch.no_grad():
            return self._transposed(self._curved(self._pushed(v, last), last), last)

    def mixed(self, x: list[Tensor]) -> list[Tensor | None]:
        pushed = self._pushed(x)
        parts = (
            partials(self._dloss, self._meta, pushed, retain_graph=True),
            partials(leaves_of(self._outputs), self._meta, self._curved(pushed), retain_graph=True),
            partials(self._pulled, self._meta, x),
        )
        return [add(add(a, b), c) for a, b, c in zip(*parts, strict=True)]

    def _pushed(self, v: list[Tensor], last: bool = False) -> list[Tensor]:
        """Return J v."""
        return gradients(self._pulled, self._weights, v, retain_graph=not last)

    def _curved(self, pushed: list[Tensor], last: bool = False) -> list[Tensor]:
        """Return the loss's Hessian in the outputs times `pushed`."""
        return gradients(self._dloss, self._points, pushed, retain_graph=not last)

    def _transposed(self, w: list[Tensor], last: bool = False) -> list[Tensor]:
        """Return J' w."""
        return leaves_of(self._pull(like_tree(self._outputs, w), retain_graph=not last))


class Recomputed:
    """A curvature that is made for one task and one product at a time, and then freed."""

    def __init__(
        self,
        make: Callable[[BilevelProblem, Params, Meta, Any], Curvature],
        problem: BilevelProblem,
        params: Params,
        meta: Meta,
        task: Any,
    ) -> None:
        def of_task(t: int) -> Curvature:
            own = {name: p[t : t + 1] for name, p in params.items()}
            return make(problem, requires_grad_copy(own), meta, task[t : t + 1])

        self._of_task, self._meta = of_task, leaves_of(meta)
        states = torch_states()
        with torch.enable_grad():
            objective = problem.inner_objective(params, detached(meta), task)
            if drawn_since(states):
                raise UsageError(
                    "linearisation=recomputed: expected an inner objective without random numbers, "
                    "which every product would draw anew. Use linearisation=kept, or turn dropout "
                    "off."
                )
            self.gradient = gradients(objective.sum(), list(params.values()))
        self.objective = objective.detach()

    def matvec(self, v: list[Tensor], last: bool = False) -> list[Tensor]:
        products = [self._of_task(t).matvec(own, last=True) for t, own in self._by_task(v)]
        return [torch.cat(parts) for parts in zip(*products, strict=True)]

    def mixed(self, x: list[Tensor]) -> list[Tensor | None]:
        summed: list[Tensor | None] = [None] * len(self._meta)
        for t, own in self._by_task(x):
            found = self._of_task(t).mixed(own)
            summed = [add(a, b) for a, b in zip(summed, found, strict=True)]
        return summed

    def _by_task(self, v: list[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
        return ((t, [x[t : t + 1] for x in v]) for t in range(len(self.objective)))
