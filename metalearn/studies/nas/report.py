"""What the study of architecture search shows: its tables, figures and findings."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.plot import COLOURS, canvas, label_lines
from metalearn.studies.frame.text import estimate, mean_or_blank, said
from metalearn.system.memory import format_bytes

NAMES = {
    "random": "random architectures",
    "best random": "the random one that validated best",
    "average": "equal mixture of all operations",
    "largest": "conv_5x5 on every edge",
    "first_order": "first-order",
    "unrolled_one": "unrolled one step",
    "unrolled": "unrolled",
    "cg": "implicit, CG",
    "gauss_newton": "implicit, CG, Gauss-Newton",
    "neumann": "implicit, Neumann",
}
BASELINES = ("random", "best random", "average", "largest")


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    seeds = rows.seed.nunique()
    return {
        f"Test accuracy of networks trained from scratch, means over {seeds} seeds with 95 % "
        "intervals": _accuracy(rows),
        "Each meta-gradient in the search": _cost(rows),
        "The architectures found": _architectures(rows),
    }


def _trained(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each network, and for each seed's random one that validated best another."""
    part = rows[rows.what == "trained"]
    drawn = part[part.source == "random"].reset_index(drop=True)
    best = drawn.loc[drawn.groupby("seed").validation_accuracy.idxmax()]
    return pd.concat([part, best.assign(source="best random")], ignore_index=True)


def _by_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy: a column for each source, a row for each seed, the mean over its draws."""
    wide = _trained(rows).pivot_table(
        index="seed", columns="source", values="accuracy", aggfunc="mean"
    )
    return wide[[name for name in NAMES if name in wide]]


def _accuracy(rows: pd.DataFrame) -> pd.DataFrame:
    own = _by_seed(rows)
    size = _trained(rows).groupby("source").weights.mean()
    return pd.DataFrame(
        {
            "network": NAMES[name],
            "accuracy, %": said(own[name]),
            "above random, points": "" if name == "random" else said(own[name] - own["random"]),
            "above the equal mixture, points": ""
            if name == "average"
            else said(own[name] - own["average"]),
            "random ones below it, %": "" if name == "random" else f"{_rank(rows, own[name]):.0f}",
            "weights": f"{size[name]:.0f}",
        }
        for name in map(str, own)
    )


def _rank(rows: pd.DataFrame, accuracy: pd.Series) -> float:
    """The share of the same seed's random architectures that are less accurate, in percent."""
    drawn = rows[(rows.what == "trained") & (rows.source == "random")]
    return 100 * float((drawn.accuracy < drawn.seed.map(accuracy)).mean())


def _cost(rows: pd.DataFrame) -> pd.DataFrame:
    part = rows[(rows.what == "trained") & ~rows.source.isin(BASELINES)]
    curves = rows[rows.what == "curve"]
    last = curves[curves.step == curves.step.max()].groupby("source").validation_loss.mean()
    return pd.DataFrame(
        {
            "meta-gradient": NAMES[str(name)],
            "validation loss at the end": f"{last[name]:.3f}",
            "ms a meta-step": f"{1e3 * group.step_s.mean():.0f}",
            "peak memory": format_bytes(int(group.peak_bytes.max())),
            "inner gradient": f"{group.inner_grad_norm.mean():.1e}",
            "residual of the solve": mean_or_blank(group, "relative_residual", ".1e"),
            "negative curvature or divergence, % of solves": mean_or_blank(
                group, "unsolved", ".0f", 100
            ),
        }
        for name, group in part.groupby("source", sort=False)
    )


def _architectures(rows: pd.DataFrame) -> pd.DataFrame:
    part = rows[(rows.what == "trained") & ~rows.source.isin(BASELINES)]
    edges = ", ".join(dict.fromkeys(rows[rows.what == "mixture"].edge))
    return pd.DataFrame(
        {
            "meta-gradient": [NAMES[name] for name in part.source],
            "seed": part.seed.astype(int).tolist(),
            f"operations of the edges {edges}": part.architecture.tolist(),
            "accuracy, %": part.accuracy.round(2).tolist(),
            "deviation over starts, points": part.deviation.round(2).tolist(),
        }
    )


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    return {"accuracy": _points(rows), "search": _search(rows), "mixtures": _mixtures(rows)}


