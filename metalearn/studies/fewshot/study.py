"""The published table of few-shot accuracy, made again: every setting, method and seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import pandas as pd
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass

from metalearn import config
from metalearn.config.options import STRICT, Natural, NonNegative, Some, one_sentence
from metalearn.errors import UsageError, check_known
from metalearn.studies.fewshot import figures as fewshot_figures
from metalearn.studies.fewshot import report as fewshot_report
from metalearn.studies.frame import Cell
from metalearn.studies.frame.accuracy import PUBLISHED
from metalearn.studies.frame.study_run import Budget
from metalearn.studies.frame.table import Table
from metalearn.studies.frame.trained import TrainedStudy
from metalearn.training.protocol import EvaluationProtocol

NAMED = re.compile(r"(\w+_\d+w\d+s)_(\w+)")
"""The name of an experiment: a setting's and a method's."""


@one_sentence
@dataclass(frozen=True, config=STRICT)
class FewShotStudy(TrainedStudy):
    """Train `metalearn train experiment=SETTING_METHOD` for each setting and method.

    A pair without an experiment has no cell: some methods, such as maml_tuned, are of one setting.

    Args:
        settings: the settings, such as omniglot_5w1s.
        methods: the methods; empty: the published ones.
        train_minutes: the minutes of training of each run (`Budget`).
        inner_steps: inner steps at test, beside the experiment's own number.
    """

    title: ClassVar[str] = "Few-shot accuracy beside the published figures"
    growing: ClassVar = ("settings", "methods", "seeds")

    settings: Some[str]
    methods: Sequence[str]
    train_minutes: NonNegative
    inner_steps: Sequence[Natural]

    def __post_init__(self) -> None:
        known = _experiments()
        check_known("settings", self.settings, {setting for setting, _ in known})
        check_known("methods", self.methods, {method for _, method in known})
        cells = self.cells()
        for method in self.methods:
            if method not in {cell["method"] for cell in cells}:
                its = ", ".join(sorted(setting for setting, of in known if of == method))
                raise UsageError(
                    f"methods has {method!r}, which settings={','.join(self.settings)} have no "
                    f"experiment for: expected a setting of {its}. Name one, or leave it out."
                )
        for setting in self.settings:
            if setting not in {cell["setting"] for cell in cells}:
                its = ", ".join(sorted(method for of, method in known if of == setting))
                raise UsageError(
                    f"methods={','.join(self.methods)} has none that {setting} has an experiment "
                    f"for: expected some of {its}. Name one, or leave {setting} out."
                )
        first, *others = [cell for cell in cells if cell["seed"] == self.seeds[0]]
        for cell in (first, *(others if self.train_minutes else [])):
            self.budget.check(config.compose("train", self.run_words(cell)))

    @property
    def budget(self) -> Budget:
        return Budget(self.steps, self.train_minutes)

    @property
    def protocol(self) -> EvaluationProtocol:
        return EvaluationProtocol(tasks=self.test_tasks, inner_steps=self.inner_steps)

    def cells(self) -> list[Cell]:
        """Return the cells seed by seed, so that the first seed of all methods comes first."""
        known = _experiments()
        return [
            {"setting": setting, "method": method, "seed": seed}
            for seed in self.seeds
            for setting in self.settings
            for method in self.methods or PUBLISHED
            if (setting, method) in known
        ]

    def run_words(self, cell: Any) -> list[str]:
        experiment = f"{cell['setting']}_{cell['method']}"
        return [*self.base_words(experiment, cell["seed"]), *self.overrides]

    def subject(self, rows: pd.DataFrame) -> str:
        return fewshot_report.titles(rows)

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return fewshot_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return fewshot_figures.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return fewshot_report.facts(rows)


def _experiments() -> set[tuple[str, str]]:
    """Return the (setting, method) of each experiment that is named by them."""
    stems = [path.stem for path in (config.config_folder() / "experiment").glob("*.yaml")]
    return {(found[1], found[2]) for stem in stems if (found := NAMED.fullmatch(stem))}
