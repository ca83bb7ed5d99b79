"""The measurements of a hypergradient's error, each against one number.

Every measurement but those of a moving meta is at a fixed meta. The error is
|h - exact| / |exact|, where h is the method's hypergradient on all data, from params and x that the
method found on its batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from metalearn.bilevel import BOME, F2SA, SABA, Descent, Method, StocBiO
from metalearn.studies.frame.batch_loader import batches
from metalearn.studies.rates.problems import Logistic, Quadratic, full
from metalearn.tree import leaves_of, relative_error

Problem = Quadratic | Logistic
MakeProblem = Callable[..., Problem]
Points = list[tuple[float, float]]
RATE = 0.3
"""The rate of a minibatch's step, in units of 1 / (the largest inner eigenvalue)."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of the measurements.

    Args:
        steps: outer steps of a curve with minibatches or a moving meta.
        replicas: independent runs of which the error is the root mean square.
        batch: examples of a minibatch.
        examples: of each level, where minibatches are drawn.
        seed: of the order of the batches.
    """

    steps: int = 400
    replicas: int = 256
    batch: int = 8
    examples: int = 512
    seed: int = 0


Measure = Callable[[MakeProblem, Sizes], Points]


def descent_on(
    problem: Problem,
    method: Method,
    lr: float,
    sizes: Sizes | None = None,
    outer_lr: float | None = None,
    power: float = 0.0,
    offset: float = 1.0,
) -> Descent:
    """Return a descent on all data, or on minibatches of `sizes`.

    Args:
        lr: the inner rate times the largest inner eigenvalue.
        outer_lr: None: meta is fixed.
        power, offset: both rates fall as (1 + step / offset)^-power.
    """
    loaders = full(problem.inner), full(problem.outer)
    if sizes is not None:
        fixed = isinstance(method, SABA)
        loaders = (
            batches(problem.inner, sizes.batch, 2 * sizes.seed, fixed),
            batches(problem.outer, sizes.batch, 2 * sizes.seed + 1, fixed),
        )
    falling = partial(LambdaLR, lr_lambda=lambda step: (1 + step / offset) ** -power)
    return Descent(
        problem,
        method,
        problem.begin(),
        *loaders,
        partial(SGD, lr=lr / problem.largest),
        None if outer_lr is None else partial(SGD, lr=outer_lr),
        inner_scheduler=falling,
        outer_scheduler=None if outer_lr is None else falling,
    )


def each_step(method: Callable[[Problem], Method], lr: float, share: float) -> Measure:
    """Measure after each outer step, on all data.

    Args:
        share: the contraction of an outer step is 1 - share * least / largest; the error falls from
            exp(-4) to exp(-9) between the first and the last point.
    """

    def measure(make: MakeProblem, sizes: Sizes) -> Points:
        problem = make()
        scale = problem.largest / (share * problem.least)
        descent, found = descent_on(problem, method(problem), lr), []
        exact = problem.exact(problem.begin())
        for step in range(1, round(9 * scale) + 1):
            descent.step()
            if step >= 4 * scale:
                found.append((float(step), _error(descent, problem, exact)))
        return found

    return measure


def each_option(
    method: Callable[[Problem, int], Method], lr: float, values: Sequence[int] | None = None
) -> Measure:
    """Measure the first outer step on all data, for values of an option.

    Args:
        values: None: such that gradient steps of rate 1 / (2 largest) leave exp(-4) to exp(-9).
    """

    def measure(make: MakeProblem, sizes: Sizes) -> Points:
        problem = make()
        scale = 2 * problem.largest / problem.least
        exact, found = problem.exact(problem.begin()), []
        for value in values or [round(n * scale) for n in (4, 5, 6, 7, 8, 9)]:
            step = descent_on(problem, method(problem, value), lr).step()
            found.append((float(value), relative_error(step.grads, exact)))
        return found

    return measure


def on_minibatches(
    method: Callable[[Problem], Method],
    power: float,
    limit: Callable[[Problem], Any] | None = None,
    batches_of: int | None = None,
) -> Measure:
    """Measure along minibatches at a fixed meta, at numbers of steps in equal ratios.

    With power = 1 the rates fall as 1 / (t + offset), and x is t + offset. The offset is such that
    the start is forgotten faster than the noise.

    Args:
        limit: returns the hypergradient that the method converges to; None: the exact one.
        batches_of: the number of batches that the examples make; None: as `sizes` says.
    """

    def measure(make: MakeProblem, sizes: Sizes) -> Points:
        problem = make(sizes.replicas, examples=_examples(sizes, batches_of))
        offset = 3 * problem.largest / (RATE * problem.least)
        descent = descent_on(problem, method(problem), RATE, sizes, power=power, offset=offset)
        exact = limit(problem) if limit else problem.exact(problem.begin())
        wanted, found = _spread(sizes.steps), []
        for step in range(1, sizes.steps + 1):
            descent.step()
            if step in wanted:
                x = step + offset if power else float(step)
                found.append((x, _error(descent, problem, exact)))
        return found

    return measure


def penalised(penalty: float) -> Callable[[Problem], Any]:
    """Return a function to F2SA's hypergradient on all data, with its params converged."""

    def limit(problem: Problem) -> Any:
        one = problem.one_replica()
        found = descent_on(one, F2SA(60, penalty, 0.0), 0.9).step().grads
        return {name: g.expand(problem.replicas, -1) for name, g in found.items()}

    return limit


