"""The report of the study of distillation: its tables, figures and facts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.draw import lines
from metalearn.studies.frame.findings import format_count
from metalearn.studies.frame.groups import (
    COSTS,
    METHODS,
    Column,
    by_seed,
    estimate,
    name_sources,
    records,
    scale,
    tabulate,
)
from metalearn.studies.frame.plot import DOUBLE, canvas
from metalearn.studies.frame.table import Table, make_table

BASELINES = {
    "random": "ten random real images",
    "means": "ten class means",
    "whole": "the whole training set",
}
NAMES = BASELINES | METHODS
OTHERS = {"linear model, %": "linear_accuracy", "two hidden layers, %": "deeper_accuracy"}
COST: dict[str, Column] = {
    "meta-gradient": ("name", None, None),
    "best validation, %": ("best", "mean", ".2f"),
    **COSTS,
    "solver iterations": ("solver_iterations", "mean", ".1f"),
    "negative curvature, % of solves": ("negative_curvature", "mean", scale(100, ".0f")),
}


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    return {
        "Test accuracy of a model trained on these images alone, means over "
        f"{format_count(rows.seed.nunique(), 'seed')} with 95 % intervals": _accuracy(rows),
        "Each meta-gradient: the images' validation accuracy, and what a meta-step took": _cost(
            rows
        ),
    }


def _accuracy(rows: pd.DataFrame) -> Table:
    names = name_sources(NAMES, rows)
    judged = rows[rows.what == "judged"]
    own = by_seed(judged, names, "accuracy")
    others = {title: by_seed(judged, names, column) for title, column in OTHERS.items()}
    columns = ["trained on", "accuracy, %", "above random, points", *OTHERS]
    return make_table(
        dict.fromkeys(columns, ".2f"),
        [
            [
                names[name],
                estimate(own[name]),
                None if name == "random" else estimate(own[name] - own["random"]),
                *(estimate(other[name]) for other in others.values()),
            ]
            for name in own
        ],
    )


def _cost(rows: pd.DataFrame) -> Table:
    names = name_sources(NAMES, rows)
    part = rows[(rows.what == "judged") & ~rows.source.isin(list(BASELINES))]
    curves = rows[rows.what == "curve"].groupby(["source", "seed"]).validation_accuracy.max()
    named = part.assign(name=part.source.map(names))
    return tabulate(named.join(curves.rename("best"), on=["source", "seed"]), "source", COST)


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    return {"images": _images(rows), "training": _training(rows)}


def _images(rows: pd.DataFrame) -> Figure:
    """Draw the images of the first seed, a row for each source, in one picture."""
    names = name_sources(NAMES, rows)
    part = rows[(rows.what == "image") & (rows.seed == rows.seed.min())]
    sources = [name for name in names if name in set(part.source)]
    digits = sorted(int(label) for label in part.label.unique())
    side = int(part.side.iloc[0])
    tile = side + 1  # a blank pixel between two images
    picture = np.zeros((tile * len(sources), tile * len(digits)))
    for i, source in enumerate(sources):
        shown = part[part.source == source].set_index("label")
        for j, label in enumerate(digits):
            pixels = np.array(shown.pixels[label].split(), dtype=float).reshape(side, side)
            low, high = pixels.min(), pixels.max()
            scaled = (pixels - low) / (high - low if high > low else 1.0)
            picture[i * tile : i * tile + side, j * tile : j * tile + side] = scaled
    caption = (
        "The ten images of each source, of the first seed. Grey values are scaled image by image."
    )
    figure, (axes,) = canvas(width=DOUBLE, height=0.45 * len(sources) + 0.3, caption=caption)
    axes.imshow(picture, cmap="gray_r", interpolation="nearest")
    middle = (side - 1) / 2
    axes.set_xticks([j * tile + middle for j in range(len(digits))], [str(d) for d in digits])
    axes.set_yticks([i * tile + middle for i in range(len(sources))], [names[s] for s in sources])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


def _training(rows: pd.DataFrame) -> Figure:
    names = name_sources(NAMES, rows)
    curves = rows[rows.what == "curve"].groupby(["source", "step"], sort=False)
    mean = curves[["validation_accuracy", "train_s"]].mean().reset_index()
    caption = """Validation accuracy of a model trained on the distilled images, against meta-steps
        and against time: means over the seeds."""
    figure, panels = canvas(2, caption=caption)
    panels[0].set(xlabel="meta-steps", ylabel="validation accuracy, %")
    panels[1].set(xlabel="seconds")
    for axes, x in zip(panels, ("step", "train_s"), strict=True):
        lines(axes, mean, x, "validation_accuracy", "source", names.__getitem__, marker="")
    return figure


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the texts of the tables, and the name of what validated best."""
    names = name_sources(NAMES, rows)
    judged = rows[(rows.what == "judged") & ~rows.source.isin(list(BASELINES))]
    scores = by_seed(judged, names, "validation_accuracy")
    return {
        "seeds": rows.seed.nunique(),
        "best": names[max(scores, key=lambda name: scores[name].mean())],
        "accuracy": records(_accuracy(rows), "trained on"),
        "cost": records(_cost(rows), "meta-gradient"),
    }
