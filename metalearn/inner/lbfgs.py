"""The limited-memory BFGS method for many tasks at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.errors import UsageError, is_count
from metalearn.inner.line_search import backtrack
from metalearn.inner.solver import (
    InnerSolver,
    Objective,
    Params,
    check_tol,
    rounding,
    value_and_grad,
)
from metalearn.tree import Raveler


@dataclass(frozen=True)
class LBFGS(InnerSolver):
    """The limited-memory BFGS method with backtracking; Nocedal & Wright 2006, algorithm 7.5.

    Every task keeps its own history. A pair of steps is left out if its curvature s'y is not
    clearly positive, which Armijo's rule alone does not ensure. Every direction therefore descends.
    No task's objective increases beyond rounding. A task that finds no decrease stops.

    Args:
        steps: the limit on a task's steps.
        memory: the number of pairs kept.
        tol: the gradient norm at which a task stops; None: never.
        halvings: the limit on halvings of a step.
    """

    steps: int
    memory: int = 10
    tol: float | None = None
    halvings: int = 12

    def __post_init__(self) -> None:
        if not (is_count(self.steps) and is_count(self.memory, 1) and is_count(self.halvings)):
            raise UsageError(
                f"LBFGS(steps={self.steps}, memory={self.memory}, halvings={self.halvings}); "
                "steps and halvings must be whole numbers of at least 0, memory at least 1"
            )
        check_tol(self.tol)

    def minimise(self, objective: Objective, params: Params) -> tuple[Params, Tensor]:
        raveler = Raveler.of({name: p.detach() for name, p in params.items()}, batched=True)

        def value_and_slopes(x: Tensor) -> tuple[Tensor, Tensor]:
            value, grads = value_and_grad(objective, raveler.unravel(x))
            return value.detach(), raveler.ravel(dict(zip(params, grads, strict=True)))

        x = raveler.ravel({name: p.detach() for name, p in params.items()})
        taken = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        moving = torch.ones_like(taken, dtype=torch.bool)
        history = History(self.memory)
        if not self.steps:
            return raveler.unravel(x), taken
        value, g = value_and_slopes(x)
        for _ in range(self.steps):
            if self.tol is not None:
                moving = moving & (g.norm(dim=1) > self.tol)
            if not moving.any():
                break
            step = history.direction(g)
            (reached,), moving = backtrack(
                lambda leaves: objective(raveler.unravel(leaves[0])),
                [x],
                value,
                [step],
                torch.linalg.vecdot(g, step),
                moving,
                self.halvings,
                rounding(objective, value),
            )
            before, x = x, reached
            g_before = g
            value, g = value_and_slopes(x)
            history.add(x - before, g - g_before)
            taken += moving
        return raveler.unravel(x), taken


class History:
    """The last pairs (s, y) of each task. Weight 0 omits a pair with s'y not clearly positive."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.scale: Tensor | None = None

    def add(self, s: Tensor, y: Tensor) -> None:
        sy, yy = torch.linalg.vecdot(s, y), torch.linalg.vecdot(y, y)
        sound = sy > torch.finfo(s.dtype).eps * yy
        weight = torch.where(sound, 1 / torch.where(sound, sy, 1.0), 0.0)
        self.pairs = [*self.pairs, (s, y, weight)][-self.memory :]
        assert self.scale is not None
        self.scale = torch.where(sound, sy / torch.where(sound, yy, 1.0), self.scale)

    def direction(self, g: Tensor) -> Tensor:
        """Return -H g by the two-loop recursion.

        Before any pair, it is a step of length at most 1 along -g.
        """
        if self.scale is None:
            self.scale = 1 / g.norm(dim=1).clamp_min(1.0)
        q, alphas = g, []
        for s, y, weight in reversed(self.pairs):
            alphas.append(weight * torch.linalg.vecdot(s, q))
            q = q - alphas[-1][:, None] * y
        q = self.scale[:, None] * q
        for (s, y, weight), alpha in zip(self.pairs, reversed(alphas), strict=True):
            q = q + (alpha - weight * torch.linalg.vecdot(y, q))[:, None] * s
        return -q
