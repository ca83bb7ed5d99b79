"""Few-shot accuracy: our runs beside the published figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from metalearn.report.runs import Run
from metalearn.studies.frame.plot import COLOURS, canvas, label_lines, log_axis
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
            each = "; ".join(f"{_method(r)} {_text(r)} %" for r in here if r.budget == budget)
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
        "method": run.method,
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


def figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """Return each setting's accuracies, ours and published, and our learning curves."""
    found = {}
    for setting in _settings(runs):
        others = select_published(*setting)
        if len(others):
            caption = (
                f"{_title(setting)}: ours (blue), in papers' tables (orange), elsewhere (grey)"
            )
            found[caption] = _dots(_select(runs, setting), others)
    curves = [r for r in runs if len(r.curve) > 1]
    if curves:
        figure, (axes,) = canvas(width=6)
        for run in curves:
            steps, values = zip(*run.curve, strict=True)
            axes.plot(steps, values, marker="o", label=_escape(run.method))
        axes.set_xlabel("meta-step")
        axes.set_ylabel("validation accuracy, %")
        label_lines(axes)
        found["Validation accuracy over training"] = figure
    return found


def _dots(ours: Sequence[Run], others: pd.DataFrame) -> Figure:
    """Draw the errors on a logarithmic axis.

    The logarithm of the error separates 99.1 from 99.5 % as well as 57 from 80 %.
    """
    points = [(f"{_escape(_method(r))}, ours", _text(r), _percent(r), COLOURS[0]) for r in ours]
    row: Any
    for row in others.itertuples():
        colour = COLOURS[1] if row.mark == "P" else "#666666"
        value = Estimate(float(row.accuracy), float(row.interval or "inf"))
        points.append((row.method, published_cell(row).text, value, colour))
    points.sort(key=lambda point: point[2].mean)
    figure, (axes,) = canvas(width=6.5, height=0.8 + 0.2 * len(points))
    for at, (_, _, value, colour) in enumerate(points):
        error, width = max(100 - value.mean, 0.01), value.interval  # a logarithm has no 0
        low = [[min(width, 0.9 * error)], [width]] if math.isfinite(width) else None
        axes.errorbar(error, at, xerr=low, fmt="o", color=colour, markersize=5, capsize=2)
    axes.set_yticks(range(len(points)), [f"{label}   {text}" for label, text, *_ in points])
    for tick, (*_, colour) in zip(axes.get_yticklabels(), points, strict=True):
        tick.set_color(colour)
    log_axis(axes, "x", base=2)
    axes.set_xlabel("test error (100 - accuracy), %")
    axes.set_ylim(-0.7, len(points) - 0.3)
    return figure


def _escape(name: str) -> str:
    """Escape what matplotlib would take as mathematics."""
    return name.replace("$", r"\$")


def _method(run: Run) -> str:
    return f"{run.method}, inductive" if run.mode == "inductive" else run.method


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
