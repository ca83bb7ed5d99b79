"""The tables and facts of the few-shot runs: accuracies beside published ones, and costs."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from metalearn.studies.frame.accuracy import (
    accuracy_cell,
    describe_training,
    format_duration,
    method_title,
    own_rows,
    rank,
    setting_title,
    test_rows,
)
from metalearn.studies.frame.published.accuracy import (
    dataset_title,
    join_distinct,
    published_cell,
    published_rows,
    select_papers,
    select_published,
)
from metalearn.studies.frame.published.accuracy import setting_title as ways_and_shots
from metalearn.studies.frame.table import Cell, Format, Table, make_table
from metalearn.studies.frame.validation_curve import falls, late_gain, step_seconds
from metalearn.system.provenance import short

SHARES = {0.1: "10 % of it", 0.25: "25 % of it", 0.5: "50 % of it", 1.0: "all of it"}
"""The shares of the shared training time at which methods are compared."""


def settings(rows: pd.DataFrame) -> list[str]:
    return [str(setting) for setting in test_rows(rows).setting.unique()]


def titles(rows: pd.DataFrame) -> str:
    """Return the settings in words: "Omniglot 5-way 1-shot"."""
    return ", ".join(setting_title(test_rows(rows, setting)) for setting in settings(rows))


def curves(rows: pd.DataFrame, setting: Any) -> dict[str, pd.DataFrame]:
    """Return the validations of a setting's seeds, by method."""
    return _by_method(rows[(rows.part == "curve") & (rows.setting == setting)])


def _by_method(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(method): group for method, group in rows.groupby("method", sort=False)}


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    test = test_rows(rows)
    return {
        **{
            f"{dataset_title(str(dataset))}: test accuracy in %, our runs beside the published "
            "figures": _beside(part, str(dataset))
            for dataset, part in test.groupby("dataset", sort=False)
        },
        "Batch statistics and inner steps at test, accuracy in %": _swept(test),
        "Validation accuracy in % after the same time of training": _same_time(rows),
        "What the runs took": _cost(rows),
    }


def _beside(test: pd.DataFrame, dataset: str) -> Table:
    pairs = sorted(set(zip(test.ways, test.shots, strict=True)))
    titles = [ways_and_shots(*pair) for pair in pairs]
    ours = [
        {
            "method": method_title(method),
            "whose": f"ours, {mode}",
            **{
                ways_and_shots(*pair): accuracy_cell(
                    part[(part.ways == pair[0]) & (part.shots == pair[1])]
                )
                for pair in pairs
            },
            "trained for": join_distinct(map(describe_training, part.itertuples())),
        }
        for (method, mode), part in own_rows(test).groupby(["method", "mode"], sort=False)
    ]
    theirs = [row for row in published_rows(dataset) if not set(titles).isdisjoint(row)]
    rows = [*ours, *({**row, "whose": row["source"]} for row in theirs)]
    return make_table(["method", "whose", *titles, "trained for"], rows)


def _swept(test: pd.DataFrame) -> Table:
    modes = test["mode"].unique()
    rows = [
        {
            "setting": setting_title(group),
            "method": method_title(method),
            "inner steps": Cell(f"{steps:g}{own}", float(part.inner_steps.iloc[0])),
            **{mode: accuracy_cell(part[part["mode"] == mode]) for mode in modes},
            "test tasks": float(part.tasks.iloc[0]),
        }
        for (_, method), group in test.groupby(["setting", "method"], sort=False)
        for steps, part in group.groupby("inner_steps")
        for own in [" (trained with)" if (part.trained_inner_steps == steps).any() else ""]
    ]
    return make_table(["setting", "method", "inner steps", *modes, "test tasks"], rows)


def best_validations(curve: pd.DataFrame, seconds: float) -> pd.DataFrame:
    """Select each seed's best validation among those made within `seconds` of training."""
    within = curve[curve.train_s <= seconds]
    return within.loc[within.groupby("seed").accuracy.idxmax()]


def shared_time(rows: pd.DataFrame, setting: str) -> float:
    """Return the seconds of training that every run of a setting had."""
    found = [c.groupby("seed").train_s.max().min() for c in curves(rows, setting).values()]
    return float(min(found))


