"""The interface of every inner-loop solver, and its result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metalearn.autograd import partials
from metalearn.errors import UsageError, is_number
from metalearn.tree import task_norm

Params = dict[str, Tensor]
Objective = Callable[[Params], Tensor]


@dataclass(frozen=True)
class InnerSolution:
    """The adapted parameters, and how well they solve the inner problem.

    Args:
        params: dict of (T, ...).
        objective: (T,), the inner objective at params.
        grad_norm: (T,), the norm of its gradient at params; 0 at an exact solution.
        steps: (T,) int64, the steps that each task took.
    """

    params: Params
    objective: Tensor
    grad_norm: Tensor
    steps: Tensor


@dataclass(frozen=True)
class InnerPoint:
    """A point on the path of an inner loop.

    Args:
        params: dict of (T, ...), without a graph.
        rate: (T,), the rate of the next step in units of the edge: a step diverges along a
            curvature above 2 / rate. None for a solver whose steps have no such rate.
    """

    params: Params
    rate: Tensor | None = None


class InnerSolver(ABC):
    """A frozen dataclass whose fields are the solver's options."""

    @abstractmethod
    def minimise(self, objective: Objective, params: Params) -> tuple[Params, Tensor]:
        """Return the params reached, without a graph, and the steps taken, (T,)."""

    def path(self, objective: Objective, params: Params) -> Iterator[InnerPoint]:
        """Yield the start and the point after each of `steps` steps; the last is `minimise`'s.

        A solver that keeps no state between steps is run anew for each number of steps.
        """
        solver: Any = self
        for steps in range(solver.steps + 1):
            yield InnerPoint(replace(solver, steps=steps).minimise(objective, params)[0])

    def __call__(self, objective: Objective, params: Params) -> InnerSolution:
        params, steps = self.minimise(objective, params)
        value, grads = value_and_grad(objective, params)
        return InnerSolution(params, value.detach(), task_norm(grads), steps)


def check_tol(tol: float | None) -> None:
    """Check that tol is None or a number of at least 0.

    Raises:
        UsageError: tol is negative, NaN or no number.
    """
    if tol is not None and not (is_number(tol) and tol >= 0):
        raise UsageError(f"tol={tol!r}; expected a gradient norm of at least 0, or None")


def value_and_grad(
    objective: Objective, params: Params, create_graph: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Return the objective, (T,), and its gradient in params, a list in their order.

    Without `create_graph`, params are detached first. The gradient is zero in params that the
    objective does not depend on.

    Raises:
        ValueError: the objective is not a (T,) tensor, or depends on none of the params.
    """
    if not create_graph:
        params = {name: p.detach().requires_grad_() for name, p in params.items()}
    with torch.enable_grad():
        value = objective(params)
        tasks = len(next(iter(params.values())))
        if value.shape != (tasks,):
            raise ValueError(
                f"the inner objective has shape {tuple(value.shape)}; expected ({tasks},), a value "
                "for each task"
            )
        leaves = list(params.values())
        # Made from nothing, so that a captured gradient does not need the value.
        weights = torch.ones(tasks, dtype=value.dtype, device=value.device)
        grads = partials([value], leaves, [weights], create_graph=create_graph)
    if all(g is None for g in grads):
        raise UsageError(
            f"params={list(params)}: expected tensors that the inner objective depends on, and it "
            "depends on none. Compute it from its params, not from a module's own tensors."
        )
    found = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]
    return value, found


def gradient(objective: Objective, params: Params, create_graph: bool = False) -> list[Tensor]:
    """Return the gradient as `value_and_grad` does, or by the objective's own method `gradient`."""
    own: Callable[[Params, bool], list[Tensor]] | None = getattr(objective, "gradient", None)
    if own is None:
        return value_and_grad(objective, params, create_graph)[1]
    return own(params, create_graph)


def rounding(objective: Objective, value: Tensor) -> Tensor:
    """Return the size below which a change of the objective's value, (T,), is its own rounding.

    An objective of narrower arithmetic than its value's type states a fraction of the value by an
    attribute `relative_rounding`; None: it is of the value's type.
    """
    own = getattr(objective, "relative_rounding", None)
    return (4 * torch.finfo(value.dtype).eps if own is None else own) * value.abs()


def broadcast(per_task: Tensor, other: Tensor) -> Tensor:
    """Reshape a (T,) tensor so that it broadcasts against (T, ...)."""
    return per_task.view(-1, *[1] * (other.dim() - 1))
