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

from metalearn.system.machine import now

K = TypeVar("K")
Timed = Callable[[], tuple[float, float]]
"""Runs something; its seconds on the wall, and of its process on all cores."""


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
    """Seconds by round: on the wall, and of the process on all cores, which neighbours on a shared
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


def clocked(run: Callable[[], Any], device: torch.device) -> Timed:
    """`run`, made to say how long it takes."""

    def timed() -> tuple[float, float]:
        gc.collect()  # what others leave in cycles is not this one's to clear away
        start, busy = now(device), time.process_time()
        run()
        return now(device) - start, time.process_time() - busy

    return timed


def rounds(runs: Mapping[K, Timed], count: int, timing_s: float) -> dict[K, Times]:
    """Every run once a round, the order rotated by one from round to round; no further round begins
    after `timing_s` seconds, but for the second."""
    names = list(runs)
    taken: dict[K, list[tuple[float, float]]] = {name: [] for name in names}
    gc.freeze()  # what was there before need not be looked through at each collection
    try:
        began = time.perf_counter()
        for i in range(count):
            if i >= 2 and time.perf_counter() - began > timing_s:
                break
            turn = i % len(names)
            for name in names[turn:] + names[:turn]:
                taken[name].append(runs[name]())
    finally:
        gc.unfreeze()
    return {name: Times(*np.array(pairs).T) for name, pairs in taken.items()}


def spread(name: str, values: np.ndarray) -> dict[str, float]:
    """The median, and the quartiles around it."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {name: middle, f"{name}_low": low, f"{name}_high": high}
