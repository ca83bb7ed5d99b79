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

    A problem is solved if one of these holds, where d is the step that comes next:

    - |F(x)| <= atol;
    - |F(x)| <= rtol |F(x0)|, and |d| is below 1e-3 of the larger of |x| and |x - x0|;
    - |d| <= rtol |x|, where d is known to be near the distance from the solution.

    A problem ends as DIVERGED if |F(x)| <= eps^2 |F(x0)| while its steps are long.

    Args:
        x0: (T, N), finite.
        residual_norm: (T,), |F(x0)|.
    """

    def __init__(self, solver: Options, x0: Tensor, residual_norm: Tensor) -> None:
        self.x0 = x0
        self.rtol = default_rtol(x0.dtype) if solver.rtol is None else solver.rtol
        self.atol = solver.atol
        self.first = residual_norm
        self.running = residual_norm.isfinite()
        self.status = torch.where(self.running, SolveStatus.MAX_STEPS, SolveStatus.NON_FINITE)
        self.steps = torch.zeros_like(self.status)

    def judge(
        self, x: Tensor, residual_norm: Tensor, step: Tensor, trusted: Tensor | None = None
    ) -> None:
        """Stop the problems that are solved at x.

        Args:
            step: (T, N), the step that comes next.
            trusted: (T,) bool, where the step is near the distance from the solution.
        """
        size, length = norms(x), norms(step)
        settled = length <= SETTLED * size.maximum(norms(x - self.x0))
        solved = (residual_norm <= self.rtol * self.first) & settled
        if trusted is not None:
            solved = solved | (trusted & (length <= self.rtol * size))
        self.stop(solved | (residual_norm <= self.atol), SolveStatus.CONVERGED)
        vanished = torch.finfo(x.dtype).eps ** 2 * self.first
        self.stop((residual_norm <= vanished) & ~settled, SolveStatus.DIVERGED)

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
