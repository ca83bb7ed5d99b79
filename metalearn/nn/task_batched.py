"""A plain torch module as a function of stacked parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.nn.layers import TWINS, TaskBatchNorm, TaskVmap


@runtime_checkable
class TaskBatchable(Protocol):
    """A custom module whose `forward` only calls its children and elementwise operations.

    With `task_batchable = True` its children are task-batched one by one.
    """

    task_batchable: ClassVar[bool]


class TaskBatched:
    """The `module` for many tasks at once, each with parameters of its own.

    Known layers become grouped convolutions and batched products (`metalearn.nn.layers.TWINS`).
    `nn.Sequential` and modules that declare themselves `task_batchable` are entered. Every other
    module goes through `torch.func.vmap`. Batch norm uses the statistics of the batch at hand, for
    each task its own.

    In `TaskBatched(module)(params, x)`:

    - params maps `names` to tensors (T, ...), or (1, ...) for a tensor that serves all tasks.
      `names` are those of `module.named_parameters()` and the class vectors of a `SymmetricHead`.
    - x is (T, n, ...), and so is the result.
    - `statistics_from=k` normalises by the first k examples of each task alone.

    Raises:
        UsageError: a layer cannot be task-batched, for example a batch norm with running averages,
            or two layers share a parameter.
    """

    def __init__(self, module: nn.Module) -> None:
        own = {name for name, _ in module.named_parameters()}
        shared = {name for name, _ in module.named_parameters(remove_duplicate=False)} - own
        if shared:
            raise UsageError(
                f"parameters {sorted(shared)} are other names of parameters that the module has "
                "already; a task-batched module holds each parameter in one place"
            )
        self._twin = _twin(module)
        self.names = frozenset(name for name, _ in self._twin.named_parameters())
        self._norms = [m for m in self._twin.modules() if isinstance(m, TaskBatchNorm)]

    def __call__(
        self, params: Mapping[str, Tensor], x: Tensor, statistics_from: int | None = None
    ) -> Tensor:
        if params.keys() != self.names:
            odd = sorted(self.names.symmetric_difference(params))
            raise ValueError(f"parameters {odd} are missing or not the module's")
        for norm in self._norms:
            norm.statistics_from = statistics_from
        y = torch.func.functional_call(self._twin, dict(params), (x.transpose(0, 1),))
        return y.transpose(0, 1)


def _twin(module: nn.Module) -> nn.Module:
    make = TWINS.get(type(module))
    if make is not None:
        return make(module)
    entered = isinstance(module, nn.Sequential) or getattr(module, "task_batchable", False)
    if not entered:
        return TaskVmap(copy.deepcopy(module))
    twin = copy.copy(module)
    twin._modules = {name: child and _twin(child) for name, child in module._modules.items()}
    return twin
