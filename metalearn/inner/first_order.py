"""The first-order inner loops, which can be unrolled: gradient descent and Adam."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
    gradient,
)
from metalearn.tree import detached, leaves_of, requires_grad_copy, task_norm

Memory = tuple[list[Tensor], ...]
"""The method's memory of earlier gradients: lists of tensors like the params."""

StepRates = dict[str, Tensor]
"""The factors of `lr` by param name, each (K, ...): row k applies to inner step k.

A row broadcasts against one task's tensor. Steps after the K-th take the last row.
"""


@dataclass(frozen=True)
class LoopState:
    """The state of an inner loop between two steps: all that the next step depends on.

    Args:
        params: dict of (T, ...).
        memory: the velocities or moments.
        count: the number of steps made.
        moving: (T,) bool, the tasks that have not met the tolerance.
        taken: (T,) int64, the steps that each task took.
    """

    params: Params
    memory: Memory
    count: int
    moving: Tensor
    taken: Tensor

    def leaves(self) -> list[Tensor]:
        """Return the tensors of the state that can have a gradient, params first."""
        return leaves_of((self.params, self.memory))

    def requires_grad_copy(self) -> LoopState:
        """Return the same state with its tensors detached, as leaves that require grad."""
        params, memory = requires_grad_copy((self.params, self.memory))
        return LoopState(params, memory, self.count, self.moving, self.taken)


@dataclass(frozen=True)
class GradientMethod(InnerSolver):
    """The loop that the first-order methods share; each method defines its `direction`.

    `advance` is a pure function of a `LoopState`. The loop can therefore run in segments, each with
    or without a graph.
    """

    steps: int
    lr: float

    def __post_init__(self) -> None:
        if not is_count(self.steps) or not is_number(self.lr) or not 0 < self.lr <= MAX_FLOAT32:
            raise UsageError(
                f"{type(self).__name__}(steps={self.steps!r}, lr={self.lr!r}); steps must be "
                f"a whole number of at least 0 and lr above 0, up to {MAX_FLOAT32:.1e}"
            )
        check_tol(self.stopping())

    @abstractmethod
    def remembered(self) -> int:
        """Return the length of `Memory`, which begins as zeros."""

    @abstractmethod
    def direction(
        self, grads: list[Tensor], memory: Memory, count: int
    ) -> tuple[list[Tensor], Memory]:
        """Return the direction of descent of step `count` (the first is 1), and the new memory.

        A step is `lr` times the direction.
        """

    def stopping(self) -> float | None:
        """Return the gradient norm at which a task stops, or None."""
        return None

    @property
    def linear(self) -> bool:
        """True if a step is linear in the gradients, so that its derivative needs no value."""
        return False

    def start(self, params: Params) -> LoopState:
        leaves = list(params.values())
        memory = tuple([torch.zeros_like(p) for p in leaves] for _ in range(self.remembered()))
        taken = torch.zeros(len(leaves[0]), dtype=torch.int64, device=leaves[0].device)
        return LoopState(params, memory, 0, torch.ones_like(taken, dtype=torch.bool), taken)

    def advance(
        self,
        objective: Objective,
        state: LoopState,
        steps: int,
        create_graph: bool = False,
        rates: StepRates | None = None,
    ) -> LoopState:
        """Return the state after `steps` more steps.

        With `create_graph` the result is differentiable in `rates`, in what `objective` depends on,
        and in the state's own params and memory. The params must then have a graph, or be leaves of
        one. Without `create_graph` the result has no graph.

        Args:
            rates: factors of `lr`, an entry for each of the params; None: 1.
        """
        if not create_graph:
            params, memory = detached((state.params, state.memory))
            state = replace(state, params=params, memory=memory)
        last = state.count + steps
        while state.count < last and (self.stopping() is None or state.moving.any()):
            grads = gradient(objective, state.params, create_graph)
            with torch.set_grad_enabled(create_graph):
                state = self.step(state, grads, rates)
        return replace(state, count=last)

    def step(
        self, state: LoopState, grads: list[Tensor], rates: StepRates | None = None
    ) -> LoopState:
        """Return the state after a step with the gradients of the objective at its params."""
        count, moving, tol = state.count + 1, state.moving, self.stopping()
        moves, memory = self.direction(grads, state.memory, count)
        if tol is not None:
            moving = moving & (task_norm([g.detach() for g in grads]) > tol)
            moves = [torch.where(broadcast(moving, m), m, 0.0) for m in moves]
        params = {
            name: self._moved(p, move, count, rates[name] if rates else None)
            for (name, p), move in zip(state.params.items(), moves, strict=True)
        }
        return LoopState(params, memory, count, moving, state.taken + moving)

    def _moved(self, p: Tensor, move: Tensor, count: int, factors: Tensor | None) -> Tensor:
        if factors is None:
            return torch.sub(p, move, alpha=self.lr)
        row = factors[min(count, len(factors)) - 1]
        return torch.addcmul(p, row, move, value=-self.lr)

    def minimise(
        self, objective: Objective, params: Params, rates: StepRates | None = None
    ) -> tuple[Params, Tensor]:
        end = self.advance(objective, self.start(params), self.steps, rates=rates)
        return end.params, end.taken

    def path(
        self, objective: Objective, params: Params, rates: StepRates | None = None
    ) -> Iterator[InnerPoint]:
        state = self.start(detached(params))
        rate = getattr(self, "stable_rate", None) if rates is None else None
        first = next(iter(params.values()))
        edge = None if rate is None else first.new_full((len(first),), rate)
        yield InnerPoint(state.params, edge)
        for _ in range(self.steps):
            state = self.advance(objective, state, 1, rates=rates)
            yield InnerPoint(state.params, edge)


