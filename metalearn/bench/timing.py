"""Times that can be compared."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from metalearn.machine import now

K = TypeVar("K")


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


@dataclass(frozen=True)
class Times:
    """Seconds by round: on the wall, and of this process on all cores, which neighbours on a shared
    machine disturb less."""

    wall: np.ndarray
    cpu: np.ndarray

    def scaled(self, factor: float) -> Times:
        return Times(self.wall * factor, self.cpu * factor)

    def row(self) -> dict[str, Any]:
        return {
            **spread("seconds", self.wall),
            "cpu_seconds": float(np.median(self.cpu)),
            "rounds": len(self.wall),
        }


def rounds(
    runs: Mapping[K, Callable[[], Any]], count: int, timing_s: float, device: torch.device
) -> dict[K, Times]:
    """Every run once a round, the order rotated by one from round to round."""
    names = list(runs)
    wall: dict[K, list[float]] = {name: [] for name in names}
    cpu: dict[K, list[float]] = {name: [] for name in names}
    gc.freeze()  # what was there before need not be looked through at each collection
    try:
        began = time.perf_counter()
        for i in range(count):
            if i >= 2 and time.perf_counter() - began > timing_s:
                break
            turn = i % len(names)
            for name in names[turn:] + names[:turn]:
                gc.collect()  # what one leaves in cycles is not another's to clear away
                start, busy = now(device), time.process_time()
                runs[name]()
                wall[name].append(now(device) - start)
                cpu[name].append(time.process_time() - busy)
    finally:
        gc.unfreeze()
    return {name: Times(np.array(wall[name]), np.array(cpu[name])) for name in names}


def spread(name: str, values: np.ndarray) -> dict[str, float]:
    """The median, and the quartiles around it."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {name: middle, f"{name}_low": low, f"{name}_high": high}
