"""What the study of hyper-parameters shows: its tables, figures and findings."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metalearn.studies.frame.plot import canvas, label_lines, log_axis
from metalearn.studies.frame.text import said
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


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    made = {
        "Penalties: test loss of the search and of a grid of one penalty, means over the splits "
        "with 95 % intervals": _penalties(rows),
        "Half of the labels wrong, a weight for each training example": _weights(rows),
        "A weight decay for each parameter of a network": _decays(rows),
        "What a search took, means over splits or seeds; memory of its last hyper-gradient, and "
        "distances from the exact hyper-gradient, of the first": _costs(rows),
        "Hyper-gradients that claim exactness: relative distance from the reference": _exact(rows),
    }
    return {caption: table for caption, table in made.items() if len(table)}


def _searches(rows: pd.DataFrame, *problems: str) -> pd.DataFrame:
    """A row for each search: that of its least objective, with its first and its whole cost."""
    if "hypergradient" not in rows:
        return rows[:0]
    own = rows[rows.hypergradient.notna()]
    own = own[own.problem.isin(problems)] if problems else own
    if own.empty:
        return own
    groups = own.groupby(["problem", "method", "seed"], sort=False)
    best = own.loc[groups.objective.idxmin()].copy()
    for name in ("hypergradient", "gradients", "products", "seconds"):
        best[name] = groups[name].max().to_numpy()
    first = groups.first()  # of each column the first value that is there
    kept = ["peak_bytes", "unweighted_accuracy", "tuned_accuracy", "sound_accuracy"]
    for name in (column for column in kept if column in own):
        best[name] = first[name].to_numpy()
    starts = own[own.hypergradient == 1]
    for name in ("validation_loss", "test_accuracy"):
        if name in own:
            best[f"first_{name}"] = starts[name].to_numpy()
    return best


def _versus(rows: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """For each problem and method its searches and grids, index the splits."""
    grids = rows[rows.method == "grid"]
    found = {}
    for (problem, method), own in _searches(rows).groupby(["problem", "method"], sort=False):
        grid = grids[grids.problem == problem].set_index("seed")
        if len(grid):
            found[str(problem), str(method)] = {"own": own.set_index("seed"), "grid": grid}
    return found


def _penalties(rows: pd.DataFrame) -> pd.DataFrame:
    found = []
    for (problem, method), pair in _versus(rows).items():
        own, grid = pair["own"], pair["grid"]
        gap = own.test_loss - grid.test_loss
        found.append(
            {
                "problem": PROBLEMS[problem],
                "method": METHODS[method],
                "test loss": f"{own.test_loss.mean():.4f}",
                "grid's": f"{grid.test_loss.mean():.4f}",
                "difference": said(gap, 4, sign="+"),
                "at or below": f"{(gap <= 0).sum()} of {len(gap)}",
                "least test loss in the grid": f"{grid.best_test_loss.mean():.4f}",
                "trainings": f"{own.hypergradient.mean():.1f}",
                "grid's trainings": f"{grid.trainings.max():.0f}",
                "gradients and products": f"{(own.gradients + own['products']).mean():.0f}",
                "grid's gradients": f"{grid.gradients.mean():.0f}",
            }
        )
    return pd.DataFrame(found)


def _weights(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "method": METHODS[str(method)],
            "area under the ROC curve": f"{own.auc.mean():.3f} (least {own.auc.min():.3f})",
            "test accuracy, %": said(own.test_accuracy, 1, 100),
            "unweighted, same decay, %": said(own.unweighted_accuracy, 1, 100),
            "unweighted, best decay for the test split, %": said(own.tuned_accuracy, 1, 100),
            "trained on the validation split alone, %": said(own.sound_accuracy, 1, 100),
        }
        for method, own in _searches(rows, "weights").groupby("method", sort=False)
    )


def _decays(rows: pd.DataFrame) -> pd.DataFrame:
    searches = _searches(rows, "decays", "overfit")
    return pd.DataFrame(
        {
            "problem": PROBLEMS[str(problem)],
            "method": METHODS[str(method)],
            "validation loss": f"{own.validation_loss.mean():.4f}",
            "at the start": f"{own.first_validation_loss.mean():.4f}",
            "validation error, %": f"{100 * (1 - own.validation_accuracy.mean()):.1f} "
            f"(most {100 * (1 - own.validation_accuracy.min()):.1f})",
            "test accuracy, %": said(own.test_accuracy, 1, 100),
            "test accuracy at the start, %": said(own.first_test_accuracy, 1, 100),
        }
        for (problem, method), own in searches.groupby(["problem", "method"], sort=False)
    )


def _costs(rows: pd.DataFrame) -> pd.DataFrame:
    found = []
    for (problem, method), own in _searches(rows).groupby(["problem", "method"], sort=False):
        error = _errors(rows, str(problem), str(method))
        found.append(
            {
                "problem": PROBLEMS[str(problem)],
                "method": METHODS[str(method)],
                "hyper-gradients": f"{own.hypergradient.mean():.1f}",
                "inner gradients": f"{own.gradients.mean():.0f}",
                "products": f"{own['products'].mean():.0f}",
                "seconds": f"{own.seconds.mean():.2f}",
                "peak memory": format_bytes(int(own.peak_bytes.dropna().iloc[0])),
                "hyper-gradient error, first": f"{error.iloc[0]:.1e}" if len(error) else "",
                "median": f"{error.median():.1e}" if len(error) else "",
                "last": f"{error.iloc[-1]:.1e}" if len(error) else "",
            }
        )
    return pd.DataFrame(found)


def _errors(rows: pd.DataFrame, problem: str, method: str) -> pd.Series:
    """Of a search's hyper-gradients, where they are known."""
    own = rows[(rows.problem == problem) & (rows.method == method)]
    return own.error.dropna() if "error" in own else pd.Series(dtype=float)


