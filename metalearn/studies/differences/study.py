"""The study of differences: one change at a time from the authors' code and other bases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass

from metalearn import config
from metalearn.config.options import STRICT, Natural, Seed, Some, one_of, one_sentence
from metalearn.studies.differences import report as differences_report
from metalearn.studies.differences.changes import BASES, CHANGES, Change
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.table import Table
from metalearn.studies.frame.trained import TrainedStudy
from metalearn.training.protocol import EvaluationProtocol

SUBJECTS = tuple(dict.fromkeys(change.subject for change in CHANGES if change.subject))


@one_sentence
@dataclass(frozen=True, config=STRICT)
class DifferencesStudy(TrainedStudy):
    """Train each base, and each change of it.

    Args:
        bases: names of `BASES`.
        subjects: the subjects of the changes to make; empty: all. The bases are always measured.
        base_seeds: further seeds of the bases alone. Their spread gives the prediction intervals.
        inner_steps: inner steps at test, beside the run's own number.
    """

    title: ClassVar[str] = "What decides iMAML's accuracy: one change at a time"
    growing: ClassVar = ("bases", "subjects", "seeds", "base_seeds")

    bases: Some[Annotated[str, one_of(BASES)]]
    subjects: Sequence[Annotated[str, one_of(SUBJECTS)]]
    base_seeds: Sequence[Seed]
    inner_steps: Sequence[Natural]

    def __post_init__(self) -> None:
        config.compose("train", self.run_words(self.cells()[0]))

    @property
    def protocol(self) -> EvaluationProtocol:
        return EvaluationProtocol(tasks=self.test_tasks, inner_steps=self.inner_steps)

    def changes(self) -> dict[str, Change]:
        """Return the changes to make, by name."""
        return {
            change.name: change
            for change in CHANGES
            if change.base in self.bases
            and (not change.subject or not self.subjects or change.subject in self.subjects)
        }

    def cells(self) -> list[Cell]:
        """Return the cells seed by seed; the bases' further seeds come last."""
        more = [seed for seed in self.base_seeds if seed not in self.seeds]
        return [
            {"change": name, "seed": seed}
            for seed in (*self.seeds, *more)
            for name, change in self.changes().items()
            if seed in self.seeds or not change.subject
        ]

    def run_words(self, cell: Any) -> list[str]:
        change = self.changes()[cell["change"]]
        own = self.base_words(BASES[change.base], cell["seed"])
        return [*own, *self.overrides, *change.overrides]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        change = self.changes()[str(cell["change"])]
        about = {"base": change.base, "subject": change.subject, "value": change.value}
        return [{**about, **row} for row in super().measure(cell, device)]

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return differences_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return differences_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return differences_report.facts(rows)
