"""The speed of meta-gradients, compared with other libraries and with the arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from annotated_types import Ge
from matplotlib.figure import Figure
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from metalearn.config.options import STRICT, Count, NonNegative, Some, one_of, one_sentence
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.own_process import keeps_memory
from metalearn.studies.frame.table import Table
from metalearn.studies.frame.timing import Times, clocked, rounds, spread
from metalearn.studies.speed import figures as speed_figures
from metalearn.studies.speed import report as speed_report
from metalearn.studies.speed.competitors import (
    BATCHED,
    COMPETITORS,
    Competitor,
    ours,
)
from metalearn.studies.speed.exact import Reference, same
from metalearn.studies.speed.floor import matrix_product, operations
from metalearn.studies.speed.overhead import SKIPPED, overhead
from metalearn.studies.speed.peers import maml_by_higher
from metalearn.studies.speed.process import Facts, Failed, Worker, full_precision
from metalearn.studies.speed.workloads import WORKLOADS, Run, Workload, setting
from metalearn.system.memory import keep_freed_memory

AXES = {
    "tasks": "tasks",
    "ways": "ways",
    "inner_steps": "steps",
    "cg_iterations": "cg",
    "widths": "channels",
}
"""The axes of the scaling curves, and the field of `Workload` that each one varies."""
CURVES = {"imaml": WORKLOADS["imaml-5w1s"], "maml": replace(WORKLOADS["maml-5w1s-q15"], queries=1)}
"""The workload of each method that the curves vary: 16 tasks of 5 ways and 1 shot."""
KEEPERS = ("all", "ours", "none", "both")
SINGLES = 4
"""The most tasks that a point takes one by one. Its time is scaled to all tasks."""


Rounds = Annotated[int, Ge(2)]
Timing = tuple[str, bool]
"""A competitor's name, and whether its process keeps the memory that it frees."""


def _check_overhead(steps: int) -> int:
    if steps and steps < 2 * SKIPPED:
        raise ValueError(f"0, or at least {2 * SKIPPED}")
    return steps


