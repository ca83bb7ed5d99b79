"""Few-shot accuracy: our runs beside the published figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from metalearn.report.names import run_title, run_title_with_mode
from metalearn.report.runs import Run
from metalearn.studies.frame.accuracy import format_duration
from metalearn.studies.frame.colours import ASIDE, OURS, PEERS, styles
from metalearn.studies.frame.draw import Mark, dots, label_lines
from metalearn.studies.frame.plot import DOUBLE, canvas, log_axis
from metalearn.studies.frame.published.accuracy import (
    dataset_title,
    published,
    published_cell,
    published_rows,
    select_published,
    setting_title,
)
from metalearn.studies.frame.table import Format, Table, make_cell, make_table
from metalearn.training.estimate import Estimate

MANY = 16
"""The largest number of accuracies in the figure that is shown first."""
SHORT = 20 * 60.0
"""The seconds of a short training."""
Setting = tuple[str, int, int]  # dataset, ways, shots

COST: dict[str, tuple[str, Format | None]] = {
    "budget": ("trained for", None),
    "chosen_step": ("chosen at step", None),
    "test_loss": ("test loss", None),
    "step_s": ("s a meta-step", None),
    "train_s": ("s of training", None),
    "peak_memory_bytes": ("peak memory, MB", lambda size: f"{size / 1e6:.1f}"),
    "threads": ("threads", None),
    "machine": ("machine", None),
    "seed": ("seed", None),
    "date": ("date", None),
    "commit": ("commit", None),
    "command": ("command", None),
}
"""The title and format of each column of the costs, by the name in a run's summary."""


def findings(runs: Sequence[Run]) -> list[str]:
    """Return a finding for each setting and budget of ours, and one for each setting's papers."""
    found = []
    for setting in _settings(runs):
        here = sorted(_select(runs, setting), key=lambda run: -_percent(run).mean)
        for budget in dict.fromkeys(r.budget for r in runs if r in here):
            each = "; ".join(
                f"{run_title_with_mode(r)} {_text(r)} %" for r in here if r.budget == budget
            )
            found.append(f"{_title(setting)} after {budget}: {each}.")
        others = select_published(*setting)
        papers = others[others.mark == "P"]
        if len(papers):
            stated = papers[papers.budget != ""]
            budgets = "; ".join((stated.method + ", " + stated.budget).tolist())
            found.append(
                f"{_title(setting)} in papers' tables: {papers.percent.min():g} to "
                f"{papers.percent.max():g} %. Budgets in the papers: {budgets or 'not stated'}. "
                f"Best of our runs: {_text(here[0])} %. Its budget: {here[0].budget}."
            )
    return found


def tables(runs: Sequence[Run]) -> dict[str, Table]:
    """Return a table for each dataset, our rows marked, and a table of our runs' costs."""
    found = {}
    for dataset in dict.fromkeys(r.dataset for r in _measured(runs)):
        ours = [r for r in _measured(runs) if r.dataset == dataset]
        ours.sort(key=lambda run: -_percent(run).mean)
        others = published()[published().dataset == dataset]
        pairs = {(run.ways or 0, run.shots or 0) for run in ours}
        pairs |= set(zip(others.ways, others.shots, strict=True))
        titles = [setting_title(*pair) for pair in sorted(pairs)]
        columns = {"method": None, **dict.fromkeys(titles, ".2f"), "trained for": None}
        columns |= dict.fromkeys(["mark", "source", "remark"])
        whose = "our runs beside the published figures" if len(others) else "our runs"
        found[f"{dataset_title(dataset)}: test accuracy in %, {whose}"] = make_table(
            columns, [*map(_row, ours), *published_rows(dataset)], marked=range(len(ours))
        )
    formats = {"run": None, **dict(COST.values())}
    found["What our runs took"] = make_table(
        formats, [_cost(run) for run in runs if not run.evaluated]
    )
    return found


def _row(run: Run) -> dict[str, Any]:
    return {
        "method": run_title(run),
        setting_title(run.ways, run.shots): _percent(run),
        "trained for": run.budget,
        "mark": "ours",
        "source": run.where,
        "remark": f"{run.mode}, {run.summary.get('test_tasks')} test tasks",
    }


def _cost(run: Run) -> list[Any]:
    about = {"budget": run.budget, "date": str(run.summary.get("date", ""))[:10]}
    values = {**run.summary, **about, "commit": str(run.summary.get("commit") or "")[:7]}
    return [run.summary["name"], *(values.get(key) for key in COST)]


def conclusion(runs: Sequence[Run]) -> list[str]:
    """Return what to take away, as a headline and a text; empty without published figures.

    It is of the setting with most of our runs. A run that starts from another's weights is not
    among the short ones, since its time is not all that it took.
    """
    if (setting := _main_setting(runs)) is None:
        return []
    ours = sorted(_select(runs, setting), key=lambda run: -_percent(run).mean)
    papers = select_published(*setting)
    papers = papers[papers.mark == "P"]
    best = ours[0]
    text = f"The best of our runs is {_trained(best)}."
    quick = [r for r in ours if not r.init_from and (_seconds(r) or math.inf) < SHORT]
    if quick and quick[0] is not best:
        text += (
            f" The best of those of less than {SHORT / 60:.0f} minutes is {_trained(quick[0])}, "
            f"with {_text(quick[0])} %."
        )
    if budgets := "; ".join((papers.method + ", " + papers.budget)[papers.budget != ""]):
        text += f" Budgets in the papers: {budgets}."
    headline = (
        f"{_title(setting)}: {_text(best)} % here, {papers.percent.min():g} to "
        f"{papers.percent.max():g} % in papers' tables."
    )
    return [headline, text]


