"""The outer optimiser: one step along a meta-gradient, at the rate of its schedule."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from metalearn.metagrad import MetaGradientResult, NonFiniteGradient
from metalearn.problem import BilevelProblem, Meta
from metalearn.tree import detached, leaves_of, like_tree


class OuterOptimiser:
    """An optimiser of torch with a schedule, clipping and a step that can be refused.

    Args:
        optimiser: of torch.optim, over `meta`'s leaves.
        meta: the meta-parameters, a pytree of leaves; each step changes them in place.
        schedule: "constant", or "cosine" from the optimiser's rate to 0 in `steps`.
        steps: the meta-steps of the whole training.
        clip_norm: the largest norm of a gradient that is taken; None: any.
    """

    def __init__(
        self,
        optimiser: torch.optim.Optimizer,
        meta: Meta,
        schedule: str = "constant",
        steps: int = 1,
        clip_norm: float | None = None,
    ) -> None:
        self._optimiser, self._leaves = optimiser, leaves_of(meta)
        self._schedule, self._steps, self._clip_norm = schedule, steps, clip_norm
        self._initial_rates = [group["lr"] for group in optimiser.param_groups]
        self.halvings = 0
        """The number of times that the guards have halved the rate."""

    def rate(self, step: int) -> float:
        """Return the rate after `step` meta-steps."""
        return self._initial_rates[0] * self._factor(step)

    def _factor(self, step: int) -> float:
        factor = 0.5**self.halvings
        if self._schedule == "cosine":
            factor *= (1 + math.cos(math.pi * step / self._steps)) / 2
        return factor

    def step(self, grads: Meta, norm: torch.Tensor | None, step: int) -> None:
        """Move the meta-parameters along a gradient.

        Args:
            grads: a pytree like the meta-parameters.
            norm: the norm of `grads`, 0-d; clipping alone needs it.
            step: the meta-steps that were taken before, which say the rate.

        Raises:
            NonFiniteGradient: the meta-parameters were not finite after it; all is as before.
        """
        for p, grad in zip(self._leaves, leaves_of(grads), strict=True):
            p.grad = grad
        if self._clip_norm is not None and norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._leaves, self._clip_norm, norm)
        for group, rate in zip(self._optimiser.param_groups, self._initial_rates, strict=True):
            group["lr"] = rate * self._factor(step)
        # Both work in place; two copies are a fraction of a millisecond.
        before = [p.detach().clone() for p in self._leaves]
        state_before = tree_map_only(torch.Tensor, torch.clone, self._optimiser.state_dict())
        self._optimiser.step()
        if all(p.isfinite().all() for p in self._leaves):
            return
        with torch.no_grad():
            for p, value in zip(self._leaves, before, strict=True):
                p.copy_(value)
        self._optimiser.load_state_dict(state_before)
        raise NonFiniteGradient(
            "the optimiser's step made meta-parameters that are not finite; "
            "a smaller optimiser.lr is the usual cure"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"optimiser": self._optimiser.state_dict(), "halvings": self.halvings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`. The optimiser keeps its own options.

        Raises:
            ValueError: the state does not fit this optimiser and its parameters.
        """
        saved, own = state["optimiser"]["state"], self._optimiser.state_dict()
        if saved and not _is_like(saved, self._state_after_a_step()):
            raise ValueError("the state does not fit the optimiser")
        self._optimiser.load_state_dict({"state": saved, "param_groups": own["param_groups"]})
        self.halvings = state["halvings"]

    def _state_after_a_step(self) -> dict[str, Any]:
        trial = copy.deepcopy(self._optimiser)
        for group in trial.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        trial.step()
        found: dict[str, Any] = trial.state_dict()["state"]
        return found


def _is_like(value: Any, like: Any) -> bool:
    """Return True if a nest has the keys, types and shapes of another one."""
    if isinstance(like, dict):
        return (
            isinstance(value, dict)
            and value.keys() == like.keys()
            and all(_is_like(value[key], like[key]) for key in like)
        )
    if isinstance(like, torch.Tensor):
        return (
            isinstance(value, torch.Tensor)
            and value.shape == like.shape
            and value.dtype.is_floating_point == like.dtype.is_floating_point
        )
    return type(value) is type(like)


def descend(
    problem: BilevelProblem,
    metagrad: Callable[..., MetaGradientResult],
    meta: Meta,
    task: Callable[[], Any],
    steps: int,
    lr: float,
    after: Callable[[int, Meta, MetaGradientResult], None],
) -> None:
    """Take steps of Adam along the meta-gradient, without checkpoints and guards.

    Args:
        meta: where the descent begins; it is copied.
        task: gives each meta-step its tasks.
        after: called as `after(step, meta, result)` with a copy of the meta-parameters.
    """
    meta = detached(like_tree(meta, [x.clone() for x in leaves_of(meta)]))
    optimiser = OuterOptimiser(torch.optim.Adam(leaves_of(meta), lr), meta)
    solver_state: dict[str, Any] = {}
    for step in range(1, steps + 1):
        result = metagrad(problem, meta, task(), **solver_state)
        solver_state = result.solver_state
        optimiser.step(result.grads, None, step - 1)
        after(step, like_tree(meta, [x.detach().clone() for x in leaves_of(meta)]), result)
