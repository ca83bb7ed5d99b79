"""The stochastic bilevel problem, whose inner and outer losses are means over data.

minimise over meta  mean over outer data of outer_loss(params*(meta), meta)
where               params*(meta) minimises the mean over inner data of inner_loss(params, meta)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from metalearn.errors import UsageError
from metalearn.problems.protocol import Meta, Params


class StochasticProblem(Protocol):
    """A problem with an inner and an outer loss of a batch, each the mean over its examples.

    There is one inner problem, and params have no task axis. `metalearn.bilevel` has the methods.
    A batch is what a `torch.utils.data.DataLoader` yields, on the device of meta.
    """

    def init(self, meta: Meta) -> Params:
        """Return the params at which training begins."""
        ...

    def inner_loss(self, params: Params, meta: Meta, batch: Any) -> Tensor:
        """Return the inner loss of a batch, 0-d: the mean over its examples."""
        ...

    def outer_loss(self, params: Params, meta: Meta, batch: Any) -> Tensor:
        """Return the outer loss of a batch, 0-d: the mean over its examples."""
        ...


@runtime_checkable
class RatedStochasticProblem(StochasticProblem, Protocol):
    """A stochastic problem whose meta also decides the rates of the inner optimiser."""

    def inner_rates(self, meta: Meta) -> Mapping[str, Tensor]:
        """Return the factors of the inner optimiser's moves, by the names of the params.

        A factor broadcasts against its tensor. It multiplies the whole move, so that it is a factor
        of the learning rate for every optimiser. Params that are left out have the factor 1.
        """
        ...


@dataclass(frozen=True)
class FullBatch:
    """A small stochastic problem as a `BilevelProblem` of one task: all data are one batch.

    `Implicit` and `Unrolled` of `metalearn.metagrad` then give its exact hypergradient. The task is
    `range(1)`.

    Args:
        problem: the stochastic problem.
        inner_batch, outer_batch: all data of each level.
    """

    problem: StochasticProblem
    inner_batch: Any
    outer_batch: Any

    def init(self, meta: Meta, task: Any) -> Params:
        return {name: p[None] for name, p in self.problem.init(meta).items()}

    def inner_objective(self, params: Params, meta: Meta, task: Any) -> Tensor:
        return self.problem.inner_loss(_one(params), meta, self.inner_batch)[None]

    def outer_objective(
        self, params: Params, meta: Meta, task: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.problem.outer_loss(_one(params), meta, self.outer_batch)[None], {}


def _one(params: Params) -> Params:
    tasks = {len(p) for p in params.values()}
    if tasks != {1}:
        raise UsageError(
            f"params with task axes of {sorted(tasks)}: expected one task, for the data are those "
            "of one problem. Give task=range(1)."
        )
    return {name: p[0] for name, p in params.items()}
