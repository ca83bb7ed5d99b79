"""What the few-shot runs show: the table beside the published one, and what they cost."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from metalearn.studies.frame.published.accuracy import TITLES, published
from metalearn.studies.frame.validation_curve import falls, step_seconds
from metalearn.system.provenance import short
from metalearn.training.estimate import Estimate

PUBLISHED = {
    "maml": "MAML",
    "fomaml": "first-order MAML",
    "reptile": "Reptile",
    "imaml": "iMAML, gradient descent",
    "imaml_hf": "iMAML, Hessian-free",
    "imaml_authors_code": "iMAML, the authors' code",
}
"""Our methods by the names of the published table; others, such as ..._tuned, have their own."""

SHARES = (0.1, 0.25, 0.5, 1.0)
"""Of the time that all methods trained for, at which they are compared."""


def name(method: str) -> str:
    base = method.removesuffix("_tuned")
    tuned = ", tuned" if base != method else ""
    return PUBLISHED.get(base, base) + tuned


_TEST_COLUMNS = (
    *("setting", "method", "seed", "base", "change", "mode", "inner_steps", "trained_inner_steps"),
    *("dataset", "ways", "shots", "accuracy"),
)


def test_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Of what was judged: with all columns even where guards stopped every run, and it is empty."""
    missing = [column for column in _TEST_COLUMNS if column not in rows]
    return rows[rows.part == "test"].reindex(columns=[*rows.columns, *missing])


def own_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """At the number of inner steps that each run was trained with and its model chosen at."""
    test = test_rows(rows)
    return test[test.inner_steps == test.trained_inner_steps]


def estimate(group: pd.DataFrame) -> tuple[float, float | None, float | None]:
    """In percent: the mean over seeds, the 95 % interval (over tasks, averaged over the seeds), and
    the standard deviation over seeds, where there are several."""
    accuracy, interval = group.accuracy.astype(float), group.accuracy_interval.astype(float)
    spread = float(100 * accuracy.std()) if len(group) > 1 else None
    half = None if interval.isna().all() else float(100 * interval.mean())
    return float(100 * accuracy.mean()), half, spread


def shown(group: pd.DataFrame) -> str:
    """As `98.21 ± 0.12 (seeds 0.05)`."""
    if group.empty:
        return ""
    mean, interval, spread = estimate(group)
    text = f"{mean:.2f}" + ("" if interval is None else f" ± {interval:.2f}")
    return text + ("" if spread is None else f" (seeds {spread:.2f})")


def setting_title(part: pd.DataFrame) -> str:
    first = part.iloc[0]
    dataset = TITLES.get(first.dataset, first.dataset)
    return f"{dataset} {int(first.ways)}-way {int(first.shots)}-shot"


def titled(rows: pd.DataFrame, setting: Any) -> str:
    test = test_rows(rows)
    return setting_title(test[test.setting == setting])


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    test, found = test_rows(rows), {}
    for dataset in test.dataset.unique():
        title = TITLES.get(dataset, dataset)
        caption = f"{title}: test accuracy in %, our runs beside the published figures"
        found[caption] = _beside(test[test.dataset == dataset], str(dataset))
    found["Batch statistics and inner steps at test, accuracy in %"] = _swept(rows)
    found["Validation accuracy in % after the same time of training"] = _same_time(rows)
    found["What the runs took"] = _cost(rows)
    return found


def _beside(test: pd.DataFrame, dataset: str) -> pd.DataFrame:
    pairs = sorted(set(zip(test.ways.astype(int), test.shots.astype(int), strict=True)))
    columns = {pair: f"{pair[0]}-way {pair[1]}-shot" for pair in pairs}
    own, rows = own_rows(test), []
    for method in own.method.unique():
        for mode in own["mode"].unique():
            part = own[(own.method == method) & (own["mode"] == mode)]
            row = {"method": name(str(method)), "whose": f"ours, {mode}"}
            for (ways, shots), column in columns.items():
                row[column] = shown(part[(part.ways == ways) & (part.shots == shots)])
            row["trained for"] = "; ".join(
                dict.fromkeys(
                    f"{int(r.steps):,} meta-steps of {int(r.meta_batch)} tasks"
                    for r in part.itertuples()
                )
            )
            rows.append(row)
    others = published()[published().dataset == dataset]
    for method, part in others.groupby("method", sort=False):
        cells = {(r.ways, r.shots): r for r in part.itertuples()}
        if not set(cells).intersection(columns):
            continue
        row = {"method": str(method), "whose": "; ".join(dict.fromkeys(part.source))}
        for pair, column in columns.items():
            r: Any = cells.get(pair)
            interval = f" ± {r.interval}" if r is not None and r.interval else ""
            row[column] = "" if r is None else f"{r.accuracy}{interval}"
            row[column] += " (unverified)" if r is not None and r.mark == "U" else ""
        row["trained for"] = "; ".join(dict.fromkeys(filter(None, part.budget)))
        rows.append(row)
    return pd.DataFrame(rows)


