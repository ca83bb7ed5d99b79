"""The ending of a nonlinear solve: its status, and the sentence that says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

from metalearn.linear_solve import Status


class NotSolved(UserWarning):
    """The warning that a problem's solver ended without a solution; see `SolveStatus`."""


class SolveStatus(IntEnum):
    """The end of a solve, one for each problem. Only `CONVERGED` is a solution."""

    CONVERGED = 0
    MAX_STEPS = 1
    STALLED = 2
    DIVERGED = 3
    SINGULAR = 4
    NON_FINITE = 5
    NO_BRACKET = 6

    @property
    def sentence(self) -> str:
        """The sentence that says what happened and what to do."""
        return _SENTENCES[self]


_SENTENCES = {
    SolveStatus.CONVERGED: "The solver met its tolerance.",
    SolveStatus.MAX_STEPS: "The steps ran out before the tolerance was met. Give more max_steps, a "
    "start nearer the solution, or a larger rtol.",
    SolveStatus.STALLED: "No step lowers the residual, which is at the floor of this precision or "
    "near a point that is no solution. Start elsewhere, use float64, or give a larger rtol.",
    SolveStatus.DIVERGED: "The iterates ran away from any solution. Check that one exists (a "
    "penalty on x makes sure of a minimum), and start nearer to it.",
    SolveStatus.SINGULAR: "The Jacobian is singular where the solver stopped. Start elsewhere, or "
    "remove redundant equations or unknowns.",
    SolveStatus.NON_FINITE: "The function gave an infinity or NaN. Start where the function and "
    "its derivative are finite.",
    SolveStatus.NO_BRACKET: "The function has the same sign at both ends of the bracket. Give "
    "Bisection an interval with a change of sign.",
}

FROM_LINEAR = {
    Status.CONVERGED: SolveStatus.CONVERGED,
    Status.MAX_ITERS: SolveStatus.MAX_STEPS,
    Status.NEGATIVE_CURVATURE: SolveStatus.STALLED,
    Status.BREAKDOWN: SolveStatus.STALLED,
    Status.DIVERGED: SolveStatus.DIVERGED,
    Status.SINGULAR: SolveStatus.SINGULAR,
    Status.NON_FINITE: SolveStatus.NON_FINITE,
}
"""The statuses of `linear_solve` and `fixed_point` as a `SolveStatus`."""


@dataclass(frozen=True)
class Found:
    """The end of a solve on T problems of N unknowns.

    Args:
        x: (T, N), always finite.
        status: (T,) int64, `SolveStatus`.
        steps: (T,) int64.
        residual_norm: (T,), at x; infinite where the function is not finite at x.
    """

    x: Tensor
    status: Tensor
    steps: Tensor
    residual_norm: Tensor
