"""What the study of architecture search shows: its tables, figures and findings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from metalearn.evaluation import Estimate
from metalearn.memory import format_bytes
from metalearn.study.plot import COLOURS, canvas, label_lines

NAMES = {
    "random": "random architectures",
    "best random": "the random one that validated best",
    "average": "average of all operations",
    "first_order": "first-order",
    "unrolled_one": "unrolled one step",
    "unrolled": "unrolled",
    "cg": "implicit, CG",
    "gauss_newton": "implicit, CG, Gauss-Newton",
    "neumann": "implicit, Neumann",
}
BASELINES = ("random", "best random", "average")


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    seeds = rows.seed.nunique()
    return {
        f"Test accuracy of networks trained from scratch, means over {seeds} seeds with 95 % "
        "intervals": _accuracy(rows),
        "Each meta-gradient in the search": _cost(rows),
        "The architectures found": _architectures(rows),
    }


def _by_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy, a column for each source, a row for each seed."""
    part = rows[rows.what == "retrained"]
    wide = part.pivot_table(index="seed", columns="source", values="accuracy", aggfunc="mean")
    drawn = part[part.source == "random"].reset_index()
    best = drawn.loc[drawn.groupby("seed").validation_accuracy.idxmax()].set_index("seed")
    wide["best random"] = best.accuracy
    return wide[[name for name in NAMES if name in wide]]


def _estimate(values: pd.Series) -> Estimate:
    return Estimate.of(torch.tensor(values.to_numpy(dtype=float)))


def _said(values: pd.Series) -> str:
    """The mean and, of several seeds, its interval."""
    found = _estimate(values)
    return f"{found.mean:.2f}" + (f" ± {found.interval:.2f}" if len(values) > 1 else "")


def _accuracy(rows: pd.DataFrame) -> pd.DataFrame:
    own = _by_seed(rows)
    return pd.DataFrame(
        {
            "network": NAMES[name],
            "accuracy, %": _said(own[name]),
            "above random, points": "" if name == "random" else _said(own[name] - own["random"]),
            "above the average of all, points": ""
            if name == "average"
            else _said(own[name] - own["average"]),
            "random ones below it, %": "" if name == "random" else f"{_rank(rows, own[name]):.0f}",
        }
        for name in map(str, own)
    )


def _rank(rows: pd.DataFrame, accuracy: pd.Series) -> float:
    """The share of the same seed's random architectures that are less accurate, in percent."""
    drawn = rows[(rows.what == "retrained") & (rows.source == "random")]
    return 100 * float((drawn.accuracy < drawn.seed.map(accuracy)).mean())


def _cost(rows: pd.DataFrame) -> pd.DataFrame:
    part = rows[(rows.what == "retrained") & ~rows.source.isin(BASELINES)]
    curves = rows[rows.what == "curve"]
    last = curves[curves.step == curves.step.max()].groupby("source").validation_loss.mean()
    return pd.DataFrame(
        {
            "meta-gradient": NAMES[str(name)],
            "validation loss at the end": f"{last[name]:.3f}",
            "ms a meta-step": f"{1e3 * group.step_s.mean():.0f}",
            "peak memory": format_bytes(int(group.peak_bytes.max())),
            "inner gradient": f"{group.inner_grad_norm.mean():.1e}",
            "residual of the solve": _or_blank(group, "relative_residual", ".1e"),
            "negative curvature or divergence, % of solves": _or_blank(
                group, "unsolved", ".0f", 100
            ),
        }
        for name, group in part.groupby("source", sort=False)
    )


def _or_blank(group: pd.DataFrame, column: str, how: str, times: float = 1.0) -> str:
    if column not in group or group[column].isna().all():
        return ""
    return format(times * group[column].mean(), how)


def _architectures(rows: pd.DataFrame) -> pd.DataFrame:
    part = rows[(rows.what == "retrained") & ~rows.source.isin(BASELINES)]
    return pd.DataFrame(
        {
            "meta-gradient": [NAMES[name] for name in part.source],
            "seed": part.seed.astype(int).tolist(),
            "operations of the edges": part.architecture.tolist(),
            "accuracy, %": part.accuracy.round(2).tolist(),
            "deviation over starts, points": part.deviation.round(2).tolist(),
        }
    )


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    return {"accuracy": _points(rows), "mixtures": _mixtures(rows), "search": _search(rows)}


