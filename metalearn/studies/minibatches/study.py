"""The outer value of each bilevel method on minibatches, against oracle calls and wall time."""

from __future__ import annotations

import math
from itertools import product
from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass

from metalearn.config.options import (
    STRICT,
    Count,
    Distinct,
    NonNegative,
    Positive,
    Seed,
    one_of,
    one_sentence,
)
from metalearn.errors import UsageError
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.table import Table
from metalearn.studies.minibatches import report as minibatches_report
from metalearn.studies.minibatches.descend import METHODS, Rates, ranked, run, search
from metalearn.studies.minibatches.report import REFERENCE
from metalearn.studies.minibatches.tasks import TASKS, Task


@one_sentence
@dataclass(frozen=True, config=STRICT)
class MinibatchesStudy:
    """The runs of the methods of `metalearn.bilevel` on two tasks, with rates from one grid.

    Args:
        tasks: names in `TASKS`.
        methods: names in `METHODS`.
        seeds: the seeds of the batches of the runs.
        search_seed: the seed of the batches of the search for rates, none of `seeds`.
        examples: the examples of each level that are made for penalties.
        batch: the examples of a minibatch.
        calls: the oracle calls of a run.
        search_calls: those of a run of the search for rates.
        points: the points of a run at which the outer value is measured.
        inner_lrs: the rates of the inner optimiser and the linear system in the grid.
        outer_lrs: the rates of meta in the grid, in the task's unit (`Task.outer_unit`).
        powers: the powers at which all rates fall in the grid; 0: constant rates.
        hypergradients: exact hypergradients of the reference.
    """

    title: ClassVar[str] = "Bilevel methods on minibatches: the outer value against calls and time"
    growing: ClassVar = ("tasks", "methods")

    tasks: Distinct[Annotated[str, one_of(TASKS)]]
    methods: Distinct[Annotated[str, one_of(METHODS)]]
    seeds: Distinct[Seed]
    search_seed: Seed
    examples: Count
    batch: Count
    calls: Count
    search_calls: Count
    points: Count
    inner_lrs: Distinct[Positive]
    outer_lrs: Distinct[Positive]
    powers: Distinct[NonNegative]
    hypergradients: Count

    def __post_init__(self) -> None:
        if self.search_seed in self.seeds:
            raise UsageError(
                f"search_seed={self.search_seed}: expected none of seeds={list(self.seeds)}. Give "
                "another."
            )
        if self.examples < self.batch:
            raise UsageError(
                f"examples={self.examples}: expected at least batch={self.batch}. Give more."
            )

    def cells(self) -> list[Cell]:
        names = [REFERENCE, *self.methods]
        return [{"task": task, "method": name} for task in self.tasks for name in names]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        """Return the rows of a method's search and runs, or of the reference, on the CPU."""
        task, name = TASKS[str(cell["task"])](self.examples), str(cell["method"])
        if name == REFERENCE:
            return [{"part": "reference", "value": task.least(self.hypergradients)}]
        options = product(self.inner_lrs, self.outer_lrs, self.powers)
        grid = [Rates(inner, outer, power) for inner, outer, power in options]
        found = search(task, name, grid, self.search_calls, self.batch, self.search_seed)
        rows: list[Row] = [{"part": "search", **row} for row in found]
        candidates = ranked(grid, [row["value"] for row in found])
        rates, paths = candidates[0], self._paths(task, name, candidates[0])
        replaced = 0
        if not _sound(paths):  # the next rates at which none of the runs diverges
            for i, other in enumerate(candidates[1:], 1):
                if _sound(tried := self._paths(task, name, other, until_lost=True)):
                    rates, paths, replaced = other, tried, i
                    break
        rows += [{"part": "replaced", "value": math.inf, **vars(r)} for r in candidates[:replaced]]
        for seed, path in zip(self.seeds, paths, strict=True):
            rows += [
                {"part": "run", "seed": seed, "point": i, **row, **vars(rates)}
                for i, row in enumerate(path)
            ]
        return rows

    def _paths(
        self, task: Task, name: str, rates: Rates, until_lost: bool = False
    ) -> list[list[dict[str, Any]]]:
        """Return the rows of each seed's run; `until_lost`: up to the first that diverges."""
        paths = []
        for seed in self.seeds:
            paths.append(run(task, name, rates, self.calls, self.batch, self.points, seed))
            if until_lost and not _sound(paths):
                break
        return paths

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return minibatches_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return minibatches_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return minibatches_report.facts(rows)


def _sound(paths: list[list[dict[str, Any]]]) -> bool:
    return all(math.isfinite(row["value"]) for path in paths for row in path)
