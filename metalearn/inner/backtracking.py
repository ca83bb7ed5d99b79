"""The gradient descent that cannot diverge: each task finds the rate that its curvature allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from metalearn.errors import MAX_FLOAT32, UsageError, is_count, is_number
from metalearn.inner.solver import (
    InnerPoint,
    InnerSolver,
    Objective,
    Params,
    broadcast,
    check_tol,
    rounding,
    value_and_grad,
)
from metalearn.tree import task_dot


@dataclass(frozen=True)
class BacktrackingDescent(InnerSolver):
    """The gradient descent whose rate each task halves until the objective falls.

    At the rate a, gradient descent is unstable along a direction of curvature h if a h > 2. A step
    x - a g is taken if

            f(x - a g) <= f(x) - decrease a |g|^2,

    which on a quadratic says a g'Hg / |g|^2 <= 2 (1 - decrease). Otherwise the step is undone and
    the task's rate is halved (Armijo; Nocedal & Wright 2006, section 3.1). The next step uses the
    gradient at the point tried, so that a test costs nothing and a refused step costs one gradient.
    No task's objective ever rises above rounding. With each step taken, a rate grows by `growth`,
    up to `lr`.

    Args:
        steps: the gradients of a task, those of refused steps included.
        lr: the first rate, and the largest.
        growth: the factor of the rate after a step, at least 1.
        decrease: the constant of the test, in (0, 1).
        tol: the gradient norm at which a task stops; None: never.
    """

    steps: int
    lr: float
    growth: float = 1.25
    decrease: float = 0.1
    tol: float | None = None

    def __post_init__(self) -> None:
        if not is_count(self.steps) or not is_number(self.lr) or not 0 < self.lr <= MAX_FLOAT32:
            raise UsageError(
                f"BacktrackingDescent(steps={self.steps!r}, lr={self.lr!r}): expected a whole "
                f"number of steps and a rate above 0, up to {MAX_FLOAT32:.1e}. Change them."
            )
        if not 1 <= self.growth <= MAX_FLOAT32 or not 0 < self.decrease < 1:
            raise UsageError(
                f"BacktrackingDescent(growth={self.growth}, decrease={self.decrease}): expected a "
                "growth of at least 1 and a decrease between 0 and 1. Change them."
            )
        check_tol(self.tol)

    def minimise(self, objective: Objective, params: Params) -> tuple[Params, Tensor]:
        for state in self._states(objective, params):
            end = state
        return end.params, end.taken

    def path(self, objective: Objective, params: Params) -> Iterator[InnerPoint]:
        """Yield the start and the point after each gradient, which a refused step leaves."""
        for state in self._states(objective, params):
            yield InnerPoint(state.params, state.rate)

    def _states(self, objective: Objective, params: Params) -> Iterator[_State]:
        """Yield the start and the state after each of `steps` gradients."""
        x = {name: p.detach() for name, p in params.items()}
        first = next(iter(x.values()))
        taken = torch.zeros(len(first), dtype=torch.int64, device=first.device)
        rate = torch.full_like(taken, self.lr, dtype=first.dtype)
        yield _State(x, rate, taken)
        if not self.steps:
            return
        value, g = value_and_grad(objective, x)
        value, rate = value.detach(), rate.to(value.dtype)
        moving = torch.ones_like(taken, dtype=torch.bool)
        for step in range(self.steps):
            slope = task_dot(g, g)
            if self.tol is not None:
                moving = moving & (slope.sqrt() > self.tol)
            if not moving.any():
                yield from repeat(_State(x, rate, taken), self.steps - step)
                return
            trial = {
                name: torch.addcmul(p, broadcast(rate, d), d, value=-1)
                for (name, p), d in zip(x.items(), g, strict=True)
            }
            if step + 1 < self.steps:
                reached, gradient = value_and_grad(objective, trial)
                reached = reached.detach()
            else:  # the gradient after the last step is not needed
                with torch.no_grad():
                    reached, gradient = objective(trial), g
            least = value - self.decrease * rate * slope + rounding(objective, value)
            falls = moving & (reached <= least)
            if falls.all():
                x, value, g = trial, reached, gradient
            else:
                x = {n: torch.where(broadcast(falls, p), trial[n], p) for n, p in x.items()}
                value = torch.where(falls, reached, value)
                g = [
                    torch.where(broadcast(falls, b), a, b) for a, b in zip(gradient, g, strict=True)
                ]
            rate = torch.where(falls, (self.growth * rate).clamp_max(self.lr), rate / 2)
            taken = taken + falls
            yield _State(x, rate, taken)


@dataclass(frozen=True)
class _State:
    """The params, the rate of each task's next step, (T,), and the steps taken, (T,)."""

    params: Params
    rate: Tensor
    taken: Tensor
