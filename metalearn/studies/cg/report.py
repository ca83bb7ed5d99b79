"""What the study of CG iterations shows: its tables, figures and findings."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.plot import COLOURS, canvas, label_lines, log_axis
from metalearn.system.memory import format_bytes
from metalearn.training.estimate import Estimate

NAMES = {
    "cg": "CG",
    "gauss_newton": "CG, Gauss-Newton",
    "damped": "CG, damped",
    "neumann": "Neumann",
    "nystrom": "Nyström",
    "nystrom_cg": "CG, Nyström",
    "jacobi_cg": "CG, Jacobi",
    "warm_cg": "CG, warm start",
}
SWEPT = ("cg", "gauss_newton")
"""The ways that are trained with every number of iterations; the others with one."""

CURVATURES = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton"}
PLACES = {"adapted": "after the inner steps", "minimum": "at the inner minimum"}


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    number, prox = common_number(rows), first_prox(rows)
    return {
        f"What to choose: every way with {number} iterations, lambda = {prox:g}": _choice(rows),
        "Accuracy on held-out classes, %, means over the seeds with 95 % intervals": _accuracy(
            rows
        ),
        "Single tasks' systems by CG, medians over those whose A is positive definite": _systems(
            rows
        ),
        "The certificate's estimate beside the true error, where a Ritz value is positive": (
            _certificates(rows)
        ),
        "Cost of one meta-gradient, its inner loop included": _cost(rows),
    }


def part_of(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    return rows[rows.part == name]


def task_rows(rows: pd.DataFrame) -> pd.DataFrame:
    part = part_of(rows, "task")
    return part.assign(definite=part.definite.astype(bool))


def first_prox(rows: pd.DataFrame) -> float:
    return float(part_of(rows, "accuracy").prox.iloc[0])


def common_number(rows: pd.DataFrame) -> int:
    """The number of iterations that most ways were trained with."""
    part = part_of(rows, "accuracy")
    ways = part[part.iterations > 0].groupby("iterations").way.nunique()
    return int(ways[ways == ways.max()].index[-1])


def final_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The last row of every training that did not stop."""
    part = part_of(rows, "accuracy")
    return part[part.test_accuracy.notna()]


def within_time(rows: pd.DataFrame, prox: float) -> tuple[float, pd.DataFrame]:
    """The seconds that every training with this prox took at least, and the last row of each that
    was validated within them."""
    part = part_of(rows, "accuracy")
    part = part[(part.prox == prox) & part.train_s.notna()]
    keys = ["way", "iterations", "seed"]
    budget = float(part.groupby(keys).train_s.max().min())
    return budget, part[part.train_s <= budget].groupby(keys, sort=False).tail(1)


def percent(values: pd.Series) -> str:
    if values.empty:
        return ""
    estimate = Estimate.of(values)
    if len(values) == 1:
        return f"{100 * estimate.mean:.1f}"
    return f"{100 * estimate.mean:.1f} ± {100 * estimate.interval:.1f}"


def _choice(rows: pd.DataFrame) -> pd.DataFrame:
    number, prox = common_number(rows), first_prox(rows)
    gradient, cost, final = part_of(rows, "gradient"), part_of(rows, "cost"), final_rows(rows)
    gradient, final = gradient[gradient.prox == prox], final[final.prox == prox]
    found = []
    for way in cost.way.unique():
        for n in (0, number) if way == "cg" else (number,):

            def of(part: pd.DataFrame, way: Any = way, n: int = n) -> pd.DataFrame:
                return part[(part.way == way) & (part.iterations == n)]

            compared, paid = of(gradient), of(cost)
            if compared.empty or paid.empty:
                continue
            adapted = compared[compared.point == "adapted"]
            minimum = compared[compared.point == "minimum"]
            found.append(
                {
                    "way": NAMES[str(way)] if n else "first-order",
                    "error at the minimum": f"{minimum.error.median():.2g}",
                    "angle there": f"{minimum.angle.median():.0f}°",
                    "error in training": f"{adapted.true_error.median():.2g}",
                    "angle in training": f"{adapted.true_angle.median():.0f}°",
                    "stopped at negative curvature": _share(adapted.negative_curvature),
                    "products": f"{minimum.products.median():.0f}",
                    "ms in training": f"{1e3 * paid.gradient_s.iloc[0]:.0f}",
                    "peak memory": format_bytes(int(paid.peak_bytes.iloc[0])),
                    "accuracy, %": percent(of(final).test_accuracy),
                }
            )
    return pd.DataFrame(found)


