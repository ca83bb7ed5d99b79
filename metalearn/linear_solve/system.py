"""The system A x = b on (T, N) matrices: the start of every iteration, and its verified end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import is_count, is_number
from metalearn.linear_solve.solution import MatVec, Solution, Status, finish
from metalearn.tree import Raveler, Tree

DRIFT = 10
"""The factor in the assumed drift of the recurrence's residual from b - A x.

In k iterations the drift is at most DRIFT eps (k + 1) (max |r| + |A| |x|). Greenbaum 1997, theorem
2.2, has such a bound with constants of A's product in place of DRIFT.
"""

TOLERATED = 1e-2
"""The largest drift, as a fraction of the residual, that needs no recomputed residual."""


@dataclass(frozen=True)
class System:
    """A batch of T systems of N unknowns, each a row.

    A system that is not finite is set to 0 and never runs. Every system is scaled by a power of
    two, so that |b|'s largest number is near 1. Without this, squares of numbers of 1e-30 or 1e30
    leave the range of float32. A norm of 0 or infinity would make a tolerance that anything meets.
    `finish` scales back.

    Args:
        apply: A on (T, N) matrices.
        b, x, r: the right-hand sides, the starts and b - A x, (T, N), all finite.
        scale: the divisor of b, x and r, (T,).
        ratio: scale over the batch's largest, (T, 1), at least 2^-60; None for one system.
        tolerance: max(rtol |b|, atol), (T,).
        finite: True where b, the start, its residual and their norms are finite, (T,). The norms
            count, so that an overflow of |b|^2 does not pass for a tolerance of infinity.
        status: `CONVERGED` where the start meets the tolerance, `NON_FINITE` where `finite` is
            False, else `MAX_ITERS`.
    """

    raveler: Raveler
    apply: Callable[[Tensor], Tensor]
    b: Tensor
    x: Tensor
    r: Tensor
    scale: Tensor
    ratio: Tensor | None
    tolerance: Tensor
    finite: Tensor
    status: Tensor

    @classmethod
    def of(
        cls,
        matvec: MatVec,
        b: Tree,
        x0: Tree | None,
        batched: bool,
        rtol: float,
        atol: float = 0.0,
    ) -> System:
        raveler = Raveler.of(b, batched, as_it_lies=True)
        apply = raveler.matvec(matvec)
        target = raveler.ravel(b)
        scale = power_of_two(target)
        ratio = (scale / scale.max()).clamp_min(2.0**-60)[:, None] if len(target) > 1 else None
        target = target / scale[:, None]
        norm = target.norm(dim=1)
        finite = norm.isfinite()
        target = rows(finite, target, 0.0)
        tolerance = (rtol * torch.where(finite, norm, 0.0)).maximum(atol / scale)
        if x0 is None:
            x = target.new_zeros(()).expand_as(target)  # a view: it takes no memory
            r, r_norm = target, torch.where(finite, norm, 0.0)
        else:
            x = raveler.ravel(x0) / scale[:, None]
            usable = rows_finite(x)
            x = rows(usable, x, 0.0)
            r = _residual(target, apply, x, ratio)
            r_norm = r.norm(dim=1)
            finite = finite & usable & r_norm.isfinite()
            r = rows(finite, r, 0.0)
        status = torch.where(r_norm <= tolerance, Status.CONVERGED, Status.MAX_ITERS)
        status = torch.where(finite, status, Status.NON_FINITE)
        return cls(raveler, apply, target, x, r, scale, ratio, tolerance, finite, status)

    def residual(self, x: Tensor) -> Tensor:
        """Return b - A x, true also for a matvec that mixes the systems, whose scales differ."""
        return _residual(self.b, self.apply, x, self.ratio)

    def verify(
        self, x: Tensor, status: Tensor, verified: Tensor, left: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Recompute the residual, which alone establishes convergence.

        Where a recurrence's residual has drifted below the true one, the system runs again from the
        true one. It needs iterations `left`, and a residual below half of `verified`, the residual
        at the restart before. A residual that no longer falls is at the floor of this precision, a
        `BREAKDOWN`.

        Returns:
            the residual, its norm, the status, and the mask of systems that run again.
        """
        r = self.residual(x)
        r_norm = r.norm(dim=1)
        met = r_norm <= self.tolerance
        drifted = (status == Status.CONVERGED) & ~met
        again = drifted & (r_norm < 0.5 * verified) & left
        status = torch.where(
            drifted, torch.where(again | ~left, Status.MAX_ITERS, Status.BREAKDOWN), status
        )
        status = torch.where(met & self.finite, Status.CONVERGED, status)
        return r, r_norm, status, again

    def recheck(self, x: Tensor, r: Tensor, status: Tensor, stale: Tensor) -> tuple[Tensor, Tensor]:
        """Recompute the residuals of a batch if those of some systems are `stale`, (T,).

        A residual is stale if another system has moved since. It is still right unless the matvec
        mixes the systems, which ends a claim of convergence as `BREAKDOWN`.

        Returns:
            the residual and the status.
        """
        if len(x) == 1 or not stale.any():
            return r, status
        r = self.residual(x)
        wrong = (status == Status.CONVERGED) & ~(r.norm(dim=1) <= 2 * self.tolerance)
        return r, torch.where(wrong, Status.BREAKDOWN, status)

    def finish(
        self,
        x: Tensor,
        r: Tensor,
        iterations: Tensor,
        status: Tensor,
        eigenvalue_bounds: tuple[Tensor, Tensor] | None = None,
        preconditioned: bool = False,
    ) -> Solution:
        """Return the `Solution`, with zero in place of an x that overflowed."""
        x = x * self.scale[:, None]
        overflow = ~rows_finite(x)
        status = torch.where(overflow, Status.NON_FINITE, status)
        x = rows(~overflow, x, 0.0)
        r = rows(~overflow, r, self.b)
        r = rows(self.finite, r, torch.inf)
        solution = finish(self.raveler, x, r, self.b, iterations, status, eigenvalue_bounds)
        norm = solution.residual_norm * self.raveler.per_system(self.scale)
        return replace(solution, residual_norm=norm, preconditioned=preconditioned)


