"""What the study of speed found, in sentences."""

from __future__ import annotations

from typing import Any

import pandas as pd

from metalearn.studies.speed.exact import SAME
from metalearn.studies.speed.report import (
    AXES,
    FLOOR_TARGET,
    METHODS,
    OVERHEAD_TARGET,
    TARGETS,
    best_rate,
    curves,
    equal,
    fastest,
    lead,
    timed,
    within,
    workloads,
)
from metalearn.system.memory import format_bytes

KEPT = {
    "all": "Every process kept the memory that it freed for its next allocation, ours, the peers' "
    "and the curves' alike",
    "ours": "Our processes alone kept the memory that they freed for their next allocation, and "
    "the curves' one; the peers' gave it back",
    "none": "No process kept the memory that it freed for its next allocation",
}


def findings(rows: pd.DataFrame) -> list[str]:
    found = [_rules(rows)]
    for name in workloads(rows):
        found += _workload_findings(timed(rows, name), name, best_rate(rows))
    absent = rows[(rows.part == "workload") & rows.absent.fillna(False).astype(bool)]
    for (library, reason), part in absent.groupby(["library", "reason"], sort=False):
        left_out = ", ".join(part.competitor.drop_duplicates())
        found.append(f"{library} {reason}, and its {left_out} was left out.")
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


def _rules(rows: pd.DataFrame) -> str:
    """What held for all that was timed."""
    sentence = KEPT[rows.keep_memory.iloc[0]]
    if (rows.device == "cuda").any():
        sentence += "; products were made in float32, TF32 switched off for all"
    if len(workloads(rows)):
        rate = best_rate(rows) / 1e9
        sentence += f"; the arithmetic's floor is reckoned by the best {rate:.0f} GFLOP/s measured"
    return f"{sentence}."


def _workload_findings(part: pd.DataFrame, name: str, rate: float) -> list[str]:
    own = lead(part)
    if own is None:
        return [
            f"{name}: ours did not compute the gradient, and there is no verdict; {_off(part)}."
        ]
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
        f"{name}: the method needs {own.floor_operations / 1e9:.1f} GFLOP, "
        f"{own.floor_operations / rate:.3f} s at a matrix product's rate; ours takes "
        f"{own.over_floor:.2f} times that, {verdict} the target of {FLOOR_TARGET}."
    )
    agreeing = equal(part)
    each: Any = agreeing.itertuples()
    counts = ", ".join(f"{row.competitor} {within(row)}" for row in each)
    found.append(
        f"{name}: {len(agreeing)} ways agree with float64 within "
        f"{agreeing.error_smooth.max():.0e} on a smooth network, and with the mean of their "
        f"tasks' own gradients within {agreeing.error_mean.max():.0e} on the timed one. There, "
        "where rounding can take a task across a kink, so many tasks' own are within "
        f"{SAME:.0e} of float64's: "
        f"{counts}" + (f"; {off}." if (off := _off(part)) else ".")
    )
    per_task = (agreeing.peak_bytes / agreeing.in_flight).set_axis(agreeing.competitor)
    peers = per_task[(agreeing.library != "").to_numpy()]
    if len(peers):
        found.append(
            f"{name}: peak memory of a task in flight is "
            f"{format_bytes(int(per_task[own.competitor]))}, "
            f"the leanest peer's ({peers.idxmin()}) {format_bytes(int(peers.min()))}."
        )
    return found


def _off(part: pd.DataFrame) -> str:
    """Those that should have computed the same gradient and did not; "" where all did."""
    claims = part[part.differs == ""]
    off: Any = claims.drop(equal(claims).index).itertuples()
    told = [
        f"{row.competitor} (smooth network: {row.error_smooth:.0e}; "
        f"tasks within {SAME:.0e}: {within(row)})"
        for row in off
    ]
    return f"{', '.join(told)} did not, and count for nothing" if told else ""


def _curve_finding(part: pd.DataFrame, method: str, axis: str) -> str:
    single: Any = part[part.competitor == "one by one"].sort_values("value")
    best = single.loc[single.times_ours.idxmax()]
    text = (
        f"{METHODS[method]}, {AXES[axis]} from {single.value.min():g} to {single.value.max():g}: "
        f"all tasks at once are at most {best.times_ours:.2f} times as fast as one by one (at "
        f"{best.value:g})"
    )
    slower = []
    others = list(part.competitor[part.competitor != "batched"].drop_duplicates())
    for way in others:
        own: Any = part[part.competitor == way].sort_values("value")
        lost = own[own.times_ours_high < 1.0]  # by more than the rounds differ
        if len(lost):
            values = ", ".join(f"{v:g}" for v in lost.value)
            by = 1 / lost.times_ours.min()
            slower.append(f"slower than {way} at {values} (by up to {by:.2f} times)")
    nowhere = f"slower than {' or '.join(others)} nowhere by more than the rounds differ"
    return f"{text}, and {' and '.join(slower) or nowhere}."
