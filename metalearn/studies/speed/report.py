"""What the study of speed shows: its tables and figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from metalearn.studies.frame.plot import COLOURS, canvas, label_lines, log_axis
from metalearn.studies.speed.exact import SAME, same
from metalearn.system.memory import format_bytes

TARGETS = {
    "imaml-5w1s": 3.5,
    "imaml-5w1s-q15": 2.5,
    "imaml-20w5s": 1.6,
    "maml-5w1s-q15": 1.6,
    "maml-20w5s": 1.2,
}
"""Times the fastest peer's time over ours that each workload is to reach on 2 cores."""
FLOOR_TARGET = 2.0
OVERHEAD_TARGET = 0.05
"""Share of a meta-step that may pass outside its gradient."""
AXES = {
    "tasks": "tasks in a batch",
    "ways": "ways",
    "inner_steps": "inner steps",
    "cg_iterations": "CG iterations",
    "widths": "channels of a layer",
}
METHODS = {"imaml": "iMAML", "maml": "MAML"}


def timed(rows: pd.DataFrame, workload: str) -> pd.DataFrame:
    """The competitors that were there; `over_floor`: their time over the arithmetic's at the best
    rate of a matrix product that any workload's run has seen."""
    part = rows[(rows.part == "workload") & (rows.workload == workload)]
    part = part[~part.absent.astype(bool)]
    return part.assign(
        library=part.library.fillna(""),
        differs=part.differs.fillna(""),
        error_task=part.error_task.astype(float),
        over_floor=part.seconds * best_rate(rows) / part.floor_operations,
    )


def best_rate(rows: pd.DataFrame) -> float:
    """Of a matrix product, operations a second."""
    return float(rows.product_rate.max())


def equal(part: pd.DataFrame) -> pd.DataFrame:
    """Those of them that computed the same gradient, as their rows show."""
    records: Any = part.to_dict("records")
    return part[[same(row) for row in records]]


def workloads(rows: pd.DataFrame) -> list[str]:
    return list(rows[rows.part == "workload"].workload.drop_duplicates())


def fastest(part: pd.DataFrame, libraries_only: bool = False) -> Any:
    """The row of the fastest peer with the same gradient, or None. `libraries_only` leaves out what
    is written by hand in `torch.func`."""
    peers = equal(part)
    peers = peers[(peers.library != "") & ~(libraries_only & (peers.library == "torch"))]
    return None if peers.empty else peers.sort_values("seconds").iloc[0]


def lead(part: pd.DataFrame) -> Any:
    """The row of the fastest of ours with the same gradient, or None."""
    leads = equal(part)
    leads = leads[leads.lead.astype(bool)]
    return None if leads.empty else leads.iloc[0]


