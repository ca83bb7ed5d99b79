"""The linear systems of an implicit derivative: their solution, and its warnings and errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metalearn.autograd import without_saved_tensor_hooks
from metalearn.errors import UsageError
from metalearn.linear_solve import LinearSolver, Solution, Status
from metalearn.linear_solve.system import seeded

Leaves = tuple[Tensor, ...]
Report = Callable[[Solution], None]

MORE = "give linear_solver more iterations"
REMEDIES = {
    Status.NEGATIVE_CURVATURE: "the Hessian is not positive definite: check that x is a minimum, "
    "or give linear_solver=GMRES()",
    Status.BREAKDOWN: "use float64, or linear_solver=GMRES() with a larger restart",
}
"""The cures of a solve that stopped early, by its status; `MORE` where it is not named."""


class InexactDerivative(UserWarning):
    """The warning that the linear solve of a derivative stopped before its tolerance."""


class NoDerivative(ArithmeticError):
    """The error that no finite solution of a derivative's linear system was found."""


def lost(solution: Solution) -> Tensor:
    """Return the mask, (T,) or (), of the systems that failed: their x is no solution.

    A system failed if its relative residual is above 1e-3, and its status is none of CONVERGED,
    MAX_ITERS and NEGATIVE_CURVATURE.
    """
    truncated = (solution.status == Status.MAX_ITERS) | (
        solution.status == Status.NEGATIVE_CURVATURE
    )
    return ~(solution.converged | truncated) & (solution.relative_residual > 1e-3)


def no_derivative(solution: Solution) -> NoDerivative:
    """Return the error of a solve that is `lost`."""
    return NoDerivative(
        f"{_ending(solution)}: the system is singular, not finite or beyond this solver; the "
        "theorem needs an invertible Jacobian"
    )


def _ending(solution: Solution) -> str:
    worst = solution.relative_residual.argmax()
    residual = solution.relative_residual.flatten()[worst].item()
    name = Status(int(solution.status.flatten()[worst])).name.lower()
    return f"the linear solve of a derivative ended {name} at relative residual {residual:.1e}"


@dataclass(frozen=True)
class Equation:
    """The equation F(x, c) = 0 on tuples of tensors, and the solver for its A.

    x begins with `depth` axes of systems: one if batched, and one for each vmap around it. The
    mapped tensors of c begin with the axes of the vmaps too.
    """

    residual: Callable[[Leaves, Leaves], Leaves]
    solver: LinearSolver
    report: Report | None
    symmetric: bool
    batched: bool
    depth: int = 0

    def operator(self, transposed: bool, x: Leaves, c: Leaves) -> Callable[[Leaves], Leaves]:
        """Return the map v -> A v or A' v, on one linearisation."""
        at = pull if transposed or self.symmetric else push
        return at(lambda *x: self.residual(x, c), x)

    def solve(self, transposed: bool, b: Leaves, x: Leaves, c: Leaves) -> Leaves:
        apply = self.operator(transposed, x, c)
        depth, lead = self.depth, b[0].shape[: self.depth]

        def fold(leaves: Leaves) -> list[Tensor]:
            return [v.reshape(-1, *v.shape[depth:]) if depth else v for v in leaves]

        def unfold(leaves: Sequence[Tensor]) -> Leaves:
            return tuple(v.reshape(*lead, *v.shape[1:]) if depth else v for v in leaves)

        def matvec(v: Sequence[Tensor]) -> list[Tensor]:
            return fold(apply(unfold(v)))

        right = fold(b)
        solution = self.solver(matvec, right, batched=depth > 0)
        if self.batched and not solution.converged.all():
            _refuse_coupled(matvec, right)
        self._judge(solution)
        return unfold(solution.value)

    def _judge(self, solution: Solution) -> None:
        if self.report is not None:
            self.report(solution)
            return
        rounding = 100 * torch.finfo(solution.relative_residual.dtype).eps
        inexact = ~solution.converged & (solution.relative_residual > rounding)
        if not inexact.any():
            return
        if lost(solution).any():
            raise no_derivative(solution)
        worst = torch.where(inexact, solution.relative_residual, -1.0).argmax()
        ended = Status(int(solution.status.flatten()[worst]))
        warnings.warn(
            f"{_ending(solution)}; {REMEDIES.get(ended, MORE)}, or take its Solution by report=",
            InexactDerivative,
            stacklevel=2,
        )

    def mapped(self, dims: Sequence[int | None]) -> Equation:
        """Return the equation with one more axis in x, and in those of c whose dim is not None."""
        residual = torch.func.vmap(self.residual, in_dims=(0, tuple(dims)))
        return replace(self, residual=residual, depth=self.depth + 1)


def _refuse_coupled(matvec: Callable[[Sequence[Tensor]], list[Tensor]], b: list[Tensor]) -> None:
    """Refuse a batch whose problems meet: then A (w v) differs from w (A v), w a number a problem.

    Raises:
        UsageError: they meet.
    """
    tasks = len(b[0])
    numbers = torch.linspace(1, 2, tasks, dtype=torch.float64, device=b[0].device)

    def weighted(leaves: Sequence[Tensor]) -> list[Tensor]:
        return [v * numbers.to(v).view(-1, *[1] * (v.dim() - 1)) for v in leaves]

    v = [seeded(tuple(x.shape), i, x) for i, x in enumerate(b)]
    inside, outside = matvec(weighted(v)), weighted(matvec(v))
    gap = sum((x - y).double().square().sum() for x, y in zip(inside, outside, strict=True))
    size = sum(x.double().square().sum() for x in outside)
    eps = max(torch.finfo(x.dtype).eps for x in b)
    if gap > 100 * eps * size:
        raise UsageError(
            "batched=True: expected a function that treats every problem alone, not one that mixes "
            "them. Use batched=False, one system for all."
        )


def linearise(
    function: Callable[..., Leaves], at: Leaves
) -> tuple[Leaves, Callable[[Leaves], Leaves]]:
    """Return the function's value, and the map w -> J' w, where J is its Jacobian."""
    with without_saved_tensor_hooks():
        linearised: Any = torch.func.vjp(function, *at)
    value, transposed = linearised
    return value, lambda w: transposed(tuple(w))


def pull(function: Callable[..., Leaves], at: Leaves) -> Callable[[Leaves], Leaves]:
    """Return the map w -> J' w, where J is the function's Jacobian."""
    return linearise(function, at)[1]


def push(function: Callable[..., Leaves], at: Leaves) -> Callable[[Leaves], Leaves]:
    """Return the map v -> J v, as the transpose of w -> J' w: reverse mode alone."""
    out, transposed = linearise(function, at)
    return linearise(lambda *w: transposed(w), tuple(torch.zeros_like(v) for v in out))[1]
