"""A meta-batch that memory does not hold, taken in parts: tasks are independent of each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from metalearn.errors import TrainingStopped
from metalearn.linear_solve import Status
from metalearn.metagrad import MetaGradient, MetaGradientResult
from metalearn.problem import BilevelProblem, Meta
from metalearn.system.memory import give_back_freed_memory
from metalearn.tree import leaves_of, like_tree

T = TypeVar("T")


class OutOfMemory(TrainingStopped):
    """Not even a single task fits."""


def in_parts(
    work: Callable[[Any], T],
    join: Callable[[list[T]], T],
    task: Any,
    parts: int,
    say: Callable[[str], Any],
) -> tuple[T, int]:
    """The work on a batch of tasks, taken in so many consecutive parts, or twice as many where
    memory runs out, and so on; what it gave, joined, and the number of parts.

    Raises:
        OutOfMemory: one task alone is too much.
    """
    while True:
        try:
            if parts == 1:
                return work(task), parts
            return join([work(part) for part in _split(task, parts)]), parts
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Out here the error is gone, and with its traceback what the attempt held.
        if parts >= len(task):
            raise OutOfMemory(
                "memory does not hold one task alone; a smaller model, fewer queries or "
                "metagrad=maml_checkpointed take less"
            )
        give_back_freed_memory()
        parts = min(2 * parts, len(task))
        say(f"out of memory: the batch of {len(task)} tasks is taken in {parts} parts")


def _split(task: Any, parts: int) -> list[Any]:
    ends = [round(i * len(task) / parts) for i in range(parts + 1)]
    return [task[a:b] for a, b in itertools.pairwise(ends) if b > a]


@dataclass
class SplitGradient:
    """A meta-gradient that takes the batch in parts where memory runs out (`in_parts`), and stays
    at the number of them that it found.

    The result is that of the whole batch but for the rounding of the sum over tasks.

    Args:
        parts: how many the batch is taken in.
        say: told when there are more of them.

    Raises:
        OutOfMemory: one task alone is too much.
    """

    metagrad: MetaGradient
    parts: int = 1
    say: Callable[[str], None] = print

    def __call__(
        self, problem: BilevelProblem, meta: Meta, task: Any, **carry: Any
    ) -> MetaGradientResult:
        def work(part: Any) -> MetaGradientResult:
            return self.metagrad(problem, meta, part, **carry)

        if getattr(problem, "statistics", "task") != "task" and self.parts == 1:
            try:
                return work(task)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            raise OutOfMemory(
                "memory does not hold the meta-batch, and statistics=population cannot take it in "
                "parts: lower meta_batch, or tasks.queries"
            )
        result, self.parts = in_parts(work, joined, task, self.parts, self.say)
        return result


ON_A_CPU = ("DefaultCPUAllocator", "could not create a primitive", "bad_alloc")
"""PyTorch's allocator, oneDNN and C++ where memory runs out: RuntimeErrors, told by their words."""


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's error, Python's, or one of those that a CPU gives."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ON_A_CPU)


def joined(results: Sequence[MetaGradientResult]) -> MetaGradientResult:
    """The result of all tasks from those of consecutive parts.

    The gradient and the carry are means over tasks; the rest has a task axis.
    """

    def mean(name: str, weights: Sequence[int]) -> Any:
        trees = [getattr(r, name) for r in results]
        leaves = zip(*(leaves_of(tree) for tree in trees), strict=True)
        weighted = [sum(n * x for n, x in zip(weights, xs, strict=True)) for xs in leaves]
        return like_tree(trees[0], [x / max(1, sum(weights)) for x in weighted])

    means = {
        "grads": mean("grads", [len(r.outer_loss) for r in results]),
        "carry": mean("carry", [carry_weight(r) for r in results]),
    }
    others = [f.name for f in fields(results[0]) if f.name not in means]
    return MetaGradientResult(
        **means, **{name: _stacked([getattr(r, name) for r in results]) for name in others}
    )


def carry_weight(result: MetaGradientResult) -> int:
    """The tasks that a carry is the mean of: those whose linear solve did not break off."""
    if result.certificate is None or result.certificate.status is None:
        return len(result.outer_loss)
    return int((result.certificate.status <= Status.MAX_ITERS).sum())


def _stacked(parts: Sequence[Any]) -> Any:
    """Tensors one behind the other along the task axis, in whatever they lie; what is no tensor is
    the same in all parts."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, dict):
        return {key: _stacked([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        return tuple(_stacked(values) for values in zip(*parts, strict=True))
    if is_dataclass(first) and not isinstance(first, type):
        return type(first)(
            **{f.name: _stacked([getattr(p, f.name) for p in parts]) for f in fields(first)}
        )
    return first
