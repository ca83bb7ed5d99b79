"""The tables, the figures and the findings of the study of speed."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd

from metalearn.studies.frame.table import Cell, Format, Table, make_table, quartiles
from metalearn.studies.speed.exact import SAME, same
from metalearn.system.memory import format_bytes


class Target(NamedTuple):
    """The ratios that a workload is to reach on 2 cores.

    Args:
        peer: the least ratio of the fastest peer's time to ours, both keeping their memory.
        imported: that of the fastest peer as imported, which gives its memory back.
        floor: the largest ratio of our time to the time of the arithmetic alone.
    """

    peer: float
    imported: float
    floor: float


TARGETS = {
    "imaml-5w1s": Target(2.0, 3.5, 1.7),
    "imaml-5w1s-q15": Target(2.0, 3.0, 1.7),
    "imaml-20w5s": Target(1.6, 1.6, 1.35),
    "maml-5w1s-q15": Target(1.9, 2.0, 1.5),
    "maml-20w5s": Target(1.45, 1.4, 1.3),
}
OVERHEAD_TARGET = 0.05
"""The largest share of a meta-step that may pass outside its gradient."""
AXES = {
    "tasks": "tasks in a batch",
    "ways": "ways",
    "inner_steps": "inner steps",
    "cg_iterations": "CG iterations",
    "widths": "channels of a layer",
}
METHODS = {"imaml": "iMAML", "maml": "MAML"}


def workloads(rows: pd.DataFrame) -> list[str]:
    return list(rows[rows.part == "workload"].workload.drop_duplicates())


def competitors(rows: pd.DataFrame, workload: str, imported: bool = False) -> pd.DataFrame:
    """Return the rows of the competitors that ran, with two more columns.

    Of a study with `keep_memory=both` they are those that kept their memory, or with `imported` the
    peers that did not. Of any other study they are all, or with `imported` none.

    over_floor: the time over that of the arithmetic, at the best rate of all workloads.
    task_bytes: the peak memory of one task in flight.
    """
    part = rows[(rows.part == "workload") & (rows.workload == workload)]
    part = part[~part.absent.astype(bool) & ((part.keep_memory != first_kind(rows)) == imported)]
    return part.assign(
        library=part.library.fillna(""),
        differs=part.differs.astype(object).fillna(""),  # a blank column is read as numbers
        error_task=part.error_task.astype(float),
        over_floor=part.seconds * best_rate(rows) / part.floor_operations,
        task_bytes=part.peak_bytes / part.in_flight,
    )


def first_kind(rows: pd.DataFrame) -> str:
    """Return which processes kept their memory in the main comparison."""
    return str(rows.keep_memory.iloc[0])


def best_rate(rows: pd.DataFrame) -> float:
    """Return the best measured rate of a matrix product, in operations a second."""
    return float(rows.product_rate.max())


def equal(part: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the competitors that computed the same gradient."""
    records: Any = part.to_dict("records")
    return part.loc[[same(row) for row in records]]


def fastest(part: pd.DataFrame, libraries_only: bool = False) -> Any:
    """Return the row of the fastest peer with the same gradient, or None.

    `libraries_only` leaves out peers written by hand in `torch.func`.
    """
    peers = equal(part)
    peers = peers[(peers.library != "") & ~(libraries_only & (peers.library == "torch"))]
    return None if peers.empty else peers.sort_values("seconds").iloc[0]


def lead(part: pd.DataFrame) -> Any:
    """Return the row of our fastest variant with the same gradient and no option, or None."""
    leads = equal(part)
    leads = leads[leads.lead.astype(bool)]
    return None if leads.empty else leads.iloc[0]


def _row(part: pd.DataFrame, competitor: str) -> Any:
    found = part[part.competitor == competitor]
    return None if found.empty else found.iloc[0]


