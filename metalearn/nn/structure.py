"""The checks of a module before it is task-batched: what a call of it runs, and what it keeps."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.utils.module_tracker import ModuleTracker

from metalearn.errors import UsageError
from metalearn.nn.head import SymmetricHead

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


PLAIN = (bool, int, float, str)
"""The types of plain options, which a module holds as attributes."""
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class _Identity:
    """An object as a key that is equal to no other object's."""

    def __init__(self, value: Any) -> None:
        self.value = value  # held, so that its address is not another's

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def as_key(value: Any) -> Hashable:
    """Return a key that changes when `value` does.

    Numbers, text and the lists, tuples and dicts of them count by what they hold; any other object
    counts by itself. Tensors do not count.
    """
    if isinstance(value, Tensor):
        return None
    if value is None or isinstance(value, PLAIN):
        return value
    if isinstance(value, list | tuple):
        return tuple(map(as_key, value))
    if isinstance(value, dict):
        return tuple((as_key(name), as_key(own)) for name, own in value.items())
    return _Identity(value)


def options_of(module: nn.Module) -> Hashable:
    """Return a key of the module's attributes beside its mode, hooks, tensors and children."""
    own = [(name, x) for name, x in vars(module).items() if name not in _OF_EVERY_MODULE]
    # Plain values apart: this runs at each call of a network.
    return tuple((name, x if type(x) in PLAIN else as_key(x)) for name, x in own)


def is_hooked(module: nn.Module) -> bool:
    """Return True if the module has hooks of its own, forward or backward."""
    attributes = vars(module)
    return any(attributes.get(hooks) for hooks in _HOOKS)


def entries_of(module: nn.Module) -> list[Mapping[str, Any]]:
    """Return the module's mappings of hooks, parameters, buffers and children."""
    names = (*_HOOKS, "_parameters", "_buffers", "_modules")
    return [vars(module)[name] for name in names]


def globally_hooked() -> bool:
    """Return True if hooks on all modules are registered.

    Those of torch's `ModuleTracker`, which counts operations, only watch and are left out.
    """
    hooks = (
        hook
        for kind in ("forward", "forward_pre", "backward", "backward_pre")
        for hook in getattr(torch_module, f"_global_{kind}_hooks").values()
    )
    return any(not isinstance(getattr(hook, "__self__", None), ModuleTracker) for hook in hooks)


def is_plain(module: nn.Module) -> bool:
    """Return True if a call runs the `forward` of the module's class, and nothing else.

    Hooks, a `forward` of the instance, and a weight that is computed by a hook or by a
    parametrization are something else.
    """
    attributes = vars(module)
    return not (
        is_hooked(module)
        or not attributes.keys().isdisjoint(("forward", "weight", "bias"))
        or "parametrizations" in module._modules
        or attributes.get("_compiled_call_impl") is not None
        or type(module).__call__ is not nn.Module.__call__
    )


def is_leaf(module: nn.Module) -> bool:
    """Return True if a plain module has neither children nor constant tensors."""
    own = not isinstance(module, SymmetricHead) and any(
        buffer is not None for buffer in module._buffers.values()
    )
    return is_plain(module) and not module._modules and not own


def is_entered(module: nn.Module) -> bool:
    """Return True if `TaskBatched` replaces the module's children one by one.

    That takes a plain container of torch, or a module that declares itself `task_batchable`, and no
    parameters beside those of the children.
    """
    own = any(parameter is not None for parameter in module._parameters.values())
    return is_plain(module) and not own and (_is_container(module) or _declares(module))


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, CONTAINERS) and type(module).forward in (
        nn.Sequential.forward,
        nn.Module.forward,
    )


def _declares(module: nn.Module) -> bool:
    """Return `task_batchable`, unless a subclass that does not declare it defines `forward`."""
    if "task_batchable" in vars(module):
        return bool(vars(module)["task_batchable"])
    for cls in type(module).__mro__:
        if "task_batchable" in vars(cls):
            return bool(vars(cls)["task_batchable"])
        if "forward" in vars(cls):
            return False
    return False


def is_chain(module: nn.Module) -> bool:
    """Return True if a call of the module calls its children one after the other."""
    return isinstance(module, nn.Sequential) and is_entered(module)


def frozen_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters with `requires_grad=False`, by name."""
    return {name: p for name, p in module.named_parameters() if not p.requires_grad}


def refuse_frozen(meta: Iterable[str], frozen: Iterable[str]) -> None:
    """Raise UsageError if meta has the name of a frozen parameter."""
    if both := sorted(set(frozen).intersection(meta)):
        raise UsageError(
            f"meta has {both[0]!r}: expected no parameter with requires_grad=False, since it is "
            "not learned. Leave it out (FewShot: meta=problem.begin()), or call "
            "requires_grad_(True) before the problem is made."
        )


def class_vectors(module: nn.Module) -> Iterator[str]:
    """Yield the names of the tensors that have a row for each class of a task."""
    for name, child in module.named_modules():
        if isinstance(child, SymmetricHead):
            yield from (f"{name}.{own}" if name else own for own in child.adapted)


def refuse_shared_state(module: nn.Module) -> None:
    """Raise UsageError if the module, in its present mode, keeps what tasks would share.

    Raises:
        UsageError: two names of one parameter, parameters without a shape yet, statistics that are
            averaged over calls, or statistics of all processes.
    """
    own = {name for name, _ in module.named_parameters()}
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)} - own
    if tied:
        raise UsageError(
            f"parameters {sorted(tied)} are other names of parameters that the module has "
            "already; a task-batched module holds each parameter in one place"
        )
    for name, child in module.named_modules():
        what = f"{name or 'model'}={type(child).__name__}"
        if any(is_lazy(p) for p in child._parameters.values() if p is not None):
            raise UsageError(
                f"{what}: expected parameters with a shape. Call the model on a batch first."
            )
        if isinstance(child, nn.SyncBatchNorm):
            raise UsageError(
                f"{what}: expected statistics of one task, not of all processes. "
                "Use nn.BatchNorm2d(..., track_running_stats=False)."
            )
    refuse_running_statistics(module)


def averages_calls(module: nn.Module) -> bool:
    """Return True for a norm that, in its present mode, averages its statistics over calls."""
    return isinstance(module, _NormBase) and module.training and module.track_running_stats


def refuse_running_statistics(module: nn.Module) -> None:
    """Raise UsageError if a norm in training mode would average its statistics over the tasks."""
    for name, child in module.named_modules():
        if averages_calls(child):
            kind, option = type(child).__name__, "track_running_stats=False"
            raise UsageError(
                f"{name or 'model'}={kind}(track_running_stats=True): expected a norm without "
                f"running averages, which the tasks would share. Build it with {option} "
                f"(torchvision: norm_layer=partial(nn.{kind}, {option})), or call eval() to keep "
                "the averages as constants."
            )


def has_recurrence(module: nn.Module) -> bool:
    """Return True if the module holds a recurrent layer of torch, which `vmap` cannot map."""
    recurrent = (nn.RNNBase, nn.RNNCellBase)
    return any(isinstance(child, recurrent) for child in module.modules())
