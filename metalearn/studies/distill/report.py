"""What the study of distillation shows: its tables, figures and findings."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.plot import canvas, label_lines
from metalearn.studies.frame.text import estimate, mean_or_blank, said
from metalearn.system.memory import format_bytes

NAMES = {
    "random": "ten random real images",
    "means": "ten class means",
    "whole": "the whole training set",
    "unrolled": "unrolled",
    "truncated": "unrolled, truncated",
    "cg": "implicit, CG",
    "gauss_newton": "implicit, CG, Gauss-Newton",
    "neumann": "implicit, Neumann",
}
BASELINES = ("random", "means", "whole")
OTHERS = {"linear_accuracy": "linear model, %", "deeper_accuracy": "two hidden layers, %"}


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    seeds = rows.seed.nunique()
    return {
        f"Test accuracy of a model trained on these images alone, means over {seeds} seeds with "
        "95 % intervals": _accuracy(rows),
        "Each meta-gradient: the images' validation accuracy, and what a meta-step took": _cost(
            rows
        ),
    }


def _by_seed(rows: pd.DataFrame, column: str = "accuracy") -> pd.DataFrame:
    """A column for each source, a row for each seed: the mean over the draws, where it has many."""
    part = rows[rows.what == "judged"]
    wide = part.pivot_table(index="seed", columns="source", values=column, aggfunc="mean")
    return wide[[name for name in NAMES if name in wide]]


def _of(rows: pd.DataFrame, source: str, column: str) -> pd.Series:
    return rows[(rows.what == "judged") & (rows.source == source)][column]


def _accuracy(rows: pd.DataFrame) -> pd.DataFrame:
    own = _by_seed(rows)
    others = {title: _by_seed(rows, column) for column, title in OTHERS.items()}
    blank = pd.Series(dtype=float)
    return pd.DataFrame(
        {
            "trained on": NAMES[name],
            "accuracy, %": said(own[name]),
            "above random, points": "" if name == "random" else said(own[name] - own["random"]),
            **{title: said(wide.get(name, blank)) for title, wide in others.items()},
        }
        for name in map(str, own)
    )


def _cost(rows: pd.DataFrame) -> pd.DataFrame:
    part = rows[(rows.what == "judged") & ~rows.source.isin(BASELINES)]
    best = rows[rows.what == "curve"].groupby(["source", "seed"]).validation_accuracy.max()
    return pd.DataFrame(
        {
            "meta-gradient": NAMES[str(name)],
            "best validation, %": f"{best[name].mean():.2f}",
            "ms a meta-step": f"{1e3 * group.step_s.mean():.0f}",
            "peak memory": format_bytes(int(group.peak_bytes.max())),
            "inner gradient": f"{group.inner_grad_norm.mean():.1e}",
            "residual of the solve": mean_or_blank(group, "relative_residual", ".1e"),
            "solver iterations": mean_or_blank(group, "solver_iterations", ".1f"),
            "negative curvature, % of solves": mean_or_blank(
                group, "negative_curvature", ".0f", 100
            ),
        }
        for name, group in part.groupby("source", sort=False)
    )


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    return {"images": _images(rows), "training": _training(rows)}


def _images(rows: pd.DataFrame) -> Figure:
    """The first seed's."""
    part = rows[(rows.what == "image") & (rows.seed == rows.seed.min())]
    sources = [name for name in NAMES if name in set(part.source)]
    digits = sorted(int(label) for label in part.label.unique())
    figure, _ = canvas(1, width=0.62 * len(digits) + 1.9, height=0.66 * len(sources) + 0.3)
    figure.clear()
    grid = figure.subplots(len(sources), len(digits), squeeze=False)
    for source, line in zip(sources, grid, strict=True):
        shown = part[part.source == source].set_index("label")
        for label, axes in zip(digits, line, strict=True):
            side = int(shown.side[label])
            pixels = np.array(shown.pixels[label].split(), dtype=float).reshape(side, side)
            axes.imshow(pixels, cmap="gray_r", interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            if source == sources[0]:
                axes.set_title(str(label), loc="center", fontsize=9)
        line[0].set_ylabel(NAMES[source], rotation=0, ha="right", va="center", fontsize=8)
    return figure


def _training(rows: pd.DataFrame) -> Figure:
    figure, panels = canvas(2)
    curves = rows[rows.what == "curve"]
    for name, group in curves.groupby("source", sort=False):
        mean = group.groupby("step")[["validation_accuracy", "train_s"]].mean()
        panels[0].plot(mean.index, mean.validation_accuracy, label=NAMES[str(name)])
        panels[1].plot(mean.train_s, mean.validation_accuracy, label=NAMES[str(name)])
    panels[0].set_xlabel("meta-steps")
    panels[0].set_ylabel("validation accuracy, %")
    panels[1].set_xlabel("seconds")
    for axes in panels:
        label_lines(axes)
    return figure


def findings(rows: pd.DataFrame) -> list[str]:
    own = _by_seed(rows)
    methods = [str(name) for name in own if name not in BASELINES]
    best = str(_by_seed(rows, "validation_accuracy")[methods].mean().idxmax())
    gain = estimate(own[best] - own["random"])
    within = f" (95 % interval over {len(own)} seeds: ± {gain.interval:.1f})" * (len(own) > 1)
    found = [
        f"Ten distilled images bring a model to {said(own[best])} % on the test split by the "
        f"meta-gradient that validated best ({NAMES[best]}), {gain.mean:.1f} points{within} above "
        f"ten random real images ({said(own['random'])} %). Ten class means bring it to "
        f"{said(own['means'])} %, the whole training set to {said(own['whole'])} %.",
        "Side by side: "
        + ", ".join(
            f"{NAMES[name]} {said(own[name])} % at {1e3 * _of(rows, name, 'step_s').mean():.0f} ms"
            f" and {format_bytes(int(_of(rows, name, 'peak_bytes').max()))} a meta-step"
            for name in methods
        )
        + ".",
    ]
    others = {title: _by_seed(rows, column) for column, title in OTHERS.items()}
    found.append(
        f"Given to other models, the images of {NAMES[best]} reach "
        + " and ".join(
            f"{said(wide[best])} % ({title.removesuffix(', %')}; random real images: "
            f"{said(wide['random'])} %)"
            for title, wide in others.items()
        )
        + "."
    )
    if {"cg", "gauss_newton"} <= set(methods):
        shares = {name: 100 * _of(rows, name, "negative_curvature").mean() for name in methods}
        found.append(
            f"With the Hessian, {shares['cg']:.0f} % of the conjugate-gradient solves met negative "
            f"curvature and the images reach {said(own['cg'])} %; with Gauss-Newton curvature "
            f"{shares['gauss_newton']:.0f} % did, and they reach "
            f"{said(own['gauss_newton'])} %."
        )
    return found
