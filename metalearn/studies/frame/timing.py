"""Timing of competing functions in turns, so that their times can be compared."""

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
"""A function that runs a work and returns two times in seconds.

They are the wall time, and the time of the process on all cores.
"""


def seconds(
    *works: Callable[[], Any],
    rounds: int,
    choose: Callable[[Sequence[float]], float] = statistics.median,
) -> list[float]:
    """Return the time of each work in seconds.

    Args:
        works: functions, which run in turns.
        rounds: the number of runs of each work.
        choose: the statistic of the times of one work.
    """
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for run, taken in zip(works, times, strict=True):
            began = time.perf_counter()
            run()
            taken.append(time.perf_counter() - began)
    return [choose(taken) for taken in times]


@dataclass(frozen=True)
class Times:
    """The times of a run in each round, in seconds.

    Args:
        wall: wall times.
        cpu: process times on all cores. On a shared machine other processes disturb them less.
    """

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
    """Return a function that runs `run` and returns its times."""

    def timed() -> tuple[float, float]:
        gc.collect()  # collects the reference cycles of other runs outside of the timing
        start, busy = now(device), time.process_time()
        run()
        return now(device) - start, time.process_time() - busy

    return timed


def rounds(runs: Mapping[K, Timed], count: int, timing_s: float) -> dict[K, Times]:
    """Time every run once in each round.

    The order of the runs is rotated by one from round to round. After `timing_s` seconds no further
    round begins, except that there are always at least two.

    Args:
        runs: the timed runs by name.
        count: the maximum number of rounds.
        timing_s: the time limit in seconds.
    """
    names = list(runs)
    taken: dict[K, list[tuple[float, float]]] = {name: [] for name in names}
    gc.freeze()  # excludes the existing objects from each collection
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
    """Return the median of the values as NAME, and the quartiles as NAME_low and NAME_high."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {name: middle, f"{name}_low": low, f"{name}_high": high}
