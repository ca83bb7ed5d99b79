"""What is differentiated: a bilevel problem, and the few-shot problem of MAML and iMAML.

minimise over meta  mean over tasks of outer(params*(meta), meta)
where               params*(meta) minimises inner(params, meta), or K steps from init(meta) do
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.magnitude import LARGEST
from metalearn.nn import TaskBatched
from metalearn.tasks.batch import TaskBatch
from metalearn.tree import half_squared_distance

Params = dict[str, Tensor]
"""Adapted parameters by name, each tensor (T, ...)."""

Meta = Any
"""Meta-parameters: a pytree of tensors without a task axis."""


class BilevelProblem(Protocol):
    """An inner and an outer objective. `task` has a length T and can be sliced."""

    def init(self, meta: Meta, task: Any) -> Params:
        """Where the inner loop starts: tensors (T, ...), differentiable in meta."""
        ...

    def inner_objective(self, params: Params, meta: Meta, task: Any) -> Tensor:
        """What the inner loop minimises: (T,), a task's value in its own params alone."""
        ...

    def outer_objective(
        self, params: Params, meta: Meta, task: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What adapted params are judged by: (T,), and further figures of (T,)."""
        ...


@runtime_checkable
class CompositeProblem(BilevelProblem, Protocol):
    """A problem whose inner objective is `inner_loss(inner_outputs(params))`, the loss convex.

    This split is what Gauss-Newton curvature needs (Schraudolph 2002): J' (d2 loss / d outputs2) J
    with J = d outputs / d params is positive semi-definite.
    """

    def inner_outputs(self, params: Params, meta: Meta, task: Any) -> Any:
        """A pytree of tensors."""
        ...

    def inner_loss(self, outputs: Any, meta: Meta, task: Any) -> Tensor:
        """(T,), convex in outputs."""
        ...


class FewShot:
    """Few-shot learning: meta is the initialisation theta of the task's parameters phi.

    inner(phi, theta) = support loss(phi) + prox / 2 |phi - theta|^2, outer = query loss(phi). With
    prox = 0 it is MAML's problem (Finn et al. 2017, eq. 1), with prox > 0 iMAML's (Rajeswaran et
    al. 2019, eq. 3 and 4). The loss is the mean cross-entropy for integer labels, the mean squared
    error for others.

    Args:
        model: a module that `TaskBatched` takes; only its structure is used.
        prox: the proximal strength lambda, at least 0.
        transductive: batch norm normalises the queries by their own statistics, so that a query's
            prediction depends on the others (as in the papers); if False, by those of the support
            set.
        adapt: the parameters that the inner loop moves: "all"; "head", those of the model's last
            layer, which is ANIL's problem (Raghu et al. 2020); or names. The others are the body,
            shared by all tasks and a part of meta alone; the proximal term does not hold them.

    `meta` is `dict(model.named_parameters())`, `adapted` the names of phi's tensors.
    """

    def __init__(
        self,
        model: nn.Module,
        prox: float = 0.0,
        transductive: bool = True,
        adapt: Literal["all", "head"] | Sequence[str] = "all",
    ) -> None:
        if not 0 <= prox <= LARGEST:
            raise UsageError(
                f"prox={prox}; the proximal strength must be at least 0, and up to {LARGEST:.1e}"
            )
        self.model = TaskBatched(model)
        self.prox = prox
        self.transductive = transductive
        self.adapted = _adapted([name for name, _ in model.named_parameters()], adapt)

    def init(self, meta: Params, task: TaskBatch) -> Params:
        return {name: meta[name].expand(len(task), *meta[name].shape) for name in self.adapted}

    def inner_objective(self, params: Params, meta: Params, task: TaskBatch) -> Tensor:
        return self.inner_loss(self.inner_outputs(params, meta, task), meta, task)

    def inner_outputs(self, params: Params, meta: Params, task: TaskBatch) -> dict[str, Any]:
        predictions = self._predict(params, meta, task.support_x)
        # The proximal term is quadratic in the parameters, which are therefore outputs too.
        return {"predictions": predictions} | ({"params": params} if self.prox else {})

    def inner_loss(self, outputs: dict[str, Any], meta: Params, task: TaskBatch) -> Tensor:
        loss = prediction_loss(outputs["predictions"], task.support_y)
        if not self.prox:
            return loss
        moved = outputs["params"]
        distance = half_squared_distance(list(moved.values()), [meta[name] for name in moved])
        return loss + self.prox * distance

    def outer_objective(
        self, params: Params, meta: Params, task: TaskBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        predictions = self._query_predictions(params, meta, task)
        loss = prediction_loss(predictions, task.query_y)
        if task.query_y.is_floating_point():
            return loss, {}
        correct = predictions.detach().argmax(dim=-1) == task.query_y
        return loss, {"accuracy": correct.to(loss.dtype).mean(dim=1)}

    def _query_predictions(self, params: Params, meta: Params, task: TaskBatch) -> Tensor:
        if self.transductive:
            return self._predict(params, meta, task.query_x)
        shown = task.support_x.shape[1]
        both = torch.cat([task.support_x, task.query_x], dim=1)
        return self._predict(params, meta, both, statistics_from=shown)[:, shown:]

    def _predict(
        self, params: Params, meta: Params, x: Tensor, statistics_from: int | None = None
    ) -> Tensor:
        body = {name: p.expand(len(x), *p.shape) for name, p in meta.items() if name not in params}
        return self.model({**body, **params}, x, statistics_from)


def _adapted(names: list[str], adapt: str | Sequence[str]) -> list[str]:
    """The names that `FewShot(adapt=...)` means."""
    if adapt == "all":
        return names
    if adapt == "head":
        layer = names[-1].rpartition(".")[0]
        return [name for name in names if name.rpartition(".")[0] == layer]
    if isinstance(adapt, str):
        raise UsageError(f"adapt={adapt!r}; expected 'all', 'head' or a list of parameters' names")
    if odd := sorted(set(adapt).difference(names)):
        raise UsageError(f"adapt has {odd[0]!r}, which is none of {', '.join(names)}")
    if not adapt:
        raise UsageError("adapt=[] leaves the inner loop nothing to adapt; name a parameter")
    return [name for name in names if name in adapt]


def prediction_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Each task's mean loss, (T,): cross-entropy for integer targets, else squared error."""
    tasks = len(targets)
    if targets.is_floating_point():
        return F.mse_loss(predictions, targets, reduction="none").reshape(tasks, -1).mean(dim=1)
    losses = F.cross_entropy(predictions.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(tasks, -1).mean(dim=1)
