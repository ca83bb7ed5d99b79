"""A problem on the features of a body that all tasks share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from metalearn.captured import WrapsCaptured
from metalearn.nn.body import Body, Statistics
from metalearn.nn.precision import Precision
from metalearn.nn.structure import frozen_parameters, refuse_frozen
from metalearn.problems.convex_head import ConvexHead
from metalearn.problems.few_shot import FewShot, try_inputs
from metalearn.problems.protocol import CompositeProblem, Params, query_predictions
from metalearn.problems.query_statistics import QueryStatistics
from metalearn.tasks.batch import TaskBatch


class WithBody(QueryStatistics):
    """The `head`, a problem whose inputs are features, under a body that runs once for all images.

    meta is one dict: the body's parameters by name, without frozen ones, and the entries of the
    head's own meta, a dict too. The inner loop moves the head's params alone. With a `FewShot` head
    it is ANIL's problem (Raghu et al. 2020), with a `ConvexHead` a convex one. For all images of a
    meta-batch, a meta-gradient runs the body once forward and once backward (`FeatureProblem`).

    Args:
        body: maps (n, ...) to (n, features).
        head: a problem on tasks whose inputs are (T, n, features).
        transductive: with "task" statistics, as in `FewShot`.
        statistics: the statistics of the body's batch norms, see `Body`. "population" takes all
            images of one meta-gradient call together: in a meta-batch split into micro-batches,
            those of each micro-batch.
        precision: of the body, see `TaskBatched`. The head computes in the type of its parameters.

    Raises:
        UsageError: the body cannot be task-batched, or `statistics` is unknown.
    """

    def __init__(
        self,
        body: nn.Module,
        head: FewShot | ConvexHead,
        transductive: bool = True,
        statistics: Statistics = "task",
        precision: Precision = "full",
    ) -> None:
        self.head, self.transductive, self._start = head, transductive, body
        self.statistics = statistics
        self._body = Body(body, statistics, precision)
        self._frozen = frozenset(frozen_parameters(body))
        self._names = [n for n, _ in body.named_parameters() if n not in self._frozen]
        self.on_features = OnFeatures(head)

    @property
    def prox(self) -> float:
        """The proximal strength of the head's problem; 0 if it has none."""
        return float(getattr(self.head, "prox", 0.0))

    def begin(self) -> Params:
        """Return the body's parameters that are not frozen, and the head's on the same device."""
        named = dict(self._start.named_parameters())
        own = {name: p for name, p in named.items() if name not in self._frozen}
        like = next(iter(named.values())).detach()
        return own | {
            name: p if p.device == like.device else p.detach().to(like).requires_grad_()
            for name, p in self.head.begin().items()
        }

    @property
    def couples_tasks(self) -> bool:  # type: ignore[override]
        """True with "population" statistics, which batch norm takes over the whole meta-batch."""
        return self.statistics != "task"

    @property
    def any_ways(self) -> bool:  # type: ignore[override]
        return self.head.any_ways

    def check(self, meta: Params, task: TaskBatch) -> None:
        at = try_inputs(lambda: self._at_features(meta, task), task)
        self.head.check(at["rest"], _with_features(at, task))

    @property
    def adapts_by_mode(self) -> bool:
        """True if the support features differ between transductive and inductive evaluation."""
        return self.statistics != "task"

    @staticmethod
    def support_only(task: TaskBatch) -> TaskBatch:
        """Return the task as the inner loop sees it, without queries."""
        return replace(task, query_x=task.query_x[:, :0], query_y=task.query_y[:, :0])

    def features(self, meta: Params, task: TaskBatch) -> Tensor:
        """Return the features, (T, n + m, F), of the n support images and then of the m queries."""
        refuse_frozen(meta, self._frozen)
        own = {name: meta[name] for name in self._names}
        return self._body(own, task.support_x, task.query_x, self.transductive)

    def rest(self, meta: Params) -> Params:
        """Return the head's meta."""
        return {name: p for name, p in meta.items() if name not in self._names}

    def settled(self, meta: Params, images: Callable[[], Tensor]) -> WithBody:
        """Return the problem as evaluation uses it.

        A body with "population" statistics takes those of (n, ...) training images; in transductive
        mode, those of each set of images.
        """
        if self.statistics == "task":
            return self
        problem = copy.copy(self)
        if self.transductive:
            problem._body = self._body.by_task()
        else:
            own = {name: meta[name] for name in self._names}
            problem._body = self._body.settled(own, images())
        return problem

    def init(self, meta: Params, task: TaskBatch) -> Params:
        return self.on_features.init(self._at_features(meta, task), task)

    def inner_objective(self, params: Params, meta: Params, task: TaskBatch) -> Tensor:
        return self.on_features.inner_objective(params, self._at_features(meta, task), task)

    def inner_outputs(self, params: Params, meta: Params, task: TaskBatch) -> Any:
        return self.on_features.inner_outputs(params, self._at_features(meta, task), task)

    def inner_loss(self, outputs: Any, meta: Params, task: TaskBatch) -> Tensor:
        return self.on_features.inner_loss(outputs, self._at_features(meta, task), task)

    def outer_objective(
        self, params: Params, meta: Params, task: TaskBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.on_features.outer_objective(params, self._at_features(meta, task), task)

    def query_predictions(self, params: Params, meta: Params, task: TaskBatch) -> Tensor:
        """Return the logits of the queries, (T, m, ways)."""
        return self.on_features.query_predictions(params, self._at_features(meta, task), task)

    def _at_features(self, meta: Params, task: TaskBatch) -> dict[str, Any]:
        return {"features": self.features(meta, task), "rest": self.rest(meta)}


class OnFeatures(WrapsCaptured):
    """The `problem` with the images' features in the images' place.

    meta is {"features": (T, n + m, F), "rest": the problem's own}, support features first.
    """

    def __init__(self, problem: CompositeProblem) -> None:
        self.problem = problem
        self.prox = float(getattr(problem, "prox", 0.0))

    def init(self, meta: Any, task: TaskBatch) -> Params:
        return self.problem.init(meta["rest"], _with_features(meta, task))

    def inner_objective(self, params: Params, meta: Any, task: TaskBatch) -> Tensor:
        return self.problem.inner_objective(params, meta["rest"], _with_features(meta, task))

    def inner_outputs(self, params: Params, meta: Any, task: TaskBatch) -> Any:
        return self.problem.inner_outputs(params, meta["rest"], _with_features(meta, task))

    def inner_loss(self, outputs: Any, meta: Any, task: TaskBatch) -> Tensor:
        return self.problem.inner_loss(outputs, meta["rest"], _with_features(meta, task))

    def outer_objective(
        self, params: Params, meta: Any, task: TaskBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.problem.outer_objective(params, meta["rest"], _with_features(meta, task))

    def query_predictions(self, params: Params, meta: Any, task: TaskBatch) -> Tensor:
        """Return the logits of the queries, (T, m, ways).

        Raises:
            UsageError: the problem does not predict classes.
        """
        return query_predictions(self.problem, params, meta["rest"], _with_features(meta, task))


def _with_features(meta: Any, task: TaskBatch) -> TaskBatch:
    sizes = [task.support_y.shape[1], task.query_y.shape[1]]
    support, query = meta["features"].split(sizes, dim=1)
    return TaskBatch(support, task.support_y, query, task.query_y)
