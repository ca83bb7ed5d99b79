"""What the study of the meta-gradient's error shows: its tables and findings."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from metalearn.studies.gradient.curves import (
    SHARP,
    TAIL,
    TARGETS,
    Setting,
    bias,
    equals,
    settings,
    steps_a_digit,
)


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    found = settings(rows)
    return {
        "Evaluations (gradients + Hessian products) that reach an error; K steps, C CG iterations "
        f"and seconds to {SHARP:g}": _costs(found),
        f"At equal cost: unrolled where the implicit gradient reaches {SHARP:g}": _equal(found),
        f"Inner steps for a further digit, from {TAIL[0]:g} to {TAIL[1]:g}": _rates(found),
        "Error that so many Hessian products leave at a converged inner solution": _products(rows),
        "Short inner loops: distance from the converged problem's gradient / that of the K steps": (
            _bias(rows)
        ),
    }


def _name(setting: Setting) -> dict[str, str]:
    return {
        "problem": setting.problem,
        "inner loop": setting.inner,
        "condition": f"{setting.condition:g}",
    }


def _or_dash(value: float, how: str) -> str:
    return format(value, how) if math.isfinite(value) else "-"


def _costs(found: list[Setting]) -> pd.DataFrame:
    lines = []
    for setting in found:
        for method in setting.rows.method.unique():
            shown = "truncated, last quarter" if method == "truncated" else str(method)
            line = _name(setting) | {"method": shown}
            for target in TARGETS:
                line[f"to {target:g}"] = _or_dash(setting.reach(method, target).cost, ".0f")
            line["K, C"] = str(setting.reach(method, SHARP))
            line["seconds"] = _or_dash(setting.reach(method, SHARP, "seconds").cost, ".3f")
            lines.append(line)
    return pd.DataFrame(lines)


def _equal(found: list[Setting]) -> pd.DataFrame:
    return pd.DataFrame(
        _name(by_count.setting)
        | {
            "evaluations": f"{by_count.implicit.cost:.0f}",
            "K, C": str(by_count.implicit),
            "unrolled error": f"{by_count.error:.1e}",
            "times larger": _two(by_count.ratio),
            "a product counted as two": _two(doubled.ratio),
            "at equal seconds": _two(by_time.ratio),
        }
        for by_count, doubled, by_time in zip(
            equals(found), equals(found, "doubled"), equals(found, "seconds"), strict=True
        )
    )


def _rates(found: list[Setting]) -> pd.DataFrame:
    return pd.DataFrame(
        _name(setting)
        | {
            "theory": f"{-math.log(10) / math.log(setting.loop_rate):.1f}",
            "unrolled": _or_dash(steps_a_digit(setting.curves("unrolled")[-1]), ".1f"),
            "implicit": _or_dash(steps_a_digit(setting.curves("implicit")[-1]), ".1f"),
        }
        for setting in found
    )


def _products(rows: pd.DataFrame) -> pd.DataFrame:
    part = rows[rows.part == "products"]
    by = ["problem", "condition", "products"]
    solved, truncated = (part[part.method == m] for m in ("implicit", "truncated"))
    return pd.DataFrame(
        {
            "problem": row.problem,
            "condition": f"{row.condition:g}",
            "products": f"{row.products:.0f}",
            "CG": f"{row.error:.1e}",
            "bound, 2 √κ r^C": f"{row.theory:.1e}",
            "back through as many steps": f"{row.error_steps:.1e}",
            "rate, q^k": f"{row.theory_steps:.1e}",
        }
        for _, row in solved.merge(truncated, on=by, suffixes=("", "_steps")).iterrows()
        if row.theory > 1e-12  # the others are exact but for rounding
    )


def _bias(rows: pd.DataFrame) -> pd.DataFrame:
    lines = []
    for _, group in bias(rows).groupby(["problem", "steps"], sort=False):
        line = {"problem": group.problem.iloc[0], "K": f"{group.steps.iloc[0]:.0f}"}
        for _, row in group.iterrows():
            line[row.way] = f"{row.error:.1e} / {row.error_of_steps:.1e}"
        lines.append(line)
    return pd.DataFrame(lines)


def findings(rows: pd.DataFrame) -> list[str]:
    found = settings(rows)
    by_loop = {s.inner: [t for t in found if t.inner == s.inner] for s in found}
    said = [
        *(_at_equal_cost(inner, part) for inner, part in by_loop.items()),
        _at_equal_time(found),
        *(_growth(inner, part) for inner, part in by_loop.items()),
        _closeness(found),
        _few_products(rows),
        _too_short(rows),
    ]
    return [sentence for sentence in said if sentence]


def _two(value: float) -> str:
    """Two digits, written out."""
    return f"{float(f'{value:.2g}'):,g}"


def _at_equal_cost(inner: str, found: list[Setting]) -> str:
    """Says why: what a step and an iteration buy in theory."""
    equal = equals(found)
    if not equal:
        return f"With {inner} inside, the implicit gradient does not reach {SHARP:g}."
    ratios = "; ".join(
        f"{_two(e.ratio)} ({e.setting.problem}, condition {e.setting.condition:g})" for e in equal
    )
    enough = sum(e.ratio >= 100 for e in equal)
    reached = [e.setting for e in equal]
    exponents = [math.log(s.rate("implicit")) / math.log(s.rate("unrolled")) for s in reached]
    iterations = [e.implicit.cg_iters for e in equal]
    unknowns = reached[0].rows.unknowns.iloc[0]
    return (
        f"With {inner} inside, unrolling's error is so many times larger at the cost at which the "
        f"implicit gradient reaches {SHARP:g}: {ratios}. It is at least 100 times in {enough} of "
        f"{len(equal)}: in theory the implicit error falls as the unrolled one to the power of "
        f"{min(exponents):.2f} to {max(exponents):.2f}, since going back through a step takes a "
        "product and the solve takes one for each of its iterations, here at most "
        f"{min(iterations):.0f} to {max(iterations):.0f} for {unknowns:.0f} unknowns."
    )


def _at_equal_time(found: list[Setting]) -> str:
    ratios = [e.ratio for e in equals(found, "seconds")]
    if not ratios:
        return ""
    first = found[0]
    (unrolled,), curves = first.curves("unrolled"), first.curves("implicit")
    longest = first.rows[first.rows.method == "implicit"]
    longest = longest[longest.steps == longest.steps.max()]
    inner, unrolled_step, iteration = (
        f"{1e6 * np.polyfit(part[count], part.seconds, 1)[0]:.0f} µs"
        for part, count in ((curves[0], "steps"), (unrolled, "steps"), (longest, "products"))
    )
    return (
        f"At equal seconds unrolling's error is {_two(min(ratios))} to {_two(max(ratios))} times "
        f"the implicit {SHARP:g}, larger in {sum(r > 1 for r in ratios)} of {len(ratios)}: with "
        f"{first.inner} on the smallest {first.problem} problem a step takes {inner}, one that is "
        f"gone back through {unrolled_step}, an iteration of CG {iteration}."
    )


def _growth(inner: str, found: list[Setting]) -> str:
    """Of the cost with the condition number; the first problem."""
    part = sorted((s for s in found if s.problem == found[0].problem), key=lambda s: s.condition)
    low, high = part[0], part[-1]
    factors = [
        high.reach(method, SHARP).cost / low.reach(method, SHARP).cost
        for method in ("unrolled", "implicit")
    ]
    if low.condition == high.condition or not all(map(math.isfinite, factors)):
        return ""
    theory = math.log(low.loop_rate) / math.log(high.loop_rate)
    return (
        f"With {inner} inside, the evaluations to {SHARP:g} ({low.problem}) grow {factors[0]:.1f} "
        f"times unrolled and {factors[1]:.1f} times implicit from condition number "
        f"{low.condition:g} to {high.condition:g}; in theory the steps grow {theory:.1f} times."
    )


def _closeness(found: list[Setting]) -> str:
    """Of the measured rates to theory's."""
    digits = [
        steps_a_digit(setting.curves(method)[-1]) * -math.log10(setting.loop_rate)
        for setting in found
        for method in ("unrolled", "implicit")
    ]
    reached = [d for d in digits if math.isfinite(d)]
    if not reached:
        return ""
    return (
        f"A further digit takes {min(reached):.2f} to {max(reached):.2f} times the inner steps "
        f"that theory says ({len(reached)} of {len(digits)} curves reach {TAIL[1]:g})."
    )


