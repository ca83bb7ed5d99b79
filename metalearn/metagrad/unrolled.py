"""The unrolled meta-gradient: back through every inner step, as MAML does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.inner import InnerSolution, InnerSolver, value_and_grad
from metalearn.metagrad.base import MetaGradient, MetaGradientResult, mean_over_tasks
from metalearn.metagrad.higher_backend import unroll_with_higher
from metalearn.problem import BilevelProblem, Meta, Params
from metalearn.tree import fixed, leaves_of, live, partials, task_norm


@dataclass(frozen=True)
class Unrolled(MetaGradient):
    """The exact derivative of the inner loop as run, K steps and no more; Finn et al. 2017.

    Memory grows with the number of inner steps.

    Args:
        inner: `GradientDescent` or `Adam`.
        backend: "higher" runs the tasks one by one with the library `higher`, the reference;
            "batched" runs all tasks in one graph.

    Raises:
        UsageError: an unknown back end, or an inner solver that the back end cannot unroll.
        NonFiniteGradient: the outer loss or the gradient is not finite.
    """

    inner: InnerSolver
    backend: Literal["higher", "batched"] = "higher"

    def __post_init__(self) -> None:
        if self.backend not in ("higher", "batched"):
            raise UsageError(f"backend={self.backend!r} is unknown; expected 'higher' or 'batched'")

    def __call__(self, problem: BilevelProblem, meta: Meta, task: Any) -> MetaGradientResult:
        if self.backend == "batched":
            loss, metrics, params, steps, grads = self._batched(problem, meta, task)
        else:
            loss, metrics, params, steps, grads = unroll_with_higher(
                self.inner, problem, meta, task
            )
        constant = fixed(meta)
        value, inner_grads = value_and_grad(
            lambda p: problem.inner_objective(p, constant, task), params
        )
        return MetaGradientResult(
            mean_over_tasks(meta, grads, len(loss)),
            loss,
            metrics,
            InnerSolution(params, value.detach(), task_norm(inner_grads), steps),
        )

    def _batched(
        self, problem: BilevelProblem, meta: Meta, task: Any
    ) -> tuple[Tensor, dict[str, Tensor], Params, Tensor, list[Tensor | None]]:
        meta = live(meta)
        with torch.enable_grad():
            # The meta-parameters may not reach every tensor of init, which must be in the graph.
            start = {
                name: p if p.requires_grad else p.detach().requires_grad_()
                for name, p in problem.init(meta, task).items()
            }
            params, steps = self.inner.minimise(
                lambda params: problem.inner_objective(params, meta, task), start, create_graph=True
            )
            loss, metrics = problem.outer_objective(params, meta, task)
            grads = partials(loss.sum(), leaves_of(meta))
        detached = {name: value.detach() for name, value in metrics.items()}
        return loss.detach(), detached, fixed(params), steps, grads
