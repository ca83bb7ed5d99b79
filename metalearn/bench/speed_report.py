"""What the study of speed shows: its tables, figures and findings."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

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


def fastest_peer(part: pd.DataFrame) -> pd.Series | None:
    """The row of the fastest of other libraries' equal gradients."""
    peers = equal(part)
    peers = peers[peers.library != ""]
    return None if peers.empty else peers.loc[peers.seconds.idxmin()]


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    found = {"Targets, and what was reached": _targets(rows)}
    found |= {
        f"{name}: one meta-gradient, quartiles in brackets": _competitors(timed(rows, name))
        for name in workloads(rows)
    }
    curves = rows[rows.part == "curve"]
    for (axis, method), part in curves.groupby(["axis", "method"], sort=False):
        found[f"{METHODS[str(method)]}: seconds against {AXES[str(axis)]}"] = _curve(part)
    return found


def _targets(rows: pd.DataFrame) -> pd.DataFrame:
    shown = []
    for name in workloads(rows):
        part = timed(rows, name)
        own, peer = part[part.competitor == "ours"].iloc[0], fastest_peer(part)
        row = {
            "workload": name,
            "ours, s": f"{own.seconds:.3f}",
            "fastest peer": "none installed" if peer is None else peer.competitor,
            "its s": "" if peer is None else f"{peer.seconds:.3f}",
            "times ours": "" if peer is None else f"{peer.times_ours:.2f}",
            "target": f"{TARGETS[name]}",
            "met": "" if peer is None else _yes(peer.times_ours >= TARGETS[name]),
            "over the floor": f"{own.over_floor:.2f}",
            "target ": f"{FLOOR_TARGET}",
            "met ": _yes(own.over_floor <= FLOOR_TARGET),
        }
        shown.append(row)
    return pd.DataFrame(shown)


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def _competitors(part: pd.DataFrame) -> pd.DataFrame:
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
            "differs": row.differs,
        }
        for row in part.itertuples()
    )


def _curve(part: pd.DataFrame) -> pd.DataFrame:
    wide = part.pivot(index="value", columns="competitor", values="seconds")
    ratios = part.pivot(index="value", columns="competitor", values="times_ours")
    shown = pd.DataFrame({AXES[part.axis.iloc[0]]: [f"{v:g}" for v in wide.index]})
    for way in part.competitor.drop_duplicates():
        shown[f"{way}, s"] = [f"{v:.4f}" for v in wide[way]]
        if way != "batched":
            shown[f"{way} / batched"] = [f"{v:.2f}" for v in ratios[way]]
    return shown


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    found = {"workloads": _bars(rows)}
    curves = rows[rows.part == "curve"]
    axes = [axis for axis in AXES if axis in set(curves.axis)]
    for method in curves.method.drop_duplicates():
        own = [axis for axis in axes if axis in set(curves[curves.method == method].axis)]
        found[f"scaling_{method}"] = _lines(curves[curves.method == method], own, method)
    return found


def _bars(rows: pd.DataFrame) -> Figure:
    names = workloads(rows)
    figure, panels = canvas(len(names), width=3.6, height=2.6)
    for axes, name in zip(panels, names, strict=True):
        part = timed(rows, name).iloc[::-1]
        colours = [
            "0.75" if r.differs else COLOURS[0] if not r.library else COLOURS[1]
            for r in part.itertuples()
        ]
        labels = [f"{r.competitor}{' *' if r.differs else ''}" for r in part.itertuples()]
        errors = [part.seconds - part.seconds_low, part.seconds_high - part.seconds]
        axes.barh(labels, part.seconds, xerr=errors, color=colours, error_kw={"lw": 0.8})
        floor = float((part.floor_operations / part.product_rate).iloc[0])
        axes.axvline(floor, color="black", lw=0.8, ls="--")
        axes.annotate(
            "arithmetic", (floor, 1.0), xycoords=("data", "axes fraction"), fontsize=7, va="bottom",
            ha="center",
        )  # fmt: skip
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="seconds (* another gradient)")
        axes.set_title(name, pad=12)
    return figure


def _lines(curves: pd.DataFrame, axes_shown: list[str], method: str) -> Figure:
    figure, panels = canvas(len(axes_shown), width=3.6, height=3.0)
    for axes, axis in zip(panels, axes_shown, strict=True):
        part = curves[curves.axis == axis]
        for way, own in part.groupby("competitor", sort=False):
            axes.plot(own.value, own.seconds, "o-", label=str(way))
        log_axis(axes, "x", base=2)
        log_axis(axes, "y")
        axes.set(xlabel=AXES[axis], ylabel="seconds of one meta-gradient", title=METHODS[method])
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
    curves = rows[rows.part == "curve"]
    for (method, axis), part in curves.groupby(["method", "axis"], sort=False):
        found.append(_curve_finding(part, str(method), str(axis)))
    return found


def _workload_findings(part: pd.DataFrame, name: str) -> list[str]:
    own = part[part.competitor == "ours"].iloc[0]
    floor = own.floor_operations / own.product_rate
    found = []
    peer = fastest_peer(part)
    if peer is not None:
        verdict = "meets" if peer.times_ours >= TARGETS[name] else "misses"
        found.append(
            f"{name}: ours takes {own.seconds:.3f} s, the fastest peer with the same gradient "
            f"({peer.competitor}) {peer.times_ours:.2f} times as long (quartiles "
            f"{peer.times_ours_low:.2f} to {peer.times_ours_high:.2f}), which {verdict} the target "
            f"of {TARGETS[name]}."
        )
    verdict = "within" if own.over_floor <= FLOOR_TARGET else "above"
    found.append(
        f"{name}: the method needs {own.floor_operations / 1e9:.1f} GFLOP, {floor:.3f} s at the "
        f"{own.product_rate / 1e9:.0f} GFLOP/s of a matrix product; ours takes "
        f"{own.over_floor:.2f} times that, {verdict} the target of {FLOOR_TARGET}."
    )
    same, off = equal(part), part[(part.differs == "") & ~(part.error_smooth <= SAME)]
    found.append(
        f"{name}: {len(same)} ways agree with float64 within {same.error_smooth.max():.0e} on the "
        f"smooth network, within {same.error.max():.0e} on the timed one, whose kinks rounding "
        "crosses"
        + ("." if off.empty else f"; {', '.join(off.competitor)} did not, and count for nothing.")
    )
    per_task = (same.peak_bytes / same.in_flight).set_axis(same.competitor)
    peers = per_task[(same.library != "").to_numpy()]
    if len(peers) and "ours" in per_task:
        found.append(
            f"{name}: peak memory of a task in flight is {format_bytes(int(per_task['ours']))}, "
            f"the leanest peer's ({peers.idxmin()}) {format_bytes(int(peers.min()))}."
        )
    return found


def _curve_finding(part: pd.DataFrame, method: str, axis: str) -> str:
    single = part[part.competitor == "one by one"].sort_values("value")
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
