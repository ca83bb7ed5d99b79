"""The tables, figures and facts of the cleaning study."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.cleaning.methods import SETTINGS
from metalearn.studies.cleaning.peaks import GROWING
from metalearn.studies.cleaning.training import ALL, CLEAN, REFERENCES
from metalearn.studies.frame.colours import ASIDE, styles
from metalearn.studies.frame.draw import legend
from metalearn.studies.frame.groups import estimate, scale
from metalearn.studies.frame.plot import DOUBLE, canvas, log_axis
from metalearn.studies.frame.table import Cell, Format, Table, make_cell, make_table
from metalearn.system.memory import format_bytes

TARGET = 0.95
"""The area under the ROC curve that the study aims at."""
LEARNED: dict[str, Format | None] = {
    **{"data and model": None, "method": None, "area under the ROC curve": ".3f"},
    **{"test accuracy, %": scale(100, ".1f"), "mean weight, right label": ".2f"},
    **{"mean weight, wrong label": ".2f", "s": ".0f", "diverged": None},
}
LINES = {CLEAN: "--", ALL: ":"}
"""The lines of the references in the figure."""


def last(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the last row of each training."""
    own = rows[rows.part == "learn"].sort_values("point", kind="stable")
    columns = ["setting", "method", "seed"]
    ends = own.groupby(columns, sort=False).tail(1)
    wanted = ["auc", "clean_weight", "wrong_weight"]
    return ends.reindex(columns=[*ends.columns, *(c for c in wanted if c not in ends)])