def _points(rows: pd.DataFrame) -> Figure:
    """Every architecture, and the means."""
    figure, (axes,) = canvas(width=6.4)
    all_trained, means = _trained(rows), _by_seed(rows).mean()
    names = list(reversed(means.index))
    for place, name in enumerate(names):
        points = all_trained[all_trained.source == name].accuracy
        # Spread a little, so that equal ones are seen; the same points at the same places always.
        spread = np.random.default_rng(0).uniform(-0.2, 0.2, len(points))
        colour = COLOURS[0] if name in BASELINES else COLOURS[1]
        axes.plot(points, place + spread, "o", color=colour, alpha=0.5)
        axes.plot([means[name]], [place], "|", color="k", markersize=18, markeredgewidth=1.6)
    axes.set_yticks(range(len(names)), [NAMES[name] for name in names])
    axes.set_xlabel("test accuracy after training from scratch, % (bars: means)")
    return figure


def _search(rows: pd.DataFrame) -> Figure:
    """What part of the mixtures each operation has, along the search."""
    curves = rows[rows.what == "curve"]
    methods = [name for name in NAMES if name in set(curves.source)]
    shares = [str(column) for column in curves if str(column).startswith("share_")]
    largest = curves.groupby(["source", "step"])[shares].mean().max().max()
    figure, panels = canvas(len(methods), width=3.2)
    for axes, method in zip(panels, methods, strict=True):
        mean = curves[curves.source == method].groupby("step")[shares].mean()
        for share in shares:
            axes.plot(mean.index, 100 * mean[share], label=share.removeprefix("share_"))
        axes.set_ylim(0, 105 * float(largest))
        axes.set_title(NAMES[method])
        axes.set_xlabel("meta-steps")
        label_lines(axes)
    panels[0].set_ylabel("share, %: mean over edges and seeds")
    return figure


def _mixtures(rows: pd.DataFrame) -> Figure:
    """Each edge's mixture at the end of the search, means over the seeds."""
    part = rows[rows.what == "mixture"]
    methods = [name for name in NAMES if name in set(part.source)]
    figure, panels = canvas(len(methods), width=3.0, height=2.4)
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
            axes.text(j, i, f"{values[i, j]:.0f}", ha="center", va="center", color=shade, size=7)
        axes.set_xticks(range(len(edges)), [edge.replace(" to ", "→") for edge in edges])
        axes.set_yticks(range(len(operations)), operations if axes is panels[0] else [])
        axes.set_title(NAMES[method])
        axes.set_xlabel("edge (shares at the end, %)")
    return figure


def findings(rows: pd.DataFrame) -> list[str]:
    own = _by_seed(rows)
    drawn = rows[(rows.what == "trained") & (rows.source == "random")]
    spread = drawn.groupby("seed").accuracy.std().mean()
    found = [
        f"How much the choice matters: {len(drawn)} architectures chosen at random reach "
        f"{said(own['random'])} % after training from scratch, from {drawn.accuracy.min():.1f} to "
        f"{drawn.accuracy.max():.1f} %; they differ by a deviation of {spread:.1f} points, the "
        f"starts of one by {drawn.deviation.mean():.1f}. The equal mixture of all operations "
        f"reaches {said(own['average'])} %, conv_5x5 on every edge {said(own['largest'])} %."
    ]
    for name in map(str, own):
        if name in BASELINES:
            continue
        gain, against = (estimate(own[name] - own[other]) for other in ("random", "average"))
        text = (
            f"By the {NAMES[name]} gradient: {said(own[name])} %, {gain.mean:+.1f} points against "
            f"random choice and {against.mean:+.1f} against the equal mixture"
        )
        if len(own) > 1:
            above = "above" if gain.mean > gain.interval else "not above"
            text += (
                f" (95 % intervals over {len(own)} seeds: ± {gain.interval:.1f} and "
                f"± {against.interval:.1f}), {above} random choice by more than the interval"
            )
        found.append(f"{text}; above {_rank(rows, own[name]):.0f} % of the random ones.")
    found.append(
        f"Of each seed's {drawn.groupby('seed').size().max()} random architectures the one that "
        f"validated best reaches {said(own['best random'])} %."
    )
    return found
