"""The derivative of an optimiser's step, through any differentiable optimiser of torch.optim."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.overrides import TorchFunctionMode

from metalearn.autograd import partials
from metalearn.errors import UsageError

State = list[dict[str, Tensor]]
"""Tensors of the optimiser's state by name, one dict for each tensor that it moves."""


@dataclass(frozen=True)
class RecordedStep:
    """A step that an optimiser is about to take: all that its derivative needs.

    Args:
        optimiser: the optimiser, of which only the class and the options are used.
        groups: the options of its groups at that step, as the scheduler set them.
        params, grads: the tensors before the step, and the gradients that it takes.
        state: the optimiser's state before the step.
        factors: of the move of each of params; None: 1.
    """

    optimiser: Optimizer
    groups: list[dict[str, Any]]
    params: list[Tensor]
    grads: list[Tensor]
    state: list[dict[str, Any]]
    factors: list[Tensor | None]

    @classmethod
    def of(
        cls,
        optimiser: Optimizer,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        factors: Sequence[Tensor | None] = (),
    ) -> RecordedStep:
        """Record a step. The params and the state are copied.

        Args:
            factors: as in `Iterate.step`.

        Raises:
            UsageError: the optimiser has no differentiable step.
        """
        check_differentiable(optimiser)
        groups = [
            {**{k: v for k, v in group.items() if k != "params"}, "count": len(group["params"])}
            for group in optimiser.param_groups
        ]
        state = [
            {k: v.clone() if isinstance(v, Tensor) else v for k, v in optimiser.state[p].items()}
            if p in optimiser.state
            else {}
            for p in params
        ]
        before = [p.detach().clone() for p in params]
        own = list(factors) or [None] * len(before)
        return cls(optimiser, groups, before, list(grads), state, own)

    def pull_back(
        self, by_params: Sequence[Tensor], by_state: State | None
    ) -> tuple[list[Tensor], State, list[Tensor], list[Tensor]]:
        """Return the gradient of a function of the step's result.

        It is that in params, state and grads, and in the factors that are not None.

        Args:
            by_params, by_state: the function's gradient in the params and the state after the
                step; None: it does not depend on the state.
        """
        params = [p.clone().requires_grad_() for p in self.params]
        grads = [g.clone().requires_grad_() for g in self.grads]
        state = [
            {k: v.clone().requires_grad_() for k, v in own.items() if _moves(k, v, p)}
            for own, p in zip(self.state, self.params, strict=True)
        ]
        factors = [None if f is None else f.detach().clone().requires_grad_() for f in self.factors]
        with torch.enable_grad():
            moved, after = self._step(params, grads, state)
            moved = [
                m if f is None else torch.lerp(p, m, f)
                for p, m, f in zip(params, moved, factors, strict=True)
            ]
        states = [v for own in state for v in own.values()]
        inputs = [*params, *states, *grads, *(f for f in factors if f is not None)]
        outputs, weights = list(moved), list(by_params)
        for own, given in zip(after, by_state or [{}] * len(after), strict=True):
            names = [name for name in given if name in own]
            outputs += [own[name] for name in names]
            weights += [given[name] for name in names]
        found = [
            torch.zeros_like(x) if g is None else g
            for x, g in zip(inputs, partials(outputs, inputs, weights), strict=True)
        ]
        rest = iter(found)
        by_before = [next(rest) for _ in params]
        pulled = [{name: next(rest) for name in own} for own in state]
        by_grads = [next(rest) for _ in grads]
        return by_before, pulled, by_grads, list(rest)

    def _step(
        self, params: list[Tensor], grads: list[Tensor], state: State
    ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Take the step with a graph, by a twin of the optimiser over copies of the tensors."""
        moved = [p.clone() for p in params]  # the step works in place, which leaves refuse
        twin = copy.copy(self.optimiser)
        twin.__dict__.pop("step", None)  # a scheduler's, bound to the optimiser itself
        twin.defaults = {**self.optimiser.defaults, **_DIFFERENTIABLE}
        twin.param_groups = _groups(self.groups, moved)
        twin.state = defaultdict(dict)
        for p, g, saved, own in zip(moved, grads, self.state, state, strict=True):
            p.grad = g.clone()
            held = {k: _held(k, v) for k, v in saved.items()}
            twin.state[p] = held | {k: v.clone() for k, v in own.items()}
        if isinstance(twin, SGD):
            _begin_momentum(twin)
        with _Differentiated():
            twin.step()
        after = [{k: v for k, v in twin.state[p].items() if isinstance(v, Tensor)} for p in moved]
        return moved, after


def _held(name: str, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(torch.float64, copy=True) if name == "step" else value.clone()


_DIFFERENTIABLE = {"differentiable": True, "foreach": False, "fused": None, "capturable": False}


def check_differentiable(optimiser: Optimizer) -> None:
    """Raise UsageError if an optimiser has no differentiable step."""
    if "differentiable" not in optimiser.defaults:
        raise UsageError(
            f"inner_optimiser={type(optimiser).__name__}: expected an optimiser whose step can be "
            "differentiated. Use SGD, Adam, AdamW or another with the option differentiable."
        )


def _groups(groups: Sequence[dict[str, Any]], params: Sequence[Tensor]) -> list[dict[str, Any]]:
    rest, found = iter(params), []
    for group in groups:
        options = {k: v for k, v in group.items() if k != "count"}
        options |= {k: v for k, v in _DIFFERENTIABLE.items() if k in options}
        found.append({**options, "params": [next(rest) for _ in range(group["count"])]})
    return found


def _begin_momentum(twin: SGD) -> None:
    """Begin momentum with zeros and without dampening, which is torch's first step.

    Torch detaches the first gradient there, so that its derivative would be lost.
    """
    for group in twin.param_groups:
        fresh = [p for p in group["params"] if twin.state[p].get("momentum_buffer") is None]
        if group["momentum"] and fresh:
            group["dampening"] = 0.0
            for p in fresh:
                twin.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _moves(name: str, value: Any, like: Tensor) -> bool:
    """Return True for a tensor of the state that the gradients move."""
    return (
        isinstance(value, Tensor)
        and name not in ("step", "mu_product", "eta", "mu")
        and value.is_floating_point()
        and value.shape == like.shape
    )


class _Differentiated(TorchFunctionMode):
    """The changes that make torch's differentiable steps right, while one is taken.

    A square root has the derivative 0 at 0, as a second moment of 0 has none. Counts of steps are
    float64: torch's own float32 leaves five digits of 1 - 0.999^step, which the step itself
    computes in double precision.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.sqrt, torch.Tensor.sqrt):
            x = args[0]
            zero = x == 0
            return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())
        made = func in (torch.tensor, torch.zeros, torch.ones)
        if made and "dtype" in kwargs and (args[0] == () or type(args[0]) in (int, float)):
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
