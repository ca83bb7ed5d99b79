"""What the study of speed shows: its tables, figures and findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from metalearn.memory import format_bytes
from metalearn.study.plot import COLOURS, canvas, label_lines, log_axis

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
SAME = 1e-4
"""Relative error against float64 up to which a gradient is the same."""

AXES = {
    "tasks": "tasks in a batch",
    "ways": "ways",
    "inner_steps": "inner steps",
    "cg_iterations": "CG iterations",
    "widths": "channels of a layer",
}
METHODS = {"imaml": "iMAML", "maml": "MAML"}


def timed(rows: pd.DataFrame, workload: str) -> pd.DataFrame:
    """The competitors that were there."""
    part = rows[(rows.part == "workload") & (rows.workload == workload)]
    return part[~part.absent.astype(bool)].assign(
        library=part.library.fillna(""), differs=part.differs.fillna("")
    )


def equal(part: pd.DataFrame) -> pd.DataFrame:
    """Those of them that computed the same gradient, as their rows show."""
    return part[(part.differs == "") & (part.error_smooth <= SAME)]


def workloads(rows: pd.DataFrame) -> list[str]:
    return list(rows[rows.part == "workload"].workload.drop_duplicates())


def fastest(part: pd.DataFrame, libraries_only: bool = False) -> Any:
    """The row of the fastest peer with the same gradient, or None. `libraries_only` leaves out what
    is written by hand in `torch.func`."""
    peers = equal(part)
    peers = peers[(peers.library != "") & ~(libraries_only & (peers.library == "torch"))]
    return None if peers.empty else peers.sort_values("seconds").iloc[0]


def lead(part: pd.DataFrame) -> Any:
    """The row of the fastest of ours."""
    return part[part.lead.astype(bool)].iloc[0]


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
        found[f"{METHODS[method]}: seconds against {AXES[axis]}"] = _curve(part)
    if len(around := rows[rows.part == "overhead"]):
        found["What a meta-step of training spends (iMAML, 16 tasks of 5 ways and 1 shot)"] = (
            _overhead(around)
        )
    return found


def _targets(rows: pd.DataFrame) -> pd.DataFrame:
    shown = []
    for name in workloads(rows):
        part = timed(rows, name)
        own: Any = lead(part)
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
    return pd.DataFrame(shown)


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def _competitors(part: pd.DataFrame) -> pd.DataFrame:
    each: Any = part.itertuples()
    return pd.DataFrame(
        {
            "way": row.competitor,
            "s": f"{row.seconds:.3f} [{row.seconds_low:.3f}, {row.seconds_high:.3f}]",
            "CPU s": f"{row.cpu_seconds:.3f}",
            "times ours": f"{row.times_ours:.2f} [{row.times_ours_low:.2f}, "
            f"{row.times_ours_high:.2f}]",
            "over the floor": f"{row.over_floor:.2f}",
            "operations / floor": f"{row.operations / row.floor_operations:.2f}",
            "error": f"{row.error:.1e}",
            "error, smooth": f"{row.error_smooth:.1e}",
            "peak": format_bytes(int(row.peak_bytes)),
            "a task in flight": format_bytes(int(row.peak_bytes / row.in_flight)),
            "parts": f"{row.parts:.0f}",
            "differs": row.differs,
        }
        for row in each
    )


def _curve(part: pd.DataFrame) -> pd.DataFrame:
    wide = part.pivot(index="value", columns="competitor", values="seconds")
    ratios = part.pivot(index="value", columns="competitor", values="times_ours")
    shown = pd.DataFrame({AXES[part.axis.iloc[0]]: [f"{v:g}" for v in wide.index]})
    for way in part.competitor.drop_duplicates():
        shown[f"{way}, s"] = [f"{v:.4f}" for v in wide[way]]
        if way != "batched":
            shown[f"{way} / batched"] = [f"{v:.2f}" for v in ratios[way]]
    parts = part[part.competitor == "batched"].sort_values("value").parts
    shown["parts chosen"] = [f"{n:.0f}" for n in parts]
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
        floor = float((part.floor_operations / part.product_rate).iloc[0])
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


def findings(rows: pd.DataFrame) -> list[str]:
    found = []
    for name in workloads(rows):
        found += _workload_findings(timed(rows, name), name)
    absent = rows[(rows.part == "workload") & rows.absent.fillna(False).astype(bool)]
    for library, part in absent.groupby("library", sort=False):
        left_out = ", ".join(part.competitor.drop_duplicates())
        found.append(f"{library} is not installed, and its {left_out} was left out.")
    found += [_curve_finding(part, method, axis) for method, axis, part in curves(rows)]
    around = rows[rows.part == "overhead"]
    if len(around):
        share = around.set_index("piece").share
        verdict = "within" if share["around it"] <= OVERHEAD_TARGET else "above"
        found.append(
            f"Training spends {100 * share['around it']:.1f} % of a meta-step outside the gradient "
            f"({verdict} the target of {100 * OVERHEAD_TARGET:.0f} %): sampling and moving "
            f"{100 * share['sampling and moving']:.1f} %, checkpoints "
            f"{100 * share['checkpoints']:.1f} %, the optimiser, guards, figures and logging "
            f"{100 * share['the rest']:.1f} %."
        )
    return found


def _workload_findings(part: pd.DataFrame, name: str) -> list[str]:
    own: Any = lead(part)
    floor = own.floor_operations / own.product_rate
    found = []
    peer, library = fastest(part), fastest(part, libraries_only=True)
    if peer is not None:
        verdict = "meets" if peer.times_ours >= TARGETS[name] else "misses"
        found.append(
            f"{name}: {own.competitor} takes {own.seconds:.3f} s, the fastest peer with the same "
            f"gradient ({peer.competitor}) {peer.times_ours:.2f} times as long (quartiles "
            f"{peer.times_ours_low:.2f} to {peer.times_ours_high:.2f}), which {verdict} the target "
            f"of {TARGETS[name]}."
            + (
                f" The fastest library ({library.competitor}) takes {library.times_ours:.2f} times."
                if library is not None and library.competitor != peer.competitor
                else ""
            )
        )
    verdict = "within" if own.over_floor <= FLOOR_TARGET else "above"
    found.append(
        f"{name}: the method needs {own.floor_operations / 1e9:.1f} GFLOP, {floor:.3f} s at the "
        f"{own.product_rate / 1e9:.0f} GFLOP/s of a matrix product; ours takes "
        f"{own.over_floor:.2f} times that, {verdict} the target of {FLOOR_TARGET}."
    )
    same, off = equal(part), part[(part.differs == "") & ~(part.error_smooth <= SAME)]
    found.append(
        f"{name}: {len(same)} ways agree with float64 within {same.error_smooth.max():.0e} on a "
        f"smooth network. On the timed one, whose kinks rounding crosses, they do within "
        f"{same.error.max():.0e}, and the float64 gradient itself moves by {own.rounding:.0e} with "
        "the weights' rounding"
        + ("." if off.empty else f"; {', '.join(off.competitor)} did not, and count for nothing.")
    )
    per_task = (same.peak_bytes / same.in_flight).set_axis(same.competitor)
    peers = per_task[(same.library != "").to_numpy()]
    if len(peers):
        found.append(
            f"{name}: peak memory of a task in flight is "
            f"{format_bytes(int(per_task[own.competitor]))}, "
            f"the leanest peer's ({peers.idxmin()}) {format_bytes(int(peers.min()))}."
        )
    return found


def _curve_finding(part: pd.DataFrame, method: str, axis: str) -> str:
    single: Any = part[part.competitor == "one by one"].sort_values("value")
    slower = single[single.times_ours_high < 1.0]  # by more than the rounds differ
    best = single.loc[single.times_ours.idxmax()]
    text = (
        f"{METHODS[method]}, {AXES[axis]} from {single.value.min():g} to {single.value.max():g}: "
        f"all tasks at once are at most {best.times_ours:.2f} times as fast as one by one (at "
        f"{best.value:g})"
    )
    if slower.empty:
        return f"{text}, and slower nowhere."
    values = ", ".join(f"{v:g}" for v in slower.value)
    return f"{text}, and slower at {values} (by up to {1 / slower.times_ours.min():.2f} times)."
