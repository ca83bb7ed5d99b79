"""Peak memory and time of one meta-gradient against the number of inner steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from annotated_types import Ge
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass

from metalearn.config.options import (
    STRICT,
    Count,
    Distinct,
    NonNegative,
    Positive,
    one_of,
    one_sentence,
)
from metalearn.errors import UsageError
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.metagrads import check_metagrads
from metalearn.studies.frame.table import Table
from metalearn.studies.memory import report as memory_report
from metalearn.studies.memory.methods import (
    METHODS,
    NETWORKS,
    ONE_GRADIENT,
    REPORTED,
    expected_peak,
    find_method,
    parameter_bytes,
    work,
)
from metalearn.system.machine import now
from metalearn.system.memory import keep_freed_memory, peak_bytes
from metalearn.tree import leaves_of

PARTS = ("steps", "long", "second", "batch")


@one_sentence
@dataclass(frozen=True, config=STRICT)
class MemoryStudy:
    """
    Args:
        parts: what is measured, of `PARTS`: "steps", and where wanted the other three.
        network: where every method is measured, a name of `NETWORKS`.
        steps: inner steps there.
        long_steps: further inner steps there ("long"), for the methods measured `everywhere`.
        second: another network, for those methods ("second").
        second_steps: inner steps there.
        batch: tasks at once on the first network, for those methods ("batch").
        batch_steps: inner steps there.
        repeats: most timed runs, of which the median is taken.
        timing_s: the seconds of a cell's timing after which no further run begins. At least one
            runs.
        limit_gb: a peak that is expected to be higher is predicted instead of measured.
        methods: names of `METHODS`.
        metagrads: further meta-gradients (`named_metagrad`), measured where every method is. Their
            peaks are always measured, whatever `limit_gb`.
    """

    title: ClassVar[str] = "Memory and time of a meta-gradient against inner steps"
    growing: ClassVar = (
        "methods",
        "metagrads",
        "parts",
        "steps",
        "long_steps",
        "second_steps",
        "batch_steps",
    )

    parts: Distinct[Annotated[str, one_of(PARTS)]]
    network: Annotated[str, one_of(NETWORKS)]
    steps: Distinct[Count]
    long_steps: Distinct[Count]
    second: Annotated[str, one_of(NETWORKS)]
    second_steps: Distinct[Count]
    batch: Annotated[int, Ge(2)]
    batch_steps: Distinct[Count]
    repeats: Count
    timing_s: NonNegative
    limit_gb: Positive
    methods: Distinct[Annotated[str, one_of(METHODS)]] = tuple(METHODS)
    metagrads: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_metagrads(self.metagrads, METHODS)
        if missing := sorted(set(REPORTED).difference(self.methods)):
            raise UsageError(
                f"methods has no {missing[0]!r}, with which the report compares the others. Add it."
            )
        if "steps" not in self.parts:
            raise UsageError(
                f"parts={list(self.parts)}: expected steps, and any of {', '.join(PARTS[1:])}. "
                "Add steps."
            )
        if self.network == self.second:
            raise UsageError(
                f"second={self.second}: expected another network than network=. Choose one."
            )
        if len(self.steps) < 2 or set(self.steps).intersection(self.long_steps):
            raise UsageError(
                f"steps={list(self.steps)}, long_steps={list(self.long_steps)}: expected at least "
                "two of the first, and none of them among the second. Give other numbers."
            )

    def cells(self) -> list[Cell]:
        everywhere = [name for name in self.methods if METHODS[name].everywhere]
        parts: dict[str, tuple[str, int, Sequence[int], list[str]]] = {
            "steps": (self.network, 1, self.steps, [*self.methods, *self.metagrads]),
            "long": (self.network, 1, self.long_steps, everywhere),
            "second": (self.second, 1, self.second_steps, everywhere),
            "batch": (self.network, self.batch, self.batch_steps, everywhere),
        }
        found: list[Cell] = []
        for network, tasks, steps, names in (parts[p] for p in PARTS if p in self.parts):
            where: dict[str, Any] = {"network": network, "tasks": tasks}
            baseline = {**where, "method": ONE_GRADIENT, "steps": 1}
            if baseline not in found:
                found.append(baseline)
            found += [{**where, "method": n, "steps": k} for n in names for k in sorted(steps)]
        return found

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        keep_freed_memory()
        at: Any = cell
        limit = 1e9 * self.limit_gb
        where = (at["network"], at["tasks"], device)
        name, steps = at["method"], at["steps"]
        expected = expected_peak(*where, name, steps)
        if expected > limit:
            return [{"peak_bytes": round(expected), "predicted": True}]

        run = work(*where, name, steps)
        found, peak = peak_bytes(run, device)
        runs = {"own": run}
        other = None if name == ONE_GRADIENT else find_method(name).same_as
        if other is not None and expected_peak(*where, other, steps) <= limit:
            runs["other"] = work(*where, other, steps)
        times, results = self._timed(runs, device)
        row: dict[str, Any] = {
            "peak_bytes": peak,
            "predicted": False,
            "seconds": statistics.median(times["own"]),
            "runs": len(times["own"]),
            "cg_iterations": _iterations(found),
        }
        if name == ONE_GRADIENT:
            row["parameter_bytes"] = parameter_bytes(*where)
        if "other" in runs:
            ratios = [a / b for a, b in zip(times["own"], times["other"], strict=True)]
            row |= {
                "same_as": other,
                "gradient_difference": _difference(found.grads, results["other"].grads),
                "time_ratio": statistics.median(ratios),
            }
        return [row]

    def _timed(
        self, runs: dict[str, Callable[[], Any]], device: torch.device
    ) -> tuple[dict[str, list[float]], dict[str, Any]]:
        """Seconds of each, in rounds of all, and what each gave in the last."""
        times: dict[str, list[float]] = {which: [] for which in runs}
        results: dict[str, Any] = {}
        began = time.perf_counter()
        for i in range(self.repeats):
            if i and time.perf_counter() - began > self.timing_s:
                break
            for which, run in runs.items():
                results.pop(which, None)
                start = now(device)
                results[which] = run()
                times[which].append(now(device) - start)
        return times, results

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return memory_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return memory_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return memory_report.facts(rows)


def _iterations(found: Any) -> int | None:
    """The fewest that a task's solve took."""
    certificate = getattr(found, "certificate", None)
    return None if certificate is None else int(certificate.iterations.min())


def _difference(a: Any, b: Any) -> float:
    """|a - b| / |b| over all leaves."""
    first, second = (torch.cat([x.flatten().double() for x in leaves_of(t)]) for t in (a, b))
    return float((first - second).norm() / second.norm())
