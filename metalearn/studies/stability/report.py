"""The table, figure and facts of the study of iMAML's stability."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.colours import styles
from metalearn.studies.frame.draw import legend
from metalearn.studies.frame.plot import canvas, log_axis
from metalearn.studies.frame.table import Format, Table, make_table
from metalearn.studies.frame.validation_curve import best_and_last
from metalearn.training.estimate import Estimate

COLLAPSE = 0.1
"""The distance of a collapsed training's last validation from the best one of its seed by then."""
COLUMNS: dict[str, Format | None] = {
    **{"inner solver": None, "seed": None, "meta-steps": ",d"},
    **{"best validation, %": ".1f", "at meta-step": ",d"},
    **{"last validation, %": ".1f", "collapsed": None, "largest curvature at the end": ".1f"},
    "inner gradient at the end": ".2g",
    **{"test, transductive, %": ".2f", "test, inductive, %": ".2f"},
}
PANELS = (
    ("validation", "accuracy", 100.0, "Validation accuracy, %"),
    ("stretch", "over_the_edge", 100.0, "Tasks over the fixed rate's edge, %"),
    ("stretch", "curvature", 1.0, "Largest curvature, mean over tasks"),
    ("stretch", "inner_grad_norm", 1.0, "Inner gradient norm at the end"),
)


def trainings(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row of the table (`COLUMNS`) for each training."""
    return [
        {"inner solver": solver, "seed": seed, **_training(run, rows[rows.seed == seed])}
        for solver in rows.solver.unique()
        for seed, run in rows[rows.solver == solver].groupby("seed")
    ]


def _training(run: pd.DataFrame, same_seed: pd.DataFrame) -> dict[str, Any]:
    """Return a training's validations, the means over its last tenth, and its tests.

    Args:
        same_seed: the rows of all trainings that began with the same weights and tasks.
    """
    best, last = (end.iloc[0] for end in best_and_last(run[run.part == "validation"]))
    validations = same_seed[same_seed.part == "validation"]
    reached = validations[validations.step <= last.step].accuracy.max()
    curve = run[run.part == "stretch"]
    end = curve[-max(1, len(curve) // 10) :]
    return {
        "meta-steps": int(last.step),
        "best validation, %": 100 * best.accuracy,
        "at meta-step": int(best.step),
        "last validation, %": 100 * last.accuracy,
        "collapsed": bool(reached - last.accuracy > COLLAPSE),
        "largest curvature at the end": end.curvature.mean(),
        "inner gradient at the end": end.inner_grad_norm.mean(),
        **{
            f"test, {test['mode']}, %": Estimate(100 * test.accuracy, 100 * test.accuracy_interval)
            for _, test in run[run.part == "test"].iterrows()
        },
    }


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    return {"Each training, by its inner solver": make_table(COLUMNS, trainings(rows))}


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    caption = """Training of iMAML by its inner solver, a line for each seed. With a fixed rate the
        curvature passes the edge beyond which the inner loop diverges, and the accuracy collapses.
        """
    figure, panels = canvas(len(PANELS), columns=2, height=1.8, caption=caption)
    look = styles(rows.solver.unique())
    for axes, (part, column, scale, title) in zip(panels, PANELS, strict=True):
        for solver in rows.solver.unique():
            own = look[solver] | {"marker": "", "linestyle": "-", "linewidth": 0.8}
            runs = rows[(rows.solver == solver) & (rows.part == part) & rows[column].notna()]
            for _, run in runs.groupby("seed"):
                axes.plot(run.step, scale * run[column], **own, label=solver)
        axes.set(title=title, xlabel="meta-step")
    edge = float(rows[rows.part == "test"].edge.iloc[0])
    panels[2].axhline(edge, color="black", lw=0.8, ls="--")
    panels[2].annotate(
        f"edge of the fixed rate, 2 / rate = {edge:g}",
        (0.98, edge),
        xycoords=("axes fraction", "data"),
        xytext=(0, -11),
        textcoords="offset points",
        ha="right",
        fontsize=7,
    )
    for axes in panels[2:]:
        log_axis(axes, "y")
    legend(figure)
    return {"stability": figure}


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return each inner solver's collapses, and the range of its best and last validations."""
    runs = pd.DataFrame(trainings(rows))
    return {
        "collapse": 100 * COLLAPSE,
        "solvers": [
            {
                "name": solver,
                "collapsed": int(part.collapsed.sum()),
                "trainings": len(part),
                "best": part["best validation, %"],
                "last": part["last validation, %"],
            }
            for solver, part in runs.groupby("inner solver", sort=False)
        ],
    }