def curves(rows: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Return (method, axis, rows) of each scaling curve."""
    part = rows[rows.part == "curve"]
    if part.empty:
        return []
    groups = part.groupby(["method", "axis"], sort=False)
    return [(str(method), str(axis), own) for (method, axis), own in groups]


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    found = {"Targets, and what was reached": _targets(rows)}
    for name in workloads(rows):
        peers = competitors(rows, name, imported=True)
        peers = peers.assign(competitor=peers.competitor + ", as imported")
        found[f"{name}: one meta-gradient, quartiles in brackets"] = _competitors(
            pd.concat([competitors(rows, name), peers]) if len(peers) else competitors(rows, name)
        )
    for method, axis, part in curves(rows):
        caption = f"{METHODS[method]}: seconds against {AXES[axis]}, quartiles in brackets"
        found[caption] = _curve(part, AXES[axis])
    if len(around := rows[rows.part == "overhead"]):
        found["What a meta-step of training spends (iMAML, 16 tasks of 5 ways and 1 shot)"] = (
            make_table(
                {
                    "piece": None,
                    "ms a meta-step": lambda seconds: f"{1e3 * seconds:.2f}",
                    "share": lambda share: f"{100 * share:.2f} %",
                },
                around[["piece", "seconds", "share"]].itertuples(index=False),
            )
        )
    return found


def _at_least(target: float) -> str:
    return f"at least {target}"


def _targets(rows: pd.DataFrame) -> Table:
    columns: dict[str, Format | None] = {
        "workload": None,
        "ours": None,
        "s": ".3f",
        "fastest peer": None,
        "peer / ours": ".2f",
        "fastest library": None,
        "library / ours": ".2f",
        "peer target": _at_least,
        "peer target met": None,
        "ours / floor": ".2f",
        "floor target": lambda target: f"at most {target}",
        "floor target met": None,
    }
    shown: list[dict[str, Any]] = []
    for name in workloads(rows):
        part = competitors(rows, name)
        own, peer, library = lead(part), fastest(part), fastest(part, libraries_only=True)
        if own is None:
            shown.append({"workload": name, "ours": "not the same gradient"})
            continue
        row = {
            "workload": name,
            "ours": own.competitor,
            "s": own.seconds,
            "fastest peer": "none",
            "fastest library": "none",
            "peer target": TARGETS[name].peer,
            "ours / floor": own.over_floor,
            "floor target": TARGETS[name].floor,
            "floor target met": bool(own.over_floor <= TARGETS[name].floor),
        }
        if peer is not None:
            row |= {"fastest peer": peer.competitor, "peer / ours": peer.times_ours}
            row["peer target met"] = bool(peer.times_ours >= TARGETS[name].peer)
        if library is not None:
            row |= {"fastest library": library.competitor, "library / ours": library.times_ours}
        for kind, alone in (("peer", False), ("library", True)):
            other = fastest(competitors(rows, name, imported=True), libraries_only=alone)
            if other is not None:
                columns |= {f"{kind} as imported": None, f"{kind} as imported / ours": ".2f"}
                row |= {f"{kind} as imported": other.competitor}
                row |= {f"{kind} as imported / ours": other.times_ours}
                if not alone:
                    columns |= {"imported target": _at_least, "imported target met": None}
                    row["imported target"] = TARGETS[name].imported
                    row["imported target met"] = bool(other.times_ours >= TARGETS[name].imported)
        shown.append(row)
    return make_table(columns, shown)


def _competitors(part: pd.DataFrame) -> Table:
    columns: dict[str, Format | None] = {
        "variant": None,
        "s": None,
        "CPU s": ".3f",
        "times ours": None,
        "over the floor": ".2f",
        "operations / floor": ".2f",
        "error": ".1e",
        "error, smooth": ".1e",
        "error of a task": ".1e",
        "batch off its tasks": ".1e",
        f"tasks within {SAME:.0e}": None,
        "peak": lambda size: format_bytes(round(size)),
        "a task in flight": lambda size: format_bytes(round(size)),
        "differs": None,
    }
    shown = []
    for row in part.to_dict("records"):
        tasks = Cell(f"{row['tasks_same']:.0f} of {row['tasks_checked']:.0f}", row["tasks_same"])
        shown.append(
            (
                row["competitor"],
                quartiles(row, "seconds", ".3f"),
                row["cpu_seconds"],
                quartiles(row, "times_ours", ".2f"),
                row["over_floor"],
                row["operations"] / row["floor_operations"],
                row["error"],
                row["error_smooth"],
                row["error_task"],
                row["error_mean"],
                tasks if row["tasks_checked"] else None,
                row["peak_bytes"],
                row["task_bytes"],
                row["differs"],
            )
        )
    return make_table(columns, shown)


def _curve(part: pd.DataFrame, axis: str) -> Table:
    columns: dict[str, Format | None] = {axis: "g"}
    shown = []
    for value, point in part.groupby("value"):
        cells: dict[str, Any] = {axis: value}
        for row in point.to_dict("records"):
            name = row["competitor"]
            cells[f"{name}, s"] = quartiles(row, "seconds", ".4f")
            if name != "batched":
                cells[f"{name} / batched"] = quartiles(row, "times_ours", ".2f")
        columns |= {title: columns.get(title) for title in cells}
        shown.append(cells)
    return make_table(columns, shown)


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the figures of the findings."""
    absent = rows[(rows.part == "workload") & rows.absent.fillna(False).astype(bool)]
    around: Any = rows[rows.part == "overhead"].itertuples()
    return {
        "keep_memory": "both" if rows.keep_memory.nunique() > 1 else first_kind(rows),
        "on_gpu": bool((rows.device == "cuda").any()),
        "product_rate": best_rate(rows),
        "same": SAME,
        "overhead_target": OVERHEAD_TARGET,
        "workloads": [
            _workload_facts(competitors(rows, n), competitors(rows, n, imported=True), n)
            for n in workloads(rows)
        ],
        "absent": [
            {"library": library, "reason": reason, "competitors": list(dict.fromkeys(names))}
            for (library, reason), names in absent.groupby(
                ["library", "reason"], sort=False
            ).competitor
        ],
        "curves": [_curve_facts(*curve) for curve in curves(rows)],
        "overhead": {row.piece: row.share for row in around},
    }


def _workload_facts(part: pd.DataFrame, imported: pd.DataFrame, name: str) -> dict[str, Any]:
    agreeing = equal(part)
    peers = agreeing[agreeing.library != ""]
    return {
        "name": name,
        "target": TARGETS[name],
        "ours": lead(part),
        "peer": fastest(part),
        "library": fastest(part, libraries_only=True),
        "imported": fastest(imported),
        "captured": _row(agreeing, "ours, captured"),
        "leanest": None if peers.empty else peers.sort_values("task_bytes").iloc[0],
        "agreeing": agreeing.to_dict("records"),
        "error_smooth": agreeing.error_smooth.max(),
        "error_mean": agreeing.error_mean.max(),
        "wrong": part[part.differs == ""].drop(agreeing.index).to_dict("records"),
    }


def _curve_facts(method: str, axis: str, part: pd.DataFrame) -> dict[str, Any]:
    """Return where the batch is fastest, and where it is slower by more than the rounds differ."""
    single = part[part.competitor == "one by one"]
    others = part[part.competitor != "batched"]
    lost = others[others.times_ours_high < 1.0].sort_values("value")
    return {
        "method": METHODS[method],
        "axis": AXES[axis],
        "first": single.value.min(),
        "last": single.value.max(),
        "best": single.sort_values("times_ours").iloc[-1],
        "others": list(dict.fromkeys(others.competitor)),
        "slower": [
            {"than": than, "values": list(own.value), "times": 1 / own.times_ours.min()}
            for than, own in lost.groupby("competitor", sort=False)
        ],
    }
