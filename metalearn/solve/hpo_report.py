"""What the study of hyper-parameters shows: its tables, figures and findings."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t

from metalearn.memory import format_bytes
from metalearn.study.plot import canvas, label_lines, log_axis

METHODS = {"cg": "CG", "neumann": "Neumann", "unrolled": "unrolled"}
SHOWN = {
    "decay": "a decay for each parameter",
    "weights": "a weight for each example",
    "overfit": "decays, 50 images",
}


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    made = {
        "Penalties: the test loss after a search, beside the grid's (means over splits; the "
        "difference with its 95 % interval, below 0 where the search is better)": _penalties(rows),
        "Hypergradients that claim exactness: distance from the reference": _exact(rows),
        "A weight for each training example, half of the labels wrong": _weights(rows),
        "A weight decay for each parameter": _decays(rows),
        "Cost of a search: mean of the splits; memory and error of the first": _costs(rows),
    }
    return {caption: table for caption, table in made.items() if len(table)}


def _exact(rows: pd.DataFrame) -> pd.DataFrame:
    part = rows[rows.part == "exact"]
    return pd.DataFrame(
        {
            "problem": row.problem,
            "meta-gradient": row.method,
            "held to": row.reference,
            "relative error": f"{row.error:.1e}",
        }
        for row in part.itertuples()
    )


def _ends(rows: pd.DataFrame, part: str) -> pd.DataFrame:
    """The last row of every search of a part; of the grids their only one."""
    own = rows[rows.part == part]
    return own.groupby(["problem", "seed", "method"], sort=False).tail(1)


def _versus(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each problem and method: means, and the paired difference from the grid."""
    found = []
    ends = _ends(rows, "penalties")
    for problem, group in ends.groupby("problem", sort=False):
        grid = group[group.method == "grid"].set_index("seed")
        for method in METHODS:
            own = group[group.method == method].set_index("seed")
            if own.empty or grid.empty:
                continue
            difference = (own.test_loss - grid.test_loss).dropna()
            found.append(
                {
                    "problem": problem,
                    "method": method,
                    "splits": len(difference),
                    "validation": own.best_validation_loss.mean(),
                    "grid_validation": grid.validation_loss.mean(),
                    "test": own.test_loss.mean(),
                    "grid_test": grid.test_loss.mean(),
                    "grid_best": grid.best_test_loss.mean(),
                    "difference": difference.mean(),
                    "interval": _interval(difference),
                    "better": int((difference <= 0).sum()),
                    "trainings": own.trainings.max(),
                    "grid_trainings": grid.trainings.max(),
                    "work": (own.gradients + own["products"]).mean(),
                    "grid_work": grid.gradients.mean(),
                }
            )
    return pd.DataFrame(found)


def _interval(values: pd.Series) -> float:
    """Half the width of the mean's 95 % interval; NaN for one value."""
    n = len(values)
    return float(t.ppf(0.975, n - 1) * values.std() / math.sqrt(n)) if n > 1 else math.nan


def _penalties(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "problem": row.problem,
            "method": METHODS[row.method],
            "splits": row.splits,
            "test loss": f"{row.test:.4f}",
            "grid's": f"{row.grid_test:.4f}",
            "grid's best on the test set": f"{row.grid_best:.4f}",
            "difference": f"{row.difference:+.4f} ± {row.interval:.4f}",
            "not above": f"{row.better} of {row.splits}",
            "validation loss": f"{row.validation:.4f}",
            "grid's validation": f"{row.grid_validation:.4f}",
            "trainings": f"{row.trainings:.0f}",
            "grid's trainings": f"{row.grid_trainings:.0f}",
            "gradients and products": f"{row.work:.0f}",
            "grid's gradients": f"{row.grid_work:.0f}",
        }
        for row in _versus(rows).itertuples()
    )


def _chosen(rows: pd.DataFrame, part: str) -> pd.DataFrame:
    """Of every search of a part the row of the least validation loss."""
    own = rows[rows.part == part]
    if own.empty:
        return own
    return own.loc[own.groupby(["seed", "method"], sort=False).validation_loss.idxmin()]


def _percent(values: pd.Series) -> str:
    interval = 100 * _interval(values)
    return f"{100 * values.mean():.1f}" + ("" if math.isnan(interval) else f" ± {interval:.1f}")


def _weights(rows: pd.DataFrame) -> pd.DataFrame:
    chosen = _chosen(rows, "weights")
    if chosen.empty:
        return chosen
    firsts = rows[(rows.part == "weights") & (rows.hypergradient == 1)]
    return pd.DataFrame(
        {
            "method": METHODS[method],
            "seeds": len(group),
            "area under the ROC curve": f"{group.auc.mean():.3f} (least {group.auc.min():.3f})",
            "test accuracy, %": _percent(group.test_accuracy),
            "without weights, %": _percent(firsts[firsts.method == method].unweighted_accuracy),
            "on the validation set alone, %": _percent(
                firsts[firsts.method == method].sound_alone_accuracy
            ),
        }
        for method, group in chosen.groupby("method", sort=False)
    )


