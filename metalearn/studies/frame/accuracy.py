"""The test rows of training runs: accuracies, titles and ranks, for several studies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from metalearn.studies.frame.published.accuracy import dataset_title
from metalearn.studies.frame.published.accuracy import setting_title as ways_and_shots
from metalearn.studies.frame.table import Cell, make_cell
from metalearn.training.estimate import Estimate

PUBLISHED = {
    "maml": "MAML",
    "fomaml": "first-order MAML",
    "reptile": "Reptile",
    "imaml": "iMAML, gradient descent",
    "imaml_hf": "iMAML, Hessian-free",
    "imaml_authors_code": "iMAML, the authors' code",
}
"""The methods that have published figures, by the names of the published table."""


def method_title(method: Any) -> str:
    base = method.removesuffix("_tuned")
    return PUBLISHED.get(base, base) + (", tuned" if base != method else "")


_TEST_COLUMNS = (
    *("setting", "method", "seed", "base", "change", "mode", "inner_steps", "trained_inner_steps"),
    *("dataset", "ways", "shots", "accuracy"),
)


def test_rows(rows: pd.DataFrame, setting: str | None = None) -> pd.DataFrame:
    """Select the test rows. They have all columns even where guards stopped every run."""
    missing = [column for column in _TEST_COLUMNS if column not in rows]
    test = rows[rows.part == "test"].reindex(columns=[*rows.columns, *missing])
    return test if setting is None else test[test.setting == setting]


def own_rows(rows: pd.DataFrame, mode: str | None = None) -> pd.DataFrame:
    """Select the test rows at the number of inner steps that each run was trained with.

    Args:
        mode: the batch statistics, "transductive" or "inductive"; None: both.
    """
    test = test_rows(rows)
    own = test[test.inner_steps == test.trained_inner_steps]
    return own if mode is None else own[own["mode"] == mode]


def pooled(group: pd.DataFrame) -> Estimate:
    """Estimate the accuracy over seeds where there are several, else over the one seed's tasks."""
    if len(group) > 1:
        return Estimate.of(group.accuracy)
    return Estimate(float(group.accuracy.iloc[0]), float(group.accuracy_interval.iloc[0]))


def accuracy_cell(group: pd.DataFrame) -> Cell:
    """Return "98.21 ± 0.12 (seeds 0.05)", in percent, of a row for each seed.

    The numbers are the mean over seeds, the 95 % interval over tasks (averaged over seeds) and the
    standard deviation over seeds, where there are several.
    """
    if group.empty:
        return Cell("")
    percent = 100 * group[["accuracy", "accuracy_interval"]].astype(float)
    cell = make_cell(Estimate(percent.accuracy.mean(), percent.accuracy_interval.mean()), ".2f")
    if len(group) == 1:
        return cell
    return Cell(f"{cell.text} (seeds {percent.accuracy.std():.2f})", cell.key)


def setting_title(test: pd.DataFrame) -> str:
    first = test.iloc[0]
    return f"{dataset_title(first.dataset)} {ways_and_shots(first.ways, first.shots)}"


def budget_title(test: pd.DataFrame) -> str:
    """Return the setting, the meta-steps and the test tasks of runs that have these alike."""
    training, tasks = describe_training(test.iloc[0]), test.tasks.iloc[0]
    return f"{setting_title(test)}, {training}, {tasks:,.0f} test tasks"


def describe_training(row: Any) -> str:
    """Return the meta-steps and the tasks of a meta-step of a test row's run."""
    return f"{row.steps:,.0f} meta-steps of {row.meta_batch:.0f} tasks"


def format_duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.3g} min"


def rank(groups: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Return the methods from the highest mean accuracy to the lowest.

    Each has its `method`, its `accuracy` as text and `tied`: its accuracy differs from the first
    one's by no more than both 95 % intervals together.
    """
    order = sorted(groups, key=lambda name: groups[name].accuracy.mean(), reverse=True)
    estimates = {name: pooled(groups[name]) for name in order}
    return [
        {
            "method": name,
            "accuracy": accuracy_cell(groups[name]).text,
            "tied": abs(one.mean - first.mean) <= math.hypot(one.interval, first.interval),
        }
        for first in [estimates[name] for name in order[:1]]
        for name, one in estimates.items()
    ]
