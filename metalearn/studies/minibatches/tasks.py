"""The two tasks: penalties of logistic regression, and weights of mislabelled examples.

They are those of benchmark_bilevel (Dagréou et al. 2022), on made data and on digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from metalearn.inner import LBFGS
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit
from metalearn.problem import FullBatch, Meta
from metalearn.problems.cleaning import Cleaning
from metalearn.problems.stochastic import StochasticProblem
from metalearn.studies.cleaning.data import noisy
from metalearn.studies.rates.problems import TYPE, FeaturePenalties

FEATURES, RELEVANT = 40, 10
DECAY = 0.05
"""The decay of data cleaning; it makes the inner problem strongly convex."""
SOLVER = LBFGS(500, memory=50, tol=1e-8, halvings=40)
BOUNDS = (-12.0, 5.0)
"""The ends of meta's coordinates in the search for the least outer value."""


@dataclass(frozen=True)
class Task:
    """A bilevel problem with all of its data.

    Args:
        problem, meta: the problem, and the meta at which each method begins.
        inner, outer: the data of each level, as batches are made of them.
        outer_unit: the unit of the outer rates of the grid.
    """

    problem: StochasticProblem
    meta: Meta
    inner: Sequence[Tensor]
    outer: Sequence[Tensor]
    outer_unit: float

    def value(self, meta: Meta) -> float:
        """Return the outer value: the outer loss at the inner minimum, on all data."""
        whole, one = FullBatch(self.problem, self.inner, self.outer), range(1)
        params = FirstOrder(SOLVER).adapt(whole, meta, one).params
        return whole.outer_objective(params, meta, one)[0].item()

    def least(self, hypergradients: int) -> float:
        """Return the least outer value that L-BFGS-B finds by exact hypergradients.

        The coordinates of meta stay within `BOUNDS`, where the inner problem is well conditioned.
        Larger penalties, and weights nearer to 1, hardly change the value.
        """
        ((name, start),) = self.meta.items()
        values: list[float] = []
        whole = FullBatch(self.problem, self.inner, self.outer)
        exact = Implicit(SOLVER, CG(500, rtol=1e-10))

        def objective(z: Any) -> tuple[float, Any]:
            meta = {name: torch.from_numpy(z.copy())}
            found = exact(whole, meta, range(1))
            values.append(found.outer_loss.item())
            return values[-1], found.grads[name].numpy()

        most = {"maxfun": hypergradients, "maxiter": hypergradients}
        options: Any = {**most, "ftol": 0.0, "gtol": 0.0}
        bounds = [BOUNDS] * len(start)
        z = start.numpy()
        minimize(objective, z, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        return min(values)


def penalties(examples: int) -> Task:
    """Return the task of penalties on made data: few features are relevant.

    Args:
        examples: of each level.
    """
    g = torch.Generator().manual_seed(0)
    truth = torch.zeros(FEATURES, dtype=TYPE)
    truth[:RELEVANT] = torch.randn(RELEVANT, generator=g, dtype=TYPE)

    def draw() -> tuple[Tensor, Tensor]:
        x = torch.randn(examples, FEATURES, generator=g, dtype=TYPE)
        y = torch.rand(examples, generator=g, dtype=TYPE) < torch.sigmoid(x @ truth)
        return x, y.to(TYPE)

    meta = {"l": torch.zeros(FEATURES, dtype=TYPE)}
    return Task(FeaturePenalties(), meta, draw(), draw(), 10.0)


def cleaning(examples: int) -> Task:
    """Return the task of data cleaning: digits, half of the training labels wrong.

    Args:
        examples: ignored; the digits have 900 training and 450 validation images.
    """
    data = noisy("digits", 0.5, 0, torch.device("cpu"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, data.classes)).to(TYPE)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    problem, count = Cleaning(model, DECAY), len(data.train)
    inner = data.train.x.to(TYPE), data.train.y, torch.arange(count)
    outer = data.validation.x.to(TYPE), data.validation.y
    return Task(problem, problem.begin(count), inner, outer, float(count))


TASKS: dict[str, Callable[[int], Task]] = {"penalties": penalties, "cleaning": cleaning}