def _swept(rows: pd.DataFrame) -> pd.DataFrame:
    test, found = test_rows(rows), []
    for (_, method), group in test.groupby(["setting", "method"], sort=False):
        for steps, part in group.groupby("inner_steps"):
            row: dict[str, Any] = {"setting": setting_title(group), "method": name(str(method))}
            own = bool((part.trained_inner_steps == steps).any())
            row["inner steps"] = f"{steps:g}" + (" (trained with)" if own else "")
            for mode in test["mode"].unique():
                row[mode] = shown(part[part["mode"] == mode])
            found.append(row | {"test tasks": int(part.tasks.iloc[0])})
    return pd.DataFrame(found)


def curves(rows: pd.DataFrame, setting: Any) -> dict[str, pd.DataFrame]:
    """By method, the curves of a setting's seeds."""
    part = rows[(rows.part == "curve") & (rows.setting == setting)]
    return {str(method): group for method, group in part.groupby("method", sort=False)}


def _best_validations(curve: pd.DataFrame, seconds: float) -> pd.DataFrame:
    """Each seed's best among those made in so many seconds."""
    within = curve[curve.train_s <= seconds]
    return within.loc[within.groupby("seed").accuracy.idxmax()]


def by_time(curve: pd.DataFrame, seconds: float) -> list[float]:
    """Each seed's best validation accuracy, in percent, among those made in so many seconds."""
    return [float(100 * v) for v in _best_validations(curve, seconds).accuracy]


def shared_time(rows: pd.DataFrame, setting: Any) -> float:
    """Seconds that every run of a setting trained for at least."""
    found = [c.groupby("seed").train_s.max().min() for c in curves(rows, setting).values()]
    return float(min(found))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.3g} min"


def _same_time(rows: pd.DataFrame) -> pd.DataFrame:
    found = []
    for setting in test_rows(rows).setting.unique():
        longest = shared_time(rows, setting)
        for method, curve in curves(rows, setting).items():
            row = {"setting": titled(rows, setting), "method": name(method)}
            row["longest"] = _duration(longest)
            for share in SHARES:
                values = by_time(curve, share * longest)
                mean = f"{sum(values) / len(values):.1f}" if values else ""
                row["all of it" if share == 1 else f"{100 * share:g} % of it"] = mean
            found.append(row)
    return pd.DataFrame(found)


def _cost(rows: pd.DataFrame) -> pd.DataFrame:
    found: list[dict[str, Any]] = []
    keys = ["setting", "method", "seed"]
    for (setting, method, seed), group in test_rows(rows).groupby(keys, sort=False):
        first, curve = group.iloc[0], curves(rows, setting)[str(method)]
        found.append(
            {
                **{"setting": setting_title(group), "method": name(str(method))},
                "seed": str(seed),
                "meta-steps": f"{int(first.steps):,}",
                "tasks": f"{int(first.steps * first.meta_batch):,}",
                "chosen at": f"{int(first.chosen_step):,}",
                "training": _duration(first.train_s),
                "s a meta-step": f"{step_seconds(curve[curve.seed == seed]):.3g}",
                "threads": _text(first.threads),
                "machine": _text(first.machine),
                "commit": short(first["commit"]),
                "ended early": _text(first.why),
            }
        )
    stopped = rows[rows.part == "stopped"]
    for r in stopped.itertuples():
        found.append(
            {"setting": r.setting, "method": name(str(r.method)), "seed": str(r.seed)}
            | {"ended early": _text(r.why)}
        )
    return pd.DataFrame(found).fillna("")


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings(rows: pd.DataFrame) -> list[str]:
    return [str(setting) for setting in test_rows(rows).setting.unique()]


def findings(rows: pd.DataFrame) -> list[str]:
    found: list[str] = []
    for setting in settings(rows):
        part = test_rows(rows)[test_rows(rows).setting == setting]
        found += [_best(part), *_modes(part), *_fastest(rows, setting), *_flat(rows, setting, part)]
    stopped = rows[rows.part == "stopped"]
    if len(stopped):
        found.append(f"Runs that a guard stopped before their first validation: {len(stopped)}.")
    return found