@dataclass(frozen=True)
class AtRates(InnerSolver):
    """The solver `method`, with `lr` multiplied by each step's factor in `rates`."""

    method: GradientMethod
    rates: StepRates

    def minimise(self, objective: Objective, params: Params) -> tuple[Params, Tensor]:
        return self.method.minimise(objective, params, self.rates)

    def path(self, objective: Objective, params: Params) -> Iterator[InnerPoint]:
        return self.method.path(objective, params, self.rates)


@dataclass(frozen=True)
class GradientDescent(GradientMethod):
    """The update params <- params - lr v, with v <- momentum v + gradient.

    Args:
        steps: the limit on a task's steps.
        lr: the rate.
        momentum: in [0, 1); v starts as the first gradient, as in torch's SGD.
        tol: the gradient norm at which a task stops; None: never.
    """

    momentum: float = 0.0
    tol: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum={self.momentum}; expected a number in [0, 1)")

    @property
    def stable_rate(self) -> float | None:
        """The rate in units of the edge: steps diverge along a curvature above 2 / stable_rate.

        Heavy-ball momentum moves the edge from 2 / lr to 2 (1 + momentum) / lr (Polyak 1964). None
        if no step is taken.
        """
        return self.lr / (1 + self.momentum) if self.steps else None

    def stopping(self) -> float | None:
        return self.tol

    @property
    def linear(self) -> bool:
        return self.tol is None

    def remembered(self) -> int:
        return 1 if self.momentum else 0

    def direction(
        self, grads: list[Tensor], memory: Memory, count: int
    ) -> tuple[list[Tensor], Memory]:
        if not self.momentum:
            return grads, memory
        (velocity,) = memory
        velocity = [self.momentum * v + g for v, g in zip(velocity, grads, strict=True)]
        return velocity, (velocity,)


@dataclass(frozen=True)
class Adam(GradientMethod):
    """The Adam method in the efficient form of Kingma & Ba 2015, end of section 2, as in `higher`.

    At a second moment of exactly 0 the square root has no derivative; 0 is taken for it.

    Args:
        steps: the limit on a task's steps.
        lr: the rate.
        betas: the decay of the first and of the second moment.
        eps: the number added to the square root of the second moment.
        tol: the gradient norm at which a task stops; None: never.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    tol: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas) or not 0 < self.eps <= MAX_FLOAT32:
            raise UsageError(
                f"Adam(betas={tuple(self.betas)}, eps={self.eps}); each beta must be in [0, 1) and "
                f"eps above 0, up to {MAX_FLOAT32:.1e}"
            )

    def stopping(self) -> float | None:
        return self.tol

    def remembered(self) -> int:
        return 2

    def direction(
        self, grads: list[Tensor], memory: Memory, count: int
    ) -> tuple[list[Tensor], Memory]:
        beta1, beta2 = self.betas
        first, second = memory
        first = [beta1 * m + (1 - beta1) * g for m, g in zip(first, grads, strict=True)]
        second = [beta2 * v + (1 - beta2) * g * g for v, g in zip(second, grads, strict=True)]
        rate = math.sqrt(1 - beta2**count) / (1 - beta1**count)
        moves = [rate * m / (_safe_sqrt(v) + self.eps) for m, v in zip(first, second, strict=True)]
        return moves, (first, second)


def _safe_sqrt(v: Tensor) -> Tensor:
    zero = v == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, v).sqrt())