def _exact(rows: pd.DataFrame) -> pd.DataFrame:
    part = rows[rows.method == "exact"]
    return pd.DataFrame(
        {
            "problem": PROBLEMS[str(row.problem)],
            "meta-gradient": row.meta_gradient,
            "held to": row.reference,
            "error": f"{row.error:.1e}",
        }
        for row in part.itertuples()
    )


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    """One a problem, of its first split or seed."""
    made = {}
    for problem in rows.problem.unique():
        own = rows[rows.problem == problem]
        own = own[own.seed == own.seed.iloc[0]]
        if "hypergradient" in own and own.hypergradient.notna().any():
            made[str(problem)] = _search_figure(own)
    return made


def _search_figure(rows: pd.DataFrame) -> Figure:
    """Validation loss against hyper-gradients and against time, peak memory, and the error."""
    known = "error" in rows and rows.error[rows.hypergradient.notna()].notna().any()
    figure, panels = canvas(3 if known else 2, width=4.8)
    curves = rows[rows.hypergradient.notna()]
    for method, own in curves.groupby("method", sort=False):
        label = METHODS[str(method)]
        steps, best = own.hypergradient.tolist(), own.validation_loss.cummin().tolist()
        memory = format_bytes(int(own.peak_bytes.iloc[0]))
        style = "--" if method in ("cg_cold", "cg_tight") else "-"
        panels[0].plot(steps, best, style, marker="o", label=f"{label} ({memory})")
        panels[1].plot(own.seconds.tolist(), best, style, marker="o")
        if known:
            panels[2].plot(steps, own.error.tolist(), style, marker="o", label=label)
    grid = rows[rows.method == "grid"]
    for axes in panels[:2]:
        if len(grid):
            axes.axhline(grid.validation_loss.iloc[0], color="#777777", linewidth=1)
            axes.text(
                0.02,
                grid.validation_loss.iloc[0],
                "the grid's best",
                color="#777777",
                fontsize=8,
                va="bottom",
                transform=axes.get_yaxis_transform(),
            )
        axes.set_title("least validation loss so far")
    panels[0].set_xlabel("hyper-gradients (in brackets: peak memory of one)")
    panels[0].legend(loc="upper right")
    panels[1].set_xlabel("seconds in hyper-gradients")
    log_axis(panels[1], "x")
    if curves.validation_loss.max() > 10 * curves.validation_loss.min():
        for axes in panels[:2]:
            log_axis(axes, "y")
    for axes in (panels[0], *panels[2:]):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if known:
        panels[2].set_yscale("log")
        panels[2].set_title("relative error of the hyper-gradient")
        panels[2].set_xlabel("hyper-gradients")
        label_lines(panels[2])
    return figure


