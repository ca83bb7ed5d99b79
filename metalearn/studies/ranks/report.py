"""The table, the figure and the findings of the study of several processes."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.colours import GREY
from metalearn.studies.frame.draw import lines
from metalearn.studies.frame.plot import canvas
from metalearn.studies.frame.table import Table, make_table, quartiles


def tables(rows: pd.DataFrame, meta_batch: int) -> dict[str, Table]:
    columns = {
        "metagrad": None,
        "processes": None,
        "threads each": None,
        "s a meta-step": None,
        "times as fast": None,
        "last query loss": ".6f",
    }
    shown = [
        (
            *(row[name] for name in ("method", "ranks", "threads")),
            quartiles(row, "seconds", ".3f"),
            quartiles(row, "speed_up", ".2f"),
            row["loss"],
        )
        for row in rows.to_dict("records")
    ]
    caption = f"{meta_batch} tasks of 5 ways and 1 shot, Conv4-64; quartiles in brackets"
    return {caption: make_table(columns, shown)}


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    caption = (
        "Speed of a training by several processes of one thread each, relative to one process."
    )
    figure, (axes,) = canvas(caption=caption)
    counts = sorted(rows.ranks.unique())
    axes.plot(counts, counts, color=GREY, lw=0.8, label="linear")
    axes.set(xlabel="processes, one thread each", ylabel="times as fast as one", xticks=counts)
    lines(axes, rows[rows.threads == 1].sort_values("ranks"), "ranks", "speed_up", "method")
    return {"speed_up": figure}


def methods(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the runs of each method that the findings name, with their changes of the loss.

    shared: the most processes of one thread each.
    threaded: one process of several threads.
    """
    found = []
    for method, part in rows.groupby("method", sort=False):
        single = part[part.threads == 1].sort_values("ranks")
        shared, threaded = (p.iloc[-1].to_dict() for p in (single, part[part.threads > 1]))
        for run in (shared, threaded):
            run["loss_change"] = abs(run["loss"] / single.loss.iloc[0] - 1)
        found.append({"method": method, "shared": shared, "threaded": threaded})
    return found
