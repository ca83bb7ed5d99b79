"""Published memory and time against inner steps, beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metalearn.studies.frame.table import Format, Table, make_cell, make_table
from metalearn.system.memory import format_bytes

MARKS = {"U": "unverified", "P": "in a paper's table"}


def figures() -> pd.DataFrame:
    """Return the published figures, one in each row.

    The columns are what, method, steps, figure (the published number with its unit), number, mark
    (a key of `MARKS`) and source.
    """
    wide = pd.read_csv(Path(__file__).with_name("memory.csv"))
    columns = [c for c in wide.columns if c.endswith((" step", " steps"))]
    kept = [c for c in wide.columns if c not in columns]
    long = wide.melt(kept, columns, "steps", "figure", ignore_index=False).dropna(subset="figure")
    # A figure may name a number of steps that differs from its column: "about 12 GB (at 16)".
    elsewhere = long.figure.str.extract(r"\(at (\d+)\)")[0]
    long["steps"] = elsewhere.fillna(long.steps.str.extract(r"(\d+)")[0]).astype(int)
    long["number"] = long.figure.str.extract(r"([\d.]+)")[0].astype(float)
    return long.sort_index(kind="stable").reset_index(drop=True)


def beside(part: pd.DataFrame) -> Table:
    """Return a table of the published figures and of ours at the same inner steps.

    Our figures are interpolated linearly between the measured numbers of steps.

    Args:
        part: our rows, with the columns method, steps, peak_bytes and seconds.
    """
    others = figures()
    solves = others.method.str.extract(r"iMAML, (\d+)")[0]
    own = [f"implicit, {n} CG" if pd.notna(n) else "unrolled, higher" for n in solves]
    rows = []
    for figure, method in zip(others.itertuples(), own, strict=True):
        memory = str(figure.what).startswith("memory")
        value = _between(
            part[part.method == method],
            int(str(figure.steps)),
            "peak_bytes" if memory else "seconds",
        )
        form: Format = (lambda b: format_bytes(round(b))) if memory else (lambda x: f"{x:.3g} s")
        rows.append(
            {
                "what": figure.what,
                "method": figure.method,
                "inner steps": figure.steps,
                "theirs": figure.figure,
                "ours": make_cell(value, form),
                "our method": method,
                "status": MARKS[str(figure.mark)],
                "source": figure.source,
            }
        )
    return make_table(list(rows[0]), rows)


def _between(measured: pd.DataFrame, steps: int, column: str) -> float:
    known = measured.dropna(subset=column).sort_values("steps")
    if not len(known) or not known.steps.min() <= steps <= known.steps.max():
        return float("nan")
    return float(np.interp(steps, known.steps, known[column]))


def growths(part: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the growth of MAML's memory and time with its inner steps, published and ours."""
    others = figures()
    found = []
    for column, what in (("peak_bytes", "memory"), ("seconds", "time")):
        theirs = others[(others.method == "MAML") & others.what.str.startswith(what)]
        theirs = theirs[theirs.what == theirs.what.iloc[0]].sort_values("steps")
        first, last = theirs.iloc[0], theirs.iloc[-1]
        measured = part[part.method == "unrolled, higher"]
        ends = [_between(measured, int(end.steps), column) for end in (first, last)]
        if not any(map(np.isnan, ends)):
            found.append(
                {
                    "what": what,
                    "first": first.steps,
                    "last": last.steps,
                    "theirs": last.number / first.number,
                    "ours": ends[1] / ends[0],
                    "source": first.source,
                    "mark": MARKS[first["mark"]],
                }
            )
    return found
