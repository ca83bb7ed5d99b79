"""The tables, figures and facts of the study of a whole training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from metalearn.studies.frame.colours import BLACK
from metalearn.studies.frame.draw import Mark, dots, lines
from metalearn.studies.frame.groups import estimate
from metalearn.studies.frame.plot import DOUBLE, canvas, log_axis
from metalearn.studies.frame.table import Format, Table, make_table
from metalearn.studies.training.variants import SETTINGS, VARIANTS

ACCURACY: dict[str, Format | None] = {
    **{"data and model": None, "learned": None, "while learned, %": ".2f"},
    **{"trained again with them, %": ".2f", "above fixed, points": ".2f"},
    **{"training accuracy, %": ".2f", "s": ".0f", "diverged": None},
}
FIGURES = ("online", "again", "gain", "train")
KINDS = {"rate ": "rate factor", "decay ": "weight decay", "strength ": "strength"}
"""The beginnings of the columns of values, and the labels of their panels."""


def last(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the last row of each training."""
    by = ["setting", "variant", "seed", "stage"]
    ends = rows.sort_values("point", kind="stable").groupby(by, sort=False).tail(1)
    return ends.reindex(
        columns=list(dict.fromkeys([*ends.columns, "accuracy", "train_accuracy", "seconds"]))
    )


def results(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return what each variant reached, in order."""
    ends, found = last(rows), []
    for setting in rows.setting.unique():
        own = ends[ends.setting == setting]
        columns = ["variant", "stage"]
        wide = 100 * own.pivot_table(index="seed", columns=columns, values="accuracy", dropna=False)
        fixed = wide["fixed", "learned"]
        for variant in own.variant.unique():
            part = own[own.variant == variant]
            first = part[part.stage == "learned"]
            again = wide.get((variant, "retrained"))
            best = wide[variant, "learned"] if again is None else again
            found.append(
                {
                    "setting": SETTINGS[setting].title,
                    "variant": variant,
                    "learned": VARIANTS[variant].title,
                    "online": estimate(wide[variant, "learned"]),
                    "again": None if again is None else estimate(again),
                    "gain": None if variant == "fixed" else estimate(best - fixed),
                    "train": estimate(100 * first.train_accuracy),
                    "seconds": estimate(first.seconds),
                    "diverged": int(part.diverged.astype(bool).sum()),
                }
            )
    return found


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    shown = [
        [r[name] for name in ("setting", "learned", *FIGURES, "seconds", "diverged")]
        for r in results(rows)
    ]
    caption = f"""Test accuracy after {int(rows.inner_steps.max()):,} steps of SGD, with the
        hyper-parameters learned on the way, and with the learned ones fixed from the start"""
    return {" ".join(caption.split()): make_table(ACCURACY, shown), **_values(rows)}


def _values(rows: pd.DataFrame) -> dict[str, Table]:
    """Make a table for each setting: a row for each hyper-parameter, a column for each variant."""
    ends, found = last(rows[rows.stage == "learned"]), {}
    for setting in rows.setting.unique():
        own = ends[ends.setting == setting]
        names = [c for c in own if str(c).startswith(tuple(KINDS)) and own[c].notna().any()]
        variants = list(own.variant.unique())
        shown = [
            [name, *(estimate(own[own.variant == v][name]) for v in variants)] for name in names
        ]
        titles = [VARIANTS[v].title for v in variants]
        columns: dict[str, Format | None] = {"value": None, **dict.fromkeys(titles, ".2e")}
        found[f"{SETTINGS[setting].title}: hyper-parameters at the end"] = make_table(
            columns, shown
        )
    return found


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    return {"training": _accuracies(rows), "training_values": _traces(rows)}


def _accuracies(rows: pd.DataFrame) -> Figure:
    caption = """Test accuracy by what the training learns about itself, trained again with the
        learned values where there are some. Means with 95 % intervals over the seeds."""
    settings = list(rows.setting.unique())
    figure, panels = canvas(len(settings), width=DOUBLE, height=2.0, caption=caption)
    found = results(rows)
    for axes, setting in zip(panels, settings, strict=True):
        title = SETTINGS[setting].title
        marks = [
            Mark.of(r["learned"], r["again"] or r["online"], BLACK)
            for r in found
            if r["setting"] == title and (r["again"] or r["online"]) is not None
        ]
        dots(axes, marks)
        axes.set(xlabel="test accuracy, %", title=title)
    return figure


def _traces(rows: pd.DataFrame) -> Figure:
    """Draw the learned values along the training, of the first setting and seed."""
    caption = """Hyper-parameters along the training in which they are learned, of the first seed.
        Rates and decays: a line for each layer, from the first one (dark) to the last (light)."""
    own = rows[(rows.stage == "learned") & (rows.seed == rows.seed.iloc[0])]
    own = own[(own.setting == own.setting.iloc[0]) & own.accuracy.notna()]
    figure, panels = canvas(len(KINDS), width=DOUBLE, height=2.2, caption=caption)
    for axes, (start, label) in zip(panels, KINDS.items(), strict=True):
        axes.set(xlabel="inner steps", ylabel=label)
        group = f"{start.strip()}s"
        learning = [v for v in own.variant.unique() if group in VARIANTS[v].learned]
        part = own[own.variant == learning[0]] if learning else own[:0]
        names = [c for c in own if str(c).startswith(start) and part[c].notna().any()]
        values = part[names].to_numpy(float)
        # Over more than two decades the labels of further ticks would overlap.
        wide = values.size and np.nanmax(values) > 100 * np.nanmin(values)
        log_axis(axes, "y", subs=(1,) if wide else (1, 2, 3, 5, 7))
        if names:
            long = part.melt("inner_steps", names, var_name="name", value_name="value")
            long["name"] = long.name.str.removeprefix(start)
            if group == "strengths":
                lines(axes, long, "inner_steps", "value", "name", marker="")
            else:
                shades = colormaps["viridis"](np.linspace(0, 0.9, len(names)))
                look = {
                    name.removeprefix(start): {"color": shade}
                    for name, shade in zip(names, shades, strict=True)
                }
                lines(axes, long, "inner_steps", "value", "name", look=look, direct=False)
    return figure


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return what each variant reached, by setting."""
    found = results(rows)
    settings = []
    for title in dict.fromkeys(r["setting"] for r in found):
        own = [r for r in found if r["setting"] == title]
        settings.append(
            {
                "title": title,
                "fixed": own[0]["online"],
                "learned": [r for r in own[1:] if r["gain"] is not None],
                "diverged": [r["learned"] for r in own if r["diverged"]],
            }
        )
    return {"settings": settings, "steps": int(rows.inner_steps.max())}
