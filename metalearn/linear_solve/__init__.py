"""Solvers of A x = b on pytrees, A given as a function, many systems at once."""

from metalearn.linear_solve.cg import CG
from metalearn.linear_solve.dense import Dense
from metalearn.linear_solve.solution import LinearSolver, MatVec, Solution, Status

__all__ = ["CG", "Dense", "LinearSolver", "MatVec", "Solution", "Status"]
