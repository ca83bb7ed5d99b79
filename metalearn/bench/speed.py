"""The speed of meta-gradients beside that of other libraries, and beside the arithmetic."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from metalearn.bench import speed_report
from metalearn.bench.speed_competitors import BATCHED, COMPETITORS, Competitor, one_by_one
from metalearn.bench.speed_floor import counted, matrix_product, now, operations
from metalearn.bench.speed_peers import maml_by_higher
from metalearn.bench.speed_workloads import (
    WORKLOADS,
    Setting,
    Workload,
    exact,
    relative_error,
    setting,
)
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

    def cells(self) -> list[Cell]:
        found: list[Cell] = [{"part": "workload", "workload": name} for name in self.workloads]
        for axis, field in AXES.items():
            for method in ("imaml",) if field == "cg" else tuple(CURVES):
                found += [
                    {"part": "curve", "method": method, "axis": axis, "value": value}
                    for value in sorted(getattr(self, axis))
                ]
        return found

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        if self.keep_memory:
            keep_freed_memory()
        at: Any = cell
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peers' own, of what torch deprecates
            if at["part"] == "workload":
                return self._workload(WORKLOADS[at["workload"]], device)
            return self._point(at["method"], AXES[at["axis"]], at["value"], device)

    def _workload(self, w: Workload, device: torch.device) -> list[Row]:
        chosen = {
            name: c
            for name, c in COMPETITORS[w.method].items()
            if c.installed and (self.differing or not c.differs)
        }
        start = setting(w, device)
        runs = {name: c.make(start.apart()) for name, c in chosen.items()}
        reference = exact(start)
        facts = {
            name: {
                "error": relative_error(runs[name](), reference),
                "error_smooth": None,
                "peak_bytes": peak_bytes(runs[name], device)[1],
                "operations": w.tasks * counted(c.make(_one_task(start))),
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
        ours = times["ours"].wall
        return [
            {
                "competitor": name,
                **_described(c, w),
                **times[name].row(),
                **_spread("times_ours", times[name].wall / ours),
                **facts[name],
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
        ways = {"batched": BATCHED[method], "one by one": one_by_one(BATCHED[method])}
        if method == "maml" and Competitor(maml_by_higher, "higher").installed:
            ways["higher"] = maml_by_higher
        runs = {name: make(start.apart()) for name, make in ways.items()}
        for run in runs.values():
            run()
        times = rounds(runs, self.curve_rounds, self.timing_s, device)
        return [
            {
                "competitor": name,
                **taken.row(),
                **_spread("times_ours", taken.wall / times["batched"].wall),
            }
            for name, taken in times.items()
        ]

    def tables(self, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
        return speed_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return speed_report.figures(rows)

    def findings(self, rows: pd.DataFrame) -> list[str]:
        return speed_report.findings(rows)


@dataclass(frozen=True)
class Times:
    """Seconds by round: on the wall, and of this process on all cores, which neighbours on a shared
    machine disturb less."""

    wall: np.ndarray
    cpu: np.ndarray

    def row(self) -> dict[str, Any]:
        return {
            **_spread("seconds", self.wall),
            "cpu_seconds": float(np.median(self.cpu)),
            "rounds": len(self.wall),
        }


def rounds(
    runs: Mapping[str, Callable[[], Any]], count: int, timing_s: float, device: torch.device
) -> dict[str, Times]:
    """Every run once a round, the order rotated by one from round to round."""
    names = list(runs)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
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
    return {name: Times(np.array(wall[name]), np.array(cpu[name])) for name in names}


def _spread(name: str, values: np.ndarray) -> dict[str, float]:
    """The median, and the quartiles around it."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {name: middle, f"{name}_low": low, f"{name}_high": high}


def _described(competitor: Competitor, w: Workload) -> dict[str, Any]:
    return {
        "library": competitor.library,
        "differs": competitor.differs,
        "in_flight": 1 if competitor.in_flight == "one" else w.tasks,
        "absent": False,
    }


def _one_task(start: Setting) -> Setting:
    """Its first task alone; the counter takes a grouped convolution's weight gradient for as many
    as there are groups."""
    one = start.apart()
    return replace(one, workload=replace(one.workload, tasks=1), task=one.task[0:1])
