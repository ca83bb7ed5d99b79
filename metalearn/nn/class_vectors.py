"""The class vectors of a `SymmetricHead`: tensors with a row for each class of a task."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from metalearn import implicit
from metalearn.errors import UsageError
from metalearn.inner import NewtonCG
from metalearn.linear_solve import CG
from metalearn.nn.head import SymmetricHead, class_means
from metalearn.nn.precision import Precision
from metalearn.nn.structure import is_chain
from metalearn.nn.task_batched import TaskBatched
from metalearn.tasks.batch import TaskBatch
from metalearn.tree import leaves_of, task_half_square

Params = dict[str, Tensor]

HEAD_SOLVER = NewtonCG(steps=10, cg_iters=10, tol=1e-4)
"""The solver of a "solved" head's class vectors: a convex problem with a row for each class."""


class ClassVectors:
    """The tensors of a model's `SymmetricHead` that have a row for each class of a task."""

    def __init__(self, prefix: str, head: SymmetricHead, body: TaskBatched | None) -> None:
        self.prefix, self._head, self._body = prefix, head, body
        self.names = [prefix + name for name in head.adapted]
        self.per_task, self.solved = head.start == "prototypes", head.start == "solved"

    @classmethod
    def of(cls, model: nn.Module, precision: Precision = "full") -> ClassVectors | None:
        """Return the class vectors of the model's last layer; None if the model has no such head.

        Args:
            precision: of the body, as in `TaskBatched`.

        Raises:
            UsageError: a `SymmetricHead` is not the last layer of an `nn.Sequential`.
        """
        heads = [n for n, m in model.named_modules() if isinstance(m, SymmetricHead)]
        if not heads:
            return None
        last = list(model.named_children())[-1:] if is_chain(model) else []
        if len(heads) > 1 or not last or heads[0] != last[0][0]:
            raise UsageError(
                f"{type(model).__name__} has a SymmetricHead at {heads[0] or 'its top'}: expected "
                "it as the last layer of an nn.Sequential. Move it there."
            )
        name, head = last[0]
        assert isinstance(head, SymmetricHead)
        body = nn.Sequential(OrderedDict(list(model.named_children())[:-1]))
        return cls(f"{name}.", head, TaskBatched(body, precision) if len(body) else None)

    def in_full_precision(self) -> ClassVectors:
        """Return the same class vectors with the body in the type of its parameters."""
        full = copy.copy(self)
        full._body = self._body and self._body.in_full_precision()
        return full

    def centre(self, meta: Params, task: TaskBatch, ways: int) -> Params:
        """Return the vectors' centre by name: (ways, ...) for all tasks, or (T, ways, ...)."""
        weight, bias = f"{self.prefix}weight", f"{self.prefix}bias"
        features = self._head.features
        if self._head.start == "tied":
            return {weight: meta[weight].expand(ways, -1)}
        if self._head.start != "prototypes":
            # Take the type from meta, since support_x may hold integer tokens. A head alone has no
            # meta, but its support_x holds features.
            like = next(iter(leaves_of(meta)), task.support_x)
            return {weight: like.new_zeros(ways, features)}
        means = class_means(self._features(meta, task), task.support_y, ways)
        return {weight: 2 * means / features, bias: -means.square().sum(-1) / features}

    def solution(
        self, meta: Params, task: TaskBatch, prox: float, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> Params:
        """Return the class vectors (T, ways, F) that solve the task on the features at meta.

        They minimise loss(logits, labels), (T,), of the support set + prox / 2 |W|^2. The features
        are computed once. The result is differentiable in meta by `implicit.argmin`.
        """
        features = self._features(meta, task)
        scale = meta.get(f"{self.prefix}log_scale", features.new_zeros(()))

        def objective(weight: Tensor, features: Tensor, scale: Tensor) -> Tensor:
            scores = scale.exp() * (features @ weight.mT)
            return loss(scores, task.support_y) + prox * task_half_square(weight)

        known = features.detach(), scale.detach()
        weight = HEAD_SOLVER(
            lambda params: objective(params["weight"], *known),
            {"weight": features.new_zeros(len(task), task.ways, features.shape[-1])},
        ).params["weight"]
        attached = implicit.argmin(
            objective, weight, features, scale, linear_solver=CG(50, rtol=1e-4), batched=True
        )
        return {f"{self.prefix}weight": attached}

    def _features(self, meta: Params, task: TaskBatch) -> Tensor:
        if self._body is None:
            return task.support_x
        own = {name: meta[name][None] for name in self._body.names}
        return self._body(own, task.support_x)
