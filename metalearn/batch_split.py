"""A meta-batch that memory does not hold, taken in parts: tasks are independent of each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.linear_solve import Status
from metalearn.memory import give_back_freed_memory
from metalearn.metagrad import MetaGradient, MetaGradientResult
from metalearn.problem import BilevelProblem, Meta
from metalearn.tree import leaves_of, like_tree


class OutOfMemory(RuntimeError):
    """Not even a single task fits."""


@dataclass
class SplitGradient:
    """A meta-gradient that takes the batch in two where memory runs out, in four where that is
    still too much, and so on; it stays at the number of parts that it found.

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
        while True:
            try:
                if self.parts == 1:
                    return self.metagrad(problem, meta, task, **carry)
                return joined(
                    [self.metagrad(problem, meta, part, **carry) for part in self._split(task)]
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Out here the error is gone, and with its traceback what the attempt held.
            if self.parts >= len(task):
                raise OutOfMemory(
                    "memory does not hold the meta-gradient of one task alone; a smaller model, "
                    "fewer queries or metagrad=maml_checkpointed take less"
                )
            give_back_freed_memory()
            self.parts = min(2 * self.parts, len(task))
            self.say(
                f"out of memory: the meta-batch of {len(task)} tasks is taken in {self.parts} parts"
            )

    def _split(self, task: Any) -> list[Any]:
        ends = [round(i * len(task) / self.parts) for i in range(self.parts + 1)]
        return [task[a:b] for a, b in itertools.pairwise(ends) if b > a]


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
