"""Inner loops that step along gradients, and can be unrolled: gradient descent and Adam."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.inner.solver import (
    InnerSolver,
    Objective,
    Params,
    broadcast,
    check_tol,
    value_and_grad,
)
from metalearn.tree import task_norm


@dataclass(frozen=True)
class GradientMethod(InnerSolver):
    """The loop that the first-order methods share; they differ in `direction`."""

    steps: int
    lr: float

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0 < self.lr < math.inf:
            raise UsageError(
                f"{type(self).__name__}(steps={self.steps}, lr={self.lr}); "
                "steps must be at least 0 and lr above 0"
            )
        check_tol(self.stopping())

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
                    moves = [torch.where(broadcast(moving, m), m, 0.0) for m in moves]
                params = {
                    name: torch.sub(p, move, alpha=self.lr)
                    for (name, p), move in zip(params.items(), moves, strict=True)
                }
            taken += moving
        return params, taken


@dataclass(frozen=True)
class GradientDescent(GradientMethod):
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
class Adam(GradientMethod):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas) or not 0 < self.eps < math.inf:
            raise UsageError(
                f"Adam(betas={tuple(self.betas)}, eps={self.eps}); each beta must be in [0, 1) and "
                "eps above 0"
            )

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
