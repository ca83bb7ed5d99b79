"""Distribution of the tasks of a meta-batch over the ranks of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from metalearn.metagrad import MetaGradientResult, NonFiniteGradient
from metalearn.parallel.batches import (
    OutOfMemory,
    SplitGradient,
    merge_results,
    solver_state_weight,
)
from metalearn.parallel.ranks import Ranks
from metalearn.problem import BilevelProblem, Meta
from metalearn.tree import leaves_of, like_tree


@dataclass(frozen=True)
class ShardedGradient:
    """A meta-gradient for which each rank computes its slice of the tasks.

    `task` is the whole batch, equal on every rank. The result is equal on every rank too. With
    several ranks `inner.params` is empty and `solution` None, since they are not communicated. The
    ranks exchange the gradient, the solver state and a few numbers for each task. The gradient
    equals that of the whole batch, except for the rounding of the sum over ranks.

    Args:
        gradient: the meta-gradient of one rank's tasks.
        ranks: the processes of the run.

    Raises:
        NonFiniteGradient, OutOfMemory: raised on every rank if one rank raises it.
    """

    gradient: SplitGradient
    ranks: Ranks

    def __call__(
        self, problem: BilevelProblem, meta: Meta, task: Any, **solver_state: Any
    ) -> MetaGradientResult:
        if self.ranks.size == 1:
            return self.gradient(problem, meta, task, **solver_state)
        try:
            own = self.gradient(
                problem, meta, task[self.ranks.local_slice(len(task))], **solver_state
            )
            report: MetaGradientResult | Exception = _figures(own)
        except (NonFiniteGradient, OutOfMemory) as error:
            report = error
        whole = merge_results(self.ranks.gather_or_raise(report))
        weights = {
            "grads": len(own.outer_loss) / len(whole.outer_loss),
            "solver_state": solver_state_weight(own) / max(1, solver_state_weight(whole)),
        }
        trees = {name: getattr(own, name) for name in weights}
        sums = self.ranks.all_reduce_sum(
            [w * x for n, w in weights.items() for x in leaves_of(trees[n])]
        )
        return replace(whole, **like_tree(trees, sums))


def _figures(result: MetaGradientResult) -> MetaGradientResult:
    """Return the fields of a result that have only a few numbers for each task."""
    inner = replace(result.inner, params={})
    return replace(result, grads={}, solver_state={}, solution=None, inner=inner)