def _residual(
    b: Tensor, apply: Callable[[Tensor], Tensor], x: Tensor, ratio: Tensor | None
) -> Tensor:
    return b - apply(x) if ratio is None else b - apply(x * ratio) / ratio


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot products of the rows of two (T, N) matrices: (T,)."""
    return torch.linalg.vecdot(a, b)


def rows(kept: Tensor, matrix: Tensor, other: Tensor | float) -> Tensor:
    """Return the rows of a (T, N) matrix where `kept`, (T,), is True, and `other` elsewhere."""
    if not matrix.is_cuda and kept.all():  # no test on a GPU, which would wait for it
        return matrix
    return torch.where(kept[:, None], matrix, other)


def any_runs(running: Tensor, iteration: int) -> bool:
    """Return True if a system still runs.

    On a GPU the mask is read at every eighth iteration only, so that the GPU may work ahead of the
    host. The additional iterations do not move stopped systems.
    """
    return (running.is_cuda and iteration % 8 != 0) or bool(running.any())


def rows_finite(matrix: Tensor) -> Tensor:
    """Test in one pass, by its sum, if each row of a (T, N) matrix is finite: (T,)."""
    return matrix.sum(dim=1).isfinite()


def power_of_two(matrix: Tensor) -> Tensor:
    """Return the power of two at or below each row's largest absolute value, (T,).

    The value is 1 for a row without one: all zero, empty or not finite.
    """
    if not matrix.shape[1]:
        return matrix.new_ones(len(matrix))
    largest = matrix.abs().amax(dim=1)
    usable = largest.isfinite() & (largest > 0)
    exponent = torch.where(usable, largest, 1.0).frexp().exponent
    return torch.where(usable, torch.ldexp(torch.ones_like(largest), exponent - 1), 1.0)


def norms(matrix: Tensor) -> Tensor:
    """Return the norms of a (T, N) matrix's rows, (T,), even if squares leave the type's range."""
    scale = power_of_two(matrix)
    return scale * (matrix / scale[:, None]).norm(dim=1)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b, and 0 where b is 0."""
    zero = b == 0
    return torch.where(zero, 0.0, a / torch.where(zero, 1.0, b))


def seeded(shape: tuple[int, ...], seed: int, like: Tensor) -> Tensor:
    """Return standard normal numbers that depend on the seed and the shape, not on the device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)


def require(options: Any, least: float, *names: str) -> None:
    """Check that the named options are numbers of at least `least`, whole where typed int.

    Raises:
        ValueError: an option is below `least`, NaN, or of another type.
    """
    typed = {field.name: field.type for field in fields(options)}
    for name in names:
        value, whole = getattr(options, name), typed[name] == "int"
        if not (is_count(value) if whole else is_number(value)) or not value >= least:
            raise ValueError(
                f"{type(options).__name__}({name}={value!r}); expected "
                f"{'a whole number of ' if whole else ''}at least {least}"
            )
