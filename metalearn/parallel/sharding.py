"""The tasks of a meta-batch shared out over the ranks of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from metalearn.metagrad import MetaGradientResult, NonFiniteGradient
from metalearn.parallel.batches import OutOfMemory, SplitGradient, carry_weight, joined
from metalearn.parallel.ranks import Ranks
from metalearn.problem import BilevelProblem, Meta
from metalearn.tree import leaves_of, like_tree


@dataclass(frozen=True)
class ShardedGradient:
    """A meta-gradient of which each rank computes its share of the tasks.

    `task` is the whole batch, the same on every rank, and so is the result, but that the adapted
    parameters and the linear systems' solutions stay where they are: `inner.params` is empty and
    `solution` None where there are several ranks. What travels is the gradient, the carry and a few
    figures a task. The gradient is the whole batch's but for the rounding of the sum over ranks.

    Raises:
        NonFiniteGradient, OutOfMemory: on every rank, where one has met it.
    """

    gradient: SplitGradient
    ranks: Ranks

    def __call__(
        self, problem: BilevelProblem, meta: Meta, task: Any, **carry: Any
    ) -> MetaGradientResult:
        if self.ranks.size == 1:
            return self.gradient(problem, meta, task, **carry)
        try:
            own = self.gradient(problem, meta, task[self.ranks.share(len(task))], **carry)
            report: MetaGradientResult | Exception = _figures(own)
        except (NonFiniteGradient, OutOfMemory) as error:
            report = error
        whole = joined(self.ranks.gather_or_raise(report))
        weights = {
            "grads": len(own.outer_loss) / len(whole.outer_loss),
            "carry": carry_weight(own) / max(1, carry_weight(whole)),
        }
        trees = {name: getattr(own, name) for name in weights}
        sums = self.ranks.total([w * x for n, w in weights.items() for x in leaves_of(trees[n])])
        return replace(whole, **like_tree(trees, sums))


def _figures(result: MetaGradientResult) -> MetaGradientResult:
    """What has no more than a few numbers a task."""
    inner = replace(result.inner, params={})
    return replace(result, grads={}, carry={}, solution=None, inner=inner)
