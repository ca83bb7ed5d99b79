"""The truncated Newton method: iMAML's "Hessian-free" inner loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.autograd import gradients
from metalearn.errors import UsageError, is_count
from metalearn.inner.line_search import backtrack
from metalearn.inner.solver import (
    InnerSolver,
    Objective,
    Params,
    broadcast,
    check_tol,
    rounding,
    value_and_grad,
)
from metalearn.linear_solve import CG
from metalearn.tree import task_dot, task_norm


@dataclass(frozen=True)
class NewtonCG(InnerSolver):
    """The truncated Newton method with a line search; the paper's Hessian-free variant.

    Each step solves H d = -g by CG, which stops at negative curvature. If CG meets negative
    curvature at once, d = -g. The step is halved until the objective falls by Armijo's rule
    (Nocedal & Wright 2006, algorithm 7.1). No task's objective increases beyond rounding. A task
    that finds no decrease stops.

    Args:
        steps: the limit on a task's Newton steps.
        cg_iters: the Hessian products of a step; 5 in the paper.
        tol: the gradient norm at which a task stops; None: never.
        halvings: the limit on halvings of a step.
    """

    steps: int
    cg_iters: int = 5
    tol: float | None = None
    halvings: int = 12

    def __post_init__(self) -> None:
        if not (is_count(self.steps) and is_count(self.cg_iters, 1) and is_count(self.halvings)):
            raise UsageError(
                f"NewtonCG(steps={self.steps}, cg_iters={self.cg_iters}, halvings={self.halvings});"
                " steps and halvings must be whole numbers of at least 0, cg_iters at least 1"
            )
        check_tol(self.tol)

    def minimise(self, objective: Objective, params: Params) -> tuple[Params, Tensor]:
        names = list(params)
        leaves = [p.detach() for p in params.values()]
        taken = torch.zeros(len(leaves[0]), dtype=torch.int64, device=leaves[0].device)
        moving = torch.ones_like(taken, dtype=torch.bool)
        for _ in range(self.steps):
            leaves = [x.detach().requires_grad_() for x in leaves]
            value, grads = value_and_grad(
                objective, dict(zip(names, leaves, strict=True)), create_graph=True
            )
            g = [x.detach() for x in grads]
            if self.tol is not None:
                moving = moving & (task_norm(g) > self.tol)
            if not moving.any():
                break
            step = self._direction(grads, leaves, g)
            leaves, moving = backtrack(
                lambda x: objective(dict(zip(names, x, strict=True))),
                [x.detach() for x in leaves],
                value.detach(),
                step,
                task_dot(g, step),
                moving,
                self.halvings,
                rounding(objective, value.detach()),
            )
            taken += moving
        return dict(zip(names, (x.detach() for x in leaves), strict=True)), taken

    def _direction(
        self, grads: list[Tensor], leaves: list[Tensor], g: list[Tensor]
    ) -> list[Tensor]:
        def hvp(v: list[Tensor]) -> list[Tensor]:
            return gradients(grads, leaves, v, retain_graph=True)

        d = CG(self.cg_iters, rtol=0.0)(hvp, [-x for x in g], batched=True).value
        descends = task_dot(g, d) < 0
        return [torch.where(broadcast(descends, x), x, -y) for x, y in zip(d, g, strict=True)]
