"""The report of the study of architecture search: its tables, figures and facts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.colours import BLACK, GREY, method_colour
from metalearn.studies.frame.draw import Mark, dots, legend, lines
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
from metalearn.training.estimate import Estimate

BASELINES = {
    "random": "random architectures",
    "best random": "the random one that validated best",
    "average": "equal mixture of all operations",
    "largest": "conv_5x5 on every edge",
}
NAMES = BASELINES | METHODS
COST: dict[str, Column] = {
    "meta-gradient": ("name", None, None),
    "validation loss at the end": ("last", "mean", ".3f"),
    **COSTS,
    "negative curvature or divergence, % of solves": ("unsolved", "mean", scale(100, ".0f")),
}


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    names = name_sources(NAMES, rows)
    part = rows[(rows.what == "trained") & ~rows.source.isin(list(BASELINES))]
    found = part.assign(name=part.source.map(names))
    ends = rows[(rows.what == "curve") & (rows.step == rows.step.max())]
    last = ends.set_index(["source", "seed"]).validation_loss.rename("last")
    edges = ", ".join(rows[rows.what == "mixture"].edge.unique())
    columns = {
        "meta-gradient": None,
        "seed": None,
        f"operations of the edges {edges}": None,
        "accuracy, %": ".2f",
        "deviation over starts, points": ".2f",
    }
    shown = found[["name", "seed", "architecture", "accuracy", "deviation"]]
    return {
        "Test accuracy of networks trained from scratch, means over "
        f"{format_count(rows.seed.nunique(), 'seed')} with 95 % intervals": _accuracy(rows),
        "Each meta-gradient in the search": tabulate(
            found.join(last, on=["source", "seed"]), "source", COST
        ),
        "The architectures found": make_table(columns, shown.itertuples(index=False)),
    }


def _accuracy(rows: pd.DataFrame) -> Table:
    names = name_sources(NAMES, rows)
    trained = _trained(rows)
    drawn, own = trained[trained.source == "random"], by_seed(trained, names, "accuracy")
    return make_table(
        {
            "network": None,
            "accuracy, %": ".2f",
            "above random, points": ".2f",
            "above the equal mixture, points": ".2f",
            "random ones below it, %": scale(100, ".0f"),
            "weights": ".0f",
        },
        [
            [
                names[name],
                estimate(accuracy),
                None if name == "random" else estimate(accuracy - own["random"]),
                None if name == "average" else estimate(accuracy - own["average"]),
                None if name == "random" else (drawn.accuracy < drawn.seed.map(accuracy)).mean(),
                trained[trained.source == name].weights.mean(),
            ]
            for name, accuracy in own.items()
        ],
    )


def _trained(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each trained network.

    Each seed's random network with the best validation accuracy has a second row.
    """
    part = rows[rows.what == "trained"]
    drawn = part[part.source == "random"].reset_index(drop=True)
    best = drawn.loc[drawn.groupby("seed").validation_accuracy.idxmax()]
    return pd.concat([part, best.assign(source="best random")], ignore_index=True)


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    return {"accuracy": _points(rows), "search": _search(rows), "mixtures": _mixtures(rows)}


def _points(rows: pd.DataFrame) -> Figure:
    """Draw the accuracy of every architecture, and the means."""
    names = name_sources(NAMES, rows)
    caption = """Test accuracy of each architecture after training from scratch, and the means with
        95 % intervals over the seeds."""
    trained = _trained(rows)
    own = by_seed(trained, names, "accuracy")
    figure, (axes,) = canvas(width=DOUBLE, caption=caption)
    dots(axes, [Mark.of(names[n], Estimate.of(values), BLACK) for n, values in own.items()])
    for place, name in enumerate(reversed(own)):
        points = trained[trained.source == name].accuracy
        # Spread, so that equal points stay visible; the seed keeps the figure the same.
        spread = np.random.default_rng(0).uniform(-0.3, 0.3, len(points))
        colour = GREY if name in BASELINES else method_colour(names[name])
        axes.plot(points, place + spread, "o", color=colour, alpha=0.4, markersize=2.5, zorder=1)
    axes.set_xlabel("test accuracy, %")
    return figure


def _search(rows: pd.DataFrame) -> Figure:
    """Draw the share of each operation in the mixtures, along the search."""
    names = name_sources(NAMES, rows)
    caption = """Share of each operation in the mixtures along the search, the mean over edges and
        seeds, for each meta-gradient."""
    curves = rows[rows.what == "curve"]
    methods = [name for name in names if name in set(curves.source)]
    shares = [str(column) for column in curves if str(column).startswith("share_")]
    figure, panels = canvas(len(methods), width=DOUBLE, height=2.0, sharey=True, caption=caption)
    for axes, method in zip(panels, methods, strict=True):
        mean = 100 * curves[curves.source == method].groupby("step")[shares].mean()
        long = mean.reset_index().melt("step", var_name="share")
        axes.set(xlabel="meta-steps", title=names[method])
        operations = {share: share.removeprefix("share_") for share in shares}.__getitem__
        lines(axes, long, "step", "value", "share", operations, marker="", direct=False)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("share, %")
    legend(figure)
    return figure


def _mixtures(rows: pd.DataFrame) -> Figure:
    """Draw each edge's mixture at the end of the search, means over the seeds."""
    names = name_sources(NAMES, rows)
    part = rows[rows.what == "mixture"]
    methods = [name for name in names if name in set(part.source)]
    caption = """Share of each operation on each edge at the end of the search, in %: means over the
        seeds, for each meta-gradient."""
    figure, panels = canvas(len(methods), width=DOUBLE, height=1.8, sharey=True, caption=caption)
    operations, edges = (list(dict.fromkeys(part[name])) for name in ("operation", "edge"))
    for axes, method in zip(panels, methods, strict=True):
        wide = part[part.source == method].pivot_table(
            index="operation", columns="edge", values="share"
        )
        values = 100 * wide.loc[operations, edges].to_numpy()
        axes.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        axes.grid(False)
        for i, j in np.ndindex(*values.shape):
            shade = "white" if values[i, j] > 60 else "black"
            axes.text(j, i, f"{values[i, j]:.0f}", ha="center", va="center", color=shade, size=6)
        axes.set_xticks(range(len(edges)), [edge.replace(" to ", "→") for edge in edges])
        axes.set_yticks(range(len(operations)), operations)
        axes.set(xlabel="edge", title=names[method])
    return figure


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the texts of the table of accuracies, and figures of the random architectures."""
    names = name_sources(NAMES, rows)
    trained = _trained(rows)
    drawn, own = trained[trained.source == "random"], by_seed(trained, names, "accuracy")
    by = drawn.groupby("seed").accuracy
    gains = {names[name]: Estimate.of(own[name] - own["random"]) for name in own}
    return {
        "seeds": rows.seed.nunique(),
        "random": len(drawn),
        "draws": int(by.size().max()),
        "least": drawn.accuracy.min(),
        "most": drawn.accuracy.max(),
        "deviation": by.std().mean(),
        "starts_deviation": drawn.deviation.mean(),
        "accuracy": records(_accuracy(rows), "network"),
        "methods": [names[name] for name in own if name not in BASELINES],
        "better": [name for name, gain in gains.items() if gain.mean > gain.interval],
    }
