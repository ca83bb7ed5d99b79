"""The report of the study of hyper-parameters: its tables, figures and facts."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metalearn.studies.frame.colours import GREY, styles
from metalearn.studies.frame.draw import legend
from metalearn.studies.frame.findings import format_number
from metalearn.studies.frame.groups import PEAK, Column, estimate, scale, tabulate
from metalearn.studies.frame.plot import DOUBLE, canvas, log_axis
from metalearn.studies.frame.table import Cell, Table, make_table
from metalearn.system.memory import format_bytes

METHODS = {
    "cg": "CG",
    "neumann": "Neumann",
    "unrolled": "unrolled",
    "cg_cold": "CG, cold starts",
    "cg_tight": "CG, one tolerance",
}
PROBLEMS = {
    "ridge": "ridge, one penalty",
    "ridge_features": "ridge, a penalty a feature",
    "cancer_features": "breast cancer, a penalty a feature",
    "digits_features": "digits, a penalty a feature",
    "decays": "a decay a parameter",
    "weights": "a weight an example",
    "overfit": "a decay a parameter, few images",
}
SEARCH = ["problem", "method", "seed"]
"""The columns that name a search."""
ONCE = ["peak_bytes", "unweighted_accuracy", "tuned_accuracy", "sound_accuracy"]
"""Columns that the first row of a search has alone."""
WHOLE = ["hypergradient", "gradients", "products", "seconds"]
"""Columns that grow along a search."""
OF_SOME = [*ONCE, "error", "reference", "test_accuracy", "auc", "validation_accuracy"]
"""Columns that rows lack if none of their problems and methods has them."""


def _signed(values: pd.Series) -> Cell:
    """Return the mean with its sign, and its interval without one."""
    return Cell(format_number(estimate(values), "+.4f"), float(values.mean()))


def _at_or_below(values: pd.Series) -> Cell:
    count = int((values <= 0).sum())
    return Cell(f"{count} of {len(values)}", count / len(values))


def _auc(values: pd.Series) -> Cell:
    return Cell(f"{values.mean():.3f} (least {values.min():.3f})", float(values.mean()))


def _error(accuracies: pd.Series) -> Cell:
    percent = 100 * (1 - accuracies)
    return Cell(f"{percent.mean():.1f} (most {percent.max():.1f})", float(percent.mean()))


def _title(method: str) -> str:
    """Return a method's name for readers; a further meta-gradient's own name."""
    return METHODS.get(method, method)


NAMES: dict[str, Column] = {
    "problem": ("problem", lambda values: PROBLEMS[values.iloc[0]], None),
    "method": ("method", lambda values: _title(values.iloc[0]), None),
}
PERCENT = scale(100, ".1f")
PENALTIES: dict[str, Column] = {
    **NAMES,
    "test loss": ("test_loss", "mean", ".4f"),
    "grid's": ("test_loss_grid", "mean", ".4f"),
    "difference": ("difference", _signed, None),
    "at or below": ("difference", _at_or_below, None),
    "least test loss in the grid": ("best_test_loss_grid", "mean", ".4f"),
    "trainings": ("hypergradient", "mean", ".1f"),
    "grid's trainings": ("trainings_grid", "max", ".0f"),
    "gradients and products": ("calls", "mean", ".0f"),
    "grid's gradients": ("gradients_grid", "mean", ".0f"),
}
WEIGHTS: dict[str, Column] = {
    "method": NAMES["method"],
    "area under the ROC curve": ("auc", _auc, None),
    "test accuracy, %": ("test_accuracy", estimate, PERCENT),
    "unweighted, same decay, %": ("unweighted_accuracy", estimate, PERCENT),
    "unweighted, best decay for the test split, %": ("tuned_accuracy", estimate, PERCENT),
    "trained on the validation split alone, %": ("sound_accuracy", estimate, PERCENT),
}
DECAYS: dict[str, Column] = {
    **NAMES,
    "validation loss": ("validation_loss", "mean", ".4f"),
    "at the start": ("first_validation_loss", "mean", ".4f"),
    "validation error, %": ("validation_accuracy", _error, None),
    "test accuracy, %": ("test_accuracy", estimate, PERCENT),
    "test accuracy at the start, %": ("first_test_accuracy", estimate, PERCENT),
}
GAINS: dict[str, Column] = {
    "above unweighted": ("above_unweighted", estimate, PERCENT),
    "above tuned": ("above_tuned", estimate, PERCENT),
}
WITHOUT_ERROR: dict[str, Column] = {
    "without error": ("validation_accuracy", lambda a: f"{(a == 1).sum()} of {len(a)}", None)
}
COSTS: dict[str, Column] = {
    **NAMES,
    "hyper-gradients": ("hypergradient", "mean", ".1f"),
    "inner gradients": ("gradients", "mean", ".0f"),
    "products": ("products", "mean", ".0f"),
    "seconds": ("seconds", "mean", ".2f"),
    "peak memory": PEAK,
    "hyper-gradient error, first": ("error_first", "mean", ".1e"),
    "median": ("error_median", "mean", ".1e"),
    "last": ("error_last", "mean", ".1e"),
}


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    searches, by = _searches(rows), ["problem", "method"]
    networks = searches[searches.problem.isin(["decays", "overfit"])]
    exact = rows[rows.method == "exact"]
    columns = {"problem": None, "meta-gradient": None, "held to": None, "error": ".1e"}
    made = {
        "Penalties: test loss of the search and of a grid of one penalty, means over the splits "
        "with 95 % intervals": tabulate(_beside_grid(rows), by, PENALTIES),
        "Half of the labels wrong, a weight for each training example": tabulate(
            searches[searches.problem == "weights"], "method", WEIGHTS
        ),
        "A weight decay for each parameter of a network": tabulate(networks, by, DECAYS),
        "What a search took, means over splits or seeds; memory of its last hyper-gradient, and "
        "distances from the exact hyper-gradient, of the first": tabulate(searches, by, COSTS),
        "Hyper-gradients that claim exactness: relative distance from the reference": make_table(
            columns,
            [
                [PROBLEMS[row.problem], row.meta_gradient, row.reference, row.error]
                for _, row in exact.iterrows()
            ],
        ),
    }
    return {caption: table for caption, table in made.items() if table.rows}


def _searches(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each search: the row of its least objective, and some of the whole search.

    The columns `WHOLE` are the whole search's, and so are the errors of its hyper-gradients
    (`error_first`, `error_median`, `error_last`). `first_` begins the figures at its start.
    """
    own = _complete(rows[rows.hypergradient.notna()])
    groups = own.groupby(SEARCH, sort=False)
    best, start = own.loc[groups.objective.idxmin()].set_index(SEARCH), groups.first()
    best[WHOLE], best[ONCE] = groups[WHOLE].max(), start[ONCE]
    best["above_unweighted"] = best.test_accuracy - best.unweighted_accuracy
    best["above_tuned"] = best.test_accuracy - best.tuned_accuracy
    starts = start[["validation_loss", "test_accuracy"]].add_prefix("first_")
    errors = groups.error.agg(["first", "median", "last"]).add_prefix("error_")
    return best.join(starts).join(errors).reset_index()


