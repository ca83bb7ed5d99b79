"""Few-shot accuracy: our runs beside the published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from metalearn.report.collect import Run
from metalearn.studies.frame.plot import COLOURS, canvas, label_lines, log_axis
from metalearn.studies.frame.published.accuracy import TITLES, published
from metalearn.studies.frame.table import Table, make_table

Setting = tuple[int, int]  # ways, shots


def findings(runs: Sequence[Run]) -> list[str]:
    """A sentence for each setting and budget that our runs have, and one for what was published."""
    found = []
    for dataset, setting in _settings(runs):
        here = [r for r in runs if (r.dataset, (r.ways, r.shots)) == (dataset, setting)]
        name = f"{_title(dataset)} {_setting(setting)}"
        for budget in dict.fromkeys(r.budget for r in here):
            ours = sorted((r for r in here if r.budget == budget), key=_accuracy, reverse=True)
            each = ", ".join(f"{r.method} {_shown(r)} %" for r in ours)
            found.append(f"{name} after {budget}: {each}.")
        others = _others(dataset, setting)
        papers = others[others.mark == "P"]
        if len(papers):
            best = max(here, key=_accuracy)
            stated = papers[papers.budget != ""]
            theirs = ", ".join((stated.method + "'s " + stated.budget).tolist())
            found.append(
                f"The papers report {papers.percent.min():g} to {papers.percent.max():g} % on "
                f"{name}, where the best of ours has {_shown(best)} %: the budgets differ, "
                f"{best.budget} here, and in the papers {theirs or 'what each of them chose'}."
            )
    return found


def tables(runs: Sequence[Run]) -> dict[str, Table]:
    """By dataset, ours (marked) and the published figures; then what our runs cost."""
    found = {}
    for dataset in dict.fromkeys(r.dataset for r in _measured(runs)):
        ours = [r for r in _measured(runs) if r.dataset == dataset]
        others = published()[published().dataset == dataset]
        pairs = {(r.ways, r.shots) for r in ours} | set(_pairs(others))
        settings = sorted(pairs, key=lambda s: (s[0] or 0, s[1] or 0))
        rows = [[r.method, *(_if(s, r) for s in settings), *_how(r)] for r in ours]
        for method, part in others.groupby("method", sort=False):
            rows.append([str(method), *_published_row(part, settings)])
        columns = ["method", *map(_setting, settings), "trained for", "mark", "source", "remark"]
        whose = "our runs beside the published figures" if len(others) else "our runs"
        caption = f"{_title(dataset)}: test accuracy in %, {whose}"
        found[caption] = make_table(columns, rows, marked=range(len(ours)))
    found["What our runs took"] = _cost(runs)
    return found


def figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """By caption: a setting's accuracies, ours and theirs; the validation curves of our runs."""
    found = {}
    for dataset, setting in _settings(runs):
        if len(_others(dataset, setting)):
            caption = f"{_title(dataset)} {_setting(setting)}: ours (blue), in papers' tables "
            caption += "(orange), elsewhere (grey)"
            found[caption] = _dots(runs, dataset, setting)
    curves = [r for r in runs if len(r.curve) > 1]
    if curves:
        figure, (axes,) = canvas(width=6)
        for run in curves:
            steps, values = zip(*run.curve, strict=True)
            axes.plot(steps, values, marker="o", label=_plain(run.method))
        axes.set_xlabel("meta-step")
        axes.set_ylabel("validation accuracy, %")
        label_lines(axes)
        found["Validation accuracy over training"] = figure
    return found


def _dots(runs: Sequence[Run], dataset: str, setting: Setting) -> Figure:
    """By error, whose logarithm tells 99.1 from 99.5 % as well as 57 from 80."""
    ours = [r for r in _measured(runs) if (r.dataset, (r.ways, r.shots)) == (dataset, setting)]
    points = [(f"{_plain(r.method)}, ours", _shown(r), *_percent(r), COLOURS[0]) for r in ours]
    for row in _others(dataset, setting).to_dict("records"):
        colour = COLOURS[1] if row["mark"] == "P" else "#666666"
        interval = float(row["interval"]) if row["interval"] else None
        points.append((row["method"], _printed(row), row["percent"], interval, colour))
    points.sort(key=lambda point: point[2])
    figure, (axes,) = canvas(width=6.5, height=0.8 + 0.2 * len(points))
    for at, (_, _, value, interval, colour) in enumerate(points):
        error = max(100 - value, 0.01)  # a logarithm has no 0
        low = None if interval is None else [[min(interval, 0.9 * error)], [interval]]
        axes.errorbar(error, at, xerr=low, fmt="o", color=colour, markersize=5, capsize=2)
    axes.set_yticks(range(len(points)), [f"{label}   {shown}" for label, shown, *_ in points])
    for tick, (*_, colour) in zip(axes.get_yticklabels(), points, strict=True):
        tick.set_color(colour)
    log_axis(axes, "x", base=2)
    axes.set_xlabel("test error (100 - accuracy), %")
    axes.set_ylim(-0.7, len(points) - 0.3)
    return figure


