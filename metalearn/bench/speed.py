"""The speed of meta-gradients beside that of other libraries, and beside the arithmetic."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from metalearn.bench import speed_report
from metalearn.bench.speed_competitors import COMPETITORS, WAYS, Competitor, Ours, ours
from metalearn.bench.speed_floor import counted, matrix_product, operations
from metalearn.bench.speed_overhead import SKIPPED, overhead
from metalearn.bench.speed_peers import maml_by_higher
from metalearn.bench.speed_workloads import (
    WORKLOADS,
    Run,
    Workload,
    exact,
    relative_error,
    rounding,
    setting,
)
from metalearn.bench.timing import rounds, spread
from metalearn.errors import UsageError
from metalearn.memory import keep_freed_memory, peak_bytes
from metalearn.study import Cell, Row

AXES = {
    "tasks": "tasks",
    "ways": "ways",
    "inner_steps": "steps",
    "cg_iterations": "cg",
    "widths": "channels",
}
"""The axes of the scaling curves, and the `Workload`'s field that each one varies."""
CURVES = {"imaml": WORKLOADS["imaml-5w1s"], "maml": replace(WORKLOADS["maml-5w1s-q15"], queries=1)}
"""What they start from: each method on 16 tasks of 5 ways and 1 shot."""
SINGLES = 4
"""Tasks that a curve's point takes one by one; more of them take as much more."""