def _best(part: pd.DataFrame) -> str:
    """Ours that has the highest mean on the test tasks, and what was published for its method."""
    own = own_rows(part)
    own = own[own["mode"] == "transductive"]
    groups = {str(m): g for m, g in own.groupby("method", sort=False)}
    best = max(groups, key=lambda m: estimate(groups[m])[0])
    group, first = groups[best], groups[best].iloc[0]
    near = [m for m in groups if m != best and not _apart(groups[m], group)]
    ties = f"; not told apart from it: {', '.join(map(name, near))}" if near else ""
    others = published()
    others = others[(others.dataset == first.dataset) & (others.ways == first.ways)]
    others = others[(others.shots == first.shots) & (others.mark == "P")]
    same = others[others.method.str.startswith(name(best).removesuffix(", tuned"))]
    theirs = ""
    if len(same):
        row = same.iloc[0]
        theirs = f"; the paper has {row.accuracy} ± {row.interval} % for it"
        theirs += f" after {row.budget}" if row.budget else ""
    seeds = f"{group.seed.nunique()} seed" + ("s" if group.seed.nunique() > 1 else "")
    return (
        f"{setting_title(part)}: of {len(groups)} methods {name(best)} has the highest test "
        f"accuracy, {shown(group)} % (inner steps: {int(first.inner_steps)}; transductive, "
        f"{int(first.tasks)} tasks, {seeds}), after {int(first.steps):,} meta-steps of "
        f"{int(first.meta_batch)} tasks in {_duration(float(group.train_s.mean()))} on "
        f"{_text(first.machine)}{theirs}{ties}."
    )


def _apart(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    """Whether the accuracies differ by more than both intervals together."""
    one, other = pooled(a), pooled(b)
    return abs(one.mean - other.mean) > math.hypot(one.interval, other.interval)


def _modes(part: pd.DataFrame) -> list[str]:
    own = own_rows(part)
    wide = own.pivot_table(index="method", columns="mode", values="accuracy", sort=False)
    if not {"transductive", "inductive"} <= set(wide.columns):
        return []
    gain = 100 * (wide.transductive - wide.inductive)
    return [
        f"{setting_title(part)}: the queries' own batch statistics are worth {gain.min():+.1f} to "
        f"{gain.max():+.1f} points over the support set's, by method."
    ]


def _fastest(rows: pd.DataFrame, setting: str) -> list[str]:
    longest = shared_time(rows, setting)
    every = {m: _best_validations(c, longest) for m, c in curves(rows, setting).items()}
    by_score = {m: group for m, group in every.items() if len(group)}
    if len(by_score) < 2:
        return []
    order = sorted(by_score, key=lambda m: estimate(by_score[m])[0], reverse=True)
    best, *others = order
    near = [m for m in others if not _apart(by_score[m], by_score[best])]
    then = near or others[:1]
    said = ", ".join(f"{name(m)} ({shown(by_score[m])} %)" for m in then)
    none = ", ".join(name(m) for m in every if m not in by_score)
    return [
        f"{titled(rows, setting)}: with {_duration(longest)} of training, which every run had, "
        f"{name(best)} validates best ({shown(by_score[best])} %), "
        + (f"not told apart from {said}" if near else f"then {said}")
        + (f"; without a validation by then: {none}." if none else ".")
    ]


def _flat(rows: pd.DataFrame, setting: str, part: pd.DataFrame) -> list[str]:
    """Whether the last quarter of the meta-steps still raised the best validation accuracy, and
    what fell after it."""
    rising, unknown = [], []
    for method, curve in curves(rows, setting).items():
        gains: list[float] = []
        for _, one in curve.groupby("seed"):
            before = one[one.step <= 0.75 * one.step.max()].accuracy.max()
            gains.append(float(100 * (one.accuracy.max() - before)))
        gain = sum(gains) / len(gains)
        if math.isnan(gain):
            unknown.append(name(method))
        elif gain > 100 * float(curve.accuracy_interval.mean()):
            rising.append(f"{name(method)} ({gain:+.1f} points)")
    where, found = setting_title(part), []
    if unknown:
        found.append(
            f"{where}: validated in the last quarter of their meta-steps alone, so that nothing "
            f"tells whether they were still rising: {', '.join(unknown)}."
        )
    if rising:
        each = ", ".join(rising)
        found.append(f"{where}: still rising in the last quarter of their meta-steps: {each}.")
    elif len(unknown) < len(curves(rows, setting)):
        found.append(
            f"{where}: no {'other ' if unknown else ''}method's best validation accuracy rose by "
            "more than its interval in the last quarter of its meta-steps."
        )
    if fell := falls({name(method): c for method, c in curves(rows, setting).items()}):
        found.append(f"{where}: validation fell again, after the model that was chosen: {fell}.")
    return found


def pooled(group: pd.DataFrame) -> Estimate:
    """Of the accuracy: over seeds where there are several, else over the one seed's tasks."""
    if len(group) > 1:
        return Estimate.of(group.accuracy)
    return Estimate(float(group.accuracy.iloc[0]), float(group.accuracy_interval.iloc[0]))
