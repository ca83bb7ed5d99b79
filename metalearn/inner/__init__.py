"""The inner-loop solvers, each of which minimises T separate objectives at once.

`solver(objective, params)` gives an `InnerSolution`. `objective` maps params, a dict of (T, ...),
to (T,) values, task by task. With a tolerance, each task stops on its own as soon as the norm of
its gradient is at most the tolerance.
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
from metalearn.inner.solver import (
    InnerPoint,
    InnerSolution,
    InnerSolver,
    Objective,
    value_and_grad,
)

__all__ = [
    "LBFGS",
    "Adam",
    "AtRates",
    "BacktrackingDescent",
    "GradientDescent",
    "GradientMethod",
    "InnerPoint",
    "InnerSolution",
    "InnerSolver",
    "LoopState",
    "NewtonCG",
    "Objective",
    "StepRates",
    "value_and_grad",
]