@dataclass(frozen=True)
class SpeedStudy:
    """
    Args:
        workloads: names of `WORKLOADS`.
        rounds: in which every competitor runs once, in an order that rotates.
        timing_s: seconds of a workload's or a curve's point after which no further round begins;
            two are made anyhow.
        differing: times those too whose gradient is another one.
        tasks, ways, inner_steps, cg_iterations, widths: points of the scaling curves, each axis
            varied alone; [] leaves one out.
        curve_rounds: as `rounds`, of a curve's point.
        overhead_steps: meta-steps of a training whose time around the gradient is taken; 0: none.
        keep_memory: freed memory is kept by the process, as in training, by which all gain.
    """

    title: ClassVar[str] = "Speed of meta-gradients"

    workloads: Sequence[str]
    rounds: int
    timing_s: float
    differing: bool
    tasks: Sequence[int]
    ways: Sequence[int]
    inner_steps: Sequence[int]
    cg_iterations: Sequence[int]
    widths: Sequence[int]
    curve_rounds: int
    overhead_steps: int
    keep_memory: bool

    def __post_init__(self) -> None:
        if not self.workloads or not set(self.workloads) <= set(WORKLOADS):
            raise UsageError(
                f"workloads={list(self.workloads)}; expected any of {', '.join(WORKLOADS)}"
            )
        for name in AXES:
            values = getattr(self, name)
            if values and min(values) < 1:
                raise UsageError(f"{name}={list(values)}; expected numbers of at least 1")
        if self.rounds < 2 or self.curve_rounds < 2 or not self.timing_s >= 0:
            raise UsageError(
                f"rounds={self.rounds}, curve_rounds={self.curve_rounds}, "
                f"timing_s={self.timing_s}; expected at least 2, 2 and 0"
            )

        if self.overhead_steps and self.overhead_steps < 2 * SKIPPED:
            raise UsageError(
                f"overhead_steps={self.overhead_steps}; expected 0, or at least {2 * SKIPPED}"
            )

    def cells(self) -> list[Cell]:
        found: list[Cell] = [{"part": "workload", "workload": name} for name in self.workloads]
        for axis, field in AXES.items():
            for method in ("imaml",) if field == "cg" else tuple(CURVES):
                found += [
                    {"part": "curve", "method": method, "axis": axis, "value": value}
                    for value in sorted(getattr(self, axis))
                ]
        if self.overhead_steps:
            found.append({"part": "overhead"})
        return found

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        if self.keep_memory:
            keep_freed_memory()
        at: Any = cell
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peers' own, of what torch deprecates
            if at["part"] == "workload":
                return self._workload(WORKLOADS[at["workload"]], device)
            if at["part"] == "overhead":
                return overhead(self.overhead_steps, device)
            return self._point(at["method"], AXES[at["axis"]], at["value"], device)

    def _workload(self, w: Workload, device: torch.device) -> list[Row]:
        chosen = {
            name: c
            for name, c in COMPETITORS[w.method].items()
            if c.installed and (self.differing or not c.differs)
        }
        start = setting(w, device)
        runs: dict[str, Run] = {name: c.make(start.apart()) for name, c in chosen.items()}
        if _parts(runs["ours, parts"]) == 1:  # it would be `ours` again
            del runs["ours, parts"], chosen["ours, parts"]
        reference = exact(start)
        lowest = rounding(start, reference)
        facts = {
            name: {
                "error": relative_error(runs[name](), reference),
                "error_smooth": math.nan,
                "peak_bytes": peak_bytes(runs[name], device)[1],
                "operations": w.tasks * counted(c.make(start.of(0))),
            }
            for name, c in chosen.items()
        }
        smooth = setting(replace(w, activation="silu", tasks=min(w.tasks, 2)), device)
        reference = exact(smooth)
        for name, c in chosen.items():
            facts[name]["error_smooth"] = relative_error(c.make(smooth.apart())(), reference)

        product, per_product = matrix_product(device)
        times = rounds({**runs, "product": product}, self.rounds, self.timing_s, device)
        rate = per_product / float(np.median(times.pop("product").wall))
        floor = operations(w) / rate
        own = [name for name, c in chosen.items() if not c.library and not c.differs]
        lead = min(own, key=lambda name: float(np.median(times[name].wall)))
        return [
            {
                "competitor": name,
                **_described(c, w, _parts(runs[name])),
                **times[name].row(),
                "lead": name == lead,
                **spread("times_ours", times[name].wall / times[lead].wall),
                **facts[name],
                "rounding": lowest,
                "floor_operations": operations(w),
                "product_rate": rate,
                "over_floor": float(np.median(times[name].wall)) / floor,
            }
            for name, c in chosen.items()
        ] + [
            {"competitor": name, **_described(c, w), "absent": True}
            for name, c in COMPETITORS[w.method].items()
            if not c.installed
        ]

    def _point(self, method: str, field: str, value: int, device: torch.device) -> list[Row]:
        varied: Any = {field: value}
        w = replace(CURVES[method], **varied)
        start = setting(w, device)
        some = replace(w, tasks=min(w.tasks, SINGLES))
        singles = [start.of(t) for t in range(some.tasks)]
        batched = ours(WAYS[method])
        runs: dict[str, Run] = {"batched": batched(start)}
        runs["one by one"] = _each([batched(one) for one in singles])
        if method == "maml" and Competitor(maml_by_higher, "higher").installed:
            runs["higher"] = _each([maml_by_higher(one) for one in singles])
        parts = ours(WAYS[method], measured=True)(start).split.parts
        for run in runs.values():
            run()
        times = rounds(runs, self.curve_rounds, self.timing_s, device)
        for name in set(times) - {"batched"}:
            times[name] = times[name].scaled(w.tasks / some.tasks)
        return [
            {
                "competitor": name,
                **taken.row(),
                **spread("times_ours", taken.wall / times["batched"].wall),
                "parts": parts if name == "batched" else None,
            }
            for name, taken in times.items()
        ]

    def tables(self, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
        return speed_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return speed_report.figures(rows)

    def findings(self, rows: pd.DataFrame) -> list[str]:
        return speed_report.findings(rows)


def _described(competitor: Competitor, w: Workload, parts: int = 1) -> dict[str, Any]:
    return {
        "library": competitor.library,
        "differs": competitor.differs,
        "parts": parts,
        "in_flight": 1 if competitor.in_flight == "one" else math.ceil(w.tasks / parts),
        "absent": False,
    }


def _parts(run: Run) -> int:
    return run.split.parts if isinstance(run, Ours) else 1


def _each(runs: Sequence[Run]) -> Run:
    """One after the other; its value is the last one's."""
    return lambda: [run() for run in runs][-1]
