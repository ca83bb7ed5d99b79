"""The convergence rates of the bilevel methods, beside those of their papers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass

from metalearn.config.options import STRICT, Count, Seed, Some, one_of, one_sentence
from metalearn.errors import UsageError
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.table import Table
from metalearn.studies.rates import report as rates_report
from metalearn.studies.rates.curves import CURVES, PROBLEMS
from metalearn.studies.rates.measure import Sizes

LEAST_STEPS = 16


@one_sentence
@dataclass(frozen=True, config=STRICT)
class RatesStudy:
    """The error of each method's hypergradient, and the slope of its fall.

    Args:
        curves: names in `CURVES`.
        problems: names in `PROBLEMS`.
        steps: outer steps of a curve with minibatches or a moving meta.
        replicas: independent runs of which an error is the root mean square.
        batch: examples of a minibatch.
        examples: of each level, where minibatches are drawn.
        seed: of the order of the batches.
    """

    title: ClassVar[str] = "Convergence rates of bilevel methods on stochastic problems"
    growing: ClassVar = ("curves", "problems")

    curves: Some[Annotated[str, one_of(tuple(CURVES))]]
    problems: Some[Annotated[str, one_of(tuple(PROBLEMS))]]
    steps: Count
    replicas: Count
    batch: Count
    examples: Count
    seed: Seed

    def __post_init__(self) -> None:
        if self.steps < LEAST_STEPS:
            raise UsageError(
                f"steps={self.steps}: expected at least {LEAST_STEPS}, for a slope. Give more."
            )
        if self.examples < 2 * self.batch:
            raise UsageError(
                f"examples={self.examples}: expected at least two batches of batch={self.batch}. "
                "Give more."
            )
        if not self.cells():
            raise UsageError(
                f"problems={list(self.problems)}: expected quadratic, the only problem of these "
                "curves. Add it, or choose other curves."
            )

    def cells(self) -> list[Cell]:
        return [
            {"curve": curve, "problem": problem}
            for curve in self.curves
            for problem in self.problems
            if problem in CURVES[curve].problems
        ]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        """Return a row for each point, on the CPU whatever the device."""
        curve, make = CURVES[str(cell["curve"])], PROBLEMS[str(cell["problem"])]
        sizes = Sizes(self.steps, self.replicas, self.batch, self.examples, int(self.seed))
        theory = curve.slope(make(), sizes)
        return [
            {"x": x, "error": error, "theory": theory} for x, error in curve.measure(make, sizes)
        ]

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return rates_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return rates_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return rates_report.facts(rows)
