"""The result of a linear solve, and the interfaces of solvers and preconditioners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from metalearn.tree import Raveler, Tree, task_norm

MatVec = Callable[[Tree], Tree]
"""A linear map of a pytree to one of the same structure and shapes."""


class Status(IntEnum):
    """The end of a solve, one for each system. Only `CONVERGED` met the tolerance."""

    CONVERGED = 0
    MAX_ITERS = 1
    NEGATIVE_CURVATURE = 2
    BREAKDOWN = 3
    DIVERGED = 4
    SINGULAR = 5
    NON_FINITE = 6


@dataclass(frozen=True)
class Solution:
    """The solution of A x = b, and its measured quality.

    Args:
        value: x, a pytree like b; always finite.
        residual_norm: |b - A x|, recomputed from x wherever convergence is claimed. Elsewhere `CG`
            gives its own recurrence's residual, if rounding has left two digits of it.
        relative_residual: residual_norm over |b|; 0 where b is 0 and solved by 0.
        iterations: the solver's iterations, 0 for a direct solve. Each takes one application of A;
            two in `BiCGStab`; one of A and one of its transpose in `NormalCG`.
        status: `Status` as int64.
        eigenvalue_bounds: (low, high), the least and the largest Ritz value. Both lie inside A's
            spectrum, so `low` is never below the least eigenvalue. (inf, -inf), the empty range,
            where no iteration was made; None if the solver has none.
        preconditioned: True if the Ritz values are those of the preconditioned operator. They then
            say nothing of A's own spectrum.
        exact_bounds: True if eigenvalue_bounds are A's extreme eigenvalues, as `Dense` has them.
            `error_estimate` is then a bound.

    All fields but `value`, `preconditioned` and `exact_bounds` have shape (T,) if the solve was
    batched, else ().
    """

    value: Any
    residual_norm: Tensor
    relative_residual: Tensor
    iterations: Tensor
    status: Tensor
    eigenvalue_bounds: tuple[Tensor, Tensor] | None
    preconditioned: bool = False
    exact_bounds: bool = False

    @property
    def converged(self) -> Tensor:
        return self.status == Status.CONVERGED

    @property
    def error_estimate(self) -> Tensor:
        """The estimate |b - A x| / low of |x - A^-1 b|, for a symmetric positive definite A.

        |x - A^-1 b| = |A^-1 r| <= |r| / eigenvalue_min. The least Ritz value takes the place of the
        least eigenvalue, which it approaches from above. The estimate is therefore a bound only
        once the Krylov space has found the lower end of the spectrum. It is infinite where no
        positive curvature of A itself is known.
        """
        if self.eigenvalue_bounds is None or self.preconditioned:
            low = torch.zeros_like(self.residual_norm)
        else:
            low = self.eigenvalue_bounds[0].to(self.residual_norm)
        known = (low > 0) & low.isfinite()
        bound = torch.where(known, self.residual_norm / torch.where(known, low, 1.0), torch.inf)
        return torch.where(self.residual_norm == 0, 0.0, bound)


class LinearSolver(Protocol):
    """A frozen dataclass whose fields are the solver's options. A call solves A x = b."""

    def __call__(
        self, matvec: MatVec, b: Tree, x0: Tree | None = None, batched: bool = False
    ) -> Solution: ...


@runtime_checkable
class Preconditioner(Protocol):
    """The options of a preconditioner that is built for each solve."""

    def of(self, matvec: MatVec, like: Tree, batched: bool) -> MatVec:
        """Return a symmetric positive definite map close to A's inverse, on pytrees like `like`."""
        ...


DIRECT = 1e-2
"""The largest relative residual at which a solver without a tolerance has solved its system."""


def remeasured(
    solution: Solution, matvec: MatVec, b: list[Tensor], rtol: float, atol: float = 0.0
) -> Solution:
    """Return a batched solution with the residual by another product, of the same A rounded less.

    This residual decides: a task has `CONVERGED` if it is at most max(rtol |b|, atol). A task that
    stopped above it, at the floor of the first product's rounding, ends as `MAX_ITERS` if the
    residual is below |b|: its iterate is of use. Other failures stay what they are.
    """
    product = matvec(solution.value)
    norm = task_norm([x - y for x, y in zip(b, product, strict=True)])
    norm = torch.where(norm.isnan(), torch.inf, norm)
    size = task_norm(b)
    stopped = solution.status
    floor = (stopped == Status.CONVERGED) | (stopped == Status.BREAKDOWN)
    met = (floor | (stopped == Status.MAX_ITERS)) & (norm <= (rtol * size).clamp_min(atol))
    status = torch.where(floor, Status.BREAKDOWN, stopped)
    status = torch.where(floor & (norm < size), Status.MAX_ITERS, status)
    return replace(
        solution,
        residual_norm=norm,
        relative_residual=norm / torch.where(size > 0, size, 1.0),
        status=torch.where(met, Status.CONVERGED, status),
    )


def finish(
    raveler: Raveler,
    x: Tensor,
    residual: Tensor,
    b: Tensor,
    iterations: Tensor,
    status: Tensor,
    eigenvalue_bounds: tuple[Tensor, Tensor] | None,
) -> Solution:
    """Return the `Solution` of a solve on (T, N) matrices."""
    residual_norm, b_norm = residual.norm(dim=1), b.norm(dim=1)
    residual_norm = torch.where(residual_norm.isnan(), torch.inf, residual_norm)
    relative = residual_norm / torch.where(b_norm > 0, b_norm, 1.0)
    bounds = eigenvalue_bounds
    return Solution(
        value=raveler.unravel(x),
        residual_norm=raveler.per_system(residual_norm),
        relative_residual=raveler.per_system(relative),
        iterations=raveler.per_system(iterations),
        status=raveler.per_system(status),
        eigenvalue_bounds=bounds and (raveler.per_system(bounds[0]), raveler.per_system(bounds[1])),
    )