def _few_products(rows: pd.DataFrame) -> str:
    """The same number of products spent on a solve and on last steps."""
    part = rows[rows.part == "products"]
    solved = part[(part.method == "implicit") & (part.error > 1e-10)]
    share = solved.error / solved.theory
    counts = sorted(part["products"].unique())
    middle = counts[len(counts) // 2]
    first = part[(part["products"] == middle) & (part.problem == part.problem.iloc[0])]
    wide = first.pivot(index="condition", columns="method", values="error")
    each = ", ".join(
        f"{row.implicit:.1e} and {row.truncated:.1e} at condition number {condition:g}"
        for condition, row in wide.iterrows()
    )
    return (
        f"At a converged inner solution {middle:.0f} Hessian products leave by CG and by "
        f"back-propagation through as many last steps {each} ({part.problem.iloc[0]}); CG's error "
        f"is {share.min():.1g} to {share.max():.1g} of its bound."
    )


def _too_short(rows: pd.DataFrame) -> str:
    part = bias(rows)
    part = part[part.problem == part.problem.iloc[0]]
    unrolled, exact = (
        part[part.way == way].set_index("steps") for way in ("unrolled", "implicit, exact solve")
    )
    first, last = unrolled.index.min(), unrolled.index.max()
    return (
        f"Where an inner loop on condition number {part.condition.iloc[0]:g} is cut short at "
        f"{first:.0f} to {last:.0f} steps, unrolling is off the converged problem's gradient by "
        f"{unrolled.error[first]:.2g} to {unrolled.error[last]:.2g} and the implicit gradient by "
        f"{exact.error[first]:.2g} to {exact.error[last]:.2g}; off the K steps' own gradient, by "
        f"at most {unrolled.error_of_steps.max():.0e} and by {exact.error_of_steps[first]:.2g} to "
        f"{exact.error_of_steps[last]:.2g} (relative)."
    )
