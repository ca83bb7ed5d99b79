"""The solvers of nonlinear equations and minima, on (T, N) matrices whose rows are problems.

`solver(function, x0, max_steps)` gives a `Found`. `metalearn.implicit` puts pytrees, arguments and
derivatives around them.
"""

from metalearn.nonlinear_solve.bisection import Bisection
from metalearn.nonlinear_solve.descent import LBFGS, GradientDescent
from metalearn.nonlinear_solve.foreign import run_fixed_point, run_inner
from metalearn.nonlinear_solve.least_squares import GaussNewton, LevenbergMarquardt
from metalearn.nonlinear_solve.newton import Newton
from metalearn.nonlinear_solve.result import Found, NotSolved, SolveStatus

__all__ = [
    "LBFGS",
    "Bisection",
    "Found",
    "GaussNewton",
    "GradientDescent",
    "LevenbergMarquardt",
    "Newton",
    "NotSolved",
    "SolveStatus",
    "run_fixed_point",
    "run_inner",
]
