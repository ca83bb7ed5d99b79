"""The part that the nonlinear solvers share: the tolerance, and which systems still run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from metalearn.linear_solve.system import norms, require
from metalearn.nonlinear_solve.result import Found, SolveStatus

RowFunction = Callable[[Tensor], Tensor]
"""A function of (T, N) that treats each row as a problem of its own."""

SETTLED = 1e-3
"""The largest next step, over the size of x, at a solution. A residual also falls on the way to a
limit at infinity, but there the steps do not become short.
"""

AT_ZERO = 1e-7
"""The largest next step, over the way from the start, at a solution of 0."""


class Options(Protocol):
    """The options of every solver here."""

    @property
    def rtol(self) -> float | None: ...

    @property
    def atol(self) -> float: ...


def check_tolerances(solver: Options) -> None:
    """Check that no tolerance is negative or NaN.

    Raises:
        ValueError: a tolerance is out of this range.
    """
    require(solver, 0, "atol")
    if solver.rtol is not None:
        require(solver, 0, "rtol")


def default_rtol(dtype: torch.dtype) -> float:
    """Return the relative tolerance of a type: its rounding unit to the power 2/3."""
    return float(torch.finfo(dtype).eps ** (2 / 3))


class Progress:
    """The state of T problems that stop one by one.

    A step d, the one that comes next, is short if |d| is at most 1e-3 |x| or 1e-7 |x - x0|. A
    problem is solved if one of these holds:

    - |F(x)| <= atol;
    - |F(x)| <= rtol |F(x0)|, |F(x)| <= rtol^(1/2) |F(y)|, and d is short. y is the point of the
      least residual among those of a long step. So F is not judged by a start far away alone;
    - |d| <= rtol |x|, where d is known to be near the distance from the solution;
    - |F(x)| <= rtol |F(x0)|, d is short, and no step lowers the residual.

    A problem ends as DIVERGED if |F(x)| <= eps^2 |F(x0)|, and |d| is above 1e-3 of |x| and of
    |x - x0|.

    Args:
        x0: (T, N), finite.
        residual_norm: (T,), |F(x0)|.
    """

    def __init__(self, solver: Options, x0: Tensor, residual_norm: Tensor) -> None:
        self.x0 = x0
        self.rtol = default_rtol(x0.dtype) if solver.rtol is None else solver.rtol
        self.atol = solver.atol
        self.first = self.reference = residual_norm
        self.running = residual_norm.isfinite()
        self.status = torch.where(self.running, SolveStatus.MAX_STEPS, SolveStatus.NON_FINITE)
        self.steps = torch.zeros_like(self.status)
        self.short = torch.zeros_like(self.running)

    def judge(
        self,
        x: Tensor,
        residual_norm: Tensor,
        step: Tensor,
        trusted: Tensor | None = None,
        scale: Tensor | float = 1.0,
    ) -> None:
        """Stop the problems that are solved at x.

        Args:
            step: (T, N), the step that comes next.
            trusted: (T,) bool, where the step is near the distance from the solution.
            scale: (T, N), the weights of the numbers of x and step in their norms.
        """
        size, length, away = (norms(v * scale) for v in (x, step, x - self.x0))
        self.short = length <= (SETTLED * size).maximum(AT_ZERO * away)
        least = self.reference.minimum(residual_norm)
        self.reference = torch.where(self.short, self.reference, least)
        solved = self.short & (residual_norm <= self.rtol * self.first)
        solved = solved & (residual_norm <= self.rtol**0.5 * self.reference)
        if trusted is not None:
            solved = solved | (trusted & (length <= self.rtol * size))
        self.stop(solved | (residual_norm <= self.atol), SolveStatus.CONVERGED)
        vanished = torch.finfo(x.dtype).eps ** 2 * self.first
        long = length > SETTLED * size.maximum(away)
        self.stop((residual_norm <= vanished) & long, SolveStatus.DIVERGED)

    def stall(
        self, where: Tensor, residual_norm: Tensor, why: SolveStatus | Tensor = SolveStatus.STALLED
    ) -> None:
        """Stop the running problems of the mask `where`, (T,), which no step improves.

        They are solved, or end with the status `why`.
        """
        enough = self.short & (residual_norm <= self.rtol * self.first)
        self.stop(where, torch.where(enough, SolveStatus.CONVERGED, why))

    def stop(self, where: Tensor, why: SolveStatus | Tensor) -> None:
        """Stop the running problems of the mask `where`, (T,), with the status `why`."""
        self.status = torch.where(self.running & where, why, self.status)
        self.running = self.running & ~where

    def found(self, x: Tensor, residual_norm: Tensor) -> Found:
        """Return the result at x."""
        norm = torch.where(residual_norm.isfinite(), residual_norm, torch.inf)
        return Found(x, self.status, self.steps, norm)


def finite_rows(*matrices: Tensor) -> Tensor:
    """Return the mask (T,) of rows that are finite in every (T, ...) tensor."""
    sound = [m.reshape(len(m), -1).isfinite().all(dim=1) for m in matrices]
    return torch.stack(sound).all(dim=0)
