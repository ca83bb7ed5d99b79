"""Does iMAML's training collapse because its inner loop becomes unstable?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from metalearn import config
from metalearn.errors import UsageError, check_known
from metalearn.studies.fewshot.runs import Budget, StudyRun, words_of_run
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.plot import COLOURS, canvas
from metalearn.studies.frame.validation_curve import best_and_last
from metalearn.training.metrics_file import MetricsFile
from metalearn.training.protocol import Protocol

SOLVERS = {
    "fixed rate": "metagrad=imaml",
    "rate found by each task": "metagrad=imaml_stable",
}
"""The same training but for its inner solver: what `metalearn train` is given for each."""
COLLAPSE = 0.1
"""The loss of validation accuracy, from the best to the last, that counts as a collapse."""
WINDOWS = 100
"""The points of a training's curves: each the mean over so many equal stretches of meta-steps."""


@dataclass(frozen=True)
class StabilityStudy:
    """Train iMAML as published, and with only the inner solver made stable.

    Args:
        experiment: of `metalearn train`, whose inner solver is gradient descent.
        solvers: of `SOLVERS`.
        seeds: of weights and training tasks.
        steps: meta-steps of each run; a larger number goes on with the runs.
        words: further words of `metalearn train`, for every run.
        validation_every, validation_tasks: of the curve and the chosen model.
        test_tasks: the model is judged on so many.
        runs: the folder of the runs.
    """

    title: ClassVar[str] = "iMAML's collapse: the inner loop's edge of stability"

    experiment: str
    solvers: Sequence[str]
    seeds: Sequence[int]
    steps: int
    words: Sequence[str]
    validation_every: int
    validation_tasks: int
    test_tasks: int
    runs: str

    def __post_init__(self) -> None:
        Budget(self.steps)
        Protocol(tasks=self.test_tasks)
        for name in ("solvers", "seeds"):
            if not getattr(self, name):
                raise UsageError(f"{name}=[]: expected at least one. Name one.")
        check_known("solvers", self.solvers, SOLVERS)
        config.compose("train", self._words(self.solvers[0], self.seeds[0]))

    def cells(self) -> list[Cell]:
        """Seed by seed, so that both solvers of the first seed come first."""
        return [{"solver": s, "seed": seed} for seed in self.seeds for s in self.solvers]

    def _words(self, solver: str, seed: int) -> list[str]:
        validated = (self.validation_every, self.validation_tasks)
        own = words_of_run(self.experiment, seed, self.steps, *validated)
        return [*own, SOLVERS[solver], *self.words]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        of: Any = cell
        run = StudyRun.of(Path(self.runs), self._words(of["solver"], of["seed"]), device)
        stopped = run.train(Budget(self.steps))
        edge = 2 / float(run.config.metagrad.inner.lr)
        rows = stretches(run.folder / "metrics.jsonl", self.steps)
        judged = run.judged(Protocol(tasks=self.test_tasks), device)
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

    def tables(self, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
        found = []
        for solver in rows.solver.unique():
            for seed, run in rows[rows.solver == solver].groupby("seed"):
                best, last = _best_and_last(run)
                tests = run[run.part == "test"].set_index("mode")
                found.append(
                    {
                        "inner solver": solver,
                        "seed": seed,
                        "best validation, %": f"{100 * best.accuracy:.1f}",
                        "at meta-step": int(best.step),
                        "last validation, %": f"{100 * last.accuracy:.1f}",
                        "collapsed": "yes" if best.accuracy - last.accuracy > COLLAPSE else "no",
                        "largest curvature at the end": f"{_end(run, 'curvature'):.1f}",
                        "inner gradient at the end": f"{_end(run, 'inner_grad_norm'):.2g}",
                        **{
                            f"test, {mode}, %": _percent(tests.loc[mode])
                            for mode in ("transductive", "inductive")
                        },
                    }
                )
        steps = int(rows[rows.part == "validation"].step.max())
        return {f"Each training of {steps:,} meta-steps": pd.DataFrame(found)}

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        figure, panels = canvas(3, width=4.2, height=3.4)
        shown = (
            ("validation", "accuracy", 100.0, "Validation accuracy, %"),
            ("stretch", "curvature", 1.0, "Largest curvature, mean over tasks"),
            ("stretch", "inner_grad_norm", 1.0, "Inner gradient norm after the inner loop"),
        )
        for axes, (part, column, scale, title) in zip(panels, shown, strict=True):
            for colour, solver in zip(COLOURS, rows.solver.unique(), strict=False):
                runs = rows[(rows.solver == solver) & (rows.part == part)]
                for i, (_, run) in enumerate(runs.groupby("seed")):
                    label = solver if i == 0 else None
                    axes.plot(run.step, scale * run[column], color=colour, lw=1.0, label=label)
            axes.set(title=title, xlabel="meta-step")
        edge = float(rows[rows.part == "test"].edge.iloc[0])
        panels[1].axhline(edge, color="black", lw=0.8, ls="--")
        panels[1].annotate(
            f"edge of the fixed rate, 2 / rate = {edge:g}",
            (0.98, edge),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
        for axes in panels[1:]:
            axes.set_yscale("log")
        panels[0].legend(loc="lower right")
        return {"stability": figure}

    def findings(self, rows: pd.DataFrame) -> list[str]:
        found = []
        for solver in rows.solver.unique():
            runs = [run for _, run in rows[rows.solver == solver].groupby("seed")]
            ends = [_best_and_last(run) for run in runs]
            fell = sum(best.accuracy - last.accuracy > COLLAPSE for best, last in ends)
            last = [100 * end.accuracy for _, end in ends]
            best = [100 * end.accuracy for end, _ in ends]
            found.append(
                f"Inner solver, {solver}: collapsed trainings {fell} of {len(runs)}; best "
                f"validation {min(best):.1f} to {max(best):.1f} %; last validation "
                f"{min(last):.1f} to {max(last):.1f} %."
            )
        return found


def stretches(metrics: Path, steps: int) -> list[dict[str, Any]]:
    """The means over `WINDOWS` stretches of a training: curvature and inner gradient norm; and the
    share of tasks over the edge, for a solver of a fixed rate."""
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


def _best_and_last(run: pd.DataFrame) -> tuple[Any, Any]:
    """The best and the last validation of one run's rows."""
    best, last = best_and_last(run[run.part == "validation"])
    return best.iloc[0], last.iloc[0]


def _end(run: pd.DataFrame, column: str) -> float:
    """The mean over a training's last tenth."""
    curve = run[run.part == "stretch"]
    return float(curve[column].iloc[-max(1, len(curve) // 10) :].mean())


def _percent(row: Any) -> str:
    return f"{100 * row.accuracy:.2f} ± {100 * row.accuracy_interval:.2f}"
