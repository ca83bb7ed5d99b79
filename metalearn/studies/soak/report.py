"""The table, the figure and the findings of the soak."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.draw import label_lines, lines
from metalearn.studies.frame.plot import canvas
from metalearn.studies.frame.table import Table, make_table

MEASURED = {
    "memory_bytes": ("memory of the training process, MB", 1e6),
    "tracker_bytes": ("memory of W&B's process, MB", 1e6),
    "handles": ("open file handles", 1),
}
"""The title and the unit of each column of the rows."""
FLAT = 0.02
"""The largest relative change, from the first quarter to the last, that counts as none."""


def tables(rows: pd.DataFrame, steps: int) -> dict[str, Table]:
    columns = {
        "run": None,
        "what": None,
        "first quarter": None,
        "last quarter": None,
        "change %": "+.2f",
    }
    compared = []
    for run, part in rows.groupby("run", sort=False):
        for column, (title, unit) in MEASURED.items():
            first, last, change = _quarters(part[column])
            compared.append((run, title, first / unit, last / unit, 100 * change))
    return {f"Means over quarters of {steps:,} meta-steps": make_table(columns, compared)}


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    caption = """Resident memory and open file handles of a long training and of W&B's own process,
        against meta-steps."""
    figure, (memory, handles) = canvas(2, caption=caption)
    own = rows.assign(at=rows.step / 1000, mb=rows.memory_bytes / 1e6)
    tracker = own.assign(mb=own.tracker_bytes / 1e6, run=own.run + ", W&B")
    both = pd.concat([own, tracker])[["at", "mb", "run"]]
    memory.set(ylabel="resident memory, MB", xlabel="thousand meta-steps")
    handles.set(ylabel="open file handles", xlabel="thousand meta-steps")
    lines(memory, both, "at", "mb", "run", marker="", direct=False)
    lines(handles, own, "at", "handles", "run", marker="", direct=False)
    for axes in (memory, handles):
        axes.set_ylim(bottom=0)
        label_lines(axes)
    return {"soak": figure}


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the relative changes of each run, and whether its own memory and handles are flat."""
    found = []
    for run, part in rows.groupby("run", sort=False):
        changes = {name: _quarters(part[name])[2] for name in MEASURED}
        flat = all(abs(changes[name]) <= FLAT for name in ("memory_bytes", "handles"))
        found.append({"run": run, "flat": flat, **changes})
    return {"limit": FLAT, "runs": found}


def _quarters(values: pd.Series[float]) -> tuple[float, float, float]:
    """Return the means over the first and the last quarter, and the relative change."""
    n = len(values) // 4
    first, last = float(values.iloc[:n].mean()), float(values.iloc[-n:].mean())
    return first, last, (last - first) / first if first else 0.0
