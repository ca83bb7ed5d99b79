"""The sampler of tasks from tensors: a number of examples for each label of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.tasks.batch import TaskBatch


class TensorTaskSampler:
    """The seeded sequence of task batches from examples in memory.

    Each label of a task gets another one of `members`, drawn anew for each task. The examples of a
    task are sorted by label, and support and query share none.

    Args:
        x: (N, ...); uint8 is scaled to [0, 1].
        targets: (N, outputs) of a regression; None: the targets are the labels.
        members: the rows in x of each class, or of each group of a regression.
        sizes: the numbers of support and query examples of each label.
        seed: of the sequence.
        device: of the batches.
    """

    def __init__(
        self,
        x: Tensor,
        targets: Tensor | None,
        members: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        seed: int,
        device: torch.device | str,
    ) -> None:
        self._x = x.to(device)
        self._targets = None if targets is None else targets.to(device)
        self._members, self._sizes = members, sizes
        self._generator = torch.Generator().manual_seed(seed)

    def sample(self, num_tasks: int) -> TaskBatch:
        """Return a batch of `num_tasks` tasks; support_x is (num_tasks, n, ...)."""
        if num_tasks < 1:
            raise UsageError(f"num_tasks={num_tasks}: expected at least 1 task")
        drawn = [self._draw() for _ in range(num_tasks)]
        support, query = (torch.stack(rows).to(self._x.device) for rows in zip(*drawn, strict=True))
        y = [self._labels(rows, side) for side, rows in enumerate((support, query))]
        return TaskBatch(self._inputs(support), y[0], self._inputs(query), y[1])

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Return the support and the query rows of one task."""
        chosen = self._permutation(len(self._members))[: len(self._sizes)].tolist()
        support, query = [], []
        for member, (shots, queries) in zip(chosen, self._sizes, strict=True):
            rows = self._members[member]
            rows = rows[self._permutation(len(rows))[: shots + queries]]
            support.append(rows[:shots])
            query.append(rows[shots:])
        return torch.cat(support), torch.cat(query)

    def _permutation(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self._generator)

    def _inputs(self, rows: Tensor) -> Tensor:
        x = self._x[rows]
        return x.to(torch.get_default_dtype()) / 255 if x.dtype == torch.uint8 else x

    def _labels(self, rows: Tensor, side: int) -> Tensor:
        if self._targets is not None:
            return self._targets[rows]
        counts = torch.tensor([pair[side] for pair in self._sizes], device=rows.device)
        labels = torch.arange(len(counts), device=rows.device).repeat_interleave(counts)
        return labels.repeat(len(rows), 1)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])