def _trained(run: Run) -> str:
    seconds = _seconds(run)
    if seconds is None:
        return f"{run_title_with_mode(run)}, {run.budget}"
    threads = run.summary.get("threads")
    where = {None: "", 1: " of one thread"}.get(threads, f" of {threads} threads")
    return f"{run_title_with_mode(run)}, {run.budget} in {format_duration(seconds)}{where}"


def _seconds(run: Run) -> float | None:
    seconds = run.summary.get("train_s")
    return float(seconds) if isinstance(seconds, int | float) else None


def figures(runs: Sequence[Run]) -> list[Figure]:
    """Return each setting's accuracies, ours and published, and our learning curves.

    The first figure is of the setting with most of our runs: the best of ours and the papers.
    """
    found = []
    if setting := _main_setting(runs):
        ours, others = _select(runs, setting), select_published(*setting)
        if len(ours) + len(others) > MANY:
            best = sorted(ours, key=lambda run: -_percent(run).mean)[: MANY // 2]
            found.append(_dots(setting, best, others[others.mark == "P"]))
    for setting in _settings(runs):
        others = select_published(*setting)
        if len(others):
            found.append(_dots(setting, _select(runs, setting), others))
    if curves := [r for r in runs if len(r.curve) > 1]:
        found.append(_learning(curves))
    return found


def _main_setting(runs: Sequence[Run]) -> Setting | None:
    known = [setting for setting in _settings(runs) if len(select_published(*setting))]
    return max(known, key=lambda setting: len(_select(runs, setting)), default=None)


def _learning(runs: Sequence[Run]) -> Figure:
    figure, (axes,) = canvas(width=DOUBLE, caption="Validation accuracy over training.")
    look = styles(map(run_title, runs))
    for run in runs:
        steps, values = zip(*run.curve, strict=True)
        axes.plot(steps, values, **look[run_title(run)], label=_escape(run_title(run)))
    axes.set(xlabel="meta-steps", ylabel="validation accuracy, %")
    label_lines(axes)
    return figure


def _dots(setting: Setting, ours: Sequence[Run], others: pd.DataFrame) -> Figure:
    """Draw the errors on a logarithmic axis, the least error on top.

    The logarithm of the error separates 99.1 from 99.5 % as well as 57 from 80 %.
    """
    values = [(_escape(run_title_with_mode(r)), _text(r), _percent(r), OURS) for r in ours]
    row: Any
    for row in others.itertuples():
        value = Estimate(float(row.accuracy), float(row.interval or "inf"))
        colour = PEERS if row.mark == "P" else ASIDE
        values.append((row.method, published_cell(row).text, value, colour))
    values.sort(key=lambda value: -value[2].mean)
    caption = f"""Test error (100 - accuracy) on {_title(setting)}, with accuracies in %. Blue:
        ours. Orange: in papers' tables. Grey: elsewhere."""
    figure, (axes,) = canvas(width=DOUBLE, height=0.6 + 0.14 * len(values), caption=caption)
    dots(axes, [_error(f"{label}   {text}", value, c) for label, text, value, c in values])
    for tick, (*_, colour) in zip(axes.get_yticklabels(), values, strict=True):
        tick.set_color(colour)
    log_axis(axes, "x", base=2)
    axes.set_xlabel("test error, %")
    return figure


def _error(label: str, accuracy: Estimate, colour: str) -> Mark:
    """Return the mark of an error above 0, since a logarithm has no 0."""
    error = max(100 - accuracy.mean, 0.01)
    half = accuracy.interval if math.isfinite(accuracy.interval) else math.nan
    return Mark(label, error, max(error - half, 0.1 * error), error + half, colour)


def _escape(name: str) -> str:
    """Escape what matplotlib would take as mathematics."""
    return name.replace("$", r"\$")


def _measured(runs: Sequence[Run]) -> list[Run]:
    return [r for r in runs if r.summary.get("test_accuracy") is not None and not r.superseded]


def _settings(runs: Sequence[Run]) -> list[Setting]:
    known = [(r.dataset, r.ways, r.shots) for r in _measured(runs)]
    return list(dict.fromkeys((name, ways, shots) for name, ways, shots in known if ways and shots))


def _select(runs: Sequence[Run], setting: Setting) -> list[Run]:
    return [r for r in _measured(runs) if (r.dataset, r.ways, r.shots) == setting]


def _title(setting: Setting) -> str:
    dataset, ways, shots = setting
    return f"{dataset_title(dataset)} {setting_title(ways, shots)}"


def _percent(run: Run) -> Estimate:
    interval = run.summary.get("test_accuracy_interval")
    half = math.inf if interval is None else 100 * interval
    return Estimate(100 * run.summary["test_accuracy"], half)


def _text(run: Run) -> str:
    return make_cell(_percent(run), ".2f").text
