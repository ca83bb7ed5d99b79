"""A plain torch module as a function of stacked parameters."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metalearn.errors import UsageError
from metalearn.nn.each_task import EachTask, swapped
from metalearn.nn.layers import TWINS, TaskBatchNorm
from metalearn.nn.precision import Precision, check_precision, reduced, widened
from metalearn.nn.structure import (
    averages_calls,
    class_vectors,
    entries_of,
    frozen_parameters,
    globally_hooked,
    is_entered,
    is_leaf,
    options_of,
    refuse_running_statistics,
    refuse_shared_state,
)


@runtime_checkable
class TaskBatchable(Protocol):
    """A custom module whose `forward` only calls its children and elementwise operations.

    With `task_batchable = True` its children are task-batched one by one. A subclass that defines
    `forward` declares it anew. A module with parameters beside those of its children, or with
    hooks, runs as any other module.
    """

    task_batchable: ClassVar[bool]


class TaskBatched:
    """The `module` for many tasks at once, each with parameters of its own.

    Known layers become grouped convolutions and batched products (`metalearn.nn.layers.TWINS`).
    Containers of torch and modules that declare themselves `task_batchable` are entered. Every
    other module runs as it stands on each task's examples (`EachTask`): by `torch.func.vmap`, or in
    a loop where `vmap` has no rule. So do subclasses with a `forward` of their own, and modules
    with hooks or parametrizations. Batch norm uses the statistics of the current batch, for each
    task its own.

    In `TaskBatched(module)(params, x)`:

    - params maps `names` to tensors (T, ...), or (1, ...) for a tensor that serves all tasks.
      `names` are those of `module.named_parameters()` and the class vectors of a `SymmetricHead`.
      Where a parameter with `requires_grad=False` is left out, the module's own serves.
    - x is (T, n, ...), and so is the result.
    - `statistics_from=k` normalises by the first k examples of each task alone.
    - `training` sets the mode of every module for this call. None: the modules' own flags, as
      `module.train()` and `module.eval()` leave them.
    - precision="bf16" computes convolutions and products in bfloat16, and batch norm in float32.
      Params and the result are float32 all the same.

    Of the module, the structure is read once, and again when hooks, parameters, children or options
    change, such as `LeakyReLU.negative_slope`.
    Training flags, buffers and frozen parameters are read at each call. A norm's running averages
    are constants in evaluation mode.

    Raises:
        UsageError: a layer cannot be task-batched, for example a batch norm in training mode with
            running averages, or two layers share a parameter. Or the module fails on inputs of
            another type than its parameters.
    """

    names: frozenset[str]

    def __init__(self, module: nn.Module, precision: Precision = "full") -> None:
        check_precision(precision)
        self.precision = precision
        if not isinstance(module, nn.Module):
            raise UsageError(f"model={module!r}: expected a torch.nn.Module. Give an instance.")
        self._module = module
        self._build()

    def _build(self) -> None:
        refuse_shared_state(self._module)
        self._modules = list(self._module.modules())
        self._entries = [entries for module in self._modules for entries in entries_of(module)]
        self._copied: list[nn.Module] = []
        self._entered: list[tuple[nn.Module, nn.Module]] = []
        self._twin = EachTask(self._module) if globally_hooked() else self._twin_of(self._module)
        own = (name for name, _ in self._module.named_parameters())
        self.names = frozenset(own) | frozenset(class_vectors(self._module))
        self._with_statistics = [
            m for m in self._twin.modules() if isinstance(m, TaskBatchNorm | EachTask)
        ]
        self._built_for = self._state()

    def _state(self) -> tuple[Hashable, Hashable]:
        """Return a value that changes when the structure does, or an option that a twin copies."""
        return self._structure(), tuple(map(options_of, self._copied))

    def _structure(self) -> Hashable:
        """Return a value that changes when hooks, attributes, parameters or children do."""
        sizes = [len(entries) for entries in self._entries]
        sizes += [len(vars(module)) for module in self._modules]
        children = [id(child) for m in self._modules for child in m._modules.values()]
        return globally_hooked(), tuple(sizes + children)

    def settings(self) -> Hashable:
        """Return what decides, beside tensors, which operations the module runs.

        It is made of the structure, the hooks, the training flags and the options of all modules.
        """
        hooks = [id(hook) for entries in self._entries for hook in entries.values()]
        children = [type(child) for m in self._modules for child in m._modules.values()]
        options = [(module.training, options_of(module)) for module in self._modules]
        return self._structure(), tuple(hooks), tuple(children), tuple(options)

    def _twin_of(self, module: nn.Module) -> nn.Module:
        make = TWINS.get(type(module))
        if make is not None and is_leaf(module):
            self._copied.append(module)
            return make(module)
        if not is_entered(module):
            return EachTask(module)
        self._copied.append(module)
        twin = copy.copy(module)
        twin._modules = {
            name: None if child is None else self._twin_of(child)
            for name, child in module._modules.items()
        }
        self._entered.append((twin, module))
        return twin

    def __call__(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        statistics_from: int | None = None,
        training: bool | None = None,
    ) -> Tensor:
        if self._state() != self._built_for:
            self._build()
        params = self._with_frozen(params)
        for layer in self._with_statistics:
            layer.statistics_from = statistics_from
        with _mode(self._module, training), reduced(self.precision, x.device):
            if any(averages_calls(module) for module in self._modules):
                refuse_running_statistics(self._module)
            for twin, module in self._entered:
                twin.training = module.training
            try:
                if isinstance(self._twin, EachTask):
                    return tree_map(widened, self._twin.run(params, x))
                y = torch.func.functional_call(self._twin, params, (x.transpose(0, 1),))
            except RuntimeError:
                _check_type(x, params)
                raise
            y = tree_map(widened, y)
        return y.transpose(0, 1) if isinstance(y, Tensor) else tree_map(swapped, y)

    def in_full_precision(self) -> TaskBatched:
        """Return the same network in the type of its params."""
        full = copy.copy(self)
        full.precision = "full"
        return full

    def _with_frozen(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the params and the frozen parameters that they leave out."""
        if params.keys() == self.names:
            return dict(params)
        frozen = {
            name: p.detach()[None]
            for name, p in frozen_parameters(self._module).items()
            if name not in params
        }
        if odd := sorted(self.names.symmetric_difference({*params, *frozen})):
            raise ValueError(f"parameters {odd} are missing or not the module's")
        return {**params, **frozen}


def _check_type(x: Tensor, params: Mapping[str, Tensor]) -> None:
    """Raise UsageError if inputs that a module failed on are of another type than its params."""
    own = {p.dtype for p in params.values()}
    if x.dtype not in own and (x.is_floating_point() or x.dtype == torch.uint8):
        names = " or ".join(map(str, own))
        raise UsageError(
            f"inputs of {x.dtype}: expected {names}, the type of the parameters. Convert them by "
            "x.to(dtype)."
        )


@contextmanager
def _mode(module: nn.Module, training: bool | None) -> Iterator[None]:
    """Set the training flag of the module and its children for the block; None: leave them."""
    if training is None:
        yield
        return
    found = [(child, child.training) for child in module.modules()]
    try:
        module.train(training)
        yield
    finally:
        for child, flag in found:
            child.training = flag