def _points(rows: pd.DataFrame) -> Figure:
    """Each seed's accuracy, every random architecture's own, and the means."""
    figure, (axes,) = canvas(width=6.4)
    own = _by_seed(rows)
    drawn = rows[(rows.what == "retrained") & (rows.source == "random")].accuracy
    for place, name in enumerate(reversed(list(own))):
        points = drawn if name == "random" else own[name]
        colour = COLOURS[0] if name in BASELINES else COLOURS[1]
        axes.plot(points, [place] * len(points), "o", color=colour, alpha=0.5)
        axes.plot([own[name].mean()], [place], "|", color="k", markersize=16, markeredgewidth=1.6)
    axes.set_yticks(range(len(own.columns)), [NAMES[str(name)] for name in reversed(list(own))])
    axes.set_xlabel("test accuracy after training from scratch, % (bars: means over the seeds)")
    return figure


def _mixtures(rows: pd.DataFrame) -> Figure:
    """The mixture weights at the end of the search, means over the seeds."""
    part = rows[rows.what == "mixture"]
    methods = [name for name in NAMES if name in set(part.source)]
    figure, panels = canvas(len(methods), width=2.6, height=2.4)
    operations = list(dict.fromkeys(part.operation))
    names = list(dict.fromkeys(part.edge))
    for axes, method in zip(panels, methods, strict=True):
        wide = part[part.source == method].pivot_table(
            index="operation", columns="edge", values="weight"
        )
        values = wide.loc[operations, names].to_numpy()
        axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.grid(False)
        for i, j in np.ndindex(*values.shape):
            shade = "white" if values[i, j] > 0.6 else "black"
            axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=shade, size=7)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(operations)), operations if axes is panels[0] else [])
        axes.set_title(NAMES[method])
        axes.set_xlabel("edge")
    return figure


def _search(rows: pd.DataFrame) -> Figure:
    figure, panels = canvas(2)
    curves = rows[rows.what == "curve"]
    for axes, column, what in (
        (panels[0], "train_loss", "training objective"),
        (panels[1], "validation_loss", "validation loss"),
    ):
        for name, group in curves.groupby("source", sort=False):
            mean = group.groupby("step")[column].mean()
            axes.plot(mean.index, mean, label=NAMES[str(name)])
        axes.set_xlabel("meta-steps")
        axes.set_title(f"{what} of the search's network")
        label_lines(axes)
    return figure


def findings(rows: pd.DataFrame) -> list[str]:
    own = _by_seed(rows)
    methods = [str(name) for name in own if name not in BASELINES]
    drawn = rows[(rows.what == "retrained") & (rows.source == "random")]
    found = [
        f"{len(drawn)} architectures chosen at random reach {_said(own['random'])} % after training"
        f" from scratch ({drawn.accuracy.min():.1f} to {drawn.accuracy.max():.1f} %), the average "
        f"of all operations {_said(own['average'])} %."
    ]
    for name in methods:
        gain = _estimate(own[name] - own["random"])
        against = _estimate(own[name] - own["average"])
        found.append(
            f"{NAMES[name].capitalize()}: {_said(own[name])} %, {gain.mean:+.1f} points against "
            f"random choice and {against.mean:+.1f} against the average"
            + (
                f" (95 % intervals over {len(own)} seeds: ± {gain.interval:.1f} and "
                f"± {against.interval:.1f}): "
                + (
                    "above random choice by more than the interval."
                    if gain.mean > gain.interval
                    else "not above random choice by more than the interval."
                )
                if len(own) > 1
                else "."
            )
        )
    found.append(
        f"Of each seed's random architectures the one that validated best reaches "
        f"{_said(own['best random'])} %, by {drawn.groupby('seed').size().max()} trainings."
    )
    return found
