"""The table, figure and facts of the demonstration."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.colours import GREY, styles
from metalearn.studies.frame.draw import label_lines, lines
from metalearn.studies.frame.findings import format_count
from metalearn.studies.frame.plot import canvas, log_axis
from metalearn.studies.frame.table import Format, Table, make_table
from metalearn.system.memory import format_bytes
from metalearn.training.estimate import Estimate

CHANCE = 20.0
"""The accuracy of a guess among 5 classes, in percent."""
NAMES = {"MAML": "MAML (unrolled)", "iMAML": "iMAML (implicit)"}


def memory(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the peaks in bytes: a row for each method, a column for each number of inner steps."""
    part = rows[rows.part == "memory"].astype({"steps": int, "peak_bytes": int})
    wide = part.pivot(index="method", columns="steps", values="peak_bytes")
    return wide.reindex(part.method.unique())


def accuracies(rows: pd.DataFrame) -> dict[str, Estimate]:
    """Return the test accuracy of each method in percent."""
    test = rows[rows.what == "test"]
    return {
        str(row["method"]): Estimate(100 * row["accuracy"], 100 * row["accuracy_interval"])
        for row in test.to_dict("records")
    }


def tables(rows: pd.DataFrame, dataset: str) -> dict[str, Table]:
    peaks, found = memory(rows), accuracies(rows)
    columns: dict[str, Format | None] = {
        **{"method": None, "accuracy, %": ".1f", "training, s": ".0f"},
        **{f"memory, {format_count(int(k), 'step')}": format_bytes for k in peaks.columns},
    }
    shown = [
        [row["method"], found[row["method"]], row["train_s"], *peaks.loc[row["method"]].tolist()]
        for row in rows[rows.what == "test"].to_dict("records")
    ]
    caption = f"""Test accuracy on 5-way 1-shot tasks of {dataset}, of classes that are not in the
        training set (chance: {CHANCE:.0f} %), and peak memory of one meta-gradient of all
        parameters, by its inner steps"""
    return {" ".join(caption.split()): make_table(columns, shown)}


def figures(rows: pd.DataFrame, dataset: str) -> dict[str, Figure]:
    caption = f"""MAML and iMAML on 5-way 1-shot tasks of {dataset}. Left: peak memory of one
        meta-gradient against inner steps. Right: validation accuracy over training, with 95 %
        intervals."""
    figure, (left, right) = canvas(2, height=2.4, caption=caption)
    names, look = NAMES.__getitem__, styles(NAMES.values())
    log_axis(left, "x", base=4)
    log_axis(left, "y", subs=(1, 2, 5))
    left.set(xlabel="inner steps", ylabel="peak memory, MB")
    peaks = rows[rows.part == "memory"].assign(mb=lambda part: part.peak_bytes / 1e6)
    lines(left, peaks, "steps", "mb", "method", names, look)
    curve = rows[rows.what == "curve"].assign(
        percent=lambda part: 100 * part.accuracy, half=lambda part: 100 * part.accuracy_interval
    )
    right.axhline(CHANCE, color=GREY, linestyle="--", linewidth=0.8)
    right.annotate("chance", (0.0, CHANCE), xytext=(2, 3), textcoords="offset points", fontsize=7)
    right.set(xlabel="seconds of training", ylabel="validation accuracy, %", ylim=(0, 100))
    lines(right, curve, "train_s", "percent", "method", names, look, "half", direct=False)
    right.set_xlim(left=0)
    label_lines(right)
    return {"demo": figure}


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the growth of each method's peak memory, and the accuracies."""
    peaks = memory(rows)
    first, last = peaks.columns[0], peaks.columns[-1]
    return {
        "first": int(first),
        "last": int(last),
        "growth": (peaks[last] / peaks[first]).to_dict(),
        "accuracy": accuracies(rows),
        "chance": CHANCE,
    }
