"""Means with their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Estimate:
    """A mean and the half-width of its 95 % interval (Student's t)."""

    mean: float
    interval: float

    @classmethod
    def of(cls, values: ArrayLike) -> Estimate:
        """Estimate the mean of independent values, (n,); of fewer than two the interval is inf."""
        x = np.asarray(values, dtype=float)
        if len(x) < 2:
            return cls(float(x.mean()), math.inf)
        width = float(stdtrit(len(x) - 1, 0.975)) * float(x.std(ddof=1)) / math.sqrt(len(x))
        return cls(float(x.mean()), width)

    def percent(self) -> str:
        """Return "97.12 ± 0.31 %", of shares."""
        return f"{100 * self.mean:.2f} ± {100 * self.interval:.2f} %"
