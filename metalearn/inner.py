"""Inner-loop solvers: each minimises T separate objectives at once.

`solver(objective, params)` gives an `InnerSolution`; `objective` maps params, a dict of (T, ...),
to (T,) values, task by task. Where a tolerance is given, each task stops on its own as soon as the
norm of its gradient is at most that.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.linear_solve import CG
from metalearn.tree import gradients, task_dot, task_norm

Params = dict[str, Tensor]
Objective = Callable[[Params], Tensor]


@dataclass(frozen=True)
class InnerSolution:
    """Adapted parameters and how well they solve the inner problem.

    Args:
        params: dict of (T, ...).
        objective: (T,), the inner objective at params.
        grad_norm: (T,), the norm of its gradient at params; 0 at an exact solution.
        steps: (T,) int64, the steps that each task took.
    """

    params: Params
    objective: Tensor
    grad_norm: Tensor
    steps: Tensor


class InnerSolver(ABC):
    """A frozen dataclass whose fields are its options."""

    @abstractmethod
    def minimise(
        self, objective: Objective, params: Params, create_graph: bool = False
    ) -> tuple[Params, Tensor]:
        """The params reached and the steps taken, (T,).

        With `create_graph` they are differentiable in what `params` and `objective` depend on; else
        they carry no graph.
        """

    def __call__(self, objective: Objective, params: Params) -> InnerSolution:
        params, steps = self.minimise(objective, params)
        value, grads = value_and_grad(objective, params)
        return InnerSolution(params, value.detach(), task_norm(grads), steps)


def value_and_grad(
    objective: Objective, params: Params, create_graph: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The objective, (T,), and its gradient in params, a list in their order.

    Without `create_graph`, params are cut off from any graph first.

    Raises:
        ValueError: the objective is no (T,) tensor, or does not depend on one of the params.
    """
    if not create_graph:
        params = {name: p.detach().requires_grad_() for name, p in params.items()}
    with torch.enable_grad():
        value = objective(params)
        tasks = len(next(iter(params.values())))
        if value.shape != (tasks,):
            raise ValueError(
                f"the inner objective has shape {tuple(value.shape)}; expected ({tasks},), a value "
                "for each task"
            )
        grads = torch.autograd.grad(
            value.sum(), list(params.values()), create_graph=create_graph, allow_unused=True
        )
    found = []
    for name, grad in zip(params, grads, strict=True):
        if grad is None:
            raise ValueError(
                f"the inner objective does not depend on params[{name!r}]; leave it out of params"
            )
        found.append(grad)
    return value, found


@dataclass(frozen=True)
class _FirstOrder(InnerSolver):
    """The loop that the first-order methods share; they differ in `direction`."""

    steps: int
    lr: float

    def __post_init__(self) -> None:
        if self.steps < 0 or not self.lr > 0:
            raise UsageError(
                f"{type(self).__name__}(steps={self.steps}, lr={self.lr}); "
                "steps must be at least 0 and lr above 0"
            )

    @abstractmethod
    def direction(self) -> Callable[[list[Tensor]], list[Tensor]]:
        """A fresh map from gradients to directions of descent, which may remember earlier ones.

        A step is `lr` times the direction.
        """

    def stopping(self) -> float | None:
        """The gradient norm at which a task stops, or None."""
        return None

    def minimise(
        self, objective: Objective, params: Params, create_graph: bool = False
    ) -> tuple[Params, Tensor]:
        tol, direction = self.stopping(), self.direction()
        tasks = len(next(iter(params.values())))
        device = next(iter(params.values())).device
        taken = torch.zeros(tasks, dtype=torch.int64, device=device)
        moving = torch.ones(tasks, dtype=torch.bool, device=device)
        if not create_graph:
            params = {name: p.detach() for name, p in params.items()}
        for _ in range(self.steps):
            _, grads = value_and_grad(objective, params, create_graph)
            with torch.set_grad_enabled(create_graph):
                moves = direction(grads)
                if tol is not None:
                    moving = moving & (task_norm([g.detach() for g in grads]) > tol)
                    if not moving.any():
                        break
                    moves = [torch.where(_like(moving, m), m, 0.0) for m in moves]
                params = {
                    name: torch.sub(p, move, alpha=self.lr)
                    for (name, p), move in zip(params.items(), moves, strict=True)
                }
            taken += moving
        return params, taken


@dataclass(frozen=True)
class GradientDescent(_FirstOrder):
    """params <- params - lr v, v <- momentum v + gradient.

    Args:
        steps: most steps of a task.
        lr: the rate.
        momentum: in [0, 1); v starts as the first gradient (torch's SGD).
        tol: gradient norm at which a task stops; None: never.
    """

    momentum: float = 0.0
    tol: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum={self.momentum}; expected a number in [0, 1)")

    def stopping(self) -> float | None:
        return self.tol

    def direction(self) -> Callable[[list[Tensor]], list[Tensor]]:
        velocity: list[Tensor] = []

        def step(grads: list[Tensor]) -> list[Tensor]:
            if self.momentum:
                velocity[:] = (
                    [self.momentum * v + g for v, g in zip(velocity, grads, strict=True)]
                    if velocity
                    else grads
                )
                return list(velocity)
            return grads

        return step


