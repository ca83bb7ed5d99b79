"""The tensors that an optimiser of torch moves, with its learning-rate schedule."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from metalearn.errors import UsageError

MakeOptimiser = Callable[[Iterable[Tensor]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


class Iterate:
    """Leaves of autograd, the optimiser that moves them, and its scheduler.

    Args:
        name: "inner" or "outer", for errors.
        leaves: moved in place.
        optimiser: makes an optimiser over a list of tensors, such as
            `functools.partial(torch.optim.AdamW, lr=1e-3)`.
        scheduler: makes a scheduler of an optimiser, which takes a step after each of the
            optimiser's; None: the rate is constant.

    Raises:
        UsageError: it makes no optimiser of these leaves, an optimiser that needs a closure, or a
            scheduler that needs a metric.
    """

    def __init__(
        self,
        name: str,
        leaves: Sequence[Tensor],
        optimiser: MakeOptimiser,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        self.leaves = list(leaves)
        self.optimiser = _made(name, optimiser, self.leaves)
        self._rate = float(self.optimiser.param_groups[0]["lr"])
        self.scheduler = None if scheduler is None else scheduler(self.optimiser)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            raise UsageError(
                f"{name}_scheduler=ReduceLROnPlateau: expected a schedule of steps, for there "
                "is no metric. Use another of torch.optim.lr_scheduler."
            )

    def step(self, grads: Sequence[Tensor], factors: Sequence[Tensor | None] = ()) -> None:
        """Take a step along gradients, and one of the scheduler.

        Args:
            factors: of the move of each tensor; None: 1. Empty: 1 for all.
        """
        scaled = [
            (p, p.detach().clone(), f)
            for p, f in zip(self.leaves, factors, strict=bool(factors))
            if f is not None
        ]
        for p, g in zip(self.leaves, grads, strict=True):
            p.grad = g.to(p.dtype)
        self.optimiser.step()
        for p in self.leaves:
            p.grad = None
        for p, before, factor in scaled:
            p.detach().copy_(torch.lerp(before, p.detach(), factor))
        if self.scheduler is not None:
            self.scheduler.step()

    @property
    def rate(self) -> float:
        """The learning rate of the first group of tensors."""
        return float(self.optimiser.param_groups[0]["lr"])

    @property
    def rate_factor(self) -> float:
        """The present rate over the first one, which the scheduler has changed."""
        return self.rate / self._rate

    def finite(self) -> bool:
        """Return True if all numbers are finite."""
        return all(bool(p.isfinite().all()) for p in self.leaves)

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of the state, for `load_state_dict`."""
        return copy.deepcopy(self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors and the states of the optimiser and the scheduler; no copies."""
        return {
            "leaves": [p.detach() for p in self.leaves],
            "optimiser": self.optimiser.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Raises:
            UsageError: it is of other tensors, or of another optimiser or scheduler.
        """
        shapes = [tuple(p.shape) for p in self.leaves]
        saved = [tuple(p.shape) for p in state["leaves"]]
        if shapes != saved or (self.scheduler is None) != (state["scheduler"] is None):
            raise UsageError(
                f"a state of tensors of shapes {saved}: expected {shapes}, with the scheduler of "
                "this run. Give the problem, the method and the schedulers of that run."
            )
        for p, value in zip(self.leaves, state["leaves"], strict=True):
            p.copy_(value)
        self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))


def _made(name: str, optimiser: Any, leaves: list[Tensor]) -> Optimizer:
    if isinstance(optimiser, Optimizer) or not callable(optimiser):
        raise UsageError(
            f"{name}_optimiser={type(optimiser).__name__}: expected a function that makes an "
            "optimiser. Give functools.partial(torch.optim.SGD, lr=0.1)."
        )
    made = optimiser(leaves)
    if not isinstance(made, Optimizer):
        raise UsageError(
            f"{name}_optimiser returns {type(made).__name__}: expected an optimiser of "
            "torch.optim. Return one."
        )
    own = [id(p) for group in made.param_groups for p in group["params"]]
    if own != [id(p) for p in leaves]:
        raise UsageError(
            f"{name}_optimiser moves {len(own)} tensors: expected the {len(leaves)} that it is "
            "given, in their order. Make it over these."
        )
    closure = inspect.signature(type(made).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UsageError(
            f"{name}_optimiser={type(made).__name__}: expected an optimiser whose step takes no "
            "closure. Use SGD, Adam, AdamW or the like."
        )
    return made
