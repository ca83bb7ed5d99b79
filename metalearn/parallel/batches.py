"""Micro-batches: a meta-batch that exceeds the memory is split, since tasks are independent."""

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
    """The error of a single task that exceeds the memory."""


def in_micro_batches(
    work: Callable[[Any], T],
    join: Callable[[list[T]], T],
    task: Any,
    micro_batches: int,
    say: Callable[[str], Any],
) -> tuple[T, int]:
    """Run `work` on each micro-batch of a batch of tasks; double their number if memory runs out.

    Args:
        work: computes the result of consecutive tasks.
        join: merges the results of consecutive micro-batches, in order.
        task: the batch, which can be sliced.
        micro_batches: the number of micro-batches to begin with.
        say: receives a message whenever the number is doubled.

    Returns:
        The merged result, and the number of micro-batches that fitted into memory.

    Raises:
        OutOfMemory: a single task does not fit into memory.
    """
    while True:
        try:
            if micro_batches == 1:
                return work(task), micro_batches
            return join([work(part) for part in _split(task, micro_batches)]), micro_batches
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of `except` the traceback is gone, and with it the memory of the attempt.
        if micro_batches >= len(task):
            raise OutOfMemory(
                "memory does not hold one task alone; a smaller model, fewer queries or "
                "metagrad=maml_checkpointed take less"
            )
        give_back_freed_memory()
        micro_batches = min(2 * micro_batches, len(task))
        say(
            f"out of memory: the batch of {len(task)} tasks is taken in "
            f"{micro_batches} micro-batches"
        )


def _split(task: Any, micro_batches: int) -> list[Any]:
    ends = [round(i * len(task) / micro_batches) for i in range(micro_batches + 1)]
    return [task[a:b] for a, b in itertools.pairwise(ends) if b > a]


@dataclass
class SplitGradient:
    """A meta-gradient that splits the batch into micro-batches when memory runs out (`in_parts`).

    Later calls keep the number of micro-batches that fitted. The result equals that of the whole
    batch, except for the rounding of the sum over tasks.

    Args:
        metagrad: the meta-gradient of a micro-batch.
        micro_batches: the number of micro-batches.
        say: receives a message whenever the number grows.

    Raises:
        OutOfMemory: a single task does not fit into memory, or the whole batch does not and the
            problem couples its tasks.
    """

    metagrad: MetaGradient
    micro_batches: int = 1
    say: Callable[[str], None] = print

    def __call__(
        self, problem: BilevelProblem, meta: Meta, task: Any, **solver_state: Any
    ) -> MetaGradientResult:
        def work(part: Any) -> MetaGradientResult:
            return self.metagrad(problem, meta, part, **solver_state)

        if getattr(problem, "couples_tasks", False) and self.micro_batches == 1:
            try:
                return work(task)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            raise OutOfMemory(
                "memory does not hold the meta-batch, and the problem cannot take it in "
                "micro-batches (statistics=population): lower meta_batch, or tasks.queries"
            )
        result, self.micro_batches = in_micro_batches(
            work, merge_results, task, self.micro_batches, self.say
        )
        return result


ON_A_CPU = ("DefaultCPUAllocator", "could not create a primitive", "bad_alloc")
"""The texts of PyTorch's allocator, oneDNN and C++ when memory runs out. All three are
RuntimeErrors, which only their texts distinguish."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for the out-of-memory errors of CUDA, of Python and of a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ON_A_CPU)


def merge_results(results: Sequence[MetaGradientResult]) -> MetaGradientResult:
    """Merge the results of consecutive micro-batches into the result of all tasks.

    The gradient and the carry are means over tasks. All other fields have a task axis.
    """

    def mean(name: str, weights: Sequence[int]) -> Any:
        trees = [getattr(r, name) for r in results]
        leaves = zip(*(leaves_of(tree) for tree in trees), strict=True)
        weighted = [sum(n * x for n, x in zip(weights, xs, strict=True)) for xs in leaves]
        return like_tree(trees[0], [x / max(1, sum(weights)) for x in weighted])

    means = {
        "grads": mean("grads", [len(r.outer_loss) for r in results]),
        "solver_state": mean("solver_state", [solver_state_weight(r) for r in results]),
    }
    others = [f.name for f in fields(results[0]) if f.name not in means]
    return MetaGradientResult(
        **means, **{name: _stacked([getattr(r, name) for r in results]) for name in others}
    )


def solver_state_weight(result: MetaGradientResult) -> int:
    """Return the number of tasks in the mean of a carry: those whose linear solve did not fail."""
    if result.certificate is None or result.certificate.status is None:
        return len(result.outer_loss)
    return int((result.certificate.status <= Status.MAX_ITERS).sum())


def _stacked(micro_batches: Sequence[Any]) -> Any:
    """Concatenate tensors along the task axis, in dicts, tuples and dataclasses.

    A value that is not a tensor is the same in all micro-batches.
    """
    first = micro_batches[0]
    if isinstance(first, Tensor):
        return torch.cat(list(micro_batches))
    if isinstance(first, dict):
        return {key: _stacked([part[key] for part in micro_batches]) for key in first}
    if isinstance(first, tuple):
        return tuple(_stacked(values) for values in zip(*micro_batches, strict=True))
    if is_dataclass(first) and not isinstance(first, type):
        return type(first)(
            **{f.name: _stacked([getattr(p, f.name) for p in micro_batches]) for f in fields(first)}
        )
    return first
