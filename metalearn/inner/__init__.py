"""Inner-loop solvers: each minimises T separate objectives at once.

`solver(objective, params)` gives an `InnerSolution`; `objective` maps params, a dict of (T, ...),
to (T,) values, task by task. Where a tolerance is given, each task stops on its own as soon as the
norm of its gradient is at most that.
"""

from metalearn.inner.backtracking import BacktrackingDescent
from metalearn.inner.first_order import (
    Adam,
    AtRates,
    GradientDescent,
    GradientMethod,
    LoopState,
    StepRates,
)
from metalearn.inner.lbfgs import LBFGS
from metalearn.inner.newton import NewtonCG
from metalearn.inner.solver import InnerSolution, InnerSolver, Objective, value_and_grad

__all__ = [
    "LBFGS",
    "Adam",
    "AtRates",
    "BacktrackingDescent",
    "GradientDescent",
    "GradientMethod",
    "InnerSolution",
    "InnerSolver",
    "LoopState",
    "NewtonCG",
    "Objective",
    "StepRates",
    "value_and_grad",
]