def _complete(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with all columns `OF_SOME`, nan where they lacked one."""
    return rows.reindex(columns=rows.columns.union(OF_SOME, sort=False))


def _beside_grid(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the searches for penalties, with the columns of their split's grid (`_grid`)."""
    grids = rows[rows.method == "grid"]
    both = _searches(rows).merge(grids, on=["problem", "seed"], suffixes=("", "_grid"))
    return both.assign(
        difference=both.test_loss - both.test_loss_grid, calls=both.gradients + both["products"]
    )


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    """Draw a figure for each problem, of its first split or seed."""
    first = rows[rows.seed == rows.groupby("problem").seed.transform("first")]
    groups = first.groupby("problem", sort=False)
    return {str(problem): _search_figure(own) for problem, own in groups}


def _search_figure(rows: pd.DataFrame) -> Figure:
    """Draw validation loss against hyper-gradients and time, and the hyper-gradients' errors."""
    curves = _complete(rows[rows.hypergradient.notna()])
    known = curves.error.notna().any()
    caption = f"""Search for hyper-parameters, {PROBLEMS[str(rows.problem.iloc[0])]}, of the first
        split or seed: the least validation loss so far against hyper-gradients and time.
        {"Right: the relative error of each hyper-gradient." if known else ""}
        In brackets: the peak memory of a hyper-gradient."""
    figure, panels = canvas(3 if known else 2, width=DOUBLE, height=2.4, caption=caption)
    look = styles(list(dict.fromkeys([*METHODS.values(), *map(_title, curves.method.unique())])))
    for method, own in curves.groupby("method", sort=False):
        name = _title(str(method))
        label, style = f"{name} ({format_bytes(int(own.peak_bytes.iloc[0]))})", look[name]
        best = own.validation_loss.cummin()
        panels[0].plot(own.hypergradient, best, **style, label=label)
        panels[1].plot(own.seconds, best, **style)
        if known:
            panels[2].plot(own.hypergradient, own.error, **style)
    for axes in panels[:2]:
        for best in rows[rows.method == "grid"].validation_loss:
            axes.axhline(best, color=GREY, linewidth=0.8, label="the grid's best")
        if curves.validation_loss.max() > 10 * curves.validation_loss.min():
            log_axis(axes, "y")
    panels[0].set(xlabel="hyper-gradients", ylabel="least validation loss so far")
    panels[1].set_xlabel("seconds in hyper-gradients")
    log_axis(panels[1], "x")
    for axes in (panels[0], *panels[2:]):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels[2:]:
        log_axis(axes, "y")
        axes.set(ylabel="relative error", xlabel="hyper-gradients")
    legend(figure)
    return figure


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the texts of the tables that the template of the findings names, and more figures."""
    searches, beside = _searches(rows), _beside_grid(rows)
    cg, exact = beside[beside.method == "cg"], _complete(rows[rows.method == "exact"])
    farthest = exact.sort_values("error").drop_duplicates("reference", keep="last").sort_index()
    each = searches.assign(each=searches.gradients / searches.hypergradient).pivot_table(
        index=["problem", "seed"], columns="method", values="each"
    )
    return {
        "exact": farthest.assign(
            problem=farthest.problem.map(PROBLEMS),
            compared=farthest.reference.map(exact.reference.value_counts()),
        ).to_dict("records"),
        "penalties": _texts(cg, PENALTIES),
        "trainings": cg.hypergradient.max(),
        "weights": _texts(searches[searches.problem == "weights"], WEIGHTS | GAINS),
        "overfit": _texts(searches[searches.problem == "overfit"], DECAYS | WITHOUT_ERROR),
        "seeds": searches[searches.problem == "weights"].seed.nunique(),
        "times": each.div(each["cg"], axis=0).median().to_dict() if "cg" in each else {},
    }


def _texts(searches: pd.DataFrame, columns: dict[str, Column]) -> list[dict[Any, str]]:
    return tabulate(searches, ["problem", "method"], columns).texts().to_dict("records")