def _plain(name: str) -> str:
    """Not mathematics to matplotlib."""
    return name.replace("$", r"\$")


def _title(dataset: str) -> str:
    return TITLES.get(dataset, dataset or "Other data")


def _measured(runs: Sequence[Run]) -> list[Run]:
    return [r for r in runs if r.summary.get("test_accuracy") is not None]


def _settings(runs: Sequence[Run]) -> list[tuple[str, Setting]]:
    known = [r for r in _measured(runs) if r.ways and r.shots]
    return list(dict.fromkeys((r.dataset, (r.ways or 0, r.shots or 0)) for r in known))


def _pairs(others: pd.DataFrame) -> list[Setting]:
    return list(zip(others.ways.tolist(), others.shots.tolist(), strict=True))


def _others(dataset: str, setting: Setting) -> pd.DataFrame:
    every = published()
    return every[
        (every.dataset == dataset) & (every.ways == setting[0]) & (every.shots == setting[1])
    ]


def _setting(setting: tuple[Any, Any]) -> str:
    return f"{setting[0]}-way {setting[1]}-shot" if all(setting) else "accuracy"


def _percent(run: Run) -> tuple[float, float | None]:
    interval = run.summary.get("test_accuracy_interval")
    return 100 * run.summary["test_accuracy"], None if interval is None else 100 * interval


def _accuracy(run: Run) -> float:
    return _percent(run)[0]


def _shown(run: Run) -> str:
    value, interval = _percent(run)
    return f"{value:.2f}" + ("" if interval is None else f" ± {interval:.2f}")


def _if(setting: tuple[Any, Any], run: Run) -> str:
    return _shown(run) if setting == (run.ways, run.shots) else ""


def _how(run: Run) -> list[str]:
    mode = "transductive" if run.summary.get("transductive", True) else "inductive"
    return [run.budget, "ours", run.where, f"{mode}, {run.summary.get('test_tasks')} test tasks"]


def _printed(row: Mapping[Any, Any]) -> str:
    interval = f" ± {row['interval']}" if row["interval"] else ""
    return row["accuracy"] + interval + (" U" if row["mark"] == "U" else "")


def _published_row(part: pd.DataFrame, settings: Sequence[tuple[Any, Any]]) -> list[str]:
    cells = dict.fromkeys(settings, "")
    for row in part.to_dict("records"):
        cells[row["ways"], row["shots"]] = _printed(row)
    joined = [
        "; ".join(dict.fromkeys(filter(None, part[name])))
        for name in ("budget", "mark", "source", "remark")
    ]
    return [*cells.values(), *joined]


def _cost(runs: Sequence[Run]) -> Table:
    columns = {
        "budget": "trained for",
        "chosen_step": "chosen at step",
        "test_loss": "test loss",
        "step_s": "s a meta-step",
        "train_s": "s of training",
        "peak_memory_bytes": "peak memory, MB",
        "threads": "threads",
        "machine": "machine",
        "seed": "seed",
        "date": "date",
        "commit": "commit",
        "command": "command",
    }
    rows = []
    for run in runs:
        values = {
            **run.summary,
            "budget": run.budget,
            "date": str(run.summary.get("date", ""))[:10],
        }
        values["commit"] = str(run.summary.get("commit") or "")[:7]
        if values.get("peak_memory_bytes") is not None:
            values["peak_memory_bytes"] = round(values["peak_memory_bytes"] / 1e6, 1)
        rows.append([run.summary["name"], *(values.get(key) for key in columns)])
    return make_table(["run", *columns.values()], rows)
