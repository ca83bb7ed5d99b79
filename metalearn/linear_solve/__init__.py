"""The solvers of A x = b on pytrees, with A given as a function, for many systems at once."""

from metalearn.linear_solve.bicgstab import BiCGStab
from metalearn.linear_solve.cg import CG
from metalearn.linear_solve.dense import Dense
from metalearn.linear_solve.gmres import GMRES
from metalearn.linear_solve.jacobi import Jacobi
from metalearn.linear_solve.neumann import Neumann
from metalearn.linear_solve.normal_cg import NormalCG
from metalearn.linear_solve.nystrom import Nystrom
from metalearn.linear_solve.solution import LinearSolver, MatVec, Preconditioner, Solution, Status

__all__ = [
    "CG",
    "GMRES",
    "BiCGStab",
    "Dense",
    "Jacobi",
    "LinearSolver",
    "MatVec",
    "Neumann",
    "NormalCG",
    "Nystrom",
    "Preconditioner",
    "Solution",
    "Status",
]