def _same_time(rows: pd.DataFrame) -> Table:
    columns: dict[str, Format | None] = {"setting": None, "method": None}
    columns |= {"longest": format_duration, **dict.fromkeys(SHARES.values(), ".1f")}
    found = []
    for setting in settings(rows):
        title, longest = setting_title(test_rows(rows, setting)), shared_time(rows, setting)
        for method, curve in curves(rows, setting).items():
            best = [100 * best_validations(curve, s * longest).accuracy.mean() for s in SHARES]
            found.append([title, method_title(method), longest, *best])
    return make_table(columns, found)


def _cost(rows: pd.DataFrame) -> Table:
    columns: dict[str, Format | None] = {
        **{"setting": None, "method": None, "seed": None},
        **{"meta-steps": ",.0f", "tasks": ",.0f", "chosen at": ",.0f"},
        **{"training": format_duration, "s a meta-step": ".3g", "threads": None},
        **{"machine": None, "commit": None, "ended early": None},
    }
    found: list[dict[str, Any]] = []
    keys = ["setting", "method", "seed"]
    for key, group in test_rows(rows).groupby(keys, sort=False):
        setting, method, seed = map(str, key)
        first, curve = group.iloc[0], curves(rows, setting)[method]
        steps = float(first.steps)
        found.append(
            {
                **{"setting": setting_title(group), "method": method_title(method)},
                **{"seed": int(seed), "meta-steps": steps, "tasks": steps * first.meta_batch},
                **{"chosen at": float(first.chosen_step), "training": first.train_s},
                "s a meta-step": step_seconds(curve[curve.seed == int(seed)]),
                **{"threads": first.threads, "machine": first.machine},
                **{"commit": short(first["commit"]), "ended early": first.why},
            }
        )
    for r in rows[rows.part == "stopped"].itertuples():
        about = {"setting": r.setting, "method": method_title(r.method), "seed": r.seed}
        found.append({**about, "ended early": r.why})
    return make_table(columns, found)


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return what the findings tell of each setting, and the number of stopped runs."""
    return {
        "settings": [_setting_facts(rows, setting) for setting in settings(rows)],
        "stopped": int((rows.part == "stopped").sum()),
    }


def _setting_facts(rows: pd.DataFrame, setting: str) -> dict[str, Any]:
    test, longest = test_rows(rows, setting), shared_time(rows, setting)
    by_title = {method_title(method): curve for method, curve in curves(rows, setting).items()}
    own = {method_title(m): g for m, g in _by_method(own_rows(test, "transductive")).items()}
    in_time = {title: best_validations(curve, longest) for title, curve in by_title.items()}
    gains = {title: late_gain(curve) for title, curve in by_title.items()}
    widths = {t: 100 * float(curve.accuracy_interval.mean()) for t, curve in by_title.items()}
    ranks = rank(own)
    best = own[ranks[0]["method"]]
    return {
        "where": setting_title(test),
        "ranks": ranks,
        "best": {
            **best.iloc[0].to_dict(),
            "seeds": best.seed.nunique(),
            "duration": format_duration(best.train_s.mean()),
        },
        "paper": _paper(best.iloc[0]),
        "mode_gains": _mode_gains(test),
        "shared_time": format_duration(longest),
        "ranks_in_time": rank({title: part for title, part in in_time.items() if len(part)}),
        "none_in_time": [title for title, part in in_time.items() if part.empty],
        "methods": len(by_title),
        "rising": [{"method": t, "gain": g} for t, g in gains.items() if g > widths[t]],
        "unknown": [title for title, gain in gains.items() if math.isnan(gain)],
        "falls": falls(by_title),
    }


def _paper(run: Any) -> dict[str, str] | None:
    """Return the `accuracy` and `budget` that a paper reports for a run's method and setting."""
    base = method_title(run.method.removesuffix("_tuned"))
    rows = select_papers(select_published(run.dataset, run.ways, run.shots), base)
    for row in rows.itertuples():
        return {"accuracy": published_cell(row).text, "budget": str(row.budget)}
    return None


def _mode_gains(test: pd.DataFrame) -> dict[str, float] | None:
    """Return the least and greatest gain of a method by the queries' own batch statistics."""
    modes = own_rows(test).pivot_table(index="method", columns="mode", values="accuracy")
    if not {"transductive", "inductive"} <= set(modes.columns):
        return None
    gain = 100 * (modes.transductive - modes.inductive)
    return {"least": gain.min(), "greatest": gain.max()}
