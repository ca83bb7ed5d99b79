"""Times that can be compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def seconds(
    *works: Callable[[], Any],
    rounds: int,
    choose: Callable[[Sequence[float]], float] = statistics.median,
) -> list[float]:
    """What each work takes: of so many rounds, in which the works take turns, the median or
    whatever `choose` makes of them."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for run, taken in zip(works, times, strict=True):
            began = time.perf_counter()
            run()
            taken.append(time.perf_counter() - began)
    return [choose(taken) for taken in times]
