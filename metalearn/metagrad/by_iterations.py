"""Implicit meta-gradients by a name and a number of iterations: what an ablation sweeps over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from metalearn.errors import MAX_FLOAT32, UsageError
from metalearn.inner import InnerSolver
from metalearn.linear_solve import (
    CG,
    Jacobi,
    Neumann,
    Nystrom,
)
from metalearn.metagrad.implicit import Implicit

WAYS: Mapping[str, Callable[[int, float], dict[str, Any]]] = {
    "cg": lambda n, damping: {"linear_solver": CG(n)},
    "gauss_newton": lambda n, damping: {"linear_solver": CG(n), "curvature": "gauss_newton"},
    "damped": lambda n, damping: {"linear_solver": CG(n), "damping": damping},
    "neumann": lambda n, damping: {"linear_solver": Neumann(n)},
    "nystrom": lambda n, damping: {"linear_solver": Nystrom(n, damping, power=0)},
    "nystrom_cg": lambda n, damping: {
        "linear_solver": CG(n, preconditioner=Nystrom(5, damping=1e-3, power=1))
    },
    "jacobi_cg": lambda n, damping: {"linear_solver": CG(n, preconditioner=Jacobi(8))},
    "warm_cg": lambda n, damping: {"linear_solver": CG(n), "warm_start": True},
}
"""`Implicit`'s options by the name of a way, the number of iterations and the damping."""


def implicit_by_iterations(
    inner: InnerSolver, iterations: int, way: str = "cg", damping: float = 0.5
) -> Implicit:
    """`Implicit` with one option for the number of iterations, 0 being the first-order gradient at
    the same inner solution.

    Args:
        iterations: of the way's solver, at least 0; of "nystrom" the rank, one product each.
        way: "cg"; "gauss_newton", CG with that curvature; "damped", CG with `damping` on A's
            diagonal; "neumann"; "nystrom", whose own damping is `damping`; CG preconditioned,
            "nystrom_cg" (10 products more a solve) and "jacobi_cg" (8 more); "warm_cg", begun with
            the mean of the last meta-step's solutions.

    Raises:
        UsageError: an unknown way, or a negative number.
    """
    if way not in WAYS:
        raise UsageError(f"way={way!r} is unknown; expected one of {', '.join(WAYS)}")
    if iterations < 0:
        raise UsageError(f"iterations={iterations}; expected a whole number of at least 0")
    if not 0 < damping <= MAX_FLOAT32:
        raise UsageError(f"damping={damping}; expected a number above 0, up to {MAX_FLOAT32:.1e}")
    if iterations == 0:
        return Implicit(inner, None)
    return Implicit(inner, **WAYS[way](iterations, damping))
