"""A guard for the forward mode of custom autograd functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

R = TypeVar("R")


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
