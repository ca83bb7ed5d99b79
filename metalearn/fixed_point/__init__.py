"""The solvers of z = f(z) on pytrees, for many systems at once."""

from metalearn.fixed_point.anderson import Anderson
from metalearn.fixed_point.broyden import Broyden
from metalearn.fixed_point.newton import NewtonGMRES
from metalearn.fixed_point.picard import Picard
from metalearn.fixed_point.search import FixedPointSolver

__all__ = ["Anderson", "Broyden", "FixedPointSolver", "NewtonGMRES", "Picard"]
