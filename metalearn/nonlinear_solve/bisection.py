"""The bisection of an interval with a change of sign."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.linear_solve.system import require
from metalearn.nonlinear_solve.progress import RowFunction, default_rtol
from metalearn.nonlinear_solve.result import Found, SolveStatus


@dataclass(frozen=True)
class Bisection:
    """The bisection method, for problems of one unknown.

    The interval [low, high] is halved until its width is `rtol` |x|, or the rounding unit times its
    first width. The start x0 gives the shape and type alone. A change of sign that is a jump or a
    pole ends as STALLED: the residual must fall to 1e-3 of its larger value at low and high.

    Args:
        low, high: the ends of the interval, of different signs of the function.
        rtol: the tolerance on the interval's width over |x|; None: eps^(2/3).

    Raises:
        ValueError: low is not below high, an end is not finite, or rtol is negative.
    """

    low: float
    high: float
    rtol: float | None = None

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(
                f"Bisection(low={self.low}, high={self.high}): expected finite ends with low < "
                "high. Change them."
            )
        if self.rtol is not None:
            require(self, 0, "rtol")

    def __call__(self, residual: RowFunction, x0: Tensor, max_steps: int) -> Found:
        if x0.shape[1] != 1:
            raise ValueError(
                f"x0 has {x0.shape[1]} unknowns a problem: Bisection expects 1. Take Newton, or "
                "batched=True for many problems of one unknown."
            )
        rtol = default_rtol(x0.dtype) if self.rtol is None else self.rtol
        low, high = torch.full_like(x0, self.low), torch.full_like(x0, self.high)
        f_low, f_high = residual(low), residual(high)
        finite = f_low.isfinite() & f_high.isfinite()
        largest = f_low.abs().maximum(f_high.abs())
        status = torch.full_like(x0, SolveStatus.MAX_STEPS, dtype=torch.int64)
        status = torch.where(f_low.sign() * f_high.sign() > 0, SolveStatus.NO_BRACKET, status)
        status = torch.where(finite, status, SolveStatus.NON_FINITE)
        x, f = torch.where(f_low.abs() <= f_high.abs(), low, high), f_low
        f = torch.where(f_low.abs() <= f_high.abs(), f_low, f_high)
        steps = torch.zeros_like(status)
        running = (status == SolveStatus.MAX_STEPS) & (f != 0)
        least = torch.finfo(x0.dtype).eps * (self.high - self.low)
        for _ in range(max_steps):
            if not running.any():
                break
            middle = low + (high - low) / 2
            f_middle = residual(middle)
            steps += running
            finite = finite & (f_middle.isfinite() | ~running)
            running = running & finite
            x, f = torch.where(running, middle, x), torch.where(running, f_middle, f)
            below = f_middle.sign() == f_low.sign()
            low = torch.where(running & below, middle, low)
            high = torch.where(running & ~below, middle, high)
            narrow = high - low <= (rtol * middle.abs()).clamp_min(least)
            running = running & ~narrow & (f_middle != 0)
        done = (status == SolveStatus.MAX_STEPS) & finite & ~running
        crossed = f.abs() <= 1e-3 * largest
        ending = torch.where(crossed, SolveStatus.CONVERGED, SolveStatus.STALLED)
        status = torch.where(done, ending, status)
        status = torch.where(finite, status, SolveStatus.NON_FINITE)
        norm = torch.where(f.isfinite(), f.abs(), torch.inf)
        return Found(x, status[:, 0], steps[:, 0], norm[:, 0])
