"""The figures of the few-shot runs: learning curves, and accuracy by inner steps at test."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.fewshot.report import curves, settings, titles
from metalearn.studies.frame.accuracy import PUBLISHED, method_title, setting_title, test_rows
from metalearn.studies.frame.colours import styles
from metalearn.studies.frame.draw import label_lines
from metalearn.studies.frame.plot import DOUBLE, canvas, log_axis


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    if test_rows(rows).empty:
        return {}
    return {"learning": _curves(rows), "inner_steps": _inner_steps(rows)}


def _curves(rows: pd.DataFrame) -> Figure:
    """Draw the validation errors against meta-steps and time, a line for each seed.

    The logarithm of the error separates 98 from 99 % as well as 60 from 70 %.
    """
    asked, look = settings(rows), _look(rows)
    caption = f"""Validation error (100 - accuracy) over training, against meta-steps and against
        minutes, a line for each seed: {titles(rows)}."""
    figure, panels = canvas(2 * len(asked), columns=2, height=2.6, caption=caption)
    for i, setting in enumerate(asked):
        for axes, x in zip(panels[2 * i :], ("step", "train_s"), strict=False):
            for method, curve in curves(rows, setting).items():
                for j, (_, part) in enumerate(curve.groupby("seed")):
                    at = part[x] / (60 if x == "train_s" else 1)
                    error = (100 - 100 * part.accuracy).clip(lower=0.01)
                    once = method_title(method) if j == 0 else f"_{method}{j}"
                    axes.plot(at, error, **look[method], markevery=len(part) // 15 + 1, label=once)
            log_axis(axes, "y", subs=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0))
            if x == "train_s":
                log_axis(axes, "x", subs=(1, 3))
            axes.set_xlabel("minutes of training" if x == "train_s" else "meta-steps")
            axes.set_title(setting_title(test_rows(rows, setting)))
            label_lines(axes)
        panels[2 * i].set_ylabel("validation error, %")
    return figure


def _look(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return the style of each method by its name, the same in every figure of the rows."""
    methods = rows.method.dropna().unique()
    look = styles([*PUBLISHED.values(), *map(method_title, methods)])
    return {method: look[method_title(method)] for method in methods}


def _inner_steps(rows: pd.DataFrame) -> Figure:
    asked, look = settings(rows), _look(rows)
    caption = f"""Test accuracy against the inner steps at test, with the queries' own batch
        statistics; thin: with those of the support set (inductive). {titles(rows)}."""
    figure, panels = canvas(len(asked), width=DOUBLE, height=2.6, caption=caption)
    for axes, setting in zip(panels, asked, strict=True):
        part = test_rows(rows, setting)
        for (method, mode), chosen in part.groupby(["method", "mode"], sort=False):
            means = 100 * chosen.groupby("inner_steps").accuracy.mean()
            own, label = look[str(method)], method_title(method)
            if mode != "transductive":
                own, label = {**own, "linewidth": 0.5, "markersize": 1.5}, f"_{method}"
            axes.plot(means.index, means, **own, label=label)
        axes.set(xlabel="inner steps at test", ylabel="test accuracy, %")
        axes.set_title(setting_title(part))
        label_lines(axes)
    return figure
