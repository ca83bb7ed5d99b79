"""The table of properties: every cell made of rows, with where they stand."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.plot import canvas, label_lines, log_axis
from metalearn.studies.properties.claims import error_rows, properties


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    others = _others(rows)
    table = pd.DataFrame(
        {
            "property": p.name,
            "the textbook": p.claim,
            "unrolled": p.unrolled,
            "implicit": p.implicit,
            "borne out?": p.verdict,
            "evidence": ", ".join(
                [
                    f"[rows.csv](rows.csv), part = {p.part}",
                    *(f"[{s}](../{s}/table.md)" for s in p.studies if s in set(others.study)),
                ]
            ),
        }
        for p in properties(rows)
    )
    found = {"The comparison": table, "Error against the inner steps": _error_table(rows)}
    if len(others):
        found["Studies beside this one that measure the same"] = pd.DataFrame(
            {
                "study": f"[{o.title}](../{o.study}/table.md)",
                "rows": f"{o.measured:.0f}",
                "command": f"`{o.command}`",
                "commit": o.commit,
                "finding": finding,
            }
            for o in others.itertuples()
            for finding in str(o.findings).split("\n")
        )
    return found


def _others(rows: pd.DataFrame) -> pd.DataFrame:
    part = rows[rows.part == "evidence"]
    return part[part.found.astype(bool)]


def _error_table(rows: pd.DataFrame) -> pd.DataFrame:
    unrolled, implicit = error_rows(rows)
    return pd.DataFrame(
        {
            "inner steps": [int(k) for k in unrolled.steps],
            "inner gradient's norm": [f"{x:.1e}" for x in unrolled.inner_grad_norm],
            "unrolled": [f"{x:.1e}" for x in unrolled.error],
            "implicit": [f"{x:.1e}" for x in implicit.error],
            "unrolled, from the steps' own": [
                "" if pd.isna(x) else f"{x:.1e}" for x in unrolled.error_of_steps
            ],
            "implicit, from the steps' own": [
                "" if pd.isna(x) else f"{x:.1e}" for x in implicit.error_of_steps
            ],
        }
    )


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    figure, panels = canvas(2)
    for axes, column, label in (
        (panels[0], "steps", "inner steps"),
        (panels[1], "inner_grad_norm", "norm of the inner gradient"),
    ):
        for method, part in zip(("unrolled", "implicit"), error_rows(rows), strict=True):
            axes.plot(part[column], part.error, marker="o", label=method)
        log_axis(axes, "x", base=2 if column == "steps" else 10)
        log_axis(axes, "y")
        axes.set(xlabel=label, ylabel="relative error of the meta-gradient")
    panels[1].invert_xaxis()
    for axes in panels:
        label_lines(axes)
    return {"convergence": figure}


def findings(rows: pd.DataFrame) -> list[str]:
    found = properties(rows)
    held = [p.name for p in found if p.verdict.startswith("holds")]
    return [
        f"Of {len(found)} properties that the textbook compares, {len(held)} are borne out as they "
        f"stand{': ' * bool(held)}{', '.join(held)}.",
        *(
            f"{p.name[0].upper()}{p.name[1:]}, by the textbook {p.claim}: {p.verdict}."
            for p in found
            if not p.verdict.startswith("holds")
        ),
    ]
