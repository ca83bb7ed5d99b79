"""The objects that a caller in Python gives to a training run: checks, and a description."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from metalearn.errors import UsageError
from metalearn.metagrad import MetaGradient
from metalearn.problem import Meta
from metalearn.tasks import Sampler
from metalearn.tree import leaves_of, named_leaves

MakeOptimiser = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class GivenSamplers:
    """The samplers of a run by split; a split without tasks is absent."""

    samplers: Mapping[str, Sampler]

    def sampler(self, split: str, seed: int, device: torch.device | str) -> Sampler:
        """Return the sampler of a split. Its seed and device are its own."""
        return self.samplers[split]

    def classes(self, split: str) -> tuple[str, ...]:
        return ()


def check_methods(name: str, value: Any, *methods: str) -> None:
    """Raise UsageError if an argument lacks a method."""
    for method in methods:
        if not callable(getattr(value, method, None)):
            raise UsageError(
                f"{name}={_class_of(value)}: expected an object with the methods "
                f"{', '.join(methods)}. Define {method}."
            )


def check_meta_gradient(value: Any) -> None:
    """Raise UsageError if the argument `meta_gradient` is no meta-gradient."""
    if not isinstance(value, MetaGradient):
        raise UsageError(
            f"meta_gradient={_class_of(value)}: expected an instance of metalearn.metagrad."
            "MetaGradient. Give one such as Implicit(GradientDescent(5, 0.1)), or derive from it."
        )


def check_meta(meta: Meta) -> torch.device:
    """Return the device of the meta-parameters.

    Raises:
        UsageError: they are not finite floating-point leaves of autograd on one device, or a
            checkpoint cannot hold their containers.
    """
    named = named_leaves(meta)
    if not named:
        raise UsageError("meta has no tensors: expected the meta-parameters. Give at least one.")
    for path, x in named.items():
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.layout != torch.strided:
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(
                f"meta{path} is {kind}: expected a dense floating-point tensor. Leave it out, or "
                "convert it."
            )
        if not x.is_leaf or any(s == 0 and n > 1 for s, n in zip(x.stride(), x.shape, strict=True)):
            raise UsageError(
                f"meta{path} is the result of an operation: expected a tensor that training can "
                "change in place. Give x.detach().clone()."
            )
        if not x.isfinite().all():
            raise UsageError(f"meta{path} is not finite: expected finite values. Mend its start.")
    devices = {x.device for x in named.values()}
    if len(devices) > 1:
        raise UsageError(
            f"meta lies on {', '.join(sorted(map(str, devices)))}: expected one device. Move it."
        )
    _check_storable("meta", meta)
    return devices.pop()


def check_sampler(name: str, sampler: Any) -> None:
    """Raise UsageError if a sampler cannot go back to where it was, as a resumed run needs."""
    check_methods(name, sampler, "sample", "state_dict", "load_state_dict")
    start = sampler.state_dict()
    if not isinstance(start, dict):
        raise UsageError(
            f"{name}.state_dict() returns {_class_of(start)}: expected a dict. Return one."
        )
    _check_storable(f"{name}.state_dict()", start)
    start = deepcopy(start)
    first = list(task_tensors(sampler.sample(1)))
    sampler.load_state_dict(deepcopy(start))
    again = list(task_tensors(sampler.sample(1)))
    sampler.load_state_dict(deepcopy(start))
    if len(first) != len(again) or not all(map(torch.equal, first, again)):
        raise UsageError(
            f"{name}={_class_of(sampler)}: expected the same task again after "
            "load_state_dict(state_dict()). Put all that sample() changes into the state."
        )


def task_tensors(task: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch of tasks: of its attributes, or of a pytree."""
    whole = isinstance(task, Tensor) or not hasattr(task, "__dict__")
    for x in tree_leaves(task if whole else vars(task)):
        if isinstance(x, Tensor):
            yield x


def over_leaves(optimiser: Any, meta: Meta) -> torch.optim.Optimizer:
    """Return the optimiser of the leaves of meta, which is given, or made by what is given.

    Raises:
        UsageError: it is no optimiser of torch, or not over just the leaves of meta.
    """
    leaves = leaves_of(meta)
    if not isinstance(optimiser, torch.optim.Optimizer):
        if not callable(optimiser):
            raise UsageError(
                f"optimiser={_class_of(optimiser)}: expected an optimiser of torch.optim over the "
                "leaves of meta, or a function that makes one. Give functools.partial("
                "torch.optim.Adam, lr=1e-3)."
            )
        made = optimiser(leaves)
        if not isinstance(made, torch.optim.Optimizer):
            raise UsageError(
                f"optimiser(leaves) returns {_class_of(made)}: expected an optimiser of "
                "torch.optim. Return one."
            )
        optimiser = made
    own = [id(p) for group in optimiser.param_groups for p in group["params"]]
    if own != list(map(id, leaves)):
        raise UsageError(
            f"optimiser={_class_of(optimiser)} moves {len(own)} tensors: expected the "
            f"{len(leaves)} leaves of meta, in their order and with requires_grad=True. Make it "
            "over these, or give functools.partial(torch.optim.Adam, lr=1e-3)."
        )
    return optimiser


def describe(value: Any) -> Any:
    """Return plain values that say what an object is, for the run's config.

    An object of this package, or a frozen dataclass, is described by its class and its plain
    options. Any other is described by its class.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, torch.optim.Optimizer):
        groups = [
            {k: x for k, x in group.items() if isinstance(x, _PLAIN)}
            for group in value.param_groups
        ]
        return {"class": _class_of(value), "groups": groups}
    options: dict[str, Any] = {}
    if is_dataclass(value) and getattr(type(value), "__dataclass_params__").frozen:  # noqa: B009
        options = {f.name: getattr(value, f.name) for f in fields(value)}
    elif type(value).__module__.startswith("metalearn."):
        own = vars(value) if hasattr(value, "__dict__") else {}
        options = {k: x for k, x in own.items() if isinstance(x, _PLAIN) and not k.startswith("_")}
    described = {name: describe(x) for name, x in options.items()}
    return {"class": _class_of(value), **described} if described else _class_of(value)


def _class_of(value: Any) -> str:
    kind = value if inspect.isclass(value) or inspect.isfunction(value) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _check_storable(name: str, value: Any) -> None:
    """Raise UsageError if a checkpoint of the value could not be read again."""
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's and torch's errors share no class
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{name}: expected dicts, lists and tuples of tensors and plain values, which a "
            f"checkpoint holds ({reason}). Convert it."
        ) from error