def findings(rows: pd.DataFrame) -> list[str]:
    found = []
    exact = rows[rows.method == "exact"]
    for reference, own in exact.groupby("reference", sort=False) if len(exact) else ():
        worst = own.sort_values("error").iloc[-1]
        found.append(
            f"The {len(own)} hyper-gradients held to {reference} are within {worst['error']:.1e} "
            f"of it (the farthest: {worst['meta_gradient']}, {PROBLEMS[worst['problem']]})."
        )
    for (problem, method), pair in _versus(rows).items():
        own, grid = pair["own"], pair["grid"]
        gap = own.test_loss - grid.test_loss
        if method != "cg":
            continue
        found.append(
            f"{PROBLEMS[problem].capitalize()}: {own.hypergradient.max():.0f} trainings at most, "
            f"each with a hyper-gradient by CG, lead to a test loss of {own.test_loss.mean():.4f}, "
            f"a grid of {grid.trainings.max():.0f} to {grid.test_loss.mean():.4f} (difference "
            f"{said(gap, 4, sign='+')} over {len(gap)} splits, at or below 0 in "
            f"{(gap <= 0).sum()}); the least test loss in the grid, which no validation knows, is "
            f"{grid.best_test_loss.mean():.4f}."
        )
    for way, own in _searches(rows, "weights").groupby("method", sort=False):
        found.append(
            f"Half of the labels wrong, weights by {METHODS[str(way)]}: they tell sound from "
            f"wrong examples with an area of {own.auc.mean():.3f} (least of {len(own)} seeds "
            f"{own.auc.min():.3f}); test accuracy is {said(own.test_accuracy, 1, 100)} %, "
            f"{said(own.test_accuracy - own.unweighted_accuracy, 1, 100)} points above the "
            f"unweighted model at the same decay and "
            f"{said(own.test_accuracy - own.tuned_accuracy, 1, 100)} above it at the best decay "
            f"for the test split; training on the sound validation examples alone gives "
            f"{said(own.sound_accuracy, 1, 100)} %."
        )
    for way, own in _searches(rows, "overfit").groupby("method", sort=False):
        found.append(
            f"As many decays as parameters, by {METHODS[str(way)]}: the validation error falls "
            f"to 0 in {(own.validation_accuracy == 1).sum()} of {len(own)} seeds (most "
            f"{100 * (1 - own.validation_accuracy.min()):.1f} %), the validation loss from "
            f"{own.first_validation_loss.mean():.3f} to {own.validation_loss.mean():.4f}."
        )
    found += _saved(rows)
    return found


def _saved(rows: pd.DataFrame) -> list[str]:
    """What warm starts and the schedule of tolerances save, in inner gradients."""
    searches = _searches(rows)
    if searches.empty:
        return []
    wide = searches.assign(each=searches.gradients / searches.hypergradient).pivot_table(
        index=["problem", "seed"], columns="method", values="each"
    )
    said = []
    for method, what in (("cg_cold", "cold starts"), ("cg_tight", "the last tolerance throughout")):
        if {"cg", method} <= set(wide):
            ratio = (wide[method] / wide.cg).dropna()
            said.append(f"{ratio.median():.2f} times as many with {what}")
    if not said:
        return []
    return [
        f"Inner gradients a hyper-gradient by CG, medians over all searches: {' and '.join(said)} "
        "as with warm starts and a tolerance that falls."
    ]
