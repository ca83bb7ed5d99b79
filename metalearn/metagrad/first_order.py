"""The first-order MAML gradient: the inner loop is taken to move the parameters by a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metalearn.autograd import add
from metalearn.inner import InnerSolution, InnerSolver
from metalearn.metagrad.base import (
    MetaGradient,
    MetaGradientResult,
    mean_over_tasks,
    outer_gradient,
    through_init,
)
from metalearn.metagrad.certificate import Certificate
from metalearn.problem import BilevelProblem, Meta
from metalearn.system.random_state import TorchStates, torch_states
from metalearn.tree import detached, requires_grad_copy


@dataclass(frozen=True)
class FirstOrder(MetaGradient):
    """The gradient d outer / d params at adapted params, carried to meta by `problem.init` alone.

    Finn et al. 2017, section 5.2: d params* / d init is taken to be the identity.
    """

    inner: InnerSolver

    def differentiate(self, problem: BilevelProblem, meta: Meta, task: Any) -> MetaGradientResult:
        states = torch_states()
        return first_order_at(self.adapt(problem, meta, task), problem, meta, task, states)


def first_order_at(
    solution: InnerSolution,
    problem: BilevelProblem,
    meta: Meta,
    task: Any,
    states: TorchStates,
    certificate: Certificate | None = None,
) -> MetaGradientResult:
    """Return the first-order gradient at a given inner solution.

    `states` are the random states before its inner loop.
    """
    loss, metrics, by_params, direct = outer_gradient(
        problem, requires_grad_copy(solution.params), requires_grad_copy(meta), task
    )
    carried = through_init(problem, detached(meta), task, by_params, states)
    summed = [add(a, b) for a, b in zip(direct, carried, strict=True)]
    grads = mean_over_tasks(meta, summed, len(solution.objective))
    return MetaGradientResult(grads, loss, metrics, solution, certificate)
