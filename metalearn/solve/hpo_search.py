"""The outer loop: hypergradients one after another, each begun where the last one ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from metalearn.bench.counted import Counted
from metalearn.metagrad import Implicit, MetaGradient, MetaGradientResult
from metalearn.problem import BilevelProblem, Meta, Params, begun_at
from metalearn.tree import Tree, fixed, leaves_of, like_tree

Method = Callable[[int, Meta], MetaGradient]
"""The meta-gradient of an outer step, 0 the first, at the hyper-parameters there: so that its
inner tolerance may depend on the one and a step size on the other."""


@dataclass(frozen=True)
class Visit:
    """A hypergradient that was asked for, and what all up to it took together.

    Args:
        meta: where.
        result: what came back.
        gradients, products: see `metalearn.bench.counted.Cost`.
        seconds: in hypergradients alone.
    """

    meta: Meta
    result: MetaGradientResult
    gradients: int
    products: int
    seconds: float

    @property
    def loss(self) -> float:
        """The mean outer loss, which the search lowers."""
        return float(self.result.outer_loss.mean())


@dataclass
class Search:
    """`search(meta)` is a hypergradient, warm-started and remembered.

    The inner loop begins at the last call's params, the linear solve of an implicit gradient at its
    last solution.

    Args:
        problem, task: as for a meta-gradient.
        method: see `Method`.
    """

    problem: BilevelProblem
    task: Any
    method: Method
    visits: list[Visit] = field(default_factory=list)

    def __call__(self, meta: Meta) -> MetaGradientResult:
        last = self.visits[-1] if self.visits else None
        problem: Any = Counted(
            begun_at(self.problem, last.result.inner.params) if last else self.problem
        )
        metagrad, meta = self.method(len(self.visits), meta), fixed(meta)
        warm: dict[str, Params | None] = {}
        if isinstance(metagrad, Implicit) and last:
            warm["x0"] = last.result.solution
        began = time.perf_counter()
        result = metagrad(problem, meta, self.task, **warm)
        if leaves_of(meta)[0].is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        self.visits.append(
            Visit(
                meta,
                result,
                problem.gradients + (last.gradients if last else 0),
                problem.products + (last.products if last else 0),
                seconds + (last.seconds if last else 0.0),
            )
        )
        return result

    @property
    def best(self) -> Visit:
        """That of the least outer loss."""
        return min(self.visits, key=lambda visit: visit.loss)


def quasi_newton(search: Search, meta: Meta, hypergradients: int) -> Meta:
    """SciPy's L-BFGS-B for so many hypergradients at most, from meta; returns the best met.

    Its first step has length 1 in meta, whatever the gradient's.
    """
    leaves = leaves_of(meta)
    sizes = [x.numel() for x in leaves]

    def tree(z: np.ndarray) -> Tree:
        # A copy: L-BFGS-B goes on to write into what it hands out.
        parts = torch.from_numpy(np.array(z)).to(leaves[0]).split(sizes)
        return like_tree(meta, [p.view_as(x) for p, x in zip(parts, leaves, strict=True)])

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        if len(search.visits) >= hypergradients:
            raise _Spent  # L-BFGS-B looks at its limit between line searches only
        result = search(tree(z))
        grads = torch.cat([g.flatten() for g in leaves_of(result.grads)])
        return float(result.outer_loss.mean()), grads.double().cpu().numpy()

    start = torch.cat([x.flatten() for x in leaves]).double().cpu().numpy()
    try:
        minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxfun": hypergradients})
    except _Spent:
        pass
    return search.best.meta


class _Spent(Exception):
    """No hypergradient is left."""


def adam(search: Search, meta: Meta, hypergradients: int, lr: float) -> Meta:
    """So many steps of Adam from meta, each along one hypergradient; returns the last one's."""
    live = like_tree(meta, [x.detach().clone() for x in leaves_of(meta)])
    leaves = leaves_of(live)
    optimiser = torch.optim.Adam(leaves, lr)
    for step in range(hypergradients):
        if step:
            optimiser.step()
        at = like_tree(meta, [x.clone() for x in leaves])
        for leaf, grad in zip(leaves, leaves_of(search(at).grads), strict=True):
            leaf.grad = grad
    return search.visits[-1].meta
