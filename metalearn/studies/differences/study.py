"""What decides iMAML's accuracy: one change at a time from the authors' code and paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure

from metalearn import config
from metalearn.errors import UsageError, check_known
from metalearn.studies.differences import report as differences_report
from metalearn.studies.differences.changes import BASES, CHANGES, Change
from metalearn.studies.fewshot.runs import Budget, StudyRun, words_of_run
from metalearn.studies.fewshot.study import measured
from metalearn.studies.frame import Cell, Row
from metalearn.training.protocol import Protocol


@dataclass(frozen=True)
class DifferencesStudy:
    """
    Args:
        bases: of `BASES`.
        subjects: of the changes to make; empty: all. A base itself is always measured.
        seeds: of weights and training tasks, of every change.
        base_seeds: further ones of the bases alone: their spread tells what chance does.
        steps: of every run alike; a larger number goes on with the runs.
        words: further words of `metalearn train`, for every run.
        validation_every, validation_tasks: what the model is chosen by.
        test_tasks: that it is judged by.
        inner_steps: at test, beside the run's own number.
        runs: the folder of the runs.
    """

    title: ClassVar[str] = "What decides iMAML's accuracy: one change at a time"

    bases: Sequence[str]
    subjects: Sequence[str]
    seeds: Sequence[int]
    base_seeds: Sequence[int]
    steps: int
    words: Sequence[str]
    validation_every: int
    validation_tasks: int
    test_tasks: int
    inner_steps: Sequence[int]
    runs: str

    def __post_init__(self) -> None:
        Budget(self.steps)
        Protocol(tasks=self.test_tasks, inner_steps=self.inner_steps)
        if not self.seeds or not self.bases:
            raise UsageError("seeds=[] or bases=[]; expected at least one of each")
        known = {change.subject for change in CHANGES if change.subject}
        check_known("bases", self.bases, BASES)
        check_known("subjects", self.subjects, known)
        config.compose("train", self._words(CHANGES[0], self.seeds[0]))

    def changes(self) -> dict[str, Change]:
        """Those asked for, by name."""
        return {
            change.name: change
            for change in CHANGES
            if change.base in self.bases
            and (not change.subject or not self.subjects or change.subject in self.subjects)
        }

    def cells(self) -> list[Cell]:
        """Seed by seed; those of the bases alone come last."""
        more = [seed for seed in self.base_seeds if seed not in self.seeds]
        return [
            {"change": name, "seed": seed}
            for seed in (*self.seeds, *more)
            for name, change in self.changes().items()
            if seed in self.seeds or not change.subject
        ]

    def _words(self, change: Change, seed: int) -> list[str]:
        validated = (self.validation_every, self.validation_tasks)
        own = words_of_run(BASES[change.base], seed, self.steps, *validated)
        return [*own, *self.words, *change.words]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        of: Any = cell
        change = self.changes()[of["change"]]
        run = StudyRun.of(Path(self.runs), self._words(change, of["seed"]), device)
        rows = measured(run, Budget(self.steps), self.test_tasks, self.inner_steps, device)
        about = {"base": change.base, "subject": change.subject, "value": change.value}
        return [{**about, **row} for row in rows]

    def tables(self, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
        return differences_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return differences_report.figures(rows)

    def findings(self, rows: pd.DataFrame) -> list[str]:
        return differences_report.findings(rows)
