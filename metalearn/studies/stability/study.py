"""The collapse of iMAML's training, with an unstable and a stable inner loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass

from metalearn import config
from metalearn.config.options import STRICT, Count, Some, one_of, one_sentence
from metalearn.errors import UsageError
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.study_run import Budget
from metalearn.studies.frame.table import Table
from metalearn.studies.frame.trained import TrainedStudy
from metalearn.studies.stability import report as stability_report
from metalearn.training.metrics_file import MetricsFile

FIXED = "fixed rate"
SOLVERS = {
    FIXED: "metagrad=imaml",
    "rate found by each task": "metagrad=imaml_stable",
}
"""The inner solvers that are compared, each with its override of `metalearn train`."""
WINDOWS = 100
"""The number of equal stretches of meta-steps, over each of which a curve is averaged."""


@one_sentence
@dataclass(frozen=True, config=STRICT)
class StabilityStudy(TrainedStudy):
    """Train iMAML as published, and with only the inner solver made stable.

    Args:
        experiment: an experiment whose inner solver is gradient descent.
        solvers: names of `SOLVERS`.
        fixed_rate_steps: the meta-steps of a run with a fixed rate, which collapses long before the
            end of the others.
    """

    title: ClassVar[str] = "iMAML's collapse: the inner loop's edge of stability"
    growing: ClassVar = ("seeds", "solvers")

    experiment: str
    solvers: Some[Annotated[str, one_of(SOLVERS)]]
    fixed_rate_steps: Count

    def __post_init__(self) -> None:
        if self.fixed_rate_steps > self.steps:
            raise UsageError(
                f"fixed_rate_steps={self.fixed_rate_steps}: expected at most steps={self.steps}. "
                "Give a smaller number."
            )
        config.compose("train", self.run_words(self.cells()[0]))

    def cells(self) -> list[Cell]:
        """Return the cells seed by seed, so that both solvers of the first seed come first."""
        return [{"solver": s, "seed": seed} for seed in self.seeds for s in self.solvers]

    def run_words(self, cell: Any) -> list[str]:
        own = self.base_words(self.experiment, cell["seed"])
        own.append(f"steps={self._steps(cell)}")
        return [*own, SOLVERS[cell["solver"]], *self.overrides]

    def _steps(self, cell: Any) -> int:
        return self.fixed_rate_steps if cell["solver"] == FIXED else self.steps

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        """Return "stretch" rows (`stretches`), "validation" rows and a "test" row for each mode."""
        run = self.run_of(cell, device)
        steps = self._steps(cell)
        stopped = run.train(Budget(steps))
        edge = 2 / float(run.config.metagrad.inner.lr)
        rows = stretches(run.folder / "metrics.jsonl", steps)
        judged = run.judged(self.protocol, device)
        about = {"edge": edge, "stopped": stopped, "threads": run.summary().get("threads")}
        about["commit"] = run.summary().get("commit")
        return [
            *({"part": "stretch", **row} for row in rows),
            *({"part": "validation", **row} for row in run.curve()),
            *(
                {
                    **{"part": "test", "mode": row["mode"], "step": row["chosen_step"]},
                    **{"accuracy": row["accuracy"], "accuracy_interval": row["accuracy_interval"]},
                    **{"tasks": row["tasks"], **about},
                }
                for row in judged
            ),
        ]

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return stability_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return stability_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return stability_report.facts(rows)


def stretches(metrics: Path, steps: int) -> list[dict[str, Any]]:
    """Return the means over `WINDOWS` stretches of a training.

    They are the curvature, the inner gradient norm and, for a solver of a fixed rate, the share of
    tasks over the edge of stability.
    """
    lines = pd.DataFrame(list(MetricsFile(metrics).rows()))
    lines = lines[lines.step <= steps]
    bins = np.minimum((lines.step - 1) * WINDOWS // steps, WINDOWS - 1)
    found: list[dict[str, Any]] = []
    for _, part in lines.groupby(bins):
        row: dict[str, Any] = {"step": int(part.step.iloc[-1])}
        row["curvature"] = float(part.ritz_high_mean.mean())
        row["inner_grad_norm"] = float(part.inner_grad_norm.mean())
        if "inner_unstable_share" in part:
            row["over_the_edge"] = float(part.inner_unstable_share.mean())
        found.append(row)
    return found
