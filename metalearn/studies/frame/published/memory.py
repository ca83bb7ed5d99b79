"""Memory and time against inner steps as others published them, beside ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from metalearn.system.memory import format_bytes

MARKS = {"U": "unverified", "P": "in a paper's table"}


def figures() -> pd.DataFrame:
    """Others' figures, one a row: what, method, steps, figure (a number and its unit, as given),
    number, mark (U: unverified) and source."""
    wide = pd.read_csv(Path(__file__).with_name("memory.csv"))
    columns = [c for c in wide.columns if c.endswith((" step", " steps"))]
    kept = [c for c in wide.columns if c not in columns]
    long = wide.melt(kept, columns, "steps", "figure", ignore_index=False).dropna(subset="figure")
    # A figure may name another number of steps than its column: "about 12 GB (at 16)".
    elsewhere = long.figure.str.extract(r"\(at (\d+)\)")[0]
    long["steps"] = elsewhere.fillna(long.steps.str.extract(r"(\d+)")[0]).astype(int)
    long["number"] = long.figure.str.extract(r"([\d.]+)")[0].astype(float)
    return long.sort_index(kind="stable").reset_index(drop=True)


def beside(part: pd.DataFrame) -> pd.DataFrame:
    """Others' figures, and ours at the same inner steps, on a line between those measured."""
    others = figures()
    solves = others.method.str.extract(r"iMAML, (\d+)")[0]
    own = [f"implicit, {n} CG" if pd.notna(n) else "unrolled, higher" for n in solves]
    columns = ["peak_bytes" if w.startswith("memory") else "seconds" for w in others.what]
    each = list(zip(own, others.steps, columns, strict=True))
    numbers = [_between(part[part.method == m], int(k), column) for m, k, column in each]
    return pd.DataFrame(
        {
            "what": others.what,
            "method": others.method,
            "inner steps": others.steps,
            "theirs": others.figure,
            "ours": [_shown(x, c) for x, c in zip(numbers, columns, strict=True)],
            "our method": own,
            "status": others.mark.map(MARKS),
            "source": others.source,
        }
    )


def _between(measured: pd.DataFrame, steps: int, column: str) -> float:
    known = measured.dropna(subset=column).sort_values("steps")
    if not len(known) or not known.steps.min() <= steps <= known.steps.max():
        return float("nan")
    return float(np.interp(steps, known.steps, known[column]))


def _shown(value: float, column: str) -> str:
    if pd.isna(value):
        return ""
    return format_bytes(round(value)) if column == "peak_bytes" else f"{value:.3g} s"


def findings(part: pd.DataFrame) -> list[str]:
    """How MAML's memory and time grow, theirs and ours."""
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
                f"From {first.steps} to {last.steps} inner steps MAML's {what} grows by a factor "
                f"of {last.number / first.number:.1f} in others' figure ({first.source}; "
                f"{MARKS[first['mark']]}), by {ends[1] / ends[0]:.1f} in ours."
            )
    return found