@dataclass(frozen=True)
class Adam(_FirstOrder):
    """Adam in the efficient form of Kingma & Ba 2015, end of section 2 (as `higher` has it).

    Its derivative at a second moment of exactly 0, where the square root has none, is taken as 0.

    Args:
        steps: most steps of a task.
        lr: the rate.
        betas: decay of the first and of the second moment.
        eps: added to the square root of the second moment.
        tol: gradient norm at which a task stops; None: never.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    tol: float | None = None

    def stopping(self) -> float | None:
        return self.tol

    def direction(self) -> Callable[[list[Tensor]], list[Tensor]]:
        beta1, beta2 = self.betas
        first: list[Tensor] = []
        second: list[Tensor] = []
        count = 0

        def step(grads: list[Tensor]) -> list[Tensor]:
            nonlocal count
            count += 1
            if not first:
                first.extend(torch.zeros_like(g) for g in grads)
                second.extend(torch.zeros_like(g) for g in grads)
            first[:] = [beta1 * m + (1 - beta1) * g for m, g in zip(first, grads, strict=True)]
            second[:] = [
                beta2 * v + (1 - beta2) * g * g for v, g in zip(second, grads, strict=True)
            ]
            rate = math.sqrt(1 - beta2**count) / (1 - beta1**count)
            return [
                rate * m / (_safe_sqrt(v) + self.eps) for m, v in zip(first, second, strict=True)
            ]

        return step


def _safe_sqrt(v: Tensor) -> Tensor:
    zero = v == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, v).sqrt())


@dataclass(frozen=True)
class NewtonCG(InnerSolver):
    """Truncated Newton steps with a backtracking line search: iMAML's "Hessian-free" inner loop.

    Each step solves H d = -g by CG, cut short at negative curvature (then along -g if that is met
    at once), and halves the step until the objective falls by Armijo's rule (Nocedal & Wright 2006,
    algorithm 7.1). It never increases a task's objective; a task that finds no decrease stops.

    Args:
        steps: most Newton steps of a task.
        cg_iters: Hessian products a step; 5 in the paper.
        tol: gradient norm at which a task stops; None: never.
        halvings: most halvings of a step.
    """

    steps: int
    cg_iters: int = 5
    tol: float | None = None
    halvings: int = 12

    def __post_init__(self) -> None:
        if self.steps < 0 or self.cg_iters < 1 or self.halvings < 0:
            raise UsageError(
                f"NewtonCG(steps={self.steps}, cg_iters={self.cg_iters}, halvings={self.halvings});"
                " steps and halvings must be at least 0, cg_iters at least 1"
            )

    def minimise(
        self, objective: Objective, params: Params, create_graph: bool = False
    ) -> tuple[Params, Tensor]:
        if create_graph:
            raise UsageError(
                "NewtonCG has no unrolled derivative; use an implicit or first-order meta-gradient"
            )
        names = list(params)
        leaves = [p.detach() for p in params.values()]
        tasks, device = len(leaves[0]), leaves[0].device
        taken = torch.zeros(tasks, dtype=torch.int64, device=device)
        moving = torch.ones(tasks, dtype=torch.bool, device=device)
        for _ in range(self.steps):
            live = dict(zip(names, (x.requires_grad_() for x in leaves), strict=True))
            value, grads = value_and_grad(objective, live, create_graph=True)
            g = [x.detach() for x in grads]
            if self.tol is not None:
                moving = moving & (task_norm(g) > self.tol)
            if not moving.any():
                break
            step = self._direction(grads, list(live.values()), g)
            slope = task_dot(g, step)
            leaves, moving = self._search(
                objective, names, [x.detach() for x in leaves], value.detach(), step, slope, moving
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
        return [torch.where(_like(descends, x), x, -y) for x, y in zip(d, g, strict=True)]

    def _search(
        self,
        objective: Objective,
        names: list[str],
        start: list[Tensor],
        value: Tensor,
        step: list[Tensor],
        slope: Tensor,
        moving: Tensor,
    ) -> tuple[list[Tensor], Tensor]:
        """Backtracking, all tasks at once: the new leaves and which tasks moved."""
        size = torch.ones_like(value)
        accepted = ~moving
        reached = start
        for _ in range(self.halvings + 1):
            trial = [x + _like(size, x) * s for x, s in zip(start, step, strict=True)]
            with torch.no_grad():
                falls = objective(dict(zip(names, trial, strict=True))) <= (
                    value + 1e-4 * size * slope
                )
            now = falls & ~accepted
            reached = [
                torch.where(_like(now, y), x, y) for x, y in zip(trial, reached, strict=True)
            ]
            accepted = accepted | falls
            if accepted.all():
                break
            size = torch.where(accepted, size, size / 2)
        return reached, moving & accepted


def _like(per_task: Tensor, other: Tensor) -> Tensor:
    """(T,) shaped so that it broadcasts against (T, ...)."""
    return per_task.view(-1, *[1] * (other.dim() - 1))
