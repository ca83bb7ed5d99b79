"""The Reptile update: meta moves towards the adapted parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from metalearn.inner import InnerSolver
from metalearn.metagrad.base import (
    MetaGradient,
    MetaGradientResult,
    mean_over_tasks,
    refuse_learned_rates,
    through_init,
)
from metalearn.problem import BilevelProblem, Meta
from metalearn.system.random_state import replayed, torch_states
from metalearn.tree import detached


@dataclass(frozen=True)
class Reptile(MetaGradient):
    """The pseudo-gradient init - params*, carried to meta by `problem.init`.

    Nichol et al. 2018. For `FewShot` it is the mean over the tasks of theta - phi. A step of SGD at
    the rate e therefore takes theta to theta + e (mean phi - theta). It is the derivative of
    |init(meta) - params*|^2 / 2 with params* held constant, not of the outer objective. The outer
    objective is evaluated for its loss and metrics alone: a meta-step learns from the support sets
    and never sees a query's label.

    The paper does not split a task's data, and its inner steps take minibatches of all of it. To
    compare at equal data, give Reptile as many shots as the other methods have shots and queries.

    With `FewShot(prox > 0)` and a converged inner loop it is 1 / prox times the gradient of the
    support loss's Moreau envelope (Zhou et al. 2019).
    """

    inner: InnerSolver

    @property
    def one_by_one(self) -> bool:
        return True

    def differentiate(self, problem: BilevelProblem, meta: Meta, task: Any) -> MetaGradientResult:
        refuse_learned_rates(problem)
        constant = detached(meta)
        states = torch_states()
        solution = self.adapt(problem, meta, task)
        with replayed(states):
            start = problem.init(constant, task)
        moved = [start[name] - p for name, p in solution.params.items()]
        with torch.no_grad():
            loss, metrics = problem.outer_objective(solution.params, constant, task)
        carried = through_init(problem, constant, task, moved, states)
        grads = mean_over_tasks(meta, carried, len(moved[0]))
        return MetaGradientResult(grads, loss, metrics, solution)
