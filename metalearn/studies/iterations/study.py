"""The number of CG iterations that iMAML needs, at an accuracy that means something."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass

from metalearn import config
from metalearn.config.options import STRICT, Count, Natural, Some, one_of, one_sentence
from metalearn.errors import UsageError
from metalearn.studies.cg.report import CURVATURES
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.study_run import StudyRun
from metalearn.studies.frame.table import Table
from metalearn.studies.frame.trained import TrainedStudy, measure_run
from metalearn.studies.iterations import report as iterations_report
from metalearn.studies.iterations.errors import EXACT, SOLVERS, gradient_errors
from metalearn.studies.iterations.report import NO_CURVATURE
from metalearn.training import checkpoint
from metalearn.training.experiment import Experiment


@one_sentence
@dataclass(frozen=True, config=STRICT)
class IterationsStudy(TrainedStudy):
    """Train iMAML with each number of CG iterations and each curvature.

    Args:
        experiment: an experiment whose meta-gradient is implicit and solves by CG.
        iterations: numbers of CG iterations; 0 is the first-order gradient, trained once for both
            curvatures.
        curvatures: curvatures of the linear system, "hessian" and "gauss_newton".
        error_tasks: the number of tasks whose meta-gradient is compared with the references.
    """

    title: ClassVar[str] = "CG iterations of trained iMAML: accuracy, meta-gradient error and time"
    growing: ClassVar = ("seeds", "iterations", "curvatures")

    experiment: str
    iterations: Some[Natural]
    curvatures: Some[Annotated[str, one_of(CURVATURES)]]
    error_tasks: Count

    def __post_init__(self) -> None:
        for cell in self.cells()[:2]:
            composed = config.compose("train", self.run_words(cell))
            if composed.problem.get("adapt") != "all":
                raise UsageError(
                    f"overrides={list(self.overrides)}: expected problem.adapt=all. Leave "
                    "the others out."
                )

    def cells(self) -> list[Cell]:
        """Return the cells seed by seed, so that all runs of the first seed come first."""
        return [
            {"curvature": curvature, "iterations": n, "seed": seed}
            for seed in self.seeds
            for n in self.iterations
            for curvature in (self.curvatures if n else [NO_CURVATURE])
        ]

    def run_words(self, cell: Any) -> list[str]:
        own = [*self.base_words(self.experiment, cell["seed"]), *self.overrides]
        if not cell["iterations"]:
            return [*own, "metagrad.linear_solver=null"]
        chosen = [f"metagrad.curvature={cell['curvature']}"]
        return [*own, *chosen, f"metagrad.linear_solver.max_iters={cell['iterations']}"]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        """Return the rows of `measure_run`, and an "error" row for each reference."""
        run = self.run_of(cell, device)
        rows = measure_run(run, self.budget, self.protocol, device)
        if rows[0]["part"] == "stopped":
            return rows
        asked = {"tasks": self.error_tasks, "reference": str(EXACT), "inner": str(SOLVERS)}
        errors = run.kept("gradient_errors", asked, lambda best: self._errors(run, best))
        return [*rows, *({"part": "error", **row} for row in errors)]

    def _errors(self, run: StudyRun, best: Path) -> list[dict[str, Any]]:
        experiment = Experiment.of(run.config)
        experiment.load(checkpoint.select_meta(checkpoint.load(best)))
        return gradient_errors(experiment, self.error_tasks)

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return iterations_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return iterations_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return iterations_report.facts(rows)
