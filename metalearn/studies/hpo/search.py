"""A sequence of hyper-gradients, each warm-started from the one before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from metalearn.metagrad import Implicit, MetaGradient, MetaGradientResult
from metalearn.problem import BilevelProblem, Meta
from metalearn.problems.training_task import TrainingTask
from metalearn.studies.frame.oracle_calls import Counted
from metalearn.system.machine import now
from metalearn.tree import Tree, detached, leaves_of, like_tree

Method = Callable[[int, Meta], MetaGradient]
"""A function from an outer step, from 0, and its hyper-parameters to the meta-gradient to use.

The inner tolerance may depend on the step, a step size on the hyper-parameters.
"""


@dataclass(frozen=True)
class HypergradientStep:
    """One hyper-gradient of a search, and the cost of the search up to it.

    Args:
        meta: the hyper-parameters.
        result: the hyper-gradient there.
        gradients, products: see `metalearn.studies.frame.oracle_calls`.
        seconds: the time in hyper-gradients alone.
    """

    meta: Meta
    result: MetaGradientResult
    gradients: int
    products: int
    seconds: float

    @property
    def loss(self) -> float:
        """Return the outer loss, which the search minimises."""
        return float(self.result.outer_loss.mean())


@dataclass
class WarmStartedSolver:
    """A meta-gradient, `search(problem, meta, task)`, that records its visits.

    Args:
        method: see `Method`.
        warm: start each inner loop at the last params, and each linear solve at the last solution;
            else at the task's own start and at 0.
    """

    method: Method
    warm: bool = True
    visits: list[HypergradientStep] = field(default_factory=list)

    def __call__(
        self, problem: BilevelProblem, meta: Meta, task: TrainingTask
    ) -> MetaGradientResult:
        last = self.visits[-1] if self.visits else None
        metagrad = self.method(len(self.visits), meta)
        begin: dict[str, Any] = {}
        if last and self.warm:
            task = replace(task, params=last.result.inner.params)
            if isinstance(metagrad, Implicit):
                begin["x0"] = last.result.solution
        counted, device = Counted(problem), leaves_of(meta)[0].device
        began = now(device)
        result = metagrad(counted, meta, task, **begin)
        seconds = now(device) - began
        at = detached(
            like_tree(meta, [x.clone() for x in leaves_of(meta)])
        )  # Adam writes into meta
        self.visits.append(
            HypergradientStep(
                at,
                result,
                counted.gradients + (last.gradients if last else 0),
                counted.products + (last.products if last else 0),
                seconds + (last.seconds if last else 0.0),
            )
        )
        return result

    @property
    def best(self) -> HypergradientStep:
        return min(self.visits, key=lambda visit: visit.loss)


def quasi_newton(
    search: WarmStartedSolver,
    problem: BilevelProblem,
    meta: Meta,
    task: TrainingTask,
    hypergradients: int,
) -> None:
    """Minimise by SciPy's L-BFGS-B from meta, with at most `hypergradients` hyper-gradients.

    Its first step has length 1 in meta, whatever the length of the gradient.
    """
    leaves = leaves_of(meta)
    sizes = [x.numel() for x in leaves]

    def tree(z: np.ndarray) -> Tree:
        # A copy, because L-BFGS-B writes into the array later.
        parts = torch.from_numpy(z.copy()).to(leaves[0]).split(sizes)
        return like_tree(meta, [p.view_as(x) for p, x in zip(parts, leaves, strict=True)])

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        if len(search.visits) == hypergradients:
            raise _Spent  # L-BFGS-B checks its limit between line searches only
        result = search(problem, tree(z), task)
        grads = torch.cat([g.flatten() for g in leaves_of(result.grads)])
        return float(result.outer_loss.mean()), grads.double().cpu().numpy()

    start = torch.cat([x.flatten() for x in leaves]).double().cpu().numpy()
    with suppress(_Spent):
        minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxfun": hypergradients})


class _Spent(Exception):
    """A signal that no hyper-gradient is left."""
