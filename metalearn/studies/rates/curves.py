"""The curves of the study: a method, a setting, and the slope that theory gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from metalearn.bilevel import F2SA, SABA, SOBA, AmIGO, StocBiO, TruncatedUnrolling
from metalearn.studies.rates.measure import (
    RATE,
    MakeProblem,
    Measure,
    Problem,
    Sizes,
    batch_sizes,
    controls,
    each_option,
    each_step,
    moving,
    on_minibatches,
    penalised,
    stationarity,
)
from metalearn.studies.rates.problems import Logistic, Quadratic

PROBLEMS: dict[str, MakeProblem] = {"quadratic": Quadratic, "logistic": Logistic}
QUADRATIC = ("quadratic",)
MEMORY = 8
"""The number of batches of which SABA keeps gradients."""
PENALTY = 10.0
"""The penalty of F2SA on minibatches."""
SQUARE = "least squared norm of the hypergradient"


@dataclass(frozen=True)
class Curve:
    """An error against a number, and the slope that theory gives.

    Args:
        title: the method and the setting.
        x: the number on the horizontal axis.
        measure: returns the points of a problem.
        slope: returns the slope of log(error) against x, or against log(x).
        log: True: against log(x).
        bound: True: the slope is at most that; False: it is that, in the limit.
        error: the quantity on the vertical axis.
        problems: the problems on which it is measured.
    """

    title: str
    x: str
    measure: Measure
    slope: Callable[[Problem, Sizes], float]
    log: bool
    bound: bool = False
    error: str = "relative error"
    problems: tuple[str, ...] = ("quadratic", "logistic")


def contraction(share: float, steps: int = 1) -> Callable[[Problem, Sizes], float]:
    """Return the slope of gradient steps of rate share / largest, so many for each x."""
    return lambda problem, sizes: steps * math.log(1 - share * problem.least / problem.largest)


def constant(value: float) -> Callable[[Problem, Sizes], float]:
    """Return a slope that no problem changes."""
    return lambda problem, sizes: value


def saga(problem: Problem, sizes: Sizes) -> float:
    """Return the slope of SAGA's error; Defazio et al. 2014, theorem 1, of the square."""
    share = min(1 / (4 * MEMORY), RATE * problem.least / problem.largest)
    return math.log(1 - share) / 2


def _rate(share: float, problem: Problem) -> float:
    return share / problem.largest


CURVES: dict[str, Curve] = {
    "amigo": Curve(
        "AmIGO, all data",
        "outer steps",
        each_step(lambda p: AmIGO(4, 2, _rate(0.5, p)), 0.5, 1.0),
        contraction(0.5, 2),
        log=False,
    ),
    "soba": Curve(
        "SOBA, all data",
        "outer steps",
        each_step(lambda p: SOBA(_rate(0.8, p)), 0.5, 0.5),
        contraction(0.5),
        log=False,
    ),
    "stocbio": Curve(
        "stocBiO, all data",
        "terms of the series",
        each_option(lambda p, v: StocBiO(60, v, _rate(0.5, p)), 0.9),
        contraction(0.5),
        log=False,
    ),
    "truncated": Curve(
        "truncated unrolling, all data",
        "steps of the window",
        each_option(lambda p, v: TruncatedUnrolling(max(v, 80), v), 0.5),
        contraction(0.5),
        log=False,
    ),
    "f2sa": Curve(
        "F2SA, all data",
        "penalty",
        each_option(lambda p, v: F2SA(60, float(v), 0.0), 0.9, (30, 100, 300, 1000)),
        constant(-1.0),
        log=True,
    ),
    "bome": Curve(
        "BOME, all data, fixed meta",
        "control",
        controls,
        constant(-1.0),
        log=True,
        problems=QUADRATIC,
    ),
    "soba_minibatch": Curve(
        "SOBA, minibatches, rates 1 / t",
        "outer steps + offset",
        on_minibatches(lambda p: SOBA(_rate(RATE, p)), 1.0),
        constant(-0.5),
        log=True,
    ),
    "amigo_minibatch": Curve(
        "AmIGO, minibatches, rates 1 / t",
        "outer steps + offset",
        on_minibatches(lambda p: AmIGO(1, 1, _rate(RATE, p)), 1.0),
        constant(-0.5),
        log=True,
    ),
    "saba_minibatch": Curve(
        "SABA, minibatches, constant rates",
        "outer steps",
        on_minibatches(lambda p: SABA(_rate(RATE, p)), 0.0, batches_of=MEMORY),
        saga,
        log=False,
        bound=True,
    ),
    "stocbio_minibatch": Curve(
        "stocBiO, minibatches", "batch size", batch_sizes, constant(-0.5), log=True
    ),
    "f2sa_minibatch": Curve(
        "F2SA, minibatches, rates 1 / t",
        "outer steps + offset",
        on_minibatches(lambda p: F2SA(1, PENALTY, 0.0), 1.0, penalised(PENALTY)),
        constant(-0.5),
        log=True,
        error="relative distance from F2SA on all data",
    ),
    "soba_moving": Curve(
        "SOBA, minibatches, moving meta, rates t^(-1/2)",
        "outer steps",
        moving(lambda p: SOBA(_rate(RATE, p)), RATE, RATE, 0.5),
        constant(-0.5),
        log=True,
        bound=True,
        error=SQUARE,
        problems=QUADRATIC,
    ),
    "saba_moving": Curve(
        "SABA, minibatches, moving meta, constant rates",
        "outer steps",
        moving(lambda p: SABA(_rate(RATE, p)), RATE, RATE, batches_of=MEMORY),
        constant(-1.0),
        log=True,
        bound=True,
        error=SQUARE,
        problems=QUADRATIC,
    ),
    "f2sa_moving": Curve(
        "F2SA, all data, moving meta, penalty k^(1/3)",
        "outer steps",
        moving(lambda p: F2SA(5, 10.0, 1 / 3), 0.9, 0.5, stochastic=False),
        constant(-2 / 3),
        log=True,
        bound=True,
        error=SQUARE,
        problems=QUADRATIC,
    ),
    "bome_moving": Curve(
        "BOME, all data, moving meta, rates K^(-1/2)",
        "outer steps K",
        stationarity,
        constant(-0.25),
        log=True,
        bound=True,
        error="least |grad f + lambda grad q|^2 + q",
        problems=QUADRATIC,
    ),
}