def _decays(rows: pd.DataFrame) -> pd.DataFrame:
    found = []
    for part in ("decay", "overfit"):
        chosen = _chosen(rows, part)
        for method in METHODS:
            own = chosen[chosen.method == method]
            if own.empty:
                continue
            first = rows[(rows.part == part) & (rows.method == method) & (rows.hypergradient == 1)]
            found.append(
                {
                    "problem": SHOWN[part],
                    "method": METHODS[method],
                    "seeds": len(own),
                    "validation loss": f"{own.validation_loss.mean():.4f}",
                    "at the start": f"{first.validation_loss.mean():.4f}",
                    "validation error, %": _percent(1 - own.validation_accuracy),
                    "test accuracy, %": _percent(own.test_accuracy),
                    "test accuracy at the start, %": _percent(first.test_accuracy),
                }
            )
    return pd.DataFrame(found)


def _costs(rows: pd.DataFrame) -> pd.DataFrame:
    searches = rows[rows.hypergradient.notna()] if "hypergradient" in rows else rows[:0]
    found = []
    for (problem, method), group in searches.groupby(["problem", "method"], sort=False):
        ends = group.groupby("seed").tail(1)
        error, peak = (
            group[name].dropna() if name in group else group.iloc[:0, 0]
            for name in ("error", "peak_bytes")
        )
        found.append(
            {
                "problem": SHOWN.get(str(problem), problem),
                "method": METHODS[str(method)],
                "hypergradients": f"{ends.hypergradient.mean():.1f}",
                "inner gradients": f"{ends.gradients.mean():.0f}",
                "products": f"{ends['products'].mean():.0f}",
                "seconds": f"{ends.seconds.mean():.2f}",
                "peak memory": format_bytes(int(peak.iloc[0])) if len(peak) else "",
                "hypergradient error, median": f"{error.median():.1e}" if len(error) else "",
                "worst": f"{error.max():.1e}" if len(error) else "",
            }
        )
    return pd.DataFrame(found)


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    made = {}
    if "hypergradient" not in rows:
        return made
    for problem in rows[rows.hypergradient.notna()].problem.unique():
        part = rows[rows.problem == problem]
        own = part[part.seed == part.seed.iloc[0]]
        own = own[own.hypergradient.notna()]
        made[str(problem).replace(", ", "_").replace(" ", "_")] = _search_figure(own)
    return made


def _search_figure(rows: pd.DataFrame) -> Figure:
    """Of one split or seed: validation loss against hypergradients and time; the error's."""
    with_error = "error" in rows and rows.error.notna().any()
    figure, panels = canvas(3 if with_error else 2)
    for method, label in METHODS.items():
        own = rows[rows.method == method]
        if own.empty:
            continue
        steps, best = own.hypergradient.tolist(), own.validation_loss.cummin().tolist()
        panels[0].plot(steps, best, marker="o", label=label)
        panels[1].plot(own.seconds.tolist(), best, marker="o", label=label)
        if with_error:
            panels[2].plot(steps, own.error.tolist(), marker="o", label=label)
    titles = ("least validation loss so far",) * 2 + ("relative error of the hypergradient",)
    for axes, across, title in zip(
        panels, ("hypergradients", "seconds", "hypergradients"), titles, strict=False
    ):
        axes.set_xlabel(across)
        axes.set_title(title)
    log_axis(panels[1], "x")
    if with_error:
        panels[2].set_yscale("log")
    for axes in panels:
        _labelled(axes)
    return figure


def _labelled(axes: Axes) -> None:
    if axes.get_lines():
        label_lines(axes)


def findings(rows: pd.DataFrame) -> list[str]:
    found = []
    exact = rows[rows.part == "exact"]
    for reference, group in exact.groupby("reference", sort=False) if len(exact) else ():
        worst = group.loc[group.error.idxmax()]
        found.append(
            f"The {len(group)} hypergradients held to {reference} are at most {worst.error:.1e} "
            f"from it ({worst.method}, {worst.problem})."
        )
    versus = _versus(rows)
    if len(versus):
        for row in versus[versus.method == "cg"].itertuples():
            interval = "" if math.isnan(row.interval) else f" ± {row.interval:.4f}"
            found.append(
                f"{_capital(row.problem)}: {row.trainings:.0f} trainings by hypergradients (CG) give a "
                f"test loss of {row.test:.4f}, a grid of {row.grid_trainings:.0f} one of "
                f"{row.grid_test:.4f} (difference {row.difference:+.4f}{interval} over {row.splits} "
                f"splits, not above the grid's in {row.better}); the best that the grid holds for "
                f"the test set itself is {row.grid_best:.4f}."
            )
    weights = _chosen(rows, "weights")
    firsts = rows[(rows.part == "weights") & rows.get("hypergradient", pd.Series(0)).eq(1)]
    for method, group in weights.groupby("method", sort=False) if len(weights) else ():
        plain = firsts[firsts.method == method].unweighted_accuracy.mean()
        found.append(
            f"Half of the labels wrong, weights by {METHODS[str(method)]}: they separate sound from "
            f"wrong examples with an area of {group.auc.mean():.3f} (least of {len(group)} seeds "
            f"{group.auc.min():.3f}), and test accuracy is {100 * group.test_accuracy.mean():.1f} % "
            f"where all examples alike give {100 * plain:.1f} %."
        )
    overfit = _chosen(rows, "overfit")
    for method, group in overfit.groupby("method", sort=False) if len(overfit) else ():
        found.append(
            f"As many decays as parameters, {METHODS[str(method)]}: validation error "
            f"{100 * (1 - group.validation_accuracy).max():.1f} % at worst, validation loss "
            f"{group.validation_loss.mean():.4f}, over {len(group)} seeds."
        )
    return found


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