@one_sentence
@dataclass(frozen=True, config=STRICT)
class SpeedStudy:
    """The time of one meta-gradient of each competitor on each workload.

    Args:
        workloads: names of `WORKLOADS`.
        rounds: the rounds. Every competitor runs once a round, in an order that rotates.
        timing_s: the seconds of a workload or of a point after which no further round begins. At
            least two rounds run.
        differing: times the competitors with another gradient too.
        tasks, ways, inner_steps, cg_iterations, widths: the points of the scaling curves, which
            vary one axis each. [] leaves a curve out.
        curve_rounds: the rounds of a point of a curve.
        overhead_steps: the meta-steps of the training whose time outside the gradient is measured.
            0 leaves it out.
        keep_memory: the processes that keep the memory they free, as `metalearn train` does:
            "all", "ours" or "none". "both": a peer has two processes, one that keeps it ("all")
            and one that does not ("ours"), which are timed in the same rounds. The one process of
            the curves keeps it unless "none".
        copies: the most copies of a task in the batch whose gradient is compared with float64.
    """

    title: ClassVar[str] = "Speed of meta-gradients"
    growing: ClassVar = ("workloads", "tasks", "ways", "inner_steps", "cg_iterations", "widths")

    workloads: Some[Annotated[str, one_of(WORKLOADS)]]
    rounds: Rounds
    timing_s: NonNegative
    differing: bool
    tasks: Sequence[Count]
    ways: Sequence[Count]
    inner_steps: Sequence[Count]
    cg_iterations: Sequence[Count]
    widths: Sequence[Count]
    curve_rounds: Rounds
    overhead_steps: Annotated[int, AfterValidator(_check_overhead)]
    keep_memory: Annotated[str, one_of(KEEPERS)]
    copies: Count

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
        about = {"device": device.type, "keep_memory": self.keep_memory.replace("both", "all")}
        return [{**about, **row} for row in self._measure(cell, device)]

    def _measure(self, at: Any, device: torch.device) -> list[Row]:
        full_precision()
        if at["part"] == "workload":
            return self._workload(WORKLOADS[at["workload"]], device)
        keep_freed_memory(self.keep_memory != "none")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of torch that peers use
            if at["part"] == "overhead":
                return overhead(self.overhead_steps, device)
            return self._point(at["method"], AXES[at["axis"]], at["value"], device)

    def _workload(self, w: Workload, device: torch.device) -> list[Row]:
        every = COMPETITORS[w.method]
        absent = {name: "is not installed" for name, c in every.items() if not c.installed}
        chosen = {
            name: c
            for name, c in every.items()
            if name not in absent and (self.differing or not c.differs)
        }
        workers: dict[Timing, Worker] = {}
        facts: dict[Timing, Facts] = {}
        with ExitStack() as stack:
            for timing in [(name, keep) for name in chosen for keep in self._keep(chosen[name])]:
                name, keep = timing
                if name in absent:  # its other process has failed
                    continue
                try:  # one by one, as some calibrate
                    worker = Worker(torch.get_num_threads(), name, w, device, keep)
                    workers[timing] = stack.enter_context(closing(worker))
                    facts[timing] = worker.facts(0 if chosen[name].differs else self.copies)
                except Failed as failure:
                    _leave_out(failure, workers, absent)
            times, rate = self._timed(workers, absent, device)
        reference = Reference.of(w, device)
        rows: dict[Timing, dict[str, Any]] = {}
        for timing, taken in times.items():
            name, keep = timing
            found, imported = facts[timing], self.keep_memory == "both" and not keep
            rows[timing] = {
                "competitor": name,
                **_described(chosen[name], w),
                **({"keep_memory": "ours"} if imported else {}),
                **taken.row(),
                **reference.errors(found.gradient, found.smooth_gradient, found.task_gradients),
                "peak_bytes": found.peak_bytes,
                "operations": found.operations,
                "floor_operations": operations(w),
                "product_rate": rate,
            }
        ours = [t for t in rows if not rows[t]["library"] and chosen[t[0]].default]
        own = [timing for timing in ours if same(rows[timing])]
        lead = min(own, key=lambda timing: rows[timing]["seconds"], default=None)
        for timing, row in rows.items():
            row["lead"] = timing == lead
            if lead:
                row |= spread("times_ours", times[timing].wall / times[lead].wall)
        left_out = [
            {"competitor": name, **_described(every[name], w), "absent": True, "reason": reason}
            for name, reason in absent.items()
        ]
        return [*rows.values(), *left_out]

    def _keep(self, competitor: Competitor) -> list[bool]:
        """Return whether each process of a competitor keeps the memory that it frees."""
        if self.keep_memory == "both" and competitor.library:
            return [True, False]
        return [keeps_memory(self.keep_memory.replace("both", "all"), competitor.library)]

    def _timed(
        self, workers: dict[Timing, Worker], absent: dict[str, str], device: torch.device
    ) -> tuple[dict[Timing, Times], float]:
        """Return the times, and the best rate of a matrix product.

        If a competitor fails, the timing begins again without it.
        """
        product, per_product = matrix_product(device)
        while True:
            runs = {timing: worker.seconds for timing, worker in workers.items()}
            beside = ("product", False)
            try:
                times = rounds(
                    {**runs, beside: clocked(product, device)}, self.rounds, self.timing_s
                )
                return times, per_product / float(times.pop(beside).wall.min())
            except Failed as failure:
                _leave_out(failure, workers, absent)

    def _point(self, method: str, field: str, value: int, device: torch.device) -> list[Row]:
        varied: Any = {field: value}
        w = replace(CURVES[method], **varied)
        start = setting(w, device)
        some = replace(w, tasks=min(w.tasks, SINGLES))
        singles = [start.of(t) for t in range(some.tasks)]
        batched = ours(BATCHED[method])
        runs: dict[str, Run] = {"batched": batched(start)}
        runs["one by one"] = _each([batched(one) for one in singles])
        if method == "maml" and Competitor(maml_by_higher, "higher").installed:
            runs["higher"] = _each([maml_by_higher(one) for one in singles])
        for run in runs.values():
            run()
        timed = {name: clocked(run, device) for name, run in runs.items()}
        times = rounds(timed, self.curve_rounds, self.timing_s)
        for name in set(times) - {"batched"}:
            times[name] = times[name].scaled(w.tasks / some.tasks)
        return [
            {
                "competitor": name,
                **taken.row(),
                **spread("times_ours", taken.wall / times["batched"].wall),
            }
            for name, taken in times.items()
        ]

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return speed_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return speed_figures.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return speed_report.facts(rows)


def _described(competitor: Competitor, w: Workload) -> dict[str, Any]:
    return {
        "library": competitor.library,
        "differs": competitor.differs,
        "in_flight": 1 if competitor.in_flight == "one" else w.tasks,
        "absent": False,
        "reason": "",
    }


def _leave_out(failure: Failed, workers: dict[Timing, Worker], absent: dict[str, str]) -> None:
    """Leave a peer out. A failure of ours fails the study."""
    if failure.name.startswith("ours"):
        raise failure
    for timing in [timing for timing in workers if timing[0] == failure.name]:
        workers.pop(timing).close()
    absent[failure.name] = failure.reason


def _each(runs: Sequence[Run]) -> Run:
    """Return a run that makes all `runs` in turn and returns the gradient of the last."""
    return lambda: [run() for run in runs][-1]
