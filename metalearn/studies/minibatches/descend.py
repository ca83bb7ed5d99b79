"""The runs of a method on a task, with the outer value along the way, and the search for rates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from metalearn.bilevel import (
    BOME,
    F2SA,
    SABA,
    SOBA,
    AmIGO,
    Descent,
    Method,
    StocBiO,
    TruncatedUnrolling,
)
from metalearn.bilevel.oracle import Gradients, Oracle, Products
from metalearn.metagrad import NonFiniteGradient
from metalearn.studies.frame.batch_loader import batches
from metalearn.studies.minibatches.tasks import Task

STEPS = 10
"""The inner steps, the steps on the linear system and the window of the methods that have them."""


@dataclass(frozen=True)
class Kind:
    """A method at a given inner rate.

    Args:
        make: makes the method; its linear system has the inner rate.
        inner_steps: the steps of the inner optimiser in an outer step.
        calls: the oracle calls of an outer step.
    """

    make: Callable[[float], Method]
    inner_steps: int
    calls: int


METHODS: dict[str, Kind] = {
    "SOBA": Kind(lambda lr: SOBA(lr), 1, 3),
    "SABA": Kind(lambda lr: SABA(lr), 1, 3),
    "AmIGO": Kind(lambda lr: AmIGO(STEPS, STEPS, lr), STEPS, 3 * STEPS + 3),
    "stocBiO": Kind(lambda lr: StocBiO(STEPS, STEPS, lr), STEPS, 3 * STEPS + 3),
    "truncated unrolling": Kind(lambda lr: TruncatedUnrolling(STEPS, STEPS), STEPS, 3 * STEPS + 1),
    "F2SA": Kind(lambda lr: F2SA(STEPS, 10.0), STEPS, 3 * STEPS + 3),
    "BOME": Kind(lambda lr: BOME(STEPS, lr), 1, STEPS + 3),
}


@dataclass(frozen=True)
class Rates:
    """The rates of a run.

    Args:
        inner: the rate of the inner optimiser and of the linear system.
        outer: that of meta, in the task's unit.
        power: all rates fall as (1 + 20 t / T)^-power over the T outer steps.
    """

    inner: float
    outer: float
    power: float


class CountedOracle(Oracle):
    """An oracle that counts its calls: a gradient is one, a gradient with a product two."""

    calls = 0

    def inner(self, *args: Any, **options: Any) -> Gradients:
        self.calls += 1
        return super().inner(*args, **options)

    def outer(self, *args: Any, **options: Any) -> Gradients:
        self.calls += 1
        return super().outer(*args, **options)

    def products(self, *args: Any, **options: Any) -> Products:
        self.calls += 2
        return super().products(*args, **options)


def run(
    task: Task, name: str, rates: Rates, calls: int, batch: int, points: int, seed: int
) -> list[dict[str, Any]]:
    """Return a row for each point of a run, from the start to the given number of oracle calls.

    The numbers of calls grow in equal ratios. Neither the evaluation of a point counts, nor its
    time. A run that diverges ends in a row with the value inf.
    """
    kind, fixed = METHODS[name], name == "SABA"
    total = max(calls // kind.calls, 1)

    def falling(steps: int) -> Any:
        return partial(LambdaLR, lr_lambda=lambda t: (1 + 20 * t / (total * steps)) ** -rates.power)

    began = time.perf_counter()
    descent = Descent(
        task.problem,
        kind.make(rates.inner),
        task.meta,
        batches(task.inner, batch, 2 * seed, fixed),
        batches(task.outer, batch, 2 * seed + 1, fixed),
        partial(SGD, lr=rates.inner),
        partial(SGD, lr=rates.outer * task.outer_unit),
        inner_scheduler=falling(kind.inner_steps),
        outer_scheduler=falling(1),
    )
    descent.oracle = oracle = CountedOracle(task.problem, descent.device)
    if fixed:  # so that the first pass over the data counts
        began = time.perf_counter()
        descent.memory = descent.method.begin(descent)
    seconds, rows = time.perf_counter() - began, []
    wanted = spread(oracle.calls + kind.calls, calls, points)
    rows.append(_row(task, descent.meta, oracle.calls, seconds))
    while wanted:
        began = time.perf_counter()
        try:
            descent.step()
        except NonFiniteGradient:
            return [*rows, {"calls": oracle.calls, "seconds": seconds, "value": math.inf}]
        seconds += time.perf_counter() - began
        if oracle.calls >= wanted[0]:
            wanted = [n for n in wanted if n > oracle.calls]
            rows.append(_row(task, descent.meta, oracle.calls, seconds))
    return rows


def spread(first: int, last: int, points: int) -> list[int]:
    """Return whole numbers in about equal ratios, from the first to the last; the last if one."""
    start = last if points == 1 else min(first, last)
    return sorted({round(n) for n in np.geomspace(start, last, points)})


def _row(task: Task, meta: dict[str, Tensor], calls: int, seconds: float) -> dict[str, Any]:
    value = task.value({name: x.detach() for name, x in meta.items()})
    return {"calls": calls, "seconds": seconds, "value": value if value < math.inf else math.inf}


def search(
    task: Task, name: str, grid: Sequence[Rates], calls: int, batch: int, seed: int
) -> list[dict[str, Any]]:
    """Return the last row of a run for each rates of the grid."""
    return [{**run(task, name, rates, calls, batch, 1, seed)[-1], **vars(rates)} for rates in grid]


def ranked(grid: Sequence[Rates], values: Sequence[float]) -> list[Rates]:
    """Return the rates of a search, best first, without those that diverged unless all did."""
    order = sorted(range(len(grid)), key=lambda i: values[i])
    return [grid[i] for i in order if math.isfinite(values[i])] or list(grid[:1])
