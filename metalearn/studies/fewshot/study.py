"""The published table of few-shot accuracy, made again: every setting, method and seed."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure

from metalearn import config
from metalearn.errors import UsageError, check_known
from metalearn.studies.fewshot import figures as fewshot_figures
from metalearn.studies.fewshot import report as fewshot_report
from metalearn.studies.fewshot.runs import Budget, StudyRun, words_of_run
from metalearn.studies.frame import Cell, Row
from metalearn.training.protocol import Protocol

NAMED = re.compile(r"(\w+_\d+w\d+s)_(\w+)")
"""An experiment's name: a setting's and a method's."""


@dataclass(frozen=True)
class FewShotStudy:
    """
    Args:
        settings, methods: a cell trains `metalearn train experiment=SETTING_METHOD`, where there is
            one: some methods, such as maml_tuned, are of one setting only. No methods: the
            published ones.
        seeds: of weights and training tasks.
        steps, train_minutes: where each run ends (`Budget`). A larger budget goes on with the runs.
        words: further words of `metalearn train`, for every run.
        validation_every, validation_tasks: what the model is chosen by.
        test_tasks: that it is judged by.
        inner_steps: at test, beside the experiment's own number.
        runs: the folder of the runs.
    """

    title: ClassVar[str] = "Few-shot accuracy beside the published figures"

    settings: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    steps: int
    train_minutes: float
    words: Sequence[str]
    validation_every: int
    validation_tasks: int
    test_tasks: int
    inner_steps: Sequence[int]
    runs: str

    def __post_init__(self) -> None:
        Budget(self.steps, self.train_minutes)
        Protocol(tasks=self.test_tasks, inner_steps=self.inner_steps)
        for name in ("settings", "seeds"):
            if not getattr(self, name):
                raise UsageError(f"{name}=[]; expected at least one")
        known = _experiments()
        check_known("settings", self.settings, {setting for setting, _ in known})
        check_known("methods", self.methods, {method for _, method in known})
        cells = self.cells()
        for method in self.methods:
            if method not in {cell["method"] for cell in cells}:
                its = ", ".join(sorted(setting for setting, of in known if of == method))
                raise UsageError(
                    f"methods has {method!r}, which settings={','.join(self.settings)} have no "
                    f"experiment for; expected a setting of {its}"
                )
        for setting in self.settings:
            if setting not in {cell["setting"] for cell in cells}:
                its = ", ".join(sorted(method for of, method in known if of == setting))
                raise UsageError(
                    f"methods={','.join(self.methods)} has none that {setting} has an experiment "
                    f"for; expected some of {its}"
                )
        first, *others = [cell for cell in cells if cell["seed"] == self.seeds[0]]
        budget = Budget(self.steps, self.train_minutes)
        for cell in (first, *(others if budget.minutes else [])):
            budget.check(config.compose("train", self._words(cell)))

    def cells(self) -> list[Cell]:
        """Seed by seed, so that the first seed of all methods comes first."""
        known = _experiments()
        return [
            {"setting": setting, "method": method, "seed": seed}
            for seed in self.seeds
            for setting in self.settings
            for method in self.methods or fewshot_report.PUBLISHED
            if (setting, method) in known
        ]

    def run_of(self, cell: Any, device: torch.device) -> StudyRun:
        return StudyRun.of(Path(self.runs), self._words(cell), device)

    def _words(self, cell: Any) -> list[str]:
        experiment = f"{cell['setting']}_{cell['method']}"
        validated = (self.validation_every, self.validation_tasks)
        return [*words_of_run(experiment, cell["seed"], self.steps, *validated), *self.words]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        run = self.run_of(cell, device)
        return measured(
            run, Budget(self.steps, self.train_minutes), self.test_tasks, self.inner_steps, device
        )

    def tables(self, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
        return fewshot_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return fewshot_figures.figures(rows)

    def findings(self, rows: pd.DataFrame) -> list[str]:
        return fewshot_report.findings(rows)


def _experiments() -> set[tuple[str, str]]:
    """(setting, method) of each experiment that is named by them."""
    stems = [path.stem for path in (config.config_folder() / "experiment").glob("*.yaml")]
    return {(found[1], found[2]) for stem in stems if (found := NAMED.fullmatch(stem))}


def measured(
    run: StudyRun, budget: Budget, test_tasks: int, inner_steps: Sequence[int], device: torch.device
) -> list[Row]:
    """Trains and judges: a "curve" row for each validation, a "test" row for each mode and number
    of inner steps; or one "stopped" row, where a guard stopped it before its first validation."""
    stopped = run.train(budget)
    curve = run.curve()
    if not curve or not (run.folder / "best.pt").is_file():
        return [{"part": "stopped", "why": stopped}]
    own = int(run.config.metagrad.inner.steps)
    protocol = Protocol(tasks=test_tasks, inner_steps=sorted({*inner_steps, own}))
    began = time.perf_counter()
    judged = run.judged(protocol, device)
    seconds = time.perf_counter() - began
    tasks, summary = run.config.tasks, run.summary()
    about = {
        "dataset": tasks.dataset._target_.rpartition(".")[2],
        "ways": tasks.ways,
        "shots": tasks.shots,
        "steps": curve[-1]["step"],
        "meta_batch": run.config.meta_batch,
        "train_s": curve[-1]["train_s"],
        "test_s": seconds,
        "threads": summary.get("threads"),
        "machine": summary.get("machine"),
        "commit": summary.get("commit"),
        "run": run.folder.name,
        "why": stopped,
    }
    left_out = ("name", "seed", "benchmark", "split")
    rows: list[Row] = [{"part": "curve", **row} for row in curve]
    for row in judged:
        figures = {key: value for key, value in row.items() if key not in left_out}
        rows.append({"part": "test", **figures, **about})
    return rows
