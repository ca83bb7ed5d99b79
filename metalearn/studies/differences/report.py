"""What the study of differences shows: each change beside its base."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from metalearn.studies.fewshot.report import pooled, setting_title, shown, test_rows
from metalearn.studies.frame.plot import COLOURS, canvas
from metalearn.studies.frame.validation_curve import best_and_last, falls, span, step_seconds
from metalearn.system.provenance import short
from metalearn.training.estimate import Estimate

STARTS = {"authors": "the authors' code", "paper": "the paper's algorithm"}

HOW = (
    "The model with the best validation is judged. After ± stands the 95 % interval: of an "
    "accuracy over the test tasks, with the standard deviation over seeds where there are several; "
    "of a difference how far as many unchanged runs would lie from the base's mean, where the base "
    "has more seeds than the change, and else over seeds or tasks. Negative curvature is what CG "
    "meets: GMRES and the normal equations don't look for it."
)


def judged(rows: pd.DataFrame, mode: str = "transductive") -> pd.DataFrame:
    """A row for each run: at its own number of inner steps."""
    test = test_rows(rows)
    return test[(test["mode"] == mode) & (test.inner_steps == test.trained_inner_steps)]


def groups(rows: pd.DataFrame, base: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """(change, its seeds' rows) of a base, the base itself first."""
    part = judged(rows)
    for change, group in part[part.base == base].groupby("change", sort=False):
        yield str(change), group


def _curve(rows: pd.DataFrame, change: str) -> pd.DataFrame:
    """The validations of a change's seeds."""
    return rows[(rows.part == "curve") & (rows.change == change)]


def label(group: pd.DataFrame) -> str:
    first = group.iloc[0]
    return f"{first.subject} {first.value}" if _given(first.subject) else STARTS[first.base]


def difference(group: pd.DataFrame, start: pd.DataFrame) -> Estimate:
    """Of the accuracy from the base's, in points, with a 95 % interval.

    With the same seeds, several, it is of their paired differences. Where the base has more, it is
    from the base's mean, and reaches as far as so many other seeds of the base itself
    would lie (the prediction interval of normal values): too far rather than not far enough, for
    the change's own seeds are among the base's and draw it nearer. With one of each, both intervals
    over tasks together, as of independent samples, which leaves the seeds' chance out.
    """
    if len(start) > len(group):
        gain = float(group.accuracy.mean() - start.accuracy.mean())
        return Estimate(100 * gain, 100 * _chance(start, len(group)))
    both = group.set_index("seed").accuracy - start.set_index("seed").accuracy
    both = both.dropna().astype(float)
    if len(both) > 1:
        paired = Estimate.of(both)
        return Estimate(100 * paired.mean, 100 * paired.interval)
    a, b = pooled(group), pooled(start)
    return Estimate(100 * (a.mean - b.mean), 100 * math.hypot(a.interval, b.interval))


def _chance(start: pd.DataFrame, more: int) -> float:
    """Half the 95 % prediction interval of the mean of `more` further seeds."""
    n = len(start)
    spread = float(start.accuracy.astype(float).std())
    return float(stats.t.ppf(0.975, n - 1)) * spread * math.sqrt(1 / more + 1 / n)


def _given(value: Any) -> bool:
    return not pd.isna(value) and value != ""


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    found = {}
    for base in _bases(rows):
        found[f"One change at a time from {STARTS[base]}: {_budget(rows, base)}"] = _changes(
            rows, base
        )
    found["Batch statistics and inner steps at test, of the same runs: accuracy in %"] = _at_test(
        rows
    )
    return found


def _bases(rows: pd.DataFrame) -> list[str]:
    return [str(base) for base in judged(rows).base.unique()]


def _budget(rows: pd.DataFrame, base: str) -> str:
    part = judged(rows)
    first = part[part.base == base].iloc[0]
    seeds = [group.seed.nunique() for _, group in groups(rows, base)]
    own, others = seeds[0], max(seeds[1:], default=seeds[0])
    return (
        f"{setting_title(part)}, {int(first.steps):,} meta-steps of {int(first.meta_batch)} tasks, "
        f"{int(first.tasks)} test tasks, {_seeds(others)}"
        + (f" ({own} of the base)" if own != others else "")
    )


def _seeds(n: int) -> str:
    return f"{n} seed" + ("s" if n > 1 else "")


def _changes(rows: pd.DataFrame, base: str) -> pd.DataFrame:
    start = dict(groups(rows, base)).get(base)
    inductive = judged(rows, "inductive")
    found = []
    for change, group in groups(rows, base):
        first, curve = group.iloc[0], _curve(rows, change)
        best, last = best_and_last(curve)
        row: dict[str, Any] = {
            "change": first.subject if _given(first.subject) else "none",
            "to": first.value if _given(first.subject) else "",
            "test accuracy, %": shown(group),
        }
        if start is not None:
            gain = difference(group, start)
            own = f"{gain.mean:+.2f} ± {gain.interval:.2f}" if change != base else ""
            row["difference"] = own
        row["inductive"] = shown(inductive[inductive.change == change])
        row["best validation"] = f"{100 * best.accuracy.mean():.1f}"
        row["at meta-step"] = span(best)
        row["last"] = f"{100 * last.accuracy.mean():.1f}"
        row["negative curvature until the best"] = _share(best.negative_curvature)
        row["in all"] = _share(last.negative_curvature)
        row["s a meta-step"] = f"{step_seconds(curve):.3g}"
        row["commit"] = ", ".join(dict.fromkeys(map(short, group.commit.dropna())))
        row["ended early"] = "; ".join(
            dict.fromkeys(str(why).split(";")[0] for why in group.why if _given(why))
        )
        found.append(row)
    return pd.DataFrame(found)


def _share(negative: pd.Series) -> str:
    """Of the solves; empty where nothing was solved."""
    return "" if negative.isna().all() else f"{100 * negative.mean():.0f} % of solves"


def _at_test(rows: pd.DataFrame) -> pd.DataFrame:
    test, found = test_rows(rows), []
    starts = test[test.change.isin(STARTS)]
    for (base, steps), group in starts.groupby(["base", "inner_steps"], sort=False):
        row: dict[str, Any] = {"of": STARTS[str(base)], "inner steps at test": f"{steps:g}"}
        for mode in test["mode"].unique():
            row[mode] = shown(group[group["mode"] == mode])
        found.append(row)
    return pd.DataFrame(found)


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    return {base: _dots(rows, base) for base in _bases(rows)}


def _dots(rows: pd.DataFrame, base: str) -> Figure:
    every = list(groups(rows, base))[::-1]
    figure, (axes,) = canvas(width=7, height=1.0 + 0.22 * len(every))
    for at, (change, group) in enumerate(every):
        value = pooled(group)
        colour = COLOURS[1] if change == base else COLOURS[0]
        axes.errorbar(
            100 * value.mean, at, xerr=100 * value.interval, fmt="o", color=colour, capsize=2
        )
        if change == base:
            axes.axvline(100 * value.mean, color=colour, linewidth=0.8)
            if len(group) > 1:
                reach = [100 * (value.mean + side * _chance(group, 1)) for side in (-1, 1)]
                axes.axvspan(*reach, color=colour, alpha=0.12, linewidth=0)
    axes.set_yticks(range(len(every)), [label(group) for _, group in every])
    axes.set_ylim(-0.7, len(every) - 0.3)
    said = ["test accuracy, %, transductive"]
    if len({len(group) for _, group in every}) > 1:
        said += ["95 % intervals: over several seeds, else over tasks"]
        said += ["shaded: where 95 % of unchanged runs would lie"]
    else:
        said += ["with 95 % intervals"]
    axes.set_xlabel("\n".join(said))
    axes.set_title(f"One change at a time from {STARTS[base]}")
    return figure


def findings(rows: pd.DataFrame) -> list[str]:
    found = [] if judged(rows).empty else [HOW]
    for base in _bases(rows):
        every = dict(groups(rows, base))
        start = every.get(base)
        if start is None:
            continue
        found.append(f"{_budget(rows, base)}: {STARTS[base]} reaches {shown(start)} %.")
        gains = {c: difference(g, start) for c, g in every.items() if c != base}
        better = {c: e for c, e in gains.items() if e.mean > e.interval}
        worse = {c: e for c, e in gains.items() if e.mean < -e.interval}
        for what, part in (("raise", better), ("lower", worse)):
            if part:
                order = sorted(part, key=lambda c: -abs(part[c].mean))
                each = [f"{label(every[c])} ({_points(part[c])})" for c in order]
                found.append(
                    f"From {STARTS[base]}, changes that {what} it by more than chance does: "
                    f"{', '.join(each)}."
                )
        within = len(gains) - len(better) - len(worse)
        if within:
            by_chance = f"{0.05 * len(gains):.1f}"
            found.append(
                f"From {STARTS[base]}, {within} of {len(gains)} changes stay within what chance "
                f"does; had none an effect, {by_chance} would be beyond it, on average and at most."
            )
        if fell := falls({label(group): _curve(rows, c) for c, group in every.items()}):
            found.append(
                f"From {STARTS[base]}, validation fell again after the model that was chosen and "
                f"judged: {fell}."
            )
        found += _modes(rows, base)
        found.append(
            f"From {STARTS[base]}: so much within {int(start.steps.iloc[0]):,} meta-steps, at "
            f"{100 * start.accuracy.mean():.0f} %; what decides near the end of a long training "
            "may be something else."
        )
    stopped = rows[rows.part == "stopped"]
    if len(stopped):
        names = ", ".join(str(change) for change in stopped.change.unique())
        found.append(f"Stopped by a guard before the first validation: {names}.")
    return found


def _points(gain: Estimate) -> str:
    return f"{gain.mean:+.1f} ± {gain.interval:.1f} points"


def _modes(rows: pd.DataFrame, base: str) -> list[str]:
    pair = [judged(rows, mode) for mode in ("transductive", "inductive")]
    transductive, inductive = (part[part.change == base] for part in pair)
    if transductive.empty or inductive.empty:
        return []
    gain = 100 * float(transductive.accuracy.mean() - inductive.accuracy.mean())
    return [
        f"Of {STARTS[base]}, queries' own batch statistics at test are worth {gain:+.1f} points."
    ]
