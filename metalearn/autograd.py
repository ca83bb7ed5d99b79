"""Gradients, and the helpers of custom autograd functions under `torch.func`'s transforms."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple, TypeVar, overload

import torch
from torch import Tensor
from torch._C import _autograd, _functorch
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from metalearn.errors import UsageError

R = TypeVar("R")


def transformed() -> bool:
    """Return True if a transform of `torch.func` is active.

    Tensors may then not be what they seem: `vmap` has no memory formats, and cannot write to a
    tensor that it does not map.
    """
    return bool(retrieve_all_functorch_interpreters())


def concrete() -> bool:
    """Return True if Python may read the numbers in tensors: no `vmap`, compiler or trace is on."""
    kinds = {i.key() for i in retrieve_all_functorch_interpreters()}
    readable = kinds <= {TransformType.Grad, TransformType.Jvp} and get_proxy_mode() is None
    return readable and not torch.compiler.is_compiling()


def carries_gradient(x: Tensor) -> bool:
    """Return True if x has a graph, or a tangent of forward mode, under any transform."""
    while _functorch.is_batchedtensor(x):  # torch has no rule for a tangent under vmap
        x = _functorch.get_unwrapped(x)
    return x.requires_grad or forward_ad.unpack_dual(x).tangent is not None


@contextmanager
def without_saved_tensor_hooks() -> Iterator[None]:
    """Suspend the hooks on saved tensors, which the transforms of `torch.func` refuse.

    `torch.utils.checkpoint` and `save_on_cpu` set such hooks. What is saved inside the block stays
    where it is.
    """
    hooks = []
    while (top := _autograd._top_saved_tensors_default_hooks(False)) is not None:
        hooks.append(top)
        _autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            _autograd._push_saved_tensors_default_hooks(pack, unpack)


def refuse_batched_gradients(tensors: Sequence[Tensor | None]) -> None:
    """Refuse tensors of the old vmap, which reaches no custom function's rule.

    Raises:
        UsageError: a tensor comes from `is_grads_batched=True` or `vectorize=True`.
    """
    if any(x is not None and _functorch.is_legacy_batchedtensor(x) for x in tensors):
        raise UsageError(
            "is_grads_batched=True or vectorize=True: expected one gradient at a time, or the "
            "transforms of torch.func. Use torch.func.jacrev, jacfwd or hessian."
        )


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
    """A `torch.autograd.Function` whose calls give every argument by position.

    Torch binds each call to the signature of `forward` to fill in defaults. The binding costs as
    much as the rest of the call: 15 % of a meta-gradient of small tasks.
    """

    generate_vmap_rule = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in vars(cls):
            vars(cls)["forward"].__func__.__signature__ = _AsGiven()


def first_order(jvp: Callable[..., R]) -> Callable[..., R]:
    """Make a custom function's `jvp` refuse forward mode inside forward mode.

    Torch runs `jvp` with forward mode off, so the outer derivative of its result is a silent zero.
    Forward over reverse, reverse over forward and reverse over reverse are right. Torch's own list
    of transforms, which has no public name, shows the nesting.

    Raises:
        NotImplementedError: at a call of `jvp` with forward mode nested in forward mode.
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


def gradients(
    outputs: Sequence[Tensor] | Tensor,
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> list[Tensor]:
    """Return `torch.autograd.grad`, with zeros for inputs that the outputs do not depend on."""
    found = partials(
        outputs, inputs, grad_outputs, create_graph=create_graph, retain_graph=retain_graph
    )
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def partials(
    outputs: Sequence[Tensor] | Tensor,
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> list[Tensor | None]:
    """Return `torch.autograd.grad`, with None for inputs that the outputs do not depend on.

    Outputs without a graph are left out.

    Raises:
        UsageError: inference mode is on, in which torch records no graph.
    """
    if torch.is_inference_mode_enabled():
        raise UsageError(
            "torch.inference_mode() is on: expected a mode with derivatives, which an inner loop "
            "takes too. Use torch.no_grad() in its place."
        )
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    weights = list(grad_outputs) if grad_outputs is not None else [None] * len(outputs)
    pairs = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
    if not pairs or not inputs:
        return [None] * len(inputs)
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        [o for o, _ in pairs],
        list(inputs),
        [w for _, w in pairs],
        create_graph=create_graph,
        retain_graph=retain_graph,
        allow_unused=True,
    )
    return list(found)


@overload
def add(a: Tensor, b: Tensor | None) -> Tensor: ...
@overload
def add(a: Tensor | None, b: Tensor) -> Tensor: ...
@overload
def add(a: Tensor | None, b: Tensor | None) -> Tensor | None: ...
def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return a + b, where None stands for no term."""
    return b if a is None else a if b is None else a + b


def subtract(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return a - b, where None stands for no term."""
    return add(a, None if b is None else -b)