def batch_sizes(make: MakeProblem, sizes: Sizes) -> Points:
    """Measure stocBiO's error at the inner minimum, for several batch sizes."""
    problem = make(sizes.replicas, examples=sizes.examples)
    exact = problem.exact(problem.begin())
    solved = descent_on(problem, StocBiO(1), 0.9)
    solved.descend_inner(60)
    found = []
    for size in (8, 16, 32, 64):
        method = StocBiO(1, 40, 0.5 / problem.largest)
        # The rate is below rounding, so that the params stay at the minimum.
        descent = descent_on(problem, method, 1e-30, replace(sizes, batch=size))
        with torch.no_grad():
            descent.params["w"].copy_(solved.params["w"])
        descent.step()
        found.append((float(size), _error(descent, problem, exact)))
    return found


def moving(
    method: Callable[[Problem], Method],
    lr: float,
    outer_lr: float,
    power: float = 0.0,
    stochastic: bool = True,
    batches_of: int | None = None,
) -> Measure:
    """Measure the least squared norm of the exact hypergradient so far, while meta moves."""

    def measure(make: MakeProblem, sizes: Sizes) -> Points:
        many = {"replicas": sizes.replicas, "examples": _examples(sizes, batches_of)}
        problem = make(**many) if stochastic else make()
        here = sizes if stochastic else None
        descent = descent_on(problem, method(problem), lr, here, outer_lr, power, 10.0)
        least, found, wanted = math.inf, [], _spread(sizes.steps)
        for step in range(1, sizes.steps + 1):
            descent.step()
            if step in wanted:
                exact = problem.exact({name: x.detach() for name, x in descent.meta.items()})
                square = sum(float(g.square().sum()) for g in leaves_of(exact))
                least = min(least, square / problem.replicas)
                found.append((float(step), least))
        return found

    return measure


def stationarity(make: MakeProblem, sizes: Sizes) -> Points:
    """Measure the least of BOME's |grad f + lambda grad q|^2 + q in K steps at rate K^(-1/2)."""
    found = []
    for steps in sorted({max(2, round(sizes.steps * 2.0**-i)) for i in range(4)}):
        problem, rate, least = make(low=0.5), steps**-0.5, math.inf
        descent = descent_on(problem, BOME(12, 0.9), rate, outer_lr=rate)
        for _ in range(steps):
            before = descent.params["w"].detach().clone()
            step = descent.step()
            square = float(((descent.params["w"].detach() - before) / rate).square().sum())
            least = min(least, square + step.grad_norm**2 + step.metrics["value_gap"])
        found.append((float(steps), least))
    return found


def controls(make: MakeProblem, sizes: Sizes) -> Points:
    """Measure BOME's error at a fixed meta once the params have settled, for several controls."""
    found = []
    for control in (2.0, 4.0, 8.0):
        problem = make(low=0.5)
        descent = descent_on(problem, BOME(12, 0.9, control), 0.15 / control)
        for _ in range(100):
            step = descent.step()
        exact = problem.exact(problem.begin())
        found.append((control, relative_error(step.grads, exact)))
    return found


def fitted_slope(points: Points, log: bool) -> float:
    """Return the least-squares slope of log(error) against x, or against log(x)."""
    x, y = torch.tensor(points, dtype=torch.float64).T
    x = x.log() if log else x
    x, y = x - x.mean(), y.log()
    return float((x * y).sum() / (x * x).sum())


def _error(descent: Descent, problem: Problem, exact: Any) -> float:
    """Return the relative error of the hypergradient on all data."""
    return relative_error(descent.hypergradient(problem.inner, problem.outer), exact)


def _examples(sizes: Sizes, batches_of: int | None) -> int:
    return sizes.examples if batches_of is None else batches_of * sizes.batch


def _spread(steps: int, points: int = 12) -> set[int]:
    """Return whole numbers from steps / 8 to `steps`, in equal ratios."""
    return {round(steps * 8 ** (i / (points - 1) - 1)) for i in range(points)}
