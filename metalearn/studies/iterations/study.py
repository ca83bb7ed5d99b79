"""The number of CG iterations that iMAML needs, at an accuracy that means something."""

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
from metalearn.studies.cg.report import CURVATURES
from metalearn.studies.fewshot.runs import Budget, StudyRun, words_of_run
from metalearn.studies.fewshot.study import measured
from metalearn.studies.frame import Cell, Row
from metalearn.studies.iterations import report as iterations_report
from metalearn.studies.iterations.errors import EXACT, SOLVERS, gradient_errors
from metalearn.studies.iterations.report import NO_CURVATURE
from metalearn.training import checkpoint
from metalearn.training.experiment import Experiment
from metalearn.training.protocol import Protocol


@dataclass(frozen=True)
class IterationsStudy:
    """Train iMAML with each number of CG iterations and each curvature.

    Args:
        experiment: of `metalearn train`, whose meta-gradient is implicit and solves by CG.
        iterations: numbers of CG iterations; 0 is the first-order gradient, trained once for both
            curvatures.
        curvatures: of the linear system, "hessian" and "gauss_newton".
        seeds: of weights and training tasks.
        steps: meta-steps of each run.
        words: further words of `metalearn train`, for every run.
        validation_every, validation_tasks: of the curve and the chosen model.
        test_tasks: the number of tasks that judge the chosen model.
        error_tasks: the number of tasks whose meta-gradient is compared with the references.
        runs: the folder of the runs.
    """

    title: ClassVar[str] = "CG iterations of trained iMAML: accuracy, meta-gradient error and time"

    experiment: str
    iterations: Sequence[int]
    curvatures: Sequence[str]
    seeds: Sequence[int]
    steps: int
    words: Sequence[str]
    validation_every: int
    validation_tasks: int
    test_tasks: int
    error_tasks: int
    runs: str

    def __post_init__(self) -> None:
        Budget(self.steps)
        Protocol(tasks=self.test_tasks)
        for name in ("iterations", "curvatures", "seeds"):
            if not getattr(self, name):
                raise UsageError(f"{name}=[]: expected at least one. Name one.")
        if min(self.iterations) < 0:
            raise UsageError(
                f"iterations={list(self.iterations)}: expected whole numbers of at least 0. "
                "Leave the others out."
            )
        if self.error_tasks < 1:
            raise UsageError(f"error_tasks={self.error_tasks}: expected at least 1. Ask for more.")
        check_known("curvatures", self.curvatures, CURVATURES)
        for cell in self.cells()[:2]:
            composed = config.compose("train", self._words(cell))
            if composed.adapt != "all" or composed.get("problem") is not None:
                raise UsageError(
                    f"words={list(self.words)}: expected adapt=all and problem=null. Leave the "
                    "others out."
                )

    def cells(self) -> list[Cell]:
        """Seed by seed, so that all runs of the first seed come first."""
        return [
            {"curvature": curvature, "iterations": n, "seed": seed}
            for seed in self.seeds
            for n in self.iterations
            for curvature in (self.curvatures if n else [NO_CURVATURE])
        ]

    def _words(self, cell: Any) -> list[str]:
        validated = (self.validation_every, self.validation_tasks)
        own = words_of_run(self.experiment, cell["seed"], self.steps, *validated)
        if not cell["iterations"]:
            return [*own, *self.words, "metagrad.linear_solver=null"]
        chosen = [f"metagrad.curvature={cell['curvature']}"]
        chosen += [f"metagrad.linear_solver.max_iters={cell['iterations']}"]
        return [*own, *self.words, *chosen]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        """A "curve" row for each validation, a "test" row for each mode, an "error" row for each
        reference; or one "stopped" row, where a guard stopped the run before it validated."""
        run = StudyRun.of(Path(self.runs), self._words(cell), device)
        rows = measured(run, Budget(self.steps), self.test_tasks, [], device)
        if rows[0]["part"] == "stopped":
            return rows
        asked = {"tasks": self.error_tasks, "reference": str(EXACT), "inner": str(SOLVERS)}
        errors = run.kept("gradient_errors", asked, lambda best: self._errors(run, best))
        return [*rows, *({"part": "error", **row} for row in errors)]

    def _errors(self, run: StudyRun, best: Path) -> list[dict[str, Any]]:
        experiment = Experiment.of(run.config)
        experiment.load(checkpoint.select_meta(checkpoint.load(best)))
        return gradient_errors(experiment, self.error_tasks)

    def tables(self, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
        return iterations_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return iterations_report.figures(rows)

    def findings(self, rows: pd.DataFrame) -> list[str]:
        return iterations_report.findings(rows)