def _share(values: pd.Series) -> str:
    return "" if values.isna().all() else f"{100 * values.mean():.0f} %"


def _accuracy(rows: pd.DataFrame) -> pd.DataFrame:
    final, found = final_rows(rows), []
    for prox in final.prox.unique():
        budget, timed = within_time(rows, prox)
        part = final[final.prox == prox]
        for (way, n), group in part.groupby(["way", "iterations"], sort=False):
            within = timed[(timed.way == way) & (timed.iterations == n)]
            negative = group.get("negative_curvature")
            found.append(
                {
                    "lambda": f"{prox:g}",
                    "way": NAMES[str(way)] if n else "first-order",
                    "iterations": f"{n:g}",
                    "runs": len(group),
                    "after the same tasks (test)": percent(group.test_accuracy),
                    "after the same seconds (validation)": percent(within.validation_accuracy),
                    "seconds": f"{budget:.1f}",
                    "ms a meta-step": f"{1e3 * (group.train_s / group.step).mean():.0f}",
                    "stopped at negative curvature": ""
                    if not n or negative is None
                    else _share(negative),
                }
            )
    return pd.DataFrame(found)


def _systems(rows: pd.DataFrame) -> pd.DataFrame:
    keys = ["prox", "point", "curvature", "iterations"]
    found = []
    for (prox, point, curvature, n), group in task_rows(rows).groupby(keys, sort=False):
        definite = group[group.definite]
        medians = definite[["error", "energy_error", "rate_bound", "residual"]].median()
        found.append(
            {
                "lambda": f"{prox:g}",
                "where": PLACES[str(point)],
                "curvature": CURVATURES[str(curvature)],
                "iterations": f"{n:g}",
                "definite": f"{len(definite)} of {len(group)}",
                "condition number": _number((definite.eigen_high / definite.eigen_low).median()),
                "error": _number(medians.error),
                "error in A's norm": _number(medians.energy_error),
                "bound of theory": _number(medians.rate_bound),
                "residual": _number(medians.residual),
            }
        )
    return pd.DataFrame(found)


def _number(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:.2g}"


def _certificates(rows: pd.DataFrame) -> pd.DataFrame:
    part = part_of(rows, "task")
    part = part[part.certificate.notna() & part.true_error.notna()]
    found = []
    for (point, n), group in part.groupby(["point", "iterations"], sort=False):
        found.append(
            {
                "where": PLACES[str(point)],
                "iterations": f"{n:g}",
                "tasks": len(group),
                "error": _number(group.true_error.median()),
                "certificate": _number(group.certificate.median()),
                "error within it": _share((group.certificate >= group.true_error).astype(float)),
                "least ratio": _number((group.certificate / group.true_error).min()),
            }
        )
    return pd.DataFrame(found)


def _cost(rows: pd.DataFrame) -> pd.DataFrame:
    part = part_of(rows, "cost")
    return pd.DataFrame(
        {
            "way": [
                NAMES[w] if n else "first-order"
                for w, n in zip(part.way, part.iterations, strict=True)
            ],
            "iterations": [f"{n:g}" for n in part.iterations],
            "ms": [f"{1e3 * s:.0f}" for s in part.gradient_s],
            "peak memory": [format_bytes(int(b)) for b in part.peak_bytes],
        }
    )


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    return {
        "error": _error_figure(rows),
        "accuracy": _accuracy_figure(rows),
        "cost": _cost_figure(rows),
    }


