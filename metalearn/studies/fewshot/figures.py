"""The figures of the few-shot runs: learning curves, error against time, inner steps at test."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from metalearn.studies.fewshot.report import curves, settings
from metalearn.studies.frame.accuracy import PUBLISHED, method_title, setting_title, test_rows
from metalearn.studies.frame.plot import COLOURS, canvas, label_lines, log_axis


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    if test_rows(rows).empty:
        return {}
    return {
        "learning": _curves(rows, "step", "meta-step"),
        "time": _curves(rows, "train_s", "minutes of training"),
        "inner_steps": _inner_steps(rows),
    }


def _curves(rows: pd.DataFrame, x: str, label: str) -> Figure:
    """Draw the validation errors, a line for each seed.

    The logarithm of the error separates 98 from 99 % as well as 60 from 70 %.
    """
    asked = settings(rows)
    figure, panels = canvas(len(asked), width=5.6, height=3.8)
    for axes, setting in zip(panels, asked, strict=True):
        by_method = curves(rows, setting)
        for method, curve in by_method.items():
            style = _style(method, by_method)
            for j, (_, part) in enumerate(curve.groupby("seed")):
                at = part[x] / (60 if x == "train_s" else 1)
                error = (100 - 100 * part.accuracy).clip(lower=0.01)
                label_once = method_title(method) if j == 0 else f"_{method}{j}"
                axes.plot(at, error, **style, markevery=len(part) // 20 + 1, label=label_once)
        log_axis(axes, "y")
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)))
        if x == "train_s":
            log_axis(axes, "x")
        axes.set_xlabel(label)
        axes.set_ylabel("validation error (100 - accuracy), %")
        axes.set_title(setting_title(test_rows(rows, setting)))
        label_lines(axes)
    return figure


def _style(method: str, methods: Iterable[str]) -> dict[str, Any]:
    """Return the method's colour, the same in every figure. Its tuned form has squares."""
    bases = list(dict.fromkeys((*PUBLISHED, *(m.removesuffix("_tuned") for m in methods))))
    colour = COLOURS[bases.index(method.removesuffix("_tuned")) % len(COLOURS)]
    return {"color": colour, "marker": "s" if method.endswith("_tuned") else "o"}


def _inner_steps(rows: pd.DataFrame) -> Figure:
    asked = settings(rows)
    figure, panels = canvas(len(asked), width=5.6, height=3.8)
    for axes, setting in zip(panels, asked, strict=True):
        part = test_rows(rows, setting)
        by_method = {str(m): group for m, group in part.groupby("method", sort=False)}
        for method, group in by_method.items():
            style = _style(method, by_method)
            for mode, line in (("transductive", "-"), ("inductive", ":")):
                chosen = group[group["mode"] == mode]
                means = 100 * chosen.groupby("inner_steps").accuracy.mean()
                label = method_title(method) if mode == "transductive" else f"_{method}"
                axes.plot(means.index, means, line, **style, label=label)
        axes.set_xlabel("inner steps at test")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(f"{setting_title(part)} (dotted: inductive)")
        label_lines(axes)
    return figure