def curves(rows: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """(method, axis, rows) of the scaling curves."""
    part = rows[rows.part == "curve"]
    if part.empty:
        return []
    groups = part.groupby(["method", "axis"], sort=False)
    return [(str(method), str(axis), own) for (method, axis), own in groups]


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    found = {"Targets, and what was reached": _targets(rows)}
    found |= {
        f"{name}: one meta-gradient, quartiles in brackets": _competitors(timed(rows, name))
        for name in workloads(rows)
    }
    for method, axis, part in curves(rows):
        found[f"{METHODS[method]}: seconds against {AXES[axis]}, quartiles in brackets"] = _curve(
            part
        )
    if len(around := rows[rows.part == "overhead"]):
        found["What a meta-step of training spends (iMAML, 16 tasks of 5 ways and 1 shot)"] = (
            _overhead(around)
        )
    return found


def _targets(rows: pd.DataFrame) -> pd.DataFrame:
    shown = []
    for name in workloads(rows):
        part = timed(rows, name)
        own = lead(part)
        if own is None:
            shown.append({"workload": name, "ours": "not the same gradient"})
            continue
        row = {"workload": name, "ours": own.competitor, "s": f"{own.seconds:.3f}"}
        for peer, of in ((fastest(part), "peer"), (fastest(part, libraries_only=True), "library")):
            row |= {
                f"fastest {of}": "none" if peer is None else peer.competitor,
                f"{of} / ours": "" if peer is None else f"{peer.times_ours:.2f}",
            }
        peer, target = fastest(part), TARGETS[name]
        row |= {
            "target": f"at least {target}",
            "met": "" if peer is None else _yes(peer.times_ours >= target),
            "ours / floor": f"{own.over_floor:.2f}",
            "target ": f"at most {FLOOR_TARGET}",
            "met ": _yes(own.over_floor <= FLOOR_TARGET),
        }
        shown.append(row)
    return pd.DataFrame(shown).fillna("")


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def _competitors(part: pd.DataFrame) -> pd.DataFrame:
    each: Any = part.itertuples()
    return pd.DataFrame(
        {
            "way": row.competitor,
            "s": _spread(row, "seconds", 3),
            "CPU s": f"{row.cpu_seconds:.3f}",
            "times ours": _spread(row, "times_ours", 2),
            "over the floor": f"{row.over_floor:.2f}",
            "operations / floor": f"{row.operations / row.floor_operations:.2f}",
            "error": f"{row.error:.1e}",
            "error, smooth": f"{row.error_smooth:.1e}",
            "error of a task": f"{row.error_task:.1e}" if row.error_task >= 0 else "",
            "batch off its tasks": f"{row.error_mean:.1e}" if row.error_mean >= 0 else "",
            f"tasks within {SAME:.0e}": within(row) if row.tasks_checked else "",
            "peak": format_bytes(int(row.peak_bytes)),
            "a task in flight": format_bytes(int(row.peak_bytes / row.in_flight)),
            "parts": f"{row.parts:.0f}",
            "differs": row.differs,
        }
        for row in each
    )


def _spread(row: Any, name: str, digits: int) -> str:
    """The median, its quartiles in brackets; nothing where there is none to tell."""
    values = [getattr(row, f"{name}{which}", math.nan) for which in ("", "_low", "_high")]
    if any(math.isnan(v) for v in values):
        return ""
    middle, low, high = (f"{v:.{digits}f}" for v in values)
    return f"{middle} [{low}, {high}]"


def within(row: Any) -> str:
    """Of the tasks, those whose own gradient is the same."""
    return f"{row.tasks_same:.0f} of {row.tasks_checked:.0f}"


def _curve(part: pd.DataFrame) -> pd.DataFrame:
    part = part.sort_values("value", kind="stable")
    shown = pd.DataFrame({AXES[part.axis.iloc[0]]: [f"{v:g}" for v in part.value.unique()]})
    for way in part.competitor.drop_duplicates():
        each: Any = list(part[part.competitor == way].itertuples())
        shown[f"{way}, s"] = [_spread(row, "seconds", 4) for row in each]
        if way != "batched":
            shown[f"{way} / batched"] = [_spread(row, "times_ours", 2) for row in each]
    shown["parts chosen"] = [f"{n:.0f}" for n in part[part.competitor == "batched"].parts]
    return shown


def _overhead(around: pd.DataFrame) -> pd.DataFrame:
    each: Any = around.itertuples()
    return pd.DataFrame(
        {
            "piece": row.piece,
            "ms a meta-step": f"{1e3 * row.seconds:.2f}",
            "share": f"{100 * row.share:.2f} %",
        }
        for row in each
    )


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    found = {}
    for method in METHODS:
        if names := [name for name in workloads(rows) if name.startswith(f"{method}-")]:
            found[f"time_{method}"] = _bars(rows, names)
        if lines := [(axis, part) for of, axis, part in curves(rows) if of == method]:
            found[f"scaling_{method}"] = _lines(lines, METHODS[method])
    return found


def _bars(rows: pd.DataFrame, names: Sequence[str]) -> Figure:
    figure, panels = canvas(len(names), width=4.2, height=3.0)
    for axes, name in zip(panels, names, strict=True):
        part = timed(rows, name).iloc[::-1]
        each: Any = list(part.itertuples())
        errors = [part.seconds - part.seconds_low, part.seconds_high - part.seconds]
        axes.barh(
            [f"{r.competitor}{' *' if r.differs else ''}" for r in each],
            part.seconds,
            xerr=errors,
            color=["0.75" if r.differs else COLOURS[bool(r.library)] for r in each],
            error_kw={"lw": 0.8},
        )
        floor = float(part.floor_operations.iloc[0] / best_rate(rows))
        axes.axvline(floor, color="black", lw=0.8, ls="--")
        axes.annotate(
            "arithmetic",
            (floor, 1.0),
            xycoords=("data", "axes fraction"),
            fontsize=7,
            va="bottom",
            ha="center",
        )
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="seconds (* another gradient)")
        axes.set_title(name, pad=12)
    return figure


def _lines(lines: Sequence[tuple[str, pd.DataFrame]], title: str) -> Figure:
    figure, panels = canvas(len(lines), width=3.6, height=3.0)
    for axes, (axis, part) in zip(panels, lines, strict=True):
        for way, own in part.groupby("competitor", sort=False):
            axes.plot(own.value, own.seconds, "o-", label=str(way))
        log_axis(axes, "x", base=2)
        log_axis(axes, "y")
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.set(xlabel=AXES[axis], ylabel="seconds of one meta-gradient", title=title)
        label_lines(axes)
    return figure
