"""Hyper-gradients one after another, each begun where the last one ended."""

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
from metalearn.problems.training_task import Starts
from metalearn.studies.frame.oracle_calls import Counted
from metalearn.system.machine import now
from metalearn.tree import Tree, fixed, leaves_of, like_tree

Method = Callable[[int, Meta], MetaGradient]
"""The meta-gradient of an outer step, 0 the first, at the hyper-parameters there: the inner
tolerance may depend on the one, a step size on the other."""


@dataclass(frozen=True)
class Visit:
    """A hyper-gradient that was asked for, and what all up to it took together.

    Args:
        meta: where.
        result: what came back.
        gradients, products: see `metalearn.studies.frame.oracle_calls.Cost`.
        seconds: in hyper-gradients alone.
    """

    meta: Meta
    result: MetaGradientResult
    gradients: int
    products: int
    seconds: float

    @property
    def loss(self) -> float:
        """What the search lowers."""
        return float(self.result.outer_loss.mean())


@dataclass
class Search:
    """`search(problem, meta, task)` is a meta-gradient that remembers its visits.

    Args:
        method: see `Method`.
        warm: each inner loop begins at the last one's params, each linear solve at the last
            solution; else at the task's own start, and at 0.
    """

    method: Method
    warm: bool = True
    visits: list[Visit] = field(default_factory=list)

    def __call__(self, problem: BilevelProblem, meta: Meta, task: Starts) -> MetaGradientResult:
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
        at = fixed(like_tree(meta, [x.clone() for x in leaves_of(meta)]))  # Adam writes into meta
        self.visits.append(
            Visit(
                at,
                result,
                counted.gradients + (last.gradients if last else 0),
                counted.products + (last.products if last else 0),
                seconds + (last.seconds if last else 0.0),
            )
        )
        return result

    @property
    def best(self) -> Visit:
        return min(self.visits, key=lambda visit: visit.loss)


def quasi_newton(
    search: Search, problem: BilevelProblem, meta: Meta, task: Starts, hypergradients: int
) -> None:
    """SciPy's L-BFGS-B from meta, for so many hyper-gradients at most.

    Its first step has length 1 in meta, whatever the gradient's.
    """
    leaves = leaves_of(meta)
    sizes = [x.numel() for x in leaves]

    def tree(z: np.ndarray) -> Tree:
        # A copy: L-BFGS-B goes on to write into what it hands out.
        parts = torch.from_numpy(z.copy()).to(leaves[0]).split(sizes)
        return like_tree(meta, [p.view_as(x) for p, x in zip(parts, leaves, strict=True)])

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        if len(search.visits) == hypergradients:
            raise _Spent  # L-BFGS-B looks at its limit between line searches only
        result = search(problem, tree(z), task)
        grads = torch.cat([g.flatten() for g in leaves_of(result.grads)])
        return float(result.outer_loss.mean()), grads.double().cpu().numpy()

    start = torch.cat([x.flatten() for x in leaves]).double().cpu().numpy()
    with suppress(_Spent):
        minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxfun": hypergradients})


class _Spent(Exception):
    """No hyper-gradient is left."""