def results(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the estimates over the seeds for each setting and method, in order."""
    groups = last(rows).groupby(["setting", "method"], sort=False)
    names = ("auc", "accuracy", "clean_weight", "wrong_weight", "seconds")
    return [
        {"setting": setting, "method": method, **{n: estimate(part[n]) for n in names}}
        | {"percent": estimate(100 * part.accuracy), "inner_steps": int(part.inner_steps.max())}
        | {"seeds": part.seed.nunique(), "least_auc": float(part.auc.min(skipna=False))}
        | {"diverged": int(part.diverged.astype(bool).sum())}
        for (setting, method), part in groups
    ]


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    found, shown = {}, []
    for one in results(rows):
        names = ("auc", "accuracy", "clean_weight", "wrong_weight", "seconds")
        title = SETTINGS[one["setting"]].title
        diverged = Cell(f"{one['diverged']} of {one['seeds']}", one["diverged"])
        shown.append([title, one["method"], *(one[name] for name in names), diverged])
    if shown:
        steps = int(last(rows).inner_steps.min())
        caption = f"""Learned weights of training examples after {steps:,} inner steps or more,
            with 95 % intervals over the seeds; accuracy beside training without learned weights"""
        found[" ".join(caption.split())] = make_table(LEARNED, shown)
    memory = rows[rows.part == "memory"]
    if len(memory):
        where = SETTINGS[str(memory.setting.iloc[0])].title
        title = f"Peak memory of a hypergradient by inner steps, {where} (*italic*: predicted)"
        found[title] = _by_steps(memory)
    return found


class _Peak(NamedTuple):
    steps: int
    peak_bytes: int
    predicted: bool


def _by_steps(memory: pd.DataFrame) -> Table:
    steps = sorted(set(memory.steps.astype(int)))
    shown = []
    for method, own in memory.groupby("method", sort=False):
        cells: dict[str, Any] = {"method": method}
        for row in map(_Peak._make, zip(own.steps, own.peak_bytes, own.predicted, strict=True)):
            cell = make_cell(int(row.peak_bytes), format_bytes)
            text = f"*{cell.text}*" if row.predicted else cell.text
            cells[f"{int(row.steps):,}"] = Cell(text, cell.key)
        cells["largest / smallest"] = float(own.peak_bytes.max() / own.peak_bytes.min())
        shown.append(cells)
    columns: dict[str, Format | None] = {"method": None, **{f"{n:,}": None for n in steps}}
    return make_table({**columns, "largest / smallest": ".2f"}, shown)


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    found = {}
    if (rows.part == "learn").any():
        found["cleaning"] = _learning(rows[rows.part == "learn"])
    if (rows.part == "memory").any():
        found["cleaning_memory"] = _memory(rows[rows.part == "memory"])
    return found


def _learning(rows: pd.DataFrame) -> Figure:
    """Draw the area and the accuracy against inner steps, a row of panels for each setting."""
    caption = """Learned weights of training examples, half of them mislabelled, against inner
        steps. Left: area under the ROC curve of the weights against which labels are right. Right:
        test accuracy, beside training on the clean examples alone and on all unweighted. Medians
        over the seeds."""
    settings = list(rows.setting.unique())
    figure, panels = canvas(2 * len(settings), width=DOUBLE, height=2.2, columns=2, caption=caption)
    look = styles(name for name in rows.method.unique() if name not in REFERENCES)
    look |= {name: {"color": ASIDE, "linestyle": line} for name, line in LINES.items()}
    for i, setting in enumerate(settings):
        area, right = panels[2 * i : 2 * i + 2]
        own = rows[rows.setting == setting]
        for method, part in own.groupby("method", sort=False):
            wanted = [c for c in ("inner_steps", "auc", "accuracy") if c in part]
            line = part.groupby("point", sort=True)[wanted].median()
            style = look[str(method)] | {"markersize": 2}
            right.plot(line.inner_steps, 100 * line.accuracy, **style, label=method)
            if method not in REFERENCES:
                area.plot(line.inner_steps, line.auc, **style)
        area.axhline(TARGET, color=ASIDE, lw=0.8)
        area.set(title=SETTINGS[str(setting)].title, ylabel="area under the ROC curve")
        right.set(ylabel="test accuracy, %")
        for axes in (area, right):
            axes.set_xlabel("inner steps")
    legend(figure)
    return figure


def _memory(memory: pd.DataFrame) -> Figure:
    caption = """Peak memory of a hypergradient against inner steps. Unrolling keeps every step.
        Hollow points: predicted by the line through measured peaks of few steps."""
    figure, (axes,) = canvas(1, width=DOUBLE, height=2.6, caption=caption)
    look = styles(memory.method.unique())
    for method, part in memory.groupby("method", sort=False):
        style, own = look[str(method)], part.sort_values("steps")
        axes.plot(own.steps, 1e-6 * own.peak_bytes, **style, label=method)
        hollow = own[own.predicted.astype(bool)]
        plain = {**style, "linestyle": "", "mfc": "white"}
        axes.plot(hollow.steps, 1e-6 * hollow.peak_bytes, **plain)
    log_axis(axes, "x")
    log_axis(axes, "y")
    axes.set(xlabel="inner steps", ylabel="peak memory, MB")
    legend(figure)
    return figure


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return, for each setting, the best area and the accuracies; and the growth of memory."""
    found = results(rows) if (rows.part == "learn").any() else []
    settings = []
    for name in dict.fromkeys(one["setting"] for one in found):
        own = {one["method"]: one for one in found if one["setting"] == name}
        learned = [one for method, one in own.items() if method not in REFERENCES]
        ended = [one for one in learned if not one["diverged"]]
        best = max(ended, key=lambda one: one["least_auc"], default=None)
        settings.append(
            {
                "title": SETTINGS[name].title,
                "best": best,
                "clean": own[CLEAN],
                "all": own[ALL],
                "diverged": [one["method"] for one in learned if one["diverged"]],
                "reached": [one["method"] for one in learned if one["least_auc"] >= TARGET],
            }
        )
    return {"settings": settings, "target": TARGET, "memory": _growth(rows)}


def _growth(rows: pd.DataFrame) -> dict[str, Any] | None:
    memory = rows[rows.part == "memory"]
    if memory.empty:
        return None
    groups = memory.groupby("method", sort=False).peak_bytes
    ratio = (groups.max() / groups.min()).to_dict()
    flat = {name: value for name, value in ratio.items() if name not in GROWING}
    most = memory[memory.steps == memory.steps.max()]
    grown = most[most.method.isin(GROWING)]
    return {
        "first": int(memory.steps.min()),
        "last": int(memory.steps.max()),
        "flat": list(flat),
        "change": max(flat.values(), default=1.0),
        "peak": float(most[most.method.isin(flat)].peak_bytes.max()) if flat else 0.0,
        "grown": grown.to_dict("records"),
    }
