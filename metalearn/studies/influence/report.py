"""The table, figure and facts of the study of influence."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.colours import GREY
from metalearn.studies.frame.draw import legend, lines
from metalearn.studies.frame.groups import estimate
from metalearn.studies.frame.plot import DOUBLE, canvas
from metalearn.studies.frame.table import Table, make_table

MODELS = {"logistic": "logistic regression", "network": "network"}
CURVATURES = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton"}


def agreements(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each model, curvature and seed: correlations, error and seconds."""
    found = []
    for (model, curvature, seed), part in rows.groupby(["model", "curvature", "seed"], sort=False):
        away = (part.predicted - part.actual).pow(2).mean() ** 0.5
        found.append(
            {
                "model": model,
                "curvature": curvature,
                "seed": seed,
                "rank": part.predicted.corr(part.actual, method="spearman"),
                "linear": part.predicted.corr(part.actual),
                "error": away / part.actual.pow(2).mean() ** 0.5,
                "all_s": part.all_s.iloc[0],
                "retraining_s": part.retraining_s.iloc[0],
                "examples": len(part),
            }
        )
    return pd.DataFrame(found)


def _means(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "model": MODELS[str(model)],
            "curvature": CURVATURES[str(curvature)],
            **{name: estimate(part[name]) for name in ("rank", "linear", "error")},
            **{name: float(part[name].mean()) for name in ("all_s", "retraining_s")},
        }
        for (model, curvature), part in agreements(rows).groupby(["model", "curvature"], sort=False)
    ]


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    columns = {
        "model": None,
        "curvature": None,
        "rank correlation": ".3f",
        "linear correlation": ".3f",
        "relative error": ".2f",
        "s, influence of all examples": ".2f",
        "s, one retraining": ".2f",
    }
    shown = [list(row.values()) for row in _means(rows)]
    return {
        f"Predicted and true change of the validation loss without an example, "
        f"{_left_out(rows)} left out; ± is the 95 % interval over seeds": make_table(columns, shown)
    }


def _left_out(rows: pd.DataFrame) -> int:
    return int(agreements(rows).examples.iloc[0])


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    """Return true against predicted changes, a panel for each model."""
    caption = """Change of the validation loss without a training example: predicted by the implicit
        gradient, and true by retraining, a dot for each example that was left out."""
    models = list(rows.model.unique())
    figure, panels = canvas(len(models), width=DOUBLE, height=2.6, caption=caption)
    for axes, model in zip(panels, models, strict=True):
        own = rows[rows.model == model]
        own = own.assign(predicted=1e3 * own.predicted, actual=1e3 * own.actual)
        axes.axline((0, 0), slope=1, color=GREY, lw=0.8, label="equal")
        dots: dict[str, Any] = {"linestyle": "", "marker": "o", "alpha": 0.6}
        names = CURVATURES.__getitem__
        lines(axes, own, "predicted", "actual", "curvature", names, direct=False, **dots)
        axes.set(title=MODELS[model], xlabel="predicted change of the loss, 1e-3")
    panels[0].set_ylabel("change by retraining, 1e-3")
    legend(figure)
    return {"influence": figure}


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "means": _means(rows),
        "left_out": _left_out(rows),
        "seeds": rows.seed.nunique(),
        "worst_grad_norm": float(rows.inner_grad_norm.max()),
    }
