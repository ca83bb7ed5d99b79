"""The batch of few-shot tasks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from torch.utils._pytree import register_dataclass

from metalearn.errors import UsageError


@dataclass(frozen=True)
class TaskBatch:
    """A batch of T tasks, each with a support set for adaptation and a query set for evaluation.

    Args:
        support_x: (T, ways * shots, ...).
        support_y: (T, ways * shots) int64 labels in 0 .. ways - 1, or (T, n, outputs) targets of a
            regression or of several labels.
        query_x: (T, ways * queries, ...).
        query_y: the labels or targets of the queries, in the form of support_y.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def __len__(self) -> int:
        return len(self.support_x)

    @property
    def ways(self) -> int:
        """The number of classes; of targets (T, n, outputs) the number of outputs."""
        if self.support_y.dim() == 3:
            return self.support_y.shape[-1]
        return int(self.support_y.max()) + 1

    def __getitem__(self, tasks: slice) -> TaskBatch:
        return TaskBatch(*(getattr(self, f.name)[tasks] for f in fields(self)))

    def to(self, *args: Any) -> TaskBatch:
        """Return the batch with floating-point tensors moved or cast; labels are only moved."""

        def move(x: Tensor) -> Tensor:
            y = x.to(*args)
            return y if x.is_floating_point() else y.to(x.dtype)

        return TaskBatch(*(move(getattr(self, f.name)) for f in fields(self)))


register_dataclass(TaskBatch)


def check_shapes(task: TaskBatch, queries: bool = True) -> None:
    """Raise UsageError unless a task has tensors that share a task axis, x and y their examples.

    Args:
        queries: False: the query set is not looked at, and may be empty.
    """
    for name in ("support", "query") if queries else ("support",):
        x, y = getattr(task, f"{name}_x"), getattr(task, f"{name}_y")
        for tensor, of in ((x, "x"), (y, "y")):
            if not isinstance(tensor, Tensor):
                raise UsageError(
                    f"{name}_{of}={type(tensor).__name__}: expected a torch.Tensor. Give "
                    "torch.as_tensor of it."
                )
        what = (
            f"{name}_x of shape {tuple(x.shape)} and {name}_y of shape {tuple(y.shape)}: expected"
        )
        if min(x.dim(), y.dim()) < 2:
            raise UsageError(
                f"{what} (T, n, ...) and (T, n) for T tasks. Give one task its axis by x[None]."
            )
        if 0 in x.shape[:2]:
            raise UsageError(f"{what} a task and an example at least. Give tasks with examples.")
        if x.shape[:2] != y.shape[:2]:
            raise UsageError(f"{what} a label for each example. Give y for the examples of x.")
        if len(x) != len(task):
            raise UsageError(
                f"{what} {len(task)} tasks, as in support_x. Give the queries of the same tasks."
            )
