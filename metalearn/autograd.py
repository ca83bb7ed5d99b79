"""What custom autograd functions ask of `torch.func`'s transforms."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

R = TypeVar("R")


def transformed() -> bool:
    """Whether a transform of `torch.func` is at work, under which tensors may be others than they
    seem: `vmap` has no memory formats and cannot write to what it does not map."""
    return bool(retrieve_all_functorch_interpreters())


class _AsGiven(inspect.Signature):
    """The signature of a function that is called with all of its arguments, by position."""

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        return _Given(args)


class _Given(NamedTuple):
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}

    def apply_defaults(self) -> None:
        pass


class Function(torch.autograd.Function):
    """`torch.autograd.Function` whose calls take positional arguments alone, none left out.

    Torch binds each call to the signature of `forward` to fill in defaults, which costs as much as
    all the rest of the call: 15 % of a meta-gradient of small tasks.
    """

    generate_vmap_rule = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in vars(cls):
            vars(cls)["forward"].__func__.__signature__ = _AsGiven()


def first_order(jvp: Callable[..., R]) -> Callable[..., R]:
    """Makes a custom function's `jvp` refuse forward mode inside forward mode.

    Torch runs `jvp` with forward mode off, so that the outer derivative of its result is a silent
    zero. Forward over reverse, reverse over forward and reverse over reverse are right. That two
    are nested is told by torch's own list of transforms, which it has no public name for.

    Raises NotImplementedError.
    """

    @wraps(jvp)
    def guarded(*args: Any) -> R:
        transforms = [i.key() for i in retrieve_all_functorch_interpreters()]
        if transforms.count(TransformType.Jvp) > 1:
            raise NotImplementedError(
                "torch loses the outer derivative of forward mode over forward mode here; use "
                "reverse mode for one of the two (torch.func.jacrev or grad in place of jacfwd)"
            )
        return jvp(*args)

    return guarded