def _error_figure(rows: pd.DataFrame) -> Figure:
    part = task_rows(rows)
    part = part[(part.point == "minimum") & part.definite]
    figure, panels = canvas(2)
    for axes, curvature in zip(panels, CURVATURES, strict=True):
        for colour, prox in zip(COLOURS, part.prox.unique(), strict=False):
            chosen = part[(part.curvature == curvature) & (part.prox == prox)]
            medians = chosen.groupby("iterations")[["error", "rate_bound"]].median()
            if medians.empty:
                continue
            label = f"λ = {prox:g}"
            axes.plot(medians.index, medians.error, "o-", color=colour, label=label)
            bound = axes.plot(medians.index, medians.rate_bound, "--", color=colour)
            bound[0].set_label(f"bound, {label}")
        log_axis(axes, "y")
        axes.set_xlabel("CG iterations (0: first-order)")
        axes.set_ylabel("relative error of the meta-gradient")
        axes.set_title(f"{CURVATURES[curvature]} at the inner minimum, median task")
        label_lines(axes)
    return figure


def _accuracy_figure(rows: pd.DataFrame) -> Figure:
    final = final_rows(rows)
    proxes = final.prox.unique()
    numbers = sorted(final[final.way.isin(swept_ways(final))].iterations.unique())
    figure, panels = canvas(len(proxes))
    for axes, prox in zip(panels, proxes, strict=True):
        for shift, way in enumerate(swept_ways(final)):
            group = sweep_of(final, way, prox)
            estimates = [Estimate.of(group[group.iterations == n].test_accuracy) for n in numbers]
            axes.errorbar(
                [i + 0.12 * shift for i in range(len(numbers))],
                [100 * e.mean for e in estimates],
                [100 * e.interval if len(group.seed.unique()) > 1 else 0 for e in estimates],
                fmt="o-",
                capsize=2,
                label=NAMES[way],
            )
        axes.set_xticks(range(len(numbers)), [f"{n:g}" for n in numbers])
        axes.set_xlabel("iterations (0: first-order)")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(f"λ = {prox:g}, 95 % intervals over seeds")
        axes.legend(loc="lower left")
    return figure


def swept_ways(final: pd.DataFrame) -> list[str]:
    return [way for way in SWEPT if way in set(final.way)]


def sweep_of(final: pd.DataFrame, way: str, prox: float) -> pd.DataFrame:
    """A way's trainings, and the first-order ones, which are every way's 0 iterations."""
    part = final[final.prox == prox]
    return part[(part.way == way) | (part.iterations == 0)]


def _cost_figure(rows: pd.DataFrame) -> Figure:
    gradient, prox = part_of(rows, "gradient"), first_prox(rows)
    chosen = gradient[(gradient.point == "minimum") & (gradient.prox == prox)]
    medians = chosen.groupby(["way", "iterations"], sort=False)[["error", "gradient_s"]].median()
    figure, (axes,) = canvas(width=6.4, height=4)
    for colour, way in zip((*COLOURS, "#777777"), chosen.way.unique(), strict=False):
        part = medians.loc[way]
        part = part[part.index > 0]
        axes.plot(1e3 * part.gradient_s, part.error, "o-", color=colour, label=NAMES[way])
    first = chosen[chosen.iterations == 0]
    if not first.empty:
        at = ([1e3 * first.gradient_s.median()], [first.error.median()])
        axes.plot(*at, "k*", markersize=9, label="first-order")
    log_axis(axes, "x", base=2)
    log_axis(axes, "y", base=2)  # errors within a decade
    axes.set_xlabel("ms to differentiate at the inner minimum")
    axes.set_ylabel("relative error of the meta-gradient")
    axes.set_title(f"λ = {prox:g}, a dot for each number of iterations")
    label_lines(axes)
    return figure
